"""Label remaps: from the network's classes to those of the program that uses them.

Two kinds of YAML file are supported, as in Mono-Hydra: `class_info/ID/labels: [a, b]`, where classes a and b become ID;
and a list of `{sub_id: ID, super_id: a}`, where class a becomes ID. A class that is not named becomes 0.
"""

from __future__ import annotations

import os
import re
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
