"""Run the frame loop: read a source, predict on each frame, write the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import OutOfMemoryError, enough_memory
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.sinks import Sink
from m2h_deploy.sinks.files import all_finite
from m2h_deploy.sources.source import Item, Skipped, Source, SourceFrame
from m2h_deploy.temporal.filter import TemporalFilter

#: Function of one frame and its prediction, such as `Sink.add`.
Write = Callable[[SourceFrame, Prediction], None]


@dataclass(frozen=True)
class FrameOutcome:
    """Outcome of one item of a source."""

    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why a file was skipped (it is not a picture) or a frame has no result."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each stage of a finished frame."""


@dataclass(frozen=True)
class PredictSummary:
    """Outcome of the frames of a source."""

    read: int
    """Number of finished and failed frames, without skipped files."""
    failed: tuple[str, ...]
    """The reason of each frame without a result."""
    interrupted: bool
    """Whether Ctrl-C ended the loop."""
    timings: dict[str, Any]
    """See `timing_summary`."""


def predict_source(
    runtime: Runtime,
    source: Source,
    sinks: Sequence[Sink],
    *,
    temporal: TemporalFilter | None = None,
    limit: int | None = None,
    progress: Callable[[FrameOutcome], None] | None = None,
) -> PredictSummary:
    """Predict on the frames of `source` until it ends, `limit` frames are read, a sink has enough, or Ctrl-C.

    Args:
        runtime: The engine.
        source: The source of the frames.
        sinks: Each gets every frame that has a result; closing them is left to the caller.
        temporal: Fuses each prediction with the ones before, by the poses of the source's frames.
        limit: Stop after this many frames.
        progress: Called with the outcome of each item.

    Raises:
        M2HError: A sink cannot write, or a source ends with an error. A frame without a result raises nothing.
    """
    timings: list[dict[str, float]] = []
    failed: list[str] = []
    interrupted = False
    try:
        for item in source.read():
            outcome = predict_item(runtime, item, [sink.add for sink in sinks], temporal)
            if outcome.status == "done":
                timings.append(outcome.timings)
            elif outcome.status == "failed":
                failed.append(outcome.reason)
            if progress is not None:
                progress(outcome)
            enough = limit is not None and len(timings) + len(failed) >= limit
            if enough or not all(sink.wanted for sink in sinks):
                break
    except KeyboardInterrupt:
        interrupted = True
    return PredictSummary(len(timings) + len(failed), tuple(failed), interrupted, timing_summary(timings))


def predict_item(
    runtime: Runtime, item: Item, writes: Iterable[Write], temporal: TemporalFilter | None = None
) -> FrameOutcome:
    """Predict on one item of a source and write the result.

    A frame fails if it cannot be read, the engine rejects it or gives NaN or infinity, or memory runs out. Errors of
    `writes` are passed on.
    """
    if isinstance(item, Skipped):
        return FrameOutcome("skipped", item.reason)
    if isinstance(item, M2HError):
        return FrameOutcome("failed", str(item))
    height, width = item.image.shape[:2]
    try:
        with enough_memory(f"{item.name}, {width} x {height} pixels"):
            try:
                prediction = runtime(item.image)
            except M2HError as error:
                text = str(error)
                return FrameOutcome("failed", text if item.name in text else f"{item.name}: {text}")
            if not all_finite(prediction, runtime.tasks):
                return FrameOutcome("failed", f"{item.name}: the engine gave NaN or infinity")
            if temporal is not None:
                prediction = temporal(prediction, item.pose, item.timestamp or 0.0)
            for write in writes:
                write(item, prediction)
    except OutOfMemoryError as error:
        return FrameOutcome("failed", str(error))
    return FrameOutcome("done", timings=prediction.timings)


def timing_summary(timings: list[dict[str, float]]) -> dict[str, Any]:
    """Count the frames and average the milliseconds of each stage.

    The first frame warms up the engine: it is excluded unless it is the only one.

    Returns:
        `frames`, the mean of each stage as `<stage>_ms`, and `frames_per_second`; without frames, only `frames`.
    """
    steady = timings[1:] or timings
    if not steady:
        return {"frames": 0}
    # The temporal filter has no time for a frame without a pose.
    stages = dict.fromkeys(stage for timing in steady for stage in timing)
    means = {f"{stage}_ms": sum(t.get(stage, 0.0) for t in steady) / len(steady) for stage in stages}
    return {"frames": len(timings), **means, "frames_per_second": 1000 / sum(means.values())}
