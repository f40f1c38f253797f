"""Vote on labels: the most frequent label of the last frames, in each pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]

#: No vote.
NONE = 255


def vote(history: Labels, least: int) -> Labels:
    """Return the label that most of the frames have; of equally frequent ones the present frame's, else the largest.

    Args:
        history: uint8 (N, H, W), 255 where a frame has no vote; the last is the present frame.
        least: votes that a label other than the present one needs.

    Returns:
        uint8 (H, W); 255 where no frame has a vote.
    """
    frames = len(history)
    votes = np.ones(history.shape, np.uint8)
    for newer in range(1, frames):
        for older in range(newer):
            same = (history[newer] == history[older]).view(np.uint8)
            votes[newer] += same
            votes[older] += same
    votes[:-1] *= votes[:-1] >= least
    # One number holds votes, whether the label is the present one, and the label: the largest of them decides.
    ranks: NDArray[np.uint16] = votes.astype(np.uint16) * np.uint16(2)
    ranks[-1] += 1
    ranks *= history != NONE
    np.left_shift(ranks, 8, out=ranks)
    ranks |= history
    winner: Labels = (ranks.max(axis=0) & 255).astype(np.uint8)
    return winner
