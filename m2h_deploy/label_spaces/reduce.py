"""Reduce class logits over the groups of a label map, as the exported graph does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import LabelMap


def reduce_logits(logits: NDArray[Any], label_map: LabelMap) -> NDArray[Any]:
    """Return the largest logit of each group.

    An empty group gets the smallest logit of the other groups, minus 1: it is never the largest, and the values stay in
    the range of logits.

    Args:
        logits: (N, classes of the network, H, W).
        label_map: The groups.

    Returns:
        (N, groups, H, W) of the same type.
    """
    count, _, height, width = logits.shape
    reduced = np.empty((count, len(label_map.groups), height, width), logits.dtype)
    filled = [index for index, group in enumerate(label_map.groups) if group]
    for index in filled:
        reduced[:, index] = logits[:, list(label_map.groups[index])].max(axis=1)
    if len(filled) < len(label_map.groups):
        empty = [index for index, group in enumerate(label_map.groups) if not group]
        reduced[:, empty] = reduced[:, filled].min(axis=1, keepdims=True) - 1
    return reduced
