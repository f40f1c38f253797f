"""The gates of a parity run: what may change between the reference and an engine, and how that is judged."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from m2h_deploy.errors import M2HError
from m2h_deploy.parity.bootstrap import FEW_FRAMES, Interval

Verdict = Literal["pass", "fail", "unsure"]


@dataclass(frozen=True)
class Gates:
    """Limits, each on how much worse than the reference the engine may be. None leaves a gate out.

    A gate is judged by the 95 % interval of what it measures (a paired bootstrap over frames), not by the measured
    figure alone, because the frames are a sample of what the robot will see:

    - `pass`: the whole interval is within the limit;
    - `fail`: the whole interval is beyond it;
    - `unsure`: the limit lies inside the interval, so these frames are too few to tell. It does not count as
      passed, since a gate is there to prove something; more frames narrow the interval.

    The interval is paired: reference and engine see the same resampled frames, so what is common to both (hard and
    easy frames) cancels. One frame has no interval and proves nothing about others. Under eight frames the intervals
    are too narrow: a first look, which can fail and is otherwise unsure.

    Where the data has no labels of a task, the reference's own prediction takes their place, and the same limits
    bound the disagreement: mIoU against the reference's classes, RMSE as a share of the reference's root mean square
    depth, the mean angle to the reference's normals, odsF against the reference's thinned boundaries. For depth and
    normals that bounds what labels could show: by the triangle inequality no label makes the loss larger.
    """

    miou_drop: float | None = 0.5
    """Percentage points of mIoU."""
    rmse_increase: float | None = 1.0
    """Per cent of the reference's RMSE."""
    merr_increase: float | None = 0.3
    """Degrees of mean angular error."""
    odsf_drop: float | None = 0.5
    """Percentage points of odsF."""
    psnr: float | None = 30.0
    """Least PSNR of every raw output, dB."""

    def __post_init__(self) -> None:
        for name, limit in dataclasses.asdict(self).items():
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise M2HError(f"gate {name} is {limit}: must be a number, at least 0")


@dataclass(frozen=True)
class GateResult:
    """One gate: what was measured, between which bounds it lies, and the verdict."""

    name: str
    """`semantics.miou_drop`, `depth.psnr`, `self_test`."""
    task: str | None
    verdict: Verdict
    value: float | None
    interval: Interval | None
    limit: float | None
    unit: str
    message: str
    """One line for people."""
    frames_needed: int | None = None
    """Of an unsure gate: about how many frames are likely to decide it; None where that cannot be estimated."""


@dataclass(frozen=True)
class Rule:
    """How one gate reads: its name, its words, its unit and whether larger is better."""

    name: str
    task: str
    words: str
    unit: str
    at_least: bool = False


def judge(rule: Rule, limit: float, value: float, interval: Interval, frames: int | None = None) -> GateResult:
    """The verdict on a measured `value` with its `interval` (low, high), both in the gate's unit.

    Larger is worse, or better where `rule.at_least`. A value that is not a number (nothing was labeled) is unsure.
    With `frames`, how many were measured, an unsure gate says how many are likely to be enough.
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
    """Estimate how many frames narrow `interval`, measured on `frames`, until it no longer holds `limit`.

    The width of an interval falls as 1 / sqrt(frames), if further frames are like these. Rounded up to two digits, and
    never under FEW_FRAMES. None where `value` is the limit itself.
    """
    if not math.isfinite(interval[0]) or not math.isfinite(interval[1]):
        return FEW_FRAMES  # one frame: the least that gives an interval to rely on
    margin = abs(limit - value)
    width = interval[1] - value if limit > value else value - interval[0]
    if margin == 0 or not math.isfinite(width / margin):
        return None
    needed = max(FEW_FRAMES, frames + 1, math.ceil(frames * (width / margin) ** 2))
    step = 10 ** max(0, len(str(needed)) - 2)
    return -(-needed // step) * step
