"""Convert a camera image to an engine's input: the network's normalized input, or a sensor graph's raw pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import ImageError, M2HError, first_line

if TYPE_CHECKING:
    from m2h_deploy.bundle.manifest import InputSpec

#: Makes an array from a shape and a type.
Allocate = Callable[[tuple[int, ...], np.dtype], NDArray[Any]]

#: Smallest side of an image that is accepted.
MIN_SIDE = 16

#: Largest side: OpenCV's resize counts pixels of a row in 16 bits.
MAX_SIDE = 32766


@dataclass(frozen=True)
class Normalization:
    """How pixels were normalized in training: (value * scale - mean) / std, per channel in RGB order.

    Raises:
        M2HError: `mean` or `std` is not three finite numbers, or `std` is not positive.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise M2HError(f"{name} {_words(values)}: give three finite numbers, one for each of R, G and B")
        if min(self.std) <= 0:
            raise M2HError(f"std {_words(self.std)}: must be above 0")

    def to_json(self) -> str:
        """Return the JSON text that is stored in an ONNX file's metadata."""
        return json.dumps({"mean": self.mean, "std": self.std})

    @staticmethod
    def from_json(text: str) -> Normalization:
        """Parse the text of `to_json`. Raises M2HError on anything else."""
        try:
            values = json.loads(text)
            mean, std = (tuple(float(value) for value in values[name]) for name in ("mean", "std"))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise M2HError(f"not a normalization: {first_line(error)}") from None
        return Normalization(mean, std)  # type: ignore[arg-type]


#: `published` is the normalization of M2H's own node, `imagenet` that of DINOv2's training.
PRESETS = {
    "published": Normalization((0.4803, 0.4800, 0.4723), (0.2594, 0.2573, 0.2641)),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def parse_normalization(mean: str, std: str) -> Normalization:
    """Parse `0.485,0.456,0.406` and `0.229,0.224,0.225` to a normalization, in RGB order and units of 0 to 1.

    Raises:
        M2HError: A text is not three numbers.
    """
    numbers: dict[str, tuple[float, ...]] = {}
    for name, text in (("mean", mean), ("std", std)):
        try:
            numbers[name] = tuple(float(part) for part in text.split(","))
        except ValueError:
            raise M2HError(
                f"{name} '{text}': give three numbers separated by commas, such as 0.485,0.456,0.406"
            ) from None
    return Normalization(numbers["mean"], numbers["std"])  # type: ignore[arg-type]


def _words(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def as_color_image(image: NDArray[Any], name: str = "image") -> NDArray[np.uint8]:
    """Return `image` as uint8 (H, W, 3): gray is repeated, alpha is dropped, color order is kept.

    Raises:
        ImageError: The type or number of channels is wrong, or a side is under 16 or over 32766 pixels.
    """
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise ImageError(f"{name}: expected an array of H x W x 3, got {getattr(image, 'shape', type(image).__name__)}")
    if image.dtype != np.uint8:
        raise ImageError(f"{name}: pixels are {image.dtype}, expected uint8: convert it to 8 bits a channel")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels not in (1, 3, 4):
        raise ImageError(f"{name}: {channels} channels, expected gray, color or color with alpha")
    size = f"{image.shape[1]} x {image.shape[0]} pixels"
    if min(image.shape[:2]) < MIN_SIDE:
        raise ImageError(f"{name}: {size} is too small: at least {MIN_SIDE} x {MIN_SIDE}")
    if max(image.shape[:2]) > MAX_SIDE:
        raise ImageError(f"{name}: {size} is too large: at most {MAX_SIDE} a side")
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
    return image if channels == 3 else image[:, :, :3]


class Preprocess:
    """Resize, reorder and normalize into buffers that are reused from call to call. Not thread-safe.

    The resize is bilinear with half-pixel centers and no antialias, on 8-bit pixels: within 1/255 of the published
    node, which resizes in float. Contiguous uint8 (H, W, 3) input allocates no memory.
    """

    def __init__(
        self, normalization: Normalization, height: int, width: int, *, color: Literal["BGR", "RGB"] = "BGR"
    ) -> None:
        self.size = (width, height)
        # Plane c of the network's input is RGB channel c.
        self._planes: Sequence[int] = (2, 1, 0) if color == "BGR" else (0, 1, 2)
        levels = np.arange(256, dtype=np.float64) * normalization.scale
        self._tables = [
            ((levels - mean) / std).astype(np.float32)
            for mean, std in zip(normalization.mean, normalization.std, strict=True)
        ]
        self._resized = np.empty((height, width, 3), np.uint8)
        self._plane = np.empty((height, width), np.uint8)
        self._out = self.new_tensor()

    def new_tensor(self, batch: int = 1, allocate: Allocate = np.empty) -> NDArray[Any]:
        """Allocate an array for `out`: float32 (batch, 3, height, width)."""
        return allocate((batch, 3, self.size[1], self.size[0]), np.dtype(np.float32))

    def __call__(self, image: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Convert uint8 (H, W, 3) to float32 (1, 3, height, width).

        The result is written to `out` if given (C-contiguous; if its batch is larger, the image is repeated), else to a
        buffer that the next call overwrites.
        """
        image = as_color_image(image)
        tensor = self._out if out is None else out
        if (image.shape[1], image.shape[0]) == self.size:
            resized = image
        else:
            resized = cv2.resize(image, self.size, dst=self._resized, interpolation=cv2.INTER_LINEAR)
        if not resized.flags.c_contiguous:  # such as RGB made from BGR by a slice
            np.copyto(self._resized, resized)
            resized = self._resized
        for plane, (channel, table) in enumerate(zip(self._planes, self._tables, strict=True)):
            cv2.extractChannel(resized, channel, dst=self._plane)
            cv2.LUT(self._plane, table, dst=tensor[0, plane])
        for index in range(1, len(tensor)):
            np.copyto(tensor[index], tensor[0])
        return tensor


def bgr_to_nv12(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert (H, W, 3) BGR of even sides to (3/2 H, W): the plane of Y above the plane of interleaved U and V."""
    height, width = image.shape[:2]
    planar = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420))
    chroma = planar[height:].reshape(2, height // 2, width // 2)
    return np.concatenate((planar[:height], chroma.transpose(1, 2, 0).reshape(height // 2, width)))


def nv12_to_bgr(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert (3/2 H, W) NV12 to (H, W, 3) BGR, BT.601 with luma from 16 to 235."""
    return np.asarray(cv2.cvtColor(raw, cv2.COLOR_YUV2BGR_NV12), np.uint8)


class SensorPreprocess:
    """Copy a frame to the input of a sensor graph; only the color order is converted. Not thread-safe."""

    def __init__(self, spec: InputSpec, *, color: Literal["BGR", "RGB"] = "BGR") -> None:
        self.size = (spec.width, spec.height)
        self._sides = spec.sides
        self._nv12 = spec.layout == "NV12"
        self._rgb = color == "RGB"
        self._out = self.new_tensor()

    def new_tensor(self, batch: int = 1, allocate: Allocate = np.empty) -> NDArray[Any]:
        """Allocate an array for `out`: uint8 (batch, H, W, 3) BGR or (batch, 3/2 H, W) NV12."""
        return allocate((batch, *self._sides), np.dtype(np.uint8))

    def is_raw(self, image: Any) -> bool:
        """Return whether `image` is NV12 from the camera, (3/2 H, W), and the engine takes NV12."""
        return self._nv12 and isinstance(image, np.ndarray) and image.shape == self._sides and image.dtype == np.uint8

    def __call__(self, image: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Copy uint8 (H, W, 3) in the caller's color order, gray or with alpha, or NV12 (see `is_raw`), to `out`.

        Raises:
            M2HError: The image has another size than the engine was made for.
        """
        tensor = self._out if out is None else out
        if self.is_raw(image):
            np.copyto(tensor[0], image)
        else:
            self._fill(as_color_image(image), tensor[0])
        for index in range(1, len(tensor)):
            np.copyto(tensor[index], tensor[0])
        return tensor

    def _fill(self, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        if (width, height) != self.size:
            raise ImageError(
                f"image: {width} x {height} pixels, this bundle takes the camera's {self.size[0]} x {self.size[1]}: "
                f"export with --camera-size {width}x{height}, or without --sensor for any size"
            )
        bgr = image[:, :, ::-1] if self._rgb else image
        np.copyto(target, bgr_to_nv12(np.ascontiguousarray(bgr)) if self._nv12 else bgr)


def preprocess_for(spec: InputSpec, color: Literal["BGR", "RGB"] = "BGR") -> Preprocess | SensorPreprocess:
    """Return the preprocessing that a manifest describes, for images of the given color order."""
    if spec.layout != "NCHW":
        return SensorPreprocess(spec, color=color)
    return Preprocess(normalization_of(spec), spec.height, spec.width, color=color)


def normalization_of(spec: InputSpec) -> Normalization:
    """Return the normalization that a manifest describes."""
    return Normalization(spec.mean, spec.std, spec.scale)  # type: ignore[arg-type]
