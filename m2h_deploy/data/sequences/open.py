"""Detect the layout of a sequence and open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.scannet import open_scannet, scannet_images
from m2h_deploy.data.sequences.settings import Settings
from m2h_deploy.data.sequences.seven_scenes import open_seven_scenes, seven_scenes_images
from m2h_deploy.data.sequences.tum import IMAGES, open_tum, tum_images
from m2h_deploy.data.sequences.video import open_images, open_video_sequence
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import IMAGE_SUFFIXES
from m2h_deploy.files.names import is_file, is_folder
from m2h_deploy.files.videos import VIDEO_SUFFIXES


@dataclass(frozen=True)
class _Layout:
    """Layout of a sequence in a folder."""

    title: str
    """The files that identify the layout, and the name of its data set, for messages."""
    matches: Callable[[Path], bool]
    images: Callable[[Path], list[tuple[str, Path]]]
    """Lists the name and the file of each image, in order."""
    open: Callable[[Path, Settings], Sequence]


_LAYOUTS = (
    _Layout(f"{IMAGES} (TUM RGB-D)", lambda folder: is_file(folder / IMAGES), tum_images, open_tum),
    _Layout(
        "color/ with pose/ (ScanNet)",
        lambda folder: is_folder(folder / "color") and is_folder(folder / "pose"),
        scannet_images,
        open_scannet,
    ),
    _Layout(
        "frame-*.color.png (7-Scenes)",
        lambda folder: next(folder.glob("frame-*.color.png"), None) is not None,
        seven_scenes_images,
        open_seven_scenes,
    ),
)

#: What the folders of sequences have, for messages.
LAYOUTS = ", ".join(layout.title for layout in _LAYOUTS)


def open_sequence(
    path: str | Path,
    *,
    poses: str | Path | None = None,
    intrinsics: Intrinsics | None = None,
    tolerance: float = 0.02,
    offset: float = 0.0,
    rate: float | None = None,
) -> Sequence:
    """Open the images of a moving camera, with times and poses, in any known layout.

    ```python
    sequence = open_sequence("rgbd_dataset_freiburg1_desk")
    for frame in sequence:
        print(frame.timestamp, frame.pose)
    ```

    Args:
        path: A folder in the layout of TUM RGB-D, 7-Scenes or ScanNet; a folder of images, or a video file.
        poses: A trajectory in TUM's format, used instead of the sequence's own poses. Images and videos have none.
        intrinsics: The camera, used instead of the sequence's own. Images and videos need it, or camera.json.
        tolerance: Largest difference in time, in seconds, of an image and its depth or its nearest pose.
        offset: Added to the times of the images, in seconds, to find their poses: a video begins at 0.
        rate: Images per second, used instead of times in the names of images, in a video, or of 30 for numbered files.

    Returns:
        The sequence; its `skipped` has a line for each kind of image without a pose or depth, and of file left out.

    Raises:
        M2HError: `path` is not a sequence, or a part of it is missing or damaged; the message names it.
    """
    path = Path(path)
    settings = Settings(None if poses is None else Path(poses), intrinsics, tolerance, offset, rate)
    if is_file(path):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return open_video_sequence(path, settings)
        raise M2HError(f"{path}: a file, but not a video ({', '.join(sorted(VIDEO_SUFFIXES))})")
    if not is_folder(path):
        raise M2HError(f"{path}: no such file or folder")
    layout = _layout_of(path)
    if layout is not None:
        return layout.open(path, settings)
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir()):
        return open_images(path, settings)
    inner = next((folder for folder in sorted(path.iterdir()) if is_folder(folder) and is_sequence(folder)), None)
    advice = f"; {inner} is one" if inner is not None else ""
    raise M2HError(f"{path}: no known sequence. Looked for: {LAYOUTS}, images{advice}")


def is_sequence(folder: Path) -> bool:
    """Return whether a folder has a known layout of a sequence; a plain folder of images has not."""
    return _layout_of(folder) is not None


def sequence_images(folder: Path) -> list[tuple[str, Path]] | None:
    """Return the name and the file of each image of a sequence, in order, without opening it.

    None for a folder that is not a sequence; see `is_sequence`.

    Raises:
        M2HError: The list of images is damaged.
    """
    layout = _layout_of(folder)
    return None if layout is None else layout.images(folder)


def _layout_of(folder: Path) -> _Layout | None:
    return next((layout for layout in _LAYOUTS if layout.matches(folder)), None)
