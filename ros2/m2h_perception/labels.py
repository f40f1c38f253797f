"""Label remaps: from the network's classes to those of the program that uses them.

Two kinds of YAML file are supported, as in Mono-Hydra: `class_info/ID/labels: [a, b]`, where classes a and b become ID;
and a list of `{sub_id: ID, super_id: a}`, where class a becomes ID. A class that is not named becomes 0.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError


def read_label_remap(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a remap to the label of each class, uint8 (256,). Raises M2HError on a file of neither format."""
    import yaml

    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise M2HError(f"label remap {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise M2HError(f"label remap {path} is not readable YAML: {' '.join(str(error).split())}") from None
    pairs = _class_info(content) if isinstance(content, dict) else _pairs(content)
    if not pairs:
        raise M2HError(f"label remap {path}: expected class_info/ID/labels entries or a list of sub_id and super_id")
    table = np.zeros(256, np.uint8)
    for label, target in pairs:
        if not all(isinstance(value, int) and 0 <= value <= 255 for value in (label, target)):
            raise M2HError(f"label remap {path}: {label!r} to {target!r}: labels are whole numbers of 0 to 255")
        table[label] = target
    return table


def _class_info(content: dict[Any, Any]) -> list[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    for key, labels in content.items():
        target = re.fullmatch(r"[^/]+/(\d+)/labels", str(key))
        if target is not None:
            labels = labels if isinstance(labels, list) else [] if labels is None else [labels]
            pairs += [(label, int(target.group(1))) for label in labels]
    return pairs


def _pairs(content: Any) -> list[tuple[Any, Any]]:
    if not isinstance(content, list):
        return []
    if not all(isinstance(entry, dict) and {"sub_id", "super_id"} <= entry.keys() for entry in content):
        return []
    return [(entry["super_id"], entry["sub_id"]) for entry in content]


#: Names of the classes that a robot may drive on, in the label spaces of NYUv2, ScanNet and Cityscapes.
GROUND = ("floor", "floor mat", "road", "sidewalk", "terrain")


def ground_table(
    wanted: Iterable[str | int], names: Sequence[str], remap: NDArray[np.uint8] | None = None
) -> NDArray[np.bool_]:
    """Find the labels that are ground.

    Args:
        wanted: names of classes, in any case, and labels as published, after `remap`; empty: those of `GROUND` that
            exist.
        names: of the bundle's classes.
        remap: label that is published for each class, uint8 (256,).

    Returns:
        Whether each class of the bundle, before `remap`, is ground: bool (256,).

    Raises:
        M2HError: No class has that name, or no class is ground.
    """
    published = np.arange(256, dtype=np.uint8) if remap is None else remap
    known = {name.lower(): index for index, name in enumerate(names)}
    table = np.zeros(256, np.bool_)
    chosen = list(wanted)
    for item in chosen or [name for name in GROUND if name in known]:
        name = str(item).strip().lower()
        if name in known:
            table[known[name]] = True
        elif name.isdecimal() and int(name) < 256:
            table |= published == int(name)
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the bundle's are {', '.join(names)}"
            raise M2HError(f"parameter ground_labels: '{item}' is neither a class nor a label from 0 to 255: {hint}")
    if not table.any():
        raise M2HError(
            f"parameter ground_labels: the bundle has none of {', '.join(GROUND)}: name its classes that are ground"
        )
    return table
