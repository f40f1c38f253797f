"""`verify`: reference and engine side by side over the same frames, once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2h_deploy.bundle import Manifest, record_result
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.data.opening import open_dataset
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.parity.bootstrap import FEW_FRAMES, RESAMPLES, draws
from m2h_deploy.parity.gates import GateResult, Gates, Rule, judge
from m2h_deploy.parity.pictures import WorstFrames
from m2h_deploy.parity.reference import Outputs, Reference, open_reference
from m2h_deploy.parity.result import DataInfo, Side, VerifyResult, to_json
from m2h_deploy.parity.tasks import TaskComparison, check_classes
from m2h_deploy.parity.tensors import TensorComparison, TensorResult
from m2h_deploy.postprocess import Postprocess, Prediction
from m2h_deploy.preprocess import preprocess_for
from m2h_deploy.runtime import Runtime
from m2h_deploy.sensor import bgr_to_nv12, nv12_to_bgr

#: Called after each frame with how many are done and how many there will be.
Progress = Callable[[int, int], None]


def verify(
    bundle_path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    gates: Gates | None = None,
    limit: int | None = None,
    split: str = "val",
    data_name: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    pictures: int = 2,
    resamples: int = RESAMPLES,
    allow_other_weights: bool = False,
    record: bool = True,
    progress: Progress | None = None,
) -> VerifyResult:
    """Compare the engine of a bundle with its reference on data, and judge it by `gates`.

    ```python
    result = verify("bundle/", "m2h_indoor.pt", "NYUDv2")
    result.passed, result.summary
    ```

    Both sides see the same preprocessed input and pass the same postprocessing. A sensor bundle does both itself, so
    there finished predictions are compared: of depth, normals and edges also value by value. Predictions are evaluated
    at the images' own size, in the data's label convention. A task that the data has no labels of is measured against
    the reference's own prediction; a task that the engine does not have is left out.

    Args:
        bundle_path: the bundle's folder.
        reference: a checkpoint, the name of shipped weights, or the float32 .onnx file of m2h-deploy export.
        data: a data set, or the path of one (see `open_dataset`).
        gates: the limits; `Gates()` when None.
        limit: use this many frames, spread evenly over the data, because neighbours in a data set are alike.
        split: of a data set that is opened from a path.
        data_name: what to call the data in the result; its folder's name by default.
        threads: CPU threads of the engine.
        device: device of the engine, where its kind has several.
        pictures: keep pictures of this many worst frames a task.
        resamples: of the bootstrap.
        allow_other_weights: compare although the bundle was built from other weights.
        record: write the result into the bundle's manifest. It happens at the end: an interrupted run leaves the
            bundle as it was.
        progress: called after each frame.

    Raises:
        M2HError: a bundle, a reference or data that is broken or does not fit. A failed gate raises nothing; see
            `VerifyResult.passed`.
    """
    gates = gates or Gates()
    name = data_name or _name_of(data)
    source = open_dataset(Path(data), split) if isinstance(data, (str, os.PathLike)) else data
    runtime = Runtime.load(bundle_path, self_test=False, threads=threads, device=device)
    with runtime:
        baseline = open_reference(reference, runtime.manifest.network_input)
        _check_pair(runtime, baseline, str(reference), allow_other_weights=allow_other_weights)
        indices = _spread(len(source), limit, name)
        tests = _self_test(runtime)
        comparison = _Comparison.over(runtime, baseline, _frames(source, indices, progress), source, pictures)
        engine = Side(runtime.backend.description, runtime.manifest.model.weights_sha256)
    weights = draws(len(indices), resamples)
    tensors = tuple(tensor.result(weights) for tensor in comparison.tensors)
    measured = [task.result(weights, gates) for task in comparison.tasks]
    result = VerifyResult(
        bundle=runtime.bundle.path.name or str(runtime.bundle.path),
        precision=runtime.manifest.engine.precision,
        reference=Side(baseline.description, baseline.weights_sha256),
        engine=engine,
        data=DataInfo(name, len(indices), len(source), tuple(sorted(comparison.derived))),
        tensors=tensors,
        tasks=tuple(task for task, _ in measured),
        limits=gates,
        gates=(
            *tests,
            *(gate for _, judged in measured for gate in judged),
            *(_psnr_gate(tensor, gates.psnr) for tensor in tensors if gates.psnr is not None),
            *_frames_gate(len(indices)),
        ),
        worst=comparison.worst.result(),
    )
    if record:
        record_result(runtime.bundle, parity=to_json(result))
    return result


def _frames_gate(frames: int) -> tuple[GateResult, ...]:
    """Few frames have intervals too narrow to rely on, so what passes on them is a first look and not a pass."""
    if frames >= FEW_FRAMES:
        return ()
    message = f"{frames} frames are a first look: at least {FEW_FRAMES} are needed to pass"
    return (GateResult("frames", None, "unsure", float(frames), None, float(FEW_FRAMES), "frames", message),)


def _psnr_gate(tensor: TensorResult, limit: float) -> GateResult:
    rule = Rule(f"{tensor.output}.psnr", tensor.output, f"{tensor.output} PSNR", "dB", at_least=True)
    gate = judge(rule, limit, tensor.psnr, tensor.psnr_interval)
    if not tensor.nonfinite:
        return gate
    message = f"{tensor.output}: {tensor.nonfinite} values of the engine are not finite numbers"
    return dataclasses.replace(gate, verdict="fail", message=message)


def _name_of(data: Dataset | str | os.PathLike[str]) -> str:
    return Path(data).resolve().name if isinstance(data, (str, os.PathLike)) else type(data).__name__


def _check_pair(runtime: Runtime, reference: Reference, name: str, *, allow_other_weights: bool) -> None:
    """Raises M2HError when the two sides cannot be compared."""
    built = runtime.manifest.model.weights_sha256
    if built != reference.weights_sha256 and not allow_other_weights:
        raise M2HError(
            f"{runtime.bundle.path} was built from weights {built[:12]}, {name} holds {reference.weights_sha256[:12]}: "
            "give the checkpoint the bundle was built from"
        )
    absent = [task for task in runtime.manifest.tasks if task not in reference.tasks]
    if absent:
        raise M2HError(f"{name} has no {', '.join(absent)}, the engine has: export the reference with all tasks")


def _spread(available: int, limit: int | None, name: str) -> list[int]:
    if not available:
        raise M2HError(f"{name} has no frames")
    if limit is not None and limit < 1:
        raise M2HError(f"limit {limit}: must be at least 1")
    count = available if limit is None else min(limit, available)
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]


def _frames(source: Dataset, indices: list[int], progress: Progress | None) -> Iterator[Frame]:
    """The frames; `progress` hears of one when the next is asked for, that is when it is done."""
    for done, index in enumerate(indices, start=1):
        yield source[index]
        if progress is not None:
            progress(done, len(indices))


def _self_test(runtime: Runtime) -> tuple[GateResult, ...]:
    """The bundle's golden self-test as a gate: a bundle that fails it is still measured."""
    test = runtime.manifest.self_test
    if test is None:
        return ()
    message = "the golden self-test passed"
    try:
        runtime.self_test()
        passed = True
    except CheckFailed as error:
        passed, message = False, str(error)
    return (GateResult("self_test", None, "pass" if passed else "fail", None, None, None, "", message),)


@dataclass
class _Comparison:
    """What one pass over the frames adds up."""

    tensors: list[TensorComparison]
    tasks: list[TaskComparison]
    worst: WorstFrames
    derived: set[str]

    @classmethod
    def over(
        cls, runtime: Runtime, reference: Reference, frames: Iterator[Frame], source: Dataset, pictures: int
    ) -> _Comparison:
        manifest = runtime.manifest
        # Labels have no distance: of a sensor graph's, the task's own figures tell.
        names = [task for task in manifest.tasks if manifest.sensor is None or task != "semantics"]
        self = cls([TensorComparison(n) for n in names], [], WorstFrames(manifest.classes, pictures), set())
        sides = _Plain(runtime, reference) if manifest.sensor is None else _Sensor(runtime, reference)
        for frame in frames:
            self.derived |= frame.derived
            if not self.tasks:
                self.tasks = _task_comparisons(manifest, frame, source)
            before, expected, after, given, bad = sides.both(frame)
            for comparison in self.tensors:
                name = comparison.output
                comparison.add(expected[name], given[name], bad[name])
            for task in self.tasks:
                task.add(frame, before, after)
                self.worst.add(task.task, frame.name, frame.image, before, after)
        return self


def _task_comparisons(manifest: Manifest, frame: Frame, source: Dataset) -> list[TaskComparison]:
    """One comparison a task of the engine, against the labels where the first frame has them."""
    if frame.semantics is not None and "semantics" in manifest.tasks:
        check_classes(source.class_names, manifest.classes)
    return [
        TaskComparison(
            task,
            "labels" if getattr(frame, task) is not None else "reference",
            manifest.classes,
            derived=task in frame.derived,
        )
        for task in manifest.tasks
    ]


#: Of one frame: the reference's prediction and tensors, the engine's, and how many of its values were not finite.
_Both = tuple[Prediction, Outputs, Prediction, Outputs, dict[str, int]]


class _Plain:
    """The network's outputs on one preprocessed tensor, and what postprocess makes of each."""

    def __init__(self, runtime: Runtime, reference: Reference) -> None:
        self._runtime, self._reference = runtime, reference

    def both(self, frame: Frame) -> _Both:
        runtime = self._runtime
        tensor = runtime.preprocess(frame.image)
        outputs = self._reference.run(tensor)
        expected = {task: outputs[task][0] for task in runtime.manifest.tasks}
        batch = runtime.manifest.input.batch or 1
        raw = runtime.backend.run(np.repeat(tensor, batch, axis=0) if batch > 1 else tensor)
        given, bad = _finite({name: np.asarray(value[0], np.float32) for name, value in raw.items()})
        before = runtime.postprocess(expected, frame.height, frame.width)
        return before, expected, runtime.postprocess(given, frame.height, frame.width), given, bad


class _Sensor:
    """The reference between Python's preprocess and postprocess, and the finished results of a sensor graph.

    Where the graph takes NV12, the reference sees the colours that NV12 left.
    """

    def __init__(self, runtime: Runtime, reference: Reference) -> None:
        self._runtime, self._reference = runtime, reference
        self._preprocess = preprocess_for(runtime.manifest.network_input)
        self._postprocess = Postprocess(runtime.manifest.depth_range)

    def both(self, frame: Frame) -> _Both:
        manifest = self._runtime.manifest
        image = frame.image
        after = self._runtime(image)
        if manifest.input.layout == "NV12":
            image = nv12_to_bgr(bgr_to_nv12(image))
        outputs = self._reference.run(self._preprocess(image))
        kept = {task: outputs[task][0] for task in manifest.tasks}
        before = self._postprocess(kept, frame.height, frame.width)
        given, bad = _finite(_maps(after))
        return before, _maps(before), dataclasses.replace(after, **_arrays(given)), given, bad


def _maps(prediction: Prediction) -> Outputs:
    """Depth, normals and edges of a prediction with the channels first."""
    maps = {"depth": prediction.depth, "edges": prediction.edges}
    found = {name: value[None] for name, value in maps.items() if value is not None}
    if prediction.normals is not None:
        found["normals"] = np.ascontiguousarray(prediction.normals.transpose(2, 0, 1))
    return found


def _arrays(maps: Outputs) -> dict[str, Any]:
    """Inverse of `_maps`: what a prediction holds."""
    return {
        name: np.ascontiguousarray(value.transpose(1, 2, 0)) if name == "normals" else value[0]
        for name, value in maps.items()
    }


def _finite(outputs: Outputs) -> tuple[Outputs, dict[str, int]]:
    """Outputs without NaN and infinity, and how many values of each were: FP16 that overflows is what a parity run is
    for, so it is counted and the rest is measured."""
    bad = {name: int(np.count_nonzero(~np.isfinite(value))) for name, value in outputs.items()}
    finite = {n: np.nan_to_num(v, nan=0.0, posinf=0.0, neginf=0.0) if bad[n] else v for n, v in outputs.items()}
    return finite, bad
