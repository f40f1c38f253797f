"""Data with labels of a network's classes, in the label space of a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes, LabelMap
from m2h_deploy.data.classes import IGNORE_LABEL, check_classes, has_unknown
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.errors import M2HError


@dataclass(frozen=True, eq=False)
class MappedDataset:
    """The frames of `data` with other labels: `table` gives the new label of each, uint8 (256,)."""

    data: Dataset
    table: NDArray[np.uint8]
    class_names: tuple[str, ...]

    @property
    def derived(self) -> frozenset[str]:
        """Computed labels of the data set."""
        return self.data.derived

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Frame:
        return self._mapped(self.data[index])

    def __iter__(self) -> Iterator[Frame]:
        return (self._mapped(frame) for frame in self.data)

    def __getattr__(self, name: str) -> Any:
        # What only some data sets have: name, skipped, files_of.
        if name.startswith("__") or "data" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.data, name)

    def _mapped(self, frame: Frame) -> Frame:
        if frame.semantics is None:
            return frame
        return dataclasses.replace(frame, semantics=self.table[frame.semantics])


def map_dataset(data: Dataset, classes: Classes, label_map: LabelMap | None) -> Dataset:
    """Return `data` with labels in the space of an engine's `classes`; unchanged if it has such labels or none.

    Labels of the network's own classes are mapped; those whose class is in no group are unlabeled pixels.

    Raises:
        M2HError: The labels of the data are in neither space.
    """
    table = label_table(tuple(data.class_names), classes, label_map)
    return data if table is None else MappedDataset(data, table, classes.names[has_unknown(classes) :])


def label_table(names: tuple[str, ...], classes: Classes, label_map: LabelMap | None) -> NDArray[np.uint8] | None:
    """Return the new label, uint8 (256,), of each label of data with the classes `names`; None if they stay.

    Raises:
        M2HError: The classes of the data are neither the engine's nor its network's.
    """
    if label_map is None or not names:
        return None
    own = Classes(names=label_map.network_classes, palette=((0, 0, 0),) * len(label_map.network_classes))
    if not _fits(names, own):
        if _fits(names, classes):
            return None
        raise M2HError(
            f"the data's {len(names)} classes ({names[0]}, ...) are neither those of the label map {label_map.name} "
            "nor the network's: use data of one of them"
        )
    table = np.full(256, IGNORE_LABEL, np.uint8)
    # Labels of data do not count a first class `unknown`.
    first, shift = has_unknown(own), has_unknown(classes)
    for index, target in enumerate(label_map.table[first:]):
        if target is not None and target >= shift:
            table[index] = target - shift
    return table


def _fits(names: tuple[str, ...], classes: Classes) -> bool:
    try:
        check_classes(names, classes)
    except M2HError:
        return False
    return True
