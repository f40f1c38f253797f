"""Which labels are ground."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError

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
