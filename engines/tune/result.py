"""The result of a tuning run: one row for each candidate, and the winner."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Gates of the four tasks, in the order of the table, with the unit of the change.
CHANGES = {
    "depth.rmse_increase": "RMSE %",
    "semantics.miou_drop": "mIoU points",
    "normals.merr_increase": "normals °",
    "edges.odsf_drop": "odsF points",
}


@dataclass(frozen=True)
class Row:
    """One candidate."""

    name: str
    engine: str
    precision: str
    megabytes: float | None = None
    speeds: tuple[dict[str, Any], ...] = ()
    """By number of threads, see `engines.speed.Speed`."""
    parity: dict[str, Any] | None = None
    """The result of `verify`, as JSON; None if it was not judged."""
    obstacle: str | None = None
    """Why it could not be built, run or judged."""

    @property
    def speed(self) -> dict[str, Any] | None:
        """The speed with the best number of threads."""
        return max(self.speeds, key=lambda speed: speed["times_as_fast"]["value"], default=None)

    @property
    def threads(self) -> int | None:
        """The best number of threads."""
        return None if self.speed is None else self.speed["threads"]

    @property
    def ratio(self) -> float:
        """Time of the baseline over its own, with the best number of threads; 0 if it was not measured."""
        return 0.0 if self.speed is None else float(self.speed["times_as_fast"]["value"])

    @property
    def changes(self) -> list[str]:
        """The change of each task's metric, positive is worse, as in `CHANGES`; "-" if it was not judged."""
        gates = [self.gates.get(name) for name in CHANGES]
        return ["-" if gate is None or gate["value"] is None else f"{gate['value']:+.2f}" for gate in gates]

    @property
    def mark(self) -> str:
        """✓ if every gate passes, ✗ if one fails, ? if one has too few frames, - if it was not judged."""
        verdicts = {gate["verdict"] for gate in self.gates.values()}
        return "-" if not verdicts else "✗" if "fail" in verdicts else "?" if "unsure" in verdicts else "✓"

    @property
    def passed(self) -> bool:
        """True if the gates were judged and all of them passed."""
        return self.obstacle is None and self.parity is not None and self.parity["passed"]

    @property
    def gates(self) -> dict[str, dict[str, Any]]:
        """The judged gates by name."""
        return {} if self.parity is None else {gate["name"]: gate for gate in self.parity["gates"]}

    @property
    def failed_tasks(self) -> tuple[str, ...]:
        """The tasks with a gate that does not pass."""
        failed = [gate["task"] for gate in self.gates.values() if gate["verdict"] != "pass" and gate["task"]]
        return tuple(dict.fromkeys(failed))

    @property
    def cells(self) -> list[str]:
        """The row of the table: name, MB, ms, ratio, threads, changes, mark; "-" where nothing was measured."""
        if self.speed is None:
            return [self.name, *["-"] * (len(CHANGES) + 5)]
        return [
            self.name,
            "-" if self.megabytes is None else f"{self.megabytes:.1f}",
            _interval(self.speed["milliseconds"], 1),
            _interval(self.speed["times_as_fast"], 2),
            str(self.threads or "-"),
            *self.changes,
            self.mark,
        ]

    @property
    def summary(self) -> str:
        """The row in one line."""
        if self.obstacle is not None:
            return f"{self.name}: skipped: {self.obstacle}"
        assert self.speed is not None
        time = self.speed["milliseconds"]["value"]
        failed = [name for name, gate in self.gates.items() if gate["verdict"] != "pass"]
        gates = "passes every gate" if not failed else f"does not pass {', '.join(failed)}"
        return f"{self.name}: {time:.1f} ms, {self.ratio:.2f} times as fast as the baseline, {gates}"


@dataclass(frozen=True)
class TuneResult:
    """The table of a tuning run, with the machine and the data that it was measured with."""

    tool: str
    graph: str
    data: str
    frames: int
    """Number of frames that the gates were judged on."""
    seed: int
    processor: str
    packages: dict[str, str]
    minutes: float
    """Duration of this run, without those that it resumed."""
    baseline: str
    """The fastest float32 engine with its best number of threads: every ratio is against it."""
    rows: tuple[Row, ...]
    skipped: tuple[dict[str, str], ...]
    """Engines that were not tried, and the reasons."""
    searches: dict[str, dict[str, Any]]
    """The searches for an INT8 policy by the type of activations (int8 on GPUs, uint8 on CPUs), see
    `engines.tune.policy.Found.to_json`."""

    @property
    def winner(self) -> Row | None:
        """The fastest row that passes every gate."""
        held = [row for row in self.rows if row.passed]
        return max(held, key=lambda row: row.ratio, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the record for a manifest: the table without the details of each judgment."""
        content = asdict(self)
        content["winner"] = None if self.winner is None else self.winner.name
        content["rows"] = [_row(row) for row in self.rows]
        return content


def _interval(estimate: dict[str, Any], places: int) -> str:
    """Return an estimate with its 95 % interval: `12.3 (12.1 to 12.8)`."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    ends = "" if low is None or high is None else f" ({low:.{places}f} to {high:.{places}f})"
    return f"{value:.{places}f}{ends}"


def _row(row: Row) -> dict[str, Any]:
    kept = ("value", "interval", "limit", "unit", "verdict")
    content = asdict(row)
    del content["parity"]
    content["gates"] = {name: {key: gate[key] for key in kept} for name, gate in row.gates.items()}
    content["passed"], content["threads"] = row.passed, row.threads
    return content
