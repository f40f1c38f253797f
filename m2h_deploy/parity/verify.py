"""`verify`: reference and engine side by side over the same frames, once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m2h_deploy.bundle.folder import Bundle, record_result
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.data.open import open_dataset
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.atomic import printable
from m2h_deploy.parity.bootstrap import FEW_FRAMES, RESAMPLES, draws
from m2h_deploy.parity.frames import Comparison, FrameRecord, Measurer, choose_targets
from m2h_deploy.parity.gates import GateResult, Gates, Rule, judge
from m2h_deploy.parity.pictures import WorstFrame, WorstFrames
from m2h_deploy.parity.reference import Reference, open_reference
from m2h_deploy.parity.result import DataInfo, Side, VerifyResult, to_json
from m2h_deploy.parity.tensors import TensorResult
from m2h_deploy.runtime.runtime import Runtime

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
    the reference's own prediction, and its figure is the engine's agreement with it; a task that the engine does not
    have is left out.

    Args:
        bundle_path: the bundle's folder.
        reference: a checkpoint, the name of shipped weights, or the float32 .onnx file of m2h-deploy export.
        data: a data set, or the path of one (see `open_dataset`).
        gates: the limits; `Gates()` when None.
        limit: use this many frames, spread evenly over the data, because neighbors in a data set are alike.
        split: of a data set that is opened from a path.
        data_name: what to call the data in the result; its folder's name by default.
        threads: CPU threads of the engine, and of a reference in ONNX.
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
    name = data_name or name_of(data)
    source = open_dataset(Path(data), split) if isinstance(data, (str, os.PathLike)) else data
    with Runtime.load(bundle_path, self_test=False, threads=threads, device=device) as runtime:
        baseline = open_reference(reference, runtime.manifest.network_input, threads)
        check_pair(runtime, baseline, str(reference), allow_other_weights=allow_other_weights)
        indices = spread(len(source), limit, name)
        sides = describe(runtime, baseline)
        targets = choose_targets(runtime.manifest, source[indices[0]], source)
        worst = WorstFrames(runtime.manifest.classes, pictures)
        records = _records(Measurer(runtime, baseline, targets), _frames(source, indices, progress), worst)
        comparison = Comparison.of(runtime.manifest, targets, records)
    info = DataInfo(name, len(indices), len(source), tuple(sorted(comparison.derived)))
    result = conclude(runtime.bundle, sides, comparison, info, gates, resamples=resamples, worst=worst.result())
    if record:
        record_result(runtime.bundle, parity=to_json(result))
    return result


@dataclass(frozen=True)
class Sides:
    """What was run on both sides, and whether the engine passed its bundle's self-test."""

    reference: Side
    engine: Side
    self_test: tuple[GateResult, ...]


def describe(runtime: Runtime, reference: Reference) -> Sides:
    """Names both sides and runs the self-test: a bundle that fails it is still measured."""
    return Sides(
        Side(reference.description, reference.weights_sha256),
        Side(runtime.backend.description, runtime.manifest.model.weights_sha256),
        _self_test(runtime),
    )


def conclude(
    bundle: Bundle,
    sides: Sides,
    comparison: Comparison,
    data: DataInfo,
    gates: Gates,
    *,
    resamples: int = RESAMPLES,
    worst: tuple[WorstFrame, ...] = (),
) -> VerifyResult:
    """The figures of all frames with their intervals, judged by `gates`."""
    weights = draws(data.frames, resamples)
    tensors = tuple(tensor.result(weights) for tensor in comparison.tensors)
    measured = [task.result(weights, gates) for task in comparison.tasks]
    return VerifyResult(
        bundle=printable(bundle.path.name or str(bundle.path)),
        precision=bundle.manifest.engine.precision,
        reference=sides.reference,
        engine=sides.engine,
        data=data,
        tensors=tensors,
        tasks=tuple(task for task, _ in measured),
        limits=gates,
        gates=(
            *sides.self_test,
            *(gate for _, judged in measured for gate in judged),
            *(_psnr_gate(tensor, gates.psnr, data.frames) for tensor in tensors if gates.psnr is not None),
            *_frames_gate(data.frames),
        ),
        worst=worst,
    )


def _records(measurer: Measurer, frames: Iterator[Frame], worst: WorstFrames) -> Iterator[FrameRecord]:
    """The measurements of each frame, and pictures of the worst."""
    for frame in frames:
        both = measurer.both(frame)
        record = measurer.record(frame, both)
        for task, mean in record.differences.items():
            worst.add(task, frame, both.before, both.after, mean)
        yield record


def _frames_gate(frames: int) -> tuple[GateResult, ...]:
    """Few frames have intervals too narrow to rely on, so they are inconclusive whatever they show."""
    if frames >= FEW_FRAMES:
        return ()
    count = f"{frames} frame is" if frames == 1 else f"{frames} frames are"
    message = f"{count} inconclusive: at least {FEW_FRAMES} are needed to pass"
    return (
        GateResult("frames", None, "unsure", float(frames), None, float(FEW_FRAMES), "frames", message, FEW_FRAMES),
    )


def _psnr_gate(tensor: TensorResult, limit: float, frames: int) -> GateResult:
    rule = Rule(f"{tensor.output}.psnr", tensor.output, f"{tensor.output} PSNR", "dB", at_least=True)
    gate = judge(rule, limit, tensor.psnr, tensor.psnr_interval, frames)
    if not tensor.nonfinite:
        return gate
    message = f"{tensor.output}: {tensor.nonfinite} values of the engine are not finite numbers"
    return dataclasses.replace(gate, verdict="fail", message=message)


def name_of(data: Dataset | str | os.PathLike[str]) -> str:
    """What to call `data` in a result."""
    return printable(Path(data).resolve().name) if isinstance(data, (str, os.PathLike)) else type(data).__name__


def check_pair(runtime: Runtime, reference: Reference, name: str, *, allow_other_weights: bool) -> None:
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


def spread(available: int, limit: int | None, name: str) -> list[int]:
    """`limit` indices spread evenly over `available` frames, all of them by default. Raises M2HError on none."""
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
