"""Read label maps and label remaps from YAML: the format of this project, and the two of Mono-Hydra.

- A label map of this project: `name`, and `classes`, a list of `{name, color, from}`. `color` (RGB, 0 to 255) may be
  left out. `from` is a list of the network's classes by name or index, one of them, or the word `rest`: all that no
  class names.
- Mono-Hydra's `class_info/ID/labels: [a, b]`, where the network's classes a and b become ID, with
  `class_info/ID/color: [r, g, b]` of 0 to 1.
- Mono-Hydra's list of `{sub_id: ID, super_id: a}`, where class a becomes ID.

In Mono-Hydra's formats a class that is not named becomes 0.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.classes import generic_name
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.label_spaces.space import Color, LabelSpace, SpaceClass

#: Label maps that ship with the package, by name.
SHIPPED = tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.yaml")))

_FORMS = "expected name and classes, or Mono-Hydra's class_info/ID/labels entries or list of sub_id and super_id"


def load_label_space(place: str | os.PathLike[str]) -> LabelSpace:
    """Read a label map: a file, or the name of one that ships with the package (`SHIPPED`).

    Raises:
        M2HError: The file cannot be read or has none of the formats; names the file and the entry.
    """
    path = Path(place)
    if not path.is_file() and str(place) in SHIPPED:
        path = Path(__file__).with_name(f"{place}.yaml")
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise M2HError(f"no label map '{place}': give a YAML file, or the name {' or '.join(SHIPPED)}")
    content = _read_yaml(path, "label map")
    if isinstance(content, dict) and "classes" in content:
        return _own_format(content, str(path))
    pairs = _pairs_of(content)
    if not pairs:
        raise M2HError(f"label map {path}: {'the file is empty' if content is None else _FORMS}")
    return _from_pairs(path, _checked(pairs, f"label map {path}"), content)


def read_label_remap(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a file of Mono-Hydra to the label of each class, uint8 (256,). Raises M2HError on another format."""
    path = Path(path).expanduser()
    pairs = _pairs_of(_read_yaml(path, "label remap"))
    if not pairs:
        raise M2HError(f"label remap {path}: expected class_info/ID/labels entries or a list of sub_id and super_id")
    table = np.zeros(256, np.uint8)
    for label, target in _checked(pairs, f"label remap {path}"):
        table[label] = target
    return table


def _read_yaml(path: Path, what: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise missing_extra("yaml", "export", f"reading the {what} {path}", error=error) from None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise M2HError(f"{what} {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise M2HError(f"{what} {path} is not readable YAML: {' '.join(str(error).split())}") from None


def _own_format(content: dict[Any, Any], origin: str) -> LabelSpace:
    unknown = [key for key in content if key not in ("name", "classes")]
    if unknown:
        raise M2HError(f"label map {origin}: unknown entry '{unknown[0]}': it has name and classes")
    name, classes = content.get("name"), content["classes"]
    if not isinstance(name, str) or not _is_text(name):
        raise M2HError(f"label map {origin}: give it a name, such as name: my-robot")
    if not isinstance(classes, list):
        raise M2HError(f"label map {origin}: classes is not a list of {{name, from}}")
    entries = []
    for index, entry in enumerate(classes):
        try:
            entries.append(_class_of(entry))
        except ValueError as error:
            raise M2HError(f"label map {origin}: class {index} {error}") from None
    return LabelSpace(name.strip(), tuple(entries), origin)


def _class_of(entry: Any) -> SpaceClass:
    """Parse one class. Raise ValueError with a description of what is wrong."""
    if not isinstance(entry, dict) or not {"name", "from"} <= entry.keys() <= {"name", "color", "from"}:
        raise ValueError("is not {name: ..., from: [...]}, with color: [R, G, B] if you like")
    name, color, sources = entry["name"], entry.get("color"), entry["from"]
    if not _is_text(name):
        raise ValueError(
            f"has the name {name!r:.80}: give printable text, in quotes if YAML reads it as something else"
        )
    if color is not None:
        levels = color if isinstance(color, list) else []
        if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
            raise ValueError(f"has the color {color!r:.80}: give three whole numbers from 0 to 255, in RGB order")
        color = tuple(levels)
    if sources == "rest":
        return SpaceClass(name.strip(), color=color, rest=True)
    listed = sources if isinstance(sources, list) else [sources]
    for source in listed:
        if type(source) is not int and not _is_text(source):
            raise ValueError(f"has {source!r:.80} in from: give names or indices of the network's classes")
    return SpaceClass(name.strip(), tuple(s.strip() if isinstance(s, str) else s for s in listed), color)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _pairs_of(content: Any) -> list[tuple[Any, Any]]:
    """Return pairs of a class and its label from either format of Mono-Hydra; none from anything else."""
    if isinstance(content, dict):
        pairs: list[tuple[Any, Any]] = []
        for key, labels in content.items():
            target = re.fullmatch(r"[^/]+/(\d+)/labels", str(key))
            if target is not None:
                labels = labels if isinstance(labels, list) else [] if labels is None else [labels]
                pairs += [(label, int(target.group(1))) for label in labels]
        return pairs
    if not isinstance(content, list):
        return []
    if not all(isinstance(entry, dict) and {"sub_id", "super_id"} <= entry.keys() for entry in content):
        return []
    return [(entry["super_id"], entry["sub_id"]) for entry in content]


def _checked(pairs: list[tuple[Any, Any]], where: str) -> list[tuple[int, int]]:
    for label, target in pairs:
        if not all(type(value) is int and 0 <= value <= 255 for value in (label, target)):
            raise M2HError(f"{where}: {label!r} to {target!r}: labels are whole numbers of 0 to 255")
    return pairs


def _from_pairs(path: Path, pairs: list[tuple[int, int]], content: Any) -> LabelSpace:
    colors = _colors(content, f"label map {path}")
    count = 1 + max([target for _, target in pairs] + list(colors))
    classes = [
        SpaceClass(
            generic_name(index),
            tuple(label for label, target in pairs if target == index),
            colors.get(index),
            rest=index == 0,
        )
        for index in range(count)
    ]
    return LabelSpace(path.stem, tuple(classes), str(path))


def _colors(content: Any, where: str) -> dict[int, Color]:
    """Return the colors of `class_info/ID/color` entries by class."""
    colors: dict[int, Color] = {}
    for key, levels in content.items() if isinstance(content, dict) else ():
        target = re.fullmatch(r"[^/]+/(\d+)/color", str(key))
        if target is None:
            continue
        numbers = levels if isinstance(levels, list) else []
        if len(numbers) != 3 or not all(type(v) in (int, float) and 0 <= v <= 1 for v in numbers):
            raise M2HError(f"{where}: {key} is {levels!r:.80}: expected three numbers from 0 to 1")
        red, green, blue = (round(255 * value) for value in numbers)
        colors[int(target.group(1))] = (red, green, blue)
    return colors
