"""CalibrateResult: what a calibration found, and whether it was kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from m2h_deploy.bundle.depth_calibration import DepthCalibration, Source
from m2h_deploy.calibration.choose import Choice
from m2h_deploy.calibration.samples import Samples


@dataclass(frozen=True, eq=False)
class CalibrateResult:
    """Outcome of one calibration."""

    bundle: str
    source: Source
    before: DepthCalibration | None
    """The manifest's calibration until now."""
    after: DepthCalibration | None
    """The manifest's calibration from now on."""
    choice: Choice | None = None
    """The candidates; None if nothing was measured."""
    samples: Samples | None = None

    @property
    def kept(self) -> bool:
        """Whether the manifest was changed."""
        return self.after != self.before

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        if self.choice is None:
            removed = "the calibration was removed" if self.kept else "there is no calibration to remove"
            return f"{self.bundle}: {removed if self.after is None else self.after.text}"
        best, first = self.choice.best, self.choice.candidates[0]
        if not self.kept or self.after is None:
            return f"{self.bundle}: no correction lowers the error significantly: the manifest is unchanged"
        return f"{self.bundle}: {self.after.text}: abs rel {first.abs_rel:.1%} before, {best.abs_rel:.1%} after"

    def to_json(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        values: dict[str, Any] = {
            "tool": "m2h-deploy calibrate",
            "bundle": self.bundle,
            "source": self.source,
            "changed": self.kept,
            "before": None if self.before is None else self.before.model_dump(),
            "after": None if self.after is None else self.after.model_dump(),
        }
        if self.choice is not None and self.samples is not None:
            values |= {
                "frames": self.samples.frames,
                "values": len(self.samples.measured),
                "units": self.samples.units,
                "folds": self.choice.folds,
                "outliers": self.choice.outliers,
                "beyond_range": self.samples.left_out,
                "candidates": [
                    asdict(candidate) | {"significant": candidate.significant} for candidate in self.choice.candidates
                ],
            }
        return values
