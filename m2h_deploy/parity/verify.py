"""Compare reference and engine on the same frames and judge the differences by gates."""

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

#: Finds the first diverging block of a bundle's engine with respect to a reference.
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

    Both sides get the same preprocessed input and the same postprocessing. A sensor bundle includes both, so its final
    predictions are compared: depth, normals and edges also value by value. Predictions are evaluated at the images' own
    size, in the data's label convention. A task without labels in the data is measured against the reference's own
    prediction, and its figure is the engine's agreement with it; a task that the engine does not have is left out.

    Args:
        bundle_path: The bundle's folder.
        reference: A checkpoint, the name of shipped weights, or the float32 .onnx file of m2h-deploy export.
        data: A data set, or the path of one (see `open_dataset`).
        gates: The limits; `Gates()` if None.
        limit: Use this many frames, spread evenly over the data, because neighbors in a data set are alike.
        split: Split of a data set that is opened from a path.
        pictures: Keep pictures of this many worst frames per task.
        resamples: Number of bootstrap resamples.
        allow_other_weights: Compare even if the bundle was built from other weights.
        executor: Measures the frames; `LocalExecutor()` if None.
        locate: Also find the first diverging block: `export.locate_difference`, or without torch `locate_in_bundle` for
            a reference in ONNX.
        record: Write the result into the bundle's manifest at the end: an interrupted run leaves the bundle unchanged.
        progress: Called as frames are done.
        notice: Called with a line about each file that is not used.
        on_result: Called with the result as soon as it exists: before locating, which is slow, and again after it, and
            before recording, so that a full disk does not lose the result.

    Raises:
        M2HError: The bundle, the reference or the data is damaged, or they do not fit. A failed gate raises nothing;
            see `VerifyResult.passed`.
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
    """Return a gate that is unsure with few frames, whose intervals are too narrow to rely on."""
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
    """Return the name of `data` for a result."""
    return printable(Path(data).resolve().name) if isinstance(data, (str, os.PathLike)) else type(data).__name__


def spread(available: int, limit: int | None, name: str) -> list[int]:
    """Return `limit` indices spread evenly over `available` frames, all by default. Raises M2HError without frames."""
    if not available:
        raise M2HError(f"{name} has no frames")
    if limit is not None and limit < 1:
        raise M2HError(f"limit {limit}: must be at least 1")
    count = available if limit is None else min(limit, available)
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]
