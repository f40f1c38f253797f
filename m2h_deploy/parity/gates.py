"""Gates of a parity run: limits on the difference between reference and engine, and how they are judged."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.bootstrap import FEW_FRAMES, Interval

Verdict = Literal["pass", "fail", "unsure"]


@dataclass(frozen=True)
class Gates:
    """Limits, each on how much worse than the reference the engine may be. None disables a gate.

    A gate is judged by the 95 % interval of its figure (a paired bootstrap over frames), not by the measured figure
    alone, because the frames are a sample of what the robot will see:

    - `pass`: the whole interval is within the limit;
    - `fail`: the whole interval is beyond it;
    - `unsure`: the limit lies inside the interval, so there are too few frames to decide. It does not count as passed,
      since a gate has to prove something; more frames narrow the interval.

    The interval is paired: reference and engine see the same resampled frames, so common effects (hard and easy frames)
    cancel. One frame has no interval. Fewer than 8 frames have intervals that are too narrow: they are inconclusive and
    can fail but not pass.

    If the data has no labels of a task, the reference's own prediction replaces them, and the same limits bound the
    disagreement: mIoU against the reference's classes, RMSE as a share of the reference's root mean square depth, the
    mean angle to the reference's normals, odsF against the reference's thinned boundaries. For depth and normals this
    bounds the loss on labels: by the triangle inequality no label makes it larger.
    """

    miou_drop: float | None = 0.5
    """Percentage points of mIoU."""
    rmse_increase: float | None = 1.0
    """Percent of the reference's RMSE."""
    merr_increase: float | None = 0.3
    """Degrees of mean angular error."""
    odsf_drop: float | None = 0.5
    """Percentage points of odsF."""
    psnr: float | None = 30.0
    """Minimum PSNR of every raw output, dB."""

    def __post_init__(self) -> None:
        for name, limit in dataclasses.asdict(self).items():
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise M2HError(f"gate {name} is {limit}: must be a number, at least 0")


@dataclass(frozen=True)
class GateResult:
    """Result of one gate: the measured value, its interval, the limit and the verdict."""

    name: str
    """`semantics.miou_drop`, `depth.psnr`, `self_test`."""
    task: str | None
    verdict: Verdict
    value: float | None
    interval: Interval | None
    limit: float | None
    unit: str
    message: str
    """Explanation in one line."""
    frames_needed: int | None = None
    """For an unsure gate: estimated number of frames that decide it; None if it cannot be estimated."""


@dataclass(frozen=True)
class Rule:
    """Description of a gate: its name, its text, its unit and whether larger is better."""

    name: str
    task: str
    words: str
    unit: str
    at_least: bool = False


def judge(rule: Rule, limit: float, value: float, interval: Interval, frames: int | None = None) -> GateResult:
    """Judge a measured `value` with its `interval` (low, high), both in the gate's unit.

    Larger is worse, or better if `rule.at_least`. NaN (nothing was labeled) is unsure. With `frames`, the number of
    measured frames, an unsure gate estimates how many are likely to be enough.
    """
    low, high = interval
    worst, best = (low, high) if rule.at_least else (high, low)

    def within(number: float) -> bool:
        return number > limit if rule.at_least else number < limit

    bounds = f"{low:.3g} to {high:.3g}"
    allowed = f"{'more' if rule.at_least else 'less'} than {limit:g} {rule.unit} is needed"
    verdict: Verdict
    needed: int | None = None
    if math.isnan(value) or math.isnan(low) or math.isnan(high):
        verdict, note = "unsure", f"{rule.words}: nothing to measure on these frames"
    elif within(worst):
        verdict, note = "pass", f"{rule.words}: {value:.3g} {rule.unit} ({bounds}); {allowed}"
    elif not within(best):
        verdict, note = "fail", f"{rule.words}: {value:.3g} {rule.unit} ({bounds}); {allowed}"
    else:
        verdict = "unsure"
        needed = None if frames is None else frames_needed(limit, value, interval, frames)
        enough = "" if needed is None else f", about {needed} are likely to be enough"
        note = f"{rule.words}: {value:.3g} {rule.unit} ({bounds}), too few frames to tell{enough}; {allowed}"
    return GateResult(rule.name, rule.task, verdict, value, interval, limit, rule.unit, note, needed)


def frames_needed(limit: float, value: float, interval: Interval, frames: int) -> int | None:
    """Estimate how many frames narrow `interval`, measured on `frames`, until it excludes `limit`.

    The width of an interval decreases as 1 / sqrt(frames), if further frames are like these. The result is rounded up
    to two digits and at least FEW_FRAMES; None if `value` equals the limit.
    """
    if not math.isfinite(interval[0]) or not math.isfinite(interval[1]):
        return FEW_FRAMES  # one frame has no interval: return the smallest conclusive number
    margin = abs(limit - value)
    width = interval[1] - value if limit > value else value - interval[0]
    if margin == 0 or not math.isfinite(width / margin):
        return None
    needed = max(FEW_FRAMES, frames + 1, math.ceil(frames * (width / margin) ** 2))
    step = 10 ** max(0, len(str(needed)) - 2)
    return -(-needed // step) * step
