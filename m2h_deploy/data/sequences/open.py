"""Detect the layout of a sequence and open it."""

from __future__ import annotations

from pathlib import Path

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.settings import Settings
from m2h_deploy.data.sequences.tum import IMAGES, open_tum
from m2h_deploy.errors import M2HError
from m2h_deploy.files.names import is_file, is_folder

LAYOUTS = f"{IMAGES} (TUM RGB-D)"


def open_sequence(
    path: str | Path,
    *,
    poses: str | Path | None = None,
    intrinsics: Intrinsics | None = None,
    tolerance: float = 0.02,
    offset: float = 0.0,
) -> Sequence:
    """Open the images of a moving camera, with times and poses, in any known layout.

    ```python
    sequence = open_sequence("rgbd_dataset_freiburg1_desk")
    for frame in sequence:
        print(frame.timestamp, frame.pose)
    ```

    Args:
        path: A folder in the layout of TUM RGB-D.
        poses: A trajectory in TUM's format, used instead of the sequence's own poses.
        intrinsics: The camera, used instead of the sequence's own.
        tolerance: Largest difference in time, in seconds, of an image and its depth or its nearest pose.
        offset: Added to the times of the images, in seconds, to find their poses.

    Raises:
        M2HError: `path` is not a sequence, or a part of it is missing or damaged; the message names it.
    """
    path = Path(path)
    settings = Settings(None if poses is None else Path(poses), intrinsics, tolerance, offset)
    if not is_file(path) and not is_folder(path):
        raise M2HError(f"{path}: no such file or folder")
    if is_sequence(path):
        return open_tum(path, settings)
    raise M2HError(f"{path}: no known sequence. Looked for: {LAYOUTS}")


def is_sequence(folder: Path) -> bool:
    """Return whether a folder has a known layout of a sequence."""
    return is_file(folder / IMAGES)
