"""Class lists: the names of the data sets in official order, class lists from files, and one color per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.errors import M2HError
from m2h_deploy.files.text import read_json

#: NYUv2's 40 classes in the order of classMapping40.mat (its spelling kept); index 0 here is NYU class 1.
NYU40_CLASSES: tuple[str, ...] = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip

#: Cityscapes' 19 evaluated classes in the order of their train ids.
CITYSCAPES_CLASSES: tuple[str, ...] = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

#: Value of an unlabeled pixel in memory, for every data set.
IGNORE_LABEL = 255


def nyu_class(name: str) -> int:
    """Return the label in memory (0..39) of an NYUv2 class name. Raise ValueError for another name."""
    return NYU40_CLASSES.index(name)


def palette(count: int) -> npt.NDArray[np.uint8]:
    """Make distinct RGB colors: the bit-interleaved color map of PASCAL VOC, without its black.

    Args:
        count: number of colors.

    Returns:
        uint8 (count, 3), RGB.
    """
    colors = np.zeros((count, 3), np.uint8)
    for index in range(count):
        value = index + 1
        for bit in range(8):
            for channel in range(3):
                colors[index, channel] |= ((value >> channel) & 1) << (7 - bit)
            value >>= 3
    return colors


def default_classes(count: int) -> Classes:
    """Make names and colors for a network of `count` classes.

    The names are NYUv2's for 40 classes, the same after `unknown` for 41, Cityscapes' for 19, and otherwise generic.
    """
    known: dict[int, tuple[str, ...]] = {
        len(NYU40_CLASSES): NYU40_CLASSES,
        len(NYU40_CLASSES) + 1: ("unknown", *NYU40_CLASSES),
        len(CITYSCAPES_CLASSES): CITYSCAPES_CLASSES,
    }
    names = known.get(count) or tuple(generic_name(index) for index in range(count))
    return Classes(names=names, palette=default_colors(names))


def generic_name(index: int) -> str:
    """Return the name of a class without a known name."""
    return f"class {index}"


def has_unknown(classes: Classes) -> bool:
    """Return whether the network's first class is not in the data."""
    return len(classes.names) > 1 and classes.names[0] == "unknown"


def check_classes(names: Sequence[str], classes: Classes) -> None:
    """Raise M2HError if data with the classes `names` cannot be evaluated with a network of `classes`.

    Names may be spelled differently, but a name must not occur at another index.
    """
    evaluated = classes.names[has_unknown(classes) :]
    if len(names) != len(evaluated):
        raise M2HError(
            f"the data has {len(names)} classes, the engine {len(evaluated)}: use data of the engine's classes"
        )
    places = {name.lower(): index for index, name in enumerate(names)}
    for index, name in enumerate(evaluated):
        if places.get(name.lower(), index) != index:
            raise M2HError(
                f"class {places[name.lower()]} of the data is '{name}', which is class {index} of the engine: "
                "use data of the engine's classes"
            )
    named = any(name != generic_name(index) for index, name in enumerate(evaluated, start=has_unknown(classes)))
    if named and not places.keys() & {name.lower() for name in evaluated}:
        raise M2HError(
            f"the data's classes ({names[0]}, ...) are not the engine's ({evaluated[0]}, ...): "
            "use data of the engine's classes"
        )


def load_classes(path: str | os.PathLike[str]) -> Classes:
    """Read a class list from JSON: `["road", "grass"]`, or `[{"name": "road", "color": [128, 64, 128]}, ...]`.

    The order is that of the network's outputs. A list may mix both forms, and `color` (RGB, 0 to 255) is optional.

    Raises:
        M2HError: the file cannot be read or has another form; the message names the file and the entry.
    """
    content = read_json(path, "the classes")
    if not isinstance(content, list) or not content:
        raise M2HError(f'the classes {path}: expected a JSON list of names, or of {{"name": ..., "color": [R, G, B]}}')
    names: list[str] = []
    colors: list[tuple[int, int, int] | None] = []
    for index, entry in enumerate(content):
        try:
            name, color = _class_entry(entry)
        except ValueError as error:
            raise M2HError(f"the classes {path}: entry {index} {error}") from None
        if name in names:
            raise M2HError(f"the classes {path}: entries {names.index(name)} and {index} have the same name '{name}'")
        names.append(name)
        colors.append(color)
    defaults = default_colors(names)
    return Classes(
        names=tuple(names), palette=tuple(given or default for given, default in zip(colors, defaults, strict=True))
    )


def _class_entry(entry: Any) -> tuple[str, tuple[int, int, int] | None]:
    """Parse one entry into name and color. Raise ValueError with a description of what is wrong."""
    fields = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or not {"name"} <= fields.keys() <= {"name", "color"}:
        raise ValueError('is neither a name nor {"name": ..., "color": [R, G, B]}')
    name, color = fields["name"], fields.get("color")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValueError(f"has the name {name!r:.80}: give printable text")
    if color is None:
        return name.strip(), None
    levels = color if isinstance(color, list) else []
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ValueError(f"has the color {color!r:.80}: give three whole numbers from 0 to 255, in RGB order")
    return name.strip(), (levels[0], levels[1], levels[2])


def default_colors(names: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
    """Make one color per class; black for a first class `unknown`."""
    colors = [(int(red), int(green), int(blue)) for red, green, blue in palette(len(names))]
    if names[0] == "unknown":
        colors = [(0, 0, 0), *colors[:-1]]
    return tuple(colors)
