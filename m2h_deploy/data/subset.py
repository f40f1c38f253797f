"""Some of the frames of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.errors import M2HError


@dataclass(frozen=True, eq=False)
class Subset:
    """The frames of `data` at `indices`, in that order."""

    data: Dataset
    indices: tuple[int, ...]
    name: str = "subset"
    """Name of the data in results."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the whole data set."""
        return self.data.class_names

    @property
    def derived(self) -> frozenset[str]:
        """Computed labels of the whole data set."""
        return self.data.derived

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Frame:
        return self.data[self.indices[index]]

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))


def spread(available: int, limit: int | None, name: str) -> list[int]:
    """Return `limit` indices spread evenly over `available` frames, all by default. Raises M2HError without frames."""
    if not available:
        raise M2HError(f"{name} has no frames")
    if limit is not None and limit < 1:
        raise M2HError(f"limit {limit}: must be at least 1")
    count = available if limit is None else min(limit, available)
    return [(2 * i + 1) * available // (2 * count) for i in range(count)]
