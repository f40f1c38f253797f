"""`verify`: reference and engine side by side over the same frames, once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from m2h_deploy.bundle.folder import Bundle, check_recordable, load_bundle, record_result
from m2h_deploy.data.frame import Dataset
from m2h_deploy.data.open import open_dataset
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import printable
from m2h_deploy.parity.bootstrap import FEW_FRAMES, RESAMPLES, draws
from m2h_deploy.parity.executor import Executor, LocalExecutor, Measured, Progress, Request
from m2h_deploy.parity.frames import Comparison, choose_targets
from m2h_deploy.parity.gates import GateResult, Gates, Rule, judge
from m2h_deploy.parity.locate import LocateResult
from m2h_deploy.parity.result import DataInfo, VerifyResult, to_json
from m2h_deploy.parity.tensors import TensorResult

#: Finds the first diverging block of a bundle's engine beside a reference.
Locate = Callable[[Bundle, str], LocateResult]


def verify(
    bundle_path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    gates: Gates | None = None,
    limit: int | None = None,
    split: str = "val",
    pictures: int = 2,
    resamples: int = RESAMPLES,
    allow_other_weights: bool = False,
    executor: Executor | None = None,
    locate: Locate | None = None,
    record: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    on_result: Callable[[VerifyResult], None] | None = None,
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
        pictures: keep pictures of this many worst frames a task.
        resamples: of the bootstrap.
        allow_other_weights: compare although the bundle was built from other weights.
        executor: who measures the frames; `LocalExecutor()` when None.
        locate: also find the first diverging block: `export.locate_difference`, or without torch `locate_in_bundle`
            for a reference in ONNX.
        record: write the result into the bundle's manifest, at the end: an interrupted run leaves the bundle as it was.
        progress: called as frames are done.
        notice: called with a line about each file that is not used.
        on_result: called with the result as soon as there is one: before locating, which takes long, and again after
            it, and before recording, so that a full disk costs no result.

    Raises:
        M2HError: a bundle, a reference or data that is broken or does not fit. A failed gate raises nothing; see
            `VerifyResult.passed`.
    """
    tell = notice or (lambda _: None)
    bundle = load_bundle(bundle_path)
    if record:
        check_recordable(bundle)
    path = Path(data) if isinstance(data, (str, os.PathLike)) else None
    source = open_dataset(path, split) if path is not None else cast(Dataset, data)
    for reason in getattr(source, "skipped", ()):
        tell(reason)
    indices = spread(len(source), limit, name_of(data))
    targets = choose_targets(bundle.manifest, source[indices[0]], source)
    request = Request(bundle, str(reference), source, path, split, indices, targets, pictures, allow_other_weights)
    measured = (executor or LocalExecutor()).measure(request, progress)
    result = _conclude(request, measured, name_of(data), gates or Gates(), resamples)
    recorded = to_json(result)
    if on_result is not None:
        on_result(result)
    if locate is not None:
        result = dataclasses.replace(result, located=locate(bundle, str(reference)))
        if on_result is not None:
            on_result(result)
    if record:
        record_result(bundle, parity=recorded)
    return result


def _conclude(request: Request, measured: Measured, name: str, gates: Gates, resamples: int) -> VerifyResult:
    """Add up the records, with intervals, and judge the figures by `gates`."""
    bundle, sides = request.bundle, measured.sides
    comparison = Comparison.of(bundle.manifest, request.targets, measured.records)
    data = DataInfo(name, len(measured.records), len(request.data), tuple(sorted(comparison.derived)))
    weights = draws(data.frames, resamples)
    tensors = tuple(tensor.result(weights) for tensor in comparison.tensors)
    tasks = [task.result(weights, gates) for task in comparison.tasks]
    return VerifyResult(
        bundle=printable(bundle.path.name or str(bundle.path)),
        precision=bundle.manifest.engine.precision,
        reference=sides.reference,
        engine=sides.engine,
        data=data,
        tensors=tensors,
        tasks=tuple(task for task, _ in tasks),
        limits=gates,
        gates=(
            *sides.self_test,
            *(gate for _, judged in tasks for gate in judged),
            *(_psnr_gate(tensor, gates.psnr, data.frames) for tensor in tensors if gates.psnr is not None),
            *_frames_gate(data.frames),
        ),
        worst=measured.worst,
    )


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


def spread(available: int, limit: int | None, name: str) -> list[int]:
    """`limit` indices spread evenly over `available` frames, all of them by default. Raises M2HError on none."""
    if not available:
        raise M2HError(f"{name} has no frames")
    if limit is not None and limit < 1:
        raise M2HError(f"limit {limit}: must be at least 1")
    count = available if limit is None else min(limit, available)
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]
