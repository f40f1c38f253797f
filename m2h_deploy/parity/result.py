"""The result of a parity run: frozen data, and its JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from m2h_deploy.files.text import finite
from m2h_deploy.parity.gates import GateResult, Gates, Verdict
from m2h_deploy.parity.locate import LocateResult
from m2h_deploy.parity.pictures import WorstFrame
from m2h_deploy.parity.tasks import TaskResult
from m2h_deploy.parity.tensors import TensorResult
from m2h_deploy.version import __version__

RESULT_VERSION = 2

#: JSON names, with units, of fields that do not name their unit.
_TENSOR_KEYS = {"psnr": "psnr_db", "psnr_interval": "psnr_interval_db", "label_agreement": "label_agreement_share"}
_LIMIT_KEYS = {
    "miou_drop": "miou_drop_points",
    "rmse_increase": "rmse_increase_percent",
    "merr_increase": "merr_increase_degrees",
    "odsf_drop": "odsf_drop_points",
    "psnr": "psnr_db",
}


@dataclass(frozen=True)
class Side:
    """The network or engine that was run on one side."""

    description: str
    weights_sha256: str


@dataclass(frozen=True)
class DataInfo:
    """The data that both sides were run on."""

    name: str
    frames: int
    of: int
    """Total number of frames in the data."""
    derived: tuple[str, ...]
    """Labels that were computed from others: their figures are not comparable with the paper's Table I."""


@dataclass(frozen=True)
class VerifyResult:
    """The complete result of a parity run."""

    bundle: str
    precision: str
    reference: Side
    engine: Side
    data: DataInfo
    tensors: tuple[TensorResult, ...]
    tasks: tuple[TaskResult, ...]
    limits: Gates
    gates: tuple[GateResult, ...]
    worst: tuple[WorstFrame, ...] = ()
    located: LocateResult | None = None
    """The first diverging block, if requested."""

    @property
    def verdict(self) -> Verdict:
        """`fail` if a gate fails, else `unsure` if one is unsure, else `pass`."""
        verdicts = {gate.verdict for gate in self.gates}
        return "fail" if "fail" in verdicts else "unsure" if "unsure" in verdicts else "pass"

    @property
    def passed(self) -> bool:
        """Whether all gates passed; an unsure gate does not count as passed."""
        return self.verdict == "pass"

    @property
    def summary(self) -> str:
        """The verdict and its gates in one line."""
        failed = [gate.message for gate in self.gates if gate.verdict == "fail"]
        unsure = [gate.message for gate in self.gates if gate.verdict == "unsure"]
        count = len(self.gates)
        if failed:
            return f"{len(failed)} of {count} gates failed: {'; '.join(failed)}"
        if unsure:
            return f"{len(unsure)} of {count} gates are inconclusive, {self.advice}: {'; '.join(unsure)}"
        return f"all {len(self.gates)} gates passed on {self.data.frames} frames"

    @property
    def advice(self) -> str:
        """Estimated number of frames that decide the unsure gates; "" without unsure gates."""
        unsure = [gate for gate in self.gates if gate.verdict == "unsure"]
        needed = max((gate.frames_needed or 0 for gate in unsure), default=0)
        if not unsure:
            return ""
        if not needed:
            return "use more frames"
        short = f" (the data has {self.data.of})" if needed > self.data.of else ""
        return f"about {needed} frames are likely to be enough{short}"


def to_json(result: VerifyResult) -> dict[str, Any]:
    """Return values for `json.dumps`, without pictures; NaN and infinite numbers are None.

    Every figure has its unit in its name or beside it. `located` is included only if requested, by block.
    """
    content = dataclasses.asdict(dataclasses.replace(result, worst=(), located=None))
    del content["worst"], content["located"]
    content["tensors"] = [_renamed(tensor, _TENSOR_KEYS) for tensor in content["tensors"]]
    content["limits"] = _renamed(content["limits"], _LIMIT_KEYS)
    head = {
        "tool": f"m2h-deploy {__version__}",
        "schema_version": RESULT_VERSION,
        "verdict": result.verdict,
        "passed": result.passed,
    }
    if (located := result.located) is not None:
        blocks = [_renamed(dataclasses.asdict(block), {"error": "relative_error"}) for block in located.blocks]
        names = ("block", "value", "summary", "compared", "of", "unseen")
        content["located"] = {name: getattr(located, name) for name in names} | {"blocks": blocks}
    plain: dict[str, Any] = finite({**head, **content})
    return plain


def _renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}
