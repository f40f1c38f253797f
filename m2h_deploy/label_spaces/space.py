"""Label space: classes that are groups of a network's classes, by name or index, and their resolution for a network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from m2h_deploy.bundle.manifest import MAX_CLASSES, Classes, LabelMap
from m2h_deploy.data.classes import default_colors
from m2h_deploy.errors import M2HError

Color = tuple[int, int, int]


@dataclass(frozen=True)
class SpaceClass:
    """One class of a label space."""

    name: str
    sources: tuple[str | int, ...] = ()
    """Names or indices of the network's classes that it consists of; none: it is never predicted."""
    color: Color | None = None
    """RGB; None: a default color."""
    rest: bool = False
    """Whether it also takes the network's classes that no class of the label space names."""


@dataclass(frozen=True)
class LabelSpace:
    """A label space, for any network that has the classes it names.

    Raises:
        M2HError: There are no classes or too many, two have the same name, or two collect the rest.
    """

    name: str
    classes: tuple[SpaceClass, ...]
    origin: str
    """The file or bundle that it was read from, for messages."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise M2HError(f"label map {self.origin}: there are no classes")
        if len(self.classes) > MAX_CLASSES:
            raise M2HError(
                f"label map {self.origin}: {len(self.classes)} classes are more than {MAX_CLASSES}: labels have 8 bits"
            )
        names = [entry.name for entry in self.classes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise M2HError(f"label map {self.origin}: two classes have the name '{twice}'")
        if sum(entry.rest for entry in self.classes) > 1:
            raise M2HError(f"label map {self.origin}: two classes take the rest: only one can")

    def resolve(self, network: Classes) -> tuple[Classes, LabelMap]:
        """Return the names and colors of the classes, and their groups, for a network with the classes `network`.

        Raises:
            M2HError: The network lacks a class, a class of it is in two groups, or all groups are empty.
        """
        owner: dict[int, str] = {}
        groups: list[tuple[int, ...]] = []
        for entry in self.classes:
            group = tuple(self._index(source, entry, network.names) for source in entry.sources)
            for index in group:
                if index in owner:
                    words = f"in '{owner[index]}' and '{entry.name}'" if owner[index] != entry.name else "twice"
                    raise M2HError(
                        f"label map {self.origin}: class '{network.names[index]}' of the network is {words}: name it "
                        "once"
                    )
                owner[index] = entry.name
            groups.append(group)
        rest = tuple(index for index in range(len(network.names)) if index not in owner)
        groups = [group + rest * entry.rest for entry, group in zip(self.classes, groups, strict=True)]
        if not any(groups):
            raise M2HError(f"label map {self.origin}: no class of the network is in any of its classes")
        names = [entry.name for entry in self.classes]
        colors = zip(self.classes, default_colors(names), strict=True)
        palette = tuple(entry.color or default for entry, default in colors)
        return Classes(names=tuple(names), palette=palette), LabelMap(
            name=self.name, network_classes=network.names, groups=tuple(groups)
        )

    def _index(self, source: str | int, entry: SpaceClass, names: tuple[str, ...]) -> int:
        """Return the index of a class of the network. Raises M2HError if it has no such class."""
        where = f"label map {self.origin}: class '{entry.name}' takes"
        if isinstance(source, int):
            if not 0 <= source < len(names):
                raise M2HError(f"{where} class {source}, and the network has {len(names)}, 0 to {len(names) - 1}")
            return source
        if source in names:
            return names.index(source)
        lowered = [name.lower() for name in names]
        if source.lower() in lowered:
            return lowered.index(source.lower())
        near = difflib.get_close_matches(source.lower(), lowered, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"its {len(names)} classes begin with {', '.join(names[:4])}"
        raise M2HError(f"{where} '{source}', but the network has no such class: {hint}")


def space_of(label_map: LabelMap, classes: Classes, origin: str) -> LabelSpace:
    """Return the label space that a manifest records."""
    entries = zip(classes.names, classes.palette, label_map.groups, strict=True)
    return LabelSpace(label_map.name, tuple(SpaceClass(name, group, color) for name, color, group in entries), origin)
