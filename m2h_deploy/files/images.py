"""Read image files: reject truncated ones, and distinguish pictures from depth maps and label maps.

A picture is an image from a camera. Data sets often have depth maps and label maps in the same folder and formats;
predictions on these are meaningless. A file is a map if one of these holds:

- it has one channel of 16-bit or floating-point pixels;
- it has one channel (or three equal ones), is not a JPEG, and a word of its name says so (`depth_0001.png`,
  `x_labels.png`; a folder named `depth` counts for its files) while no word is `rgb` or `color`;
- it holds class indices: one channel of values up to 64 (255 for unlabeled), constant over regions, with steps of more
  than one between them. A dark picture has steps of one;
- it is a PNG with a palette, or named as above, whose few colors are constant over regions. Without such a name, only
  the palette of PASCAL VOC counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.causes import NO_MEMORY, MachineError, reason
from m2h_deploy.errors import ImageError, M2HError
from m2h_deploy.files.names import require_file
from m2h_deploy.runtime.preprocess import MAX_SIDE, as_color_image

#: Suffixes of files that are read as images.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

_MAP_WORDS = {
    **dict.fromkeys(("depth", "depths", "disparity", "disp"), "depth map"),
    **dict.fromkeys(("label", "labels", "semantic", "semantics", "segmentation", "segmentations"), "label map"),
    **dict.fromkeys(("seg", "semseg", "instance", "instances", "mask", "masks", "annotation"), "label map"),
    **dict.fromkeys(("edge", "edges"), "edge map"),
}
_PICTURE_WORDS = {"rgb", "color", "colour", "image", "img", "picture", "photo"}

#: Largest class index that is recognized by values only; larger ones are as likely a picture's gray levels.
_LARGEST_INDEX = 64
_UNLABELED = 255
#: Smallest share of equal neighboring pixels in a map of regions, and its largest number of colors.
_REGIONS, _FEW_COLORS = 0.75, 64

_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
#: The first three colors of PASCAL VOC's palette, which the label maps of many data sets use.
_VOC_COLORS = bytes([0, 0, 0, 128, 0, 0, 0, 128, 0])

# The next marker of a JPEG: neither a stuffed zero, nor a restart marker, nor fill bytes.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE = 0xD9
_START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in `folder`, sorted by name, including broken links.

    Raises:
        M2HError: There are no images, or the folder cannot be listed.
    """
    try:
        entries = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise MachineError(f"{folder} cannot be listed: {reason(error)}") from None
    files = [file for file in entries if file.is_file() or (file.is_symlink() and not file.exists())]
    if not files:
        raise M2HError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read the picture at `path` as uint8 (H, W, 3) BGR, rotated by its EXIF orientation; gray and alpha are converted.

    Raises:
        ImageError: The file is truncated, undecodable, a depth map or a label map, has 16-bit pixels, or a side under
            16 or over 32766 pixels.
        M2HError: The file is missing or unreadable.
    """
    pixels, kind = decode_picture(path)
    if kind is not None:
        eight = pixels.dtype == np.uint8
        advice = "give the file another name, or save it in color" if eight else "save it with 8 bits a pixel"
        raise ImageError(f"{path} is a {kind}, not a picture (if it is a picture, {advice})")
    return as_color_image(pixels, str(path))


def read_plane(path: Path, what: str) -> NDArray[Any]:
    """Read a one-channel image as stored.

    Args:
        path: the image; three equal channels are accepted.
        what: name of the image in messages.

    Returns:
        uint8 or uint16 (H, W).

    Raises:
        M2HError: the file cannot be read, or its channels differ.
    """
    plane = read_pixels(path, cv2.IMREAD_UNCHANGED, what)
    if plane.ndim == 3 and (plane[..., :1] == plane).all():
        plane = plane[..., 0]
    if plane.ndim != 2:
        raise M2HError(f"{path}: {what} has {plane.shape[2]} color channels, expected one")
    return plane


def read_pixels(path: Path, flags: int, what: str) -> NDArray[Any]:
    """Read the image file at `path` with OpenCV's `flags`; `what` names it in an error. Raises as `decode`."""
    return decode(path, read_content(path, what), flags, what)


def decode_picture(path: Path) -> tuple[NDArray[Any], str | None]:
    """Decode an image file with its EXIF orientation; also return its kind of map, None for a picture."""
    content = read_content(path, "image")
    # Not IMREAD_UNCHANGED: it ignores the EXIF orientation.
    pixels = decode(path, content, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR, "image")
    return pixels, map_kind(path, content, pixels)


def may_be_map(path: Path) -> bool:
    """Return False if a file's first bytes exclude a map, which saves decoding it: JPEG, most color PNG."""
    try:
        with path.open("rb") as stream:
            head = stream.read(26)
    except OSError:
        return True
    colors = head.startswith(_PNG) and head[24:26] in (b"\x08\x02", b"\x08\x06")  # 8-bit RGB, with alpha or not
    return not _is_jpeg(head) and (not colors or _named_map(path) is not None)


def read_content(path: Path, what: str) -> bytes:
    """Read the file at `path`; `what` names it in an error.

    Raises:
        M2HError: The file is missing or unreadable.
    """
    require_file(path, what)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MachineError(f"{path}: {what} cannot be read ({reason(error)})") from error


def decode(path: Path, content: bytes, flags: int, what: str) -> NDArray[Any]:
    """Decode the content of an image file with OpenCV's `flags`; `path` and `what` name it in an error.

    Raises:
        ImageError: The image is truncated, undecodable or too large.
    """
    _check_size(path, content, what)
    # OpenCV before 4.11 returns a truncated JPEG as a complete picture; it rejects other truncated formats itself.
    if is_truncated_jpeg(content):
        raise ImageError(f"{path}: {what} is truncated: the JPEG has no end; copy it again")
    try:
        with enough_memory(str(path)):
            decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error:
        decoded = None
    if decoded is None:
        raise ImageError(f"{path}: {what} cannot be decoded; the file is damaged, truncated or not an image")
    return np.asarray(decoded)


class OutOfMemoryError(MachineError):
    """An image is too large for the available memory."""


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Raise OutOfMemoryError, which names `what`, if NumPy or OpenCV runs out of memory in the block."""
    try:
        yield
    except MemoryError:
        raise OutOfMemoryError(f"{what}: {NO_MEMORY}") from None
    except cv2.error as error:
        if error.code != cv2.Error.STS_NO_MEM:
            raise
        raise OutOfMemoryError(f"{what}: {NO_MEMORY}") from None


def is_truncated_jpeg(content: bytes) -> bool:
    """Return whether `content` is a JPEG without an end-of-image marker; trailing bytes are allowed."""
    return _is_jpeg(content) and _END_OF_IMAGE not in (marker for marker, _ in _jpeg_segments(content))


def _is_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8\xff")


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker after the first and the start of its segment, up to the end of the image or of the bytes."""
    position = 2
    while (found := _JPEG_MARKER.search(content, position)) is not None:
        marker, position = content[found.start() + 1], found.end()
        yield marker, position
        if marker == _END_OF_IMAGE:
            return
        if marker not in (0x01, 0xD8):  # the other markers open a segment that begins with its length
            position += int.from_bytes(content[position : position + 2], "big")


def _check_size(path: Path, content: bytes, what: str) -> None:
    """Reject an image whose header states too large a size, before its pixels are allocated."""
    width, height = _stated_size(content)
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{path}: {what} of {width} x {height} pixels is too large: at most {MAX_SIDE} a side")


def _stated_size(content: bytes) -> tuple[int, int]:
    """Return width and height in the header of a PNG, BMP or JPEG; zeros for other formats."""
    if content.startswith(_PNG):
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content.startswith(b"BM"):
        sides = (int.from_bytes(content[at : at + 4], "little", signed=True) for at in (18, 22))
        width, height = map(abs, sides)  # the height is negative if rows begin at the top
        return width, height
    if _is_jpeg(content):
        for marker, at in _jpeg_segments(content):
            if marker in _START_OF_FRAME:
                return int.from_bytes(content[at + 5 : at + 7], "big"), int.from_bytes(content[at + 3 : at + 5], "big")
    return 0, 0


def map_kind(path: Path, content: bytes, pixels: NDArray[Any]) -> str | None:
    """Return the kind of map of a decoded image file, by the rules in this module's docstring; None for a picture."""
    if pixels.ndim == 2 and pixels.dtype != np.uint8:
        return f"{'16-bit' if pixels.dtype == np.uint16 else pixels.dtype} depth map"
    if _is_jpeg(content) or pixels.dtype != np.uint8:
        return None
    named = _named_map(path)
    if pixels.ndim == 2:
        return named or ("label map" if _holds_indices(pixels) else None)
    if named and (pixels[..., :1] == pixels).all():
        return named
    palette = content.startswith(_PNG) and content[25] == _PALETTE
    voc = palette and content[content.find(b"PLTE") + 4 :].startswith(_VOC_COLORS)
    return (named or "label map") if (voc or named) and _has_few_colors(pixels) else None


def _named_map(path: Path) -> str | None:
    """Return the kind of map that a word of the file's name, or the name of its folder, indicates."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.stem)
    words = re.findall(r"[a-z]+", spaced.lower())
    if _PICTURE_WORDS & set(words):
        return None
    return next(
        (_MAP_WORDS[word] for word in (*words, path.absolute().parent.name.lower()) if word in _MAP_WORDS), None
    )


def _holds_indices(plane: NDArray[np.uint8]) -> bool:
    levels = np.flatnonzero(np.bincount(plane.reshape(-1), minlength=256)[:_UNLABELED])
    if len(levels) < 2 or levels[-1] > _LARGEST_INDEX:
        return False
    steps = [np.abs(np.diff(plane.astype(np.int16), axis=axis)) for axis in (0, 1)]
    changes = sum(np.count_nonzero(step) for step in steps)
    ones = sum(np.count_nonzero(step == 1) for step in steps)
    return bool(changes <= (1 - _REGIONS) * sum(step.size for step in steps) and ones < 0.5 * changes)


def _has_few_colors(pixels: NDArray[np.uint8]) -> bool:
    number = pixels[..., :3].astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    changes = [np.diff(number, axis=axis) != 0 for axis in (0, 1)]
    constant = sum(np.count_nonzero(c) for c in changes) <= (1 - _REGIONS) * sum(c.size for c in changes)
    return bool(constant) and 2 <= len(np.unique(number)) <= _FEW_COLORS
