"""Record of a run: a CSV file with one row per step, and a plot of it."""

from __future__ import annotations

import csv
from pathlib import Path

from m2h_deploy.causes import MachineError, reason
from m2h_deploy.files.atomic import whole_file
from m2h_deploy.training.objective import BALANCED

_CONSISTENCY = ("depth_normals", "edge_semantics")
COLUMNS = (
    "step",
    "stage",
    "epoch",
    "learning_rate",
    "total",
    *(f"loss_{name}" for name in (*BALANCED, *_CONSISTENCY)),
    *(f"distil_{name}" for name in BALANCED),
    *(f"weight_{name}" for name in BALANCED),
)


class Record:
    """CSV file with the columns COLUMNS; values that a step does not have are empty.

    `after` is the step that the run resumes from. Later rows, written before the run was interrupted, are dropped.
    """

    def __init__(self, path: Path, *, after: int = 0) -> None:
        self.path = path
        rows = read_record(path) if after and path.is_file() else []
        with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) <= after)

    def add(self, values: dict[str, float | int | str]) -> None:
        """Append one row.

        Args:
            values: by column name; absent columns are empty.

        Raises:
            MachineError: the file cannot be written.
        """
        row = {key: f"{value:.7g}" if isinstance(value, float) else value for key, value in values.items()}
        try:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, COLUMNS).writerow(row)
        except OSError as error:
            raise MachineError(f"cannot write {self.path}: {reason(error)}") from None


def is_record(path: Path) -> bool:
    """Return whether the file begins like a record."""
    with path.open("rb") as stream:
        return stream.read(20) == ",".join(COLUMNS).encode()[:20]


def read_record(path: Path) -> list[dict[str, str]]:
    """Read the rows of a record, without a last row that was truncated while it was written."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if None not in row.values() and row["step"]]


def plot_record(record: Path, image: Path) -> None:
    """Plot losses, task weights and learning rate over the steps as a PNG. Needs matplotlib (the `report` extra).

    Args:
        record: the CSV file.
        image: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_record(record)
    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    groups = (
        ("loss_", "loss", True),
        ("weight_", "weight (equation 18a)", False),
        ("learning_rate", "learning rate", False),
    )
    for axis, (prefix, label, logarithmic) in zip(axes, groups, strict=True):
        for column in (c for c in COLUMNS if c.startswith(prefix)):
            points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            if points:
                axis.plot(*zip(*_smoothed(points), strict=True), label=column.removeprefix(prefix) or None, linewidth=1)
        axis.set_ylabel(label)
        if logarithmic:
            axis.set_yscale("log")
        if prefix != "learning_rate" and rows:
            axis.legend(ncols=3, fontsize="small")
    axes[-1].set_xlabel("step")
    FigureCanvasAgg(figure)
    with whole_file(image) as temporary:
        figure.savefig(temporary, dpi=110)


def _smoothed(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Return at most 400 points, each the mean of equally many neighbors."""
    size = -(-len(points) // 400)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
