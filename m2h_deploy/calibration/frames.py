"""Samples from frames with measured depth, such as RGB-D images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from m2h_deploy.calibration.samples import PIXELS, SampleList, Samples
from m2h_deploy.data.frame import Dataset
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.runtime import Runtime

Progress = Callable[[int, int], None]


def samples_of_frames(
    runtime: Runtime, data: Dataset, indices: Sequence[int], name: str, progress: Progress | None = None
) -> Samples:
    """Predict frames and pair the depth with what was measured; every frame is a unit.

    Args:
        runtime: Runtime without calibration.
        data: Frames with depth.
        indices: Frames to use.
        name: Name of the data, for errors.
        progress: Called with the numbers of finished frames and of all.

    Raises:
        M2HError: A frame cannot be read or predicted, the data has no depth, or fewer than three frames have any.
    """
    found = SampleList(runtime.manifest.depth_range)
    for done, index in enumerate(indices):
        frame = data[index]
        if frame.depth is None:
            raise M2HError(
                f"{name} has no measured depth ({frame.name}): give RGB-D frames, or points with --points FILE.csv"
            )
        depth = runtime(frame.image).depth
        assert depth is not None
        stride = max(1, round((depth.size / PIXELS) ** 0.5))
        known = frame.depth[::stride, ::stride]
        valid = np.isfinite(known) & (known > 0)
        found.add(depth[::stride, ::stride][valid], known[valid], done)
        if progress is not None:
            progress(done + 1, len(indices))
    return found.samples(len(indices), f"{name}: frames with measured depth")
