"""Convert sensor_msgs/Image to and from arrays, without cv_bridge or ROS: any object with those fields works."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import decode
from m2h_deploy.runtime.preprocess import as_color_image

#: Channels of each encoding, and OpenCV's conversion to BGR (None: it is BGR).
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "bgr8": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "8uc1": (1, cv2.COLOR_GRAY2BGR),
    "yuv422": (2, cv2.COLOR_YUV2BGR_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2BGR_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2BGR_YUY2),
}

#: Largest relative difference between the aspect ratios of a CameraInfo and of images that are scaled.
_ASPECT = 0.01

#: Encodings that do not define the order of their colors.
_UNORDERED = {"8uc3": {"rgb": "rgb8", "bgr": "bgr8"}, "8uc4": {"rgb": "rgba8", "bgr": "bgra8"}}


def image_to_bgr(message: Any, color_order: str = "rgb") -> NDArray[np.uint8]:
    """Return the pixels of an Image message as contiguous uint8 (H, W, 3) BGR; bgr8 without padding is not copied.

    `color_order` (rgb or bgr) is that of 8UC3 and 8UC4.

    Raises:
        M2HError: The encoding is not supported, or size, step and data are inconsistent.
    """
    encoding = str(message.encoding).lower()
    encoding = _UNORDERED.get(encoding, {}).get(color_order, encoding)
    if encoding not in _ENCODINGS:
        raise M2HError(
            f"image: encoding '{message.encoding}' is not taken: publish one of {', '.join(sorted(_ENCODINGS))}"
        )
    channels, conversion = _ENCODINGS[encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    row = width * channels
    if not (height and width) or step < row or data.size < step * height:
        raise M2HError(
            f"image: {data.size} bytes in rows of {step} are no {width} x {height} picture of {encoding}: "
            "the camera's driver sends damaged messages"
        )
    if channels == 2 and width % 2:
        raise M2HError(f"image: {encoding} of odd width {width}")
    rows = data[: step * height].reshape(height, step)[:, :row]
    pixels = np.ascontiguousarray(rows).reshape(height, width, channels)
    return pixels if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), np.uint8)


def compressed_to_bgr(message: Any, topic: str = "image") -> NDArray[np.uint8]:
    """Decode a CompressedImage message (JPEG, PNG) to contiguous uint8 (H, W, 3) BGR; gray is repeated.

    Colors are those that image_transport's subscriber gives: its `format`, such as `rgb8; png compressed rgb8`, states
    the order in which the encoder took them.

    Raises:
        M2HError: The data are damaged, have 16 bits a channel, or are depth.
    """
    if "compressedDepth" in message.format:
        raise M2HError(f"{topic}: format '{message.format}' is a depth image: name the color camera's topic")
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = decode(Path(topic), memoryview(message.data).tobytes(), flags, "the message")
    image = as_color_image(decoded, topic)
    if decoded.ndim == 3 and "compressed rgb" in message.format:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
    return np.ascontiguousarray(image)


@dataclass(frozen=True)
class Pixels:
    """The fields of an Image message except its header."""

    height: int
    width: int
    encoding: str
    step: int
    data: array.array[int]
    is_bigendian: int = int(sys.byteorder == "big")


def _pixels(values: NDArray[Any], encoding: str) -> Pixels:
    values = np.ascontiguousarray(values)
    # rclpy checks every element of any other type than array.array, which takes longer than the network.
    data = array.array("B")
    data.frombytes(values.data.cast("B"))
    return Pixels(values.shape[0], values.shape[1], encoding, values.strides[0], data)


def depth_pixels(
    depth: NDArray[np.float32],
    scale: float = 1.0,
    encoding: str = "32FC1",
    outside: NDArray[np.bool_] | None = None,
) -> Pixels:
    """Convert float32 (H, W) meters, multiplied by `scale`, to 32FC1 meters or 16UC1 millimeters, as REP 118 defines.

    Unknown depth (not above 0, or `outside`: bool (H, W)) is NaN in 32FC1 and 0 in 16UC1. Depth of 65.535 m or more is
    65535 in 16UC1.
    """
    depth = depth if scale == 1.0 else depth * np.float32(scale)
    unknown = ~(depth > 0)
    if outside is not None:
        unknown |= outside
    if encoding == "16UC1":
        millimeters = np.rint(depth * np.float32(1000))
        millimeters[unknown] = 0
        return _pixels(np.minimum(millimeters, 65535).astype(np.uint16), "16UC1")
    return _pixels(np.where(unknown, np.float32(np.nan), depth) if unknown.any() else depth, "32FC1")


def label_pixels(labels: NDArray[np.uint8], remap: NDArray[np.uint8] | None = None) -> Pixels:
    """Convert uint8 (H, W) class indices to mono8, mapped by `remap` (256 entries) if given."""
    return _pixels(labels if remap is None else cv2.LUT(labels, remap), "mono8")


def color_pixels(labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Pixels:
    """Convert uint8 (H, W) class indices to rgb8; `palette` is uint8 (256, 3) RGB."""
    return _pixels(palette[labels], "rgb8")


def bgr_pixels(image: NDArray[np.uint8]) -> Pixels:
    """Convert uint8 (H, W, 3) BGR to bgr8."""
    return _pixels(image, "bgr8")


def float_pixels(values: NDArray[np.float32]) -> Pixels:
    """Convert float32 (H, W) to 32FC1, or (H, W, 3) to 32FC3."""
    return _pixels(values, "32FC1" if values.ndim == 2 else "32FC3")


def palette_table(palette: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    """Return the classes' colors, black for all other labels, as uint8 (256, 3) RGB."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)[:256]
    return table


def fill(message: Any, pixels: Pixels, header: Any) -> Any:
    """Write `pixels` and `header` to an Image message and return it."""
    message.header = header
    message.height, message.width = pixels.height, pixels.width
    message.encoding, message.is_bigendian = pixels.encoding, pixels.is_bigendian
    message.step, message.data = pixels.step, pixels.data
    return message


def stamp_ns(header: Any) -> int:
    """Return a header's stamp in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def fits(info: Any, image: Any) -> bool:
    """Return whether a CameraInfo describes images of this size; True if it has no size."""
    return (info.width, info.height) in ((0, 0), (image.width, image.height))


def region(info: Any) -> tuple[int, int, int, int]:
    """Return the region of interest of a CameraInfo: x, y, width, height; zeros for the whole image."""
    roi = info.roi
    return roi.x_offset, roi.y_offset, roi.width, roi.height


def intrinsics(info: Any, image: Any) -> Intrinsics:
    """Return the pinhole camera of a CameraInfo, scaled to the size of an image; lens distortion is ignored.

    Args:
        info: CameraInfo message.
        image: anything with `width` and `height`, such as an Image message.

    Raises:
        M2HError: The camera is not calibrated, or its images have another aspect ratio or are a region of interest.
    """
    x, y, width, height = region(info)
    if (x, y, width, height) not in ((0, 0, 0, 0), (0, 0, info.width, info.height)):
        raise M2HError(
            f"CameraInfo has a region of interest ({width}x{height} at {x}, {y}), which is not supported: "
            "let the driver publish whole images"
        )
    fx, fy, cx, cy = (float(info.k[place]) for place in (0, 4, 2, 5))
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise M2HError("CameraInfo has no focal length: the camera is not calibrated")
    camera = Intrinsics(fx, fy, cx, cy)
    if fits(info, image):
        return camera
    if abs(info.width * image.height / (info.height * image.width or 1) - 1) > _ASPECT:
        raise M2HError(
            f"CameraInfo is about {info.width}x{info.height} and images are {image.width}x{image.height}: "
            "not the same aspect ratio"
        )
    return camera.scaled(image.height, image.width, info.height, info.width)
