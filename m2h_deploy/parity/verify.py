"""Compare reference and engine on the same frames and judge the differences by gates."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from m2h_deploy.bundle.folder import Bundle, check_recordable, load_bundle, record_result
from m2h_deploy.data.frame import Dataset
from m2h_deploy.data.open import open_dataset
from m2h_deploy.data.subset import spread
from m2h_deploy.files.atomic import printable
from m2h_deploy.label_spaces.data import map_dataset
from m2h_deploy.metrics.bootstrap import FEW_FRAMES, RESAMPLES, draws
from m2h_deploy.parity.executor import Executor, LocalExecutor, Measured, Progress, Request
from m2h_deploy.parity.frames import Comparison, choose_targets
from m2h_deploy.parity.gates import GateResult, Gates, Rule, judge
from m2h_deploy.parity.locate import LocateResult, check_locatable
from m2h_deploy.parity.result import DataInfo, VerifyResult, to_json
from m2h_deploy.parity.tensors import TensorResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("m2h_deploy.parity.verify")

#: Finds the first diverging block of a bundle's engine with respect to a reference.
Locate = Callable[[Bundle, str], LocateResult]


class VerifyKeywords(TypedDict, total=False):
    """The options of `verify` as keywords: the fields of `VerifyOptions`."""

    gates: Gates
    limit: int | None
    split: str
    pictures: int
    resamples: int
    allow_other_weights: bool
    record: bool
    calibrated: bool


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a comparison: frames, gates and records."""

    gates: Gates = field(default_factory=Gates)
    """The limits."""
    limit: int | None = None
    """Use this many frames, spread evenly over the data, because neighbors in a data set are alike; None: all."""
    split: str = "val"
    """Split of a data set that is opened from a path."""
    pictures: int = 2
    """Keep pictures of this many worst frames per task."""
    resamples: int = RESAMPLES
    """Number of bootstrap resamples."""
    allow_other_weights: bool = False
    """Compare even if the bundle was built from other weights."""
    record: bool = False
    """Write the result into the bundle's manifest at the end: an interrupted run leaves the bundle unchanged."""
    calibrated: bool = False
    """Apply the bundle's depth calibration, to both sides; by default depth is the network's own."""


def verify(
    bundle_path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    locate: Locate | None = None,
    progress: Progress | None = None,
    on_result: Callable[[VerifyResult], None] | None = None,
    **options: Unpack[VerifyKeywords],
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
        executor: Measures the frames; `LocalExecutor()` if None.
        locate: Also find the first diverging block: `export.locate_difference`, or without torch `locate_in_bundle` for
            a reference in ONNX.
        progress: Called as frames are done.
        on_result: Called with the result as soon as it exists: before locating, which is slow, and again after it, and
            before recording, so that a full disk does not lose the result.
        options: The fields of `VerifyOptions`.

    Raises:
        M2HError: The bundle, the reference or the data is damaged, or they do not fit. A failed gate raises nothing;
            see `VerifyResult.passed`.
    """
    chosen, bundle = VerifyOptions(**options), load_bundle(bundle_path)
    if chosen.record:
        check_recordable(bundle)
    if locate is not None:
        check_locatable(bundle)
    request = _request(bundle, str(reference), data, chosen)
    measured = (executor or LocalExecutor()).measure(request, progress)
    result = _conclude(request, measured, name_of(data), chosen.gates, chosen.resamples)
    recorded = to_json(result)
    if on_result is not None:
        on_result(result)
    if locate is not None:
        result = dataclasses.replace(result, located=locate(bundle, str(reference)))
        if on_result is not None:
            on_result(result)
    if chosen.record:
        record_result(bundle, parity=recorded)
    return result


def _request(bundle: Bundle, reference: str, data: Dataset | str | os.PathLike[str], options: VerifyOptions) -> Request:
    """Open the data, warn of files in it that are not used, and choose the frames and what they are judged by."""
    path = Path(data) if isinstance(data, (str, os.PathLike)) else None
    source = open_dataset(path, options.split) if path is not None else cast(Dataset, data)
    for reason in getattr(source, "skipped", ()):
        _log.warning(reason)
    if "semantics" in bundle.manifest.tasks:
        source = map_dataset(source, bundle.manifest.classes, bundle.manifest.label_map)
    indices = spread(len(source), options.limit, name_of(data))
    return Request(
        bundle,
        reference,
        source,
        path,
        options.split,
        indices,
        choose_targets(bundle.manifest, source[indices[0]], source),
        options.pictures,
        options.allow_other_weights,
        options.calibrated,
    )


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
    if isinstance(data, (str, os.PathLike)):
        return printable(Path(data).resolve().name)
    return printable(getattr(data, "name", type(data).__name__))
