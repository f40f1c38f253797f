"""Choose the frames of a map: those with a pose, divided into segments, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.tum import time_name
from m2h_deploy.errors import M2HError

#: Largest number of segments of consecutive frames. The bootstrap resamples them, because neighboring frames are nearly
#: the same.
SEGMENTS = 20


#: Largest coordinate of a camera, meters: meshes are stored in float32, which has steps of 1 mm there.
FARTHEST = 10_000.0


@dataclass(frozen=True, eq=False)
class Plan:
    """The frames of a map."""

    sequence: Sequence
    moments: tuple[Moment, ...]
    """The first frames of the sequence, as many as the limit allows."""
    posed: tuple[Moment, ...]
    """Those with a pose, which are fused."""
    jumps: frozenset[str]
    """Names of frames before which the camera jumped: nothing is carried over from the frame before."""
    problems: tuple[str, ...]
    """A line for each kind of problem of the sequence."""

    @property
    def segments(self) -> int:
        """Number of segments."""
        return min(SEGMENTS, len(self.posed))

    def segment(self, number: int) -> int:
        """Return the segment of the posed frame of this number."""
        return number * self.segments // len(self.posed)


def plan_map(sequence: Sequence, jumps: Iterable[int], limit: int | None = None) -> Plan:
    """Choose the frames of a map.

    Args:
        sequence: The sequence.
        jumps: Indices of the frames before which the camera jumped.
        limit: Use only the first frames.

    Raises:
        M2HError: Fewer than two of the frames have a pose, one is too far away, or two have the same time stamp.
    """
    if limit is not None and limit < 2:
        raise M2HError(f"limit {limit}: a map needs at least 2 frames")
    moments = sequence.moments[:limit]
    names = [time_name(moment.timestamp) for moment in moments]
    twice, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise M2HError(f"{sequence.folder}: two frames have the time stamp {twice}: remove one of them")
    posed = tuple(moment for moment in moments if moment.pose is not None and np.isfinite(moment.pose).all())
    if not posed:
        raise M2HError(
            f"{sequence.folder}: none of the {len(moments)} frames has a pose: give a trajectory with --poses FILE"
        )
    if len(posed) < 2:
        raise M2HError(f"{sequence.folder}: only {posed[0].name} has a pose: a map needs at least 2 frames with one")
    far = next((moment for moment in posed if np.abs(_position(moment)).max() > FARTHEST), None)
    if far is not None:
        raise M2HError(
            f"{sequence.folder}: the camera of frame {far.name} is {np.abs(_position(far)).max() / 1000:.3g} km from "
            f"the origin: move the trajectory to within {FARTHEST / 1000:g} km of it"
        )
    jumped = [moments[index].name for index in jumps if index < len(moments)]
    problems = list(sequence.skipped)
    if len(posed) < len(moments):
        problems.append(f"{len(moments) - len(posed)} of {len(moments)} frames have no pose: they are not fused")
    if jumped:
        problems.append(
            f"the camera jumps before {len(jumped)} frame{'s' * (len(jumped) > 1)}, first before {jumped[0]}: "
            "the poses may be wrong there"
        )
    return Plan(sequence, moments, posed, frozenset(jumped), tuple(problems))


def _position(moment: Moment) -> NDArray[np.float64]:
    assert moment.pose is not None
    return moment.pose[:3, 3]
