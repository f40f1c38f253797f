"""Camera image to network input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError

#: Smallest side of an image that is taken for a picture.
MIN_SIDE = 16


@dataclass(frozen=True)
class Normalisation:
    """How pixels were normalised in training: (value / 255 - mean) / std, per channel in RGB order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


#: `published` is what M2H's own node uses, `imagenet` what DINOv2 was trained with.
PRESETS = {
    "published": Normalisation((0.4803, 0.4800, 0.4723), (0.2594, 0.2573, 0.2641)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def as_color_image(image: NDArray[Any], name: str = "image") -> NDArray[np.uint8]:
    """`image` as uint8 (H, W, 3): grey is repeated, alpha is dropped, colour order is kept.

    Raises M2HError on other types, more channels, or a side under 16 pixels.
    """
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise M2HError(f"{name}: expected an array of H x W x 3, got {getattr(image, 'shape', type(image).__name__)}")
    if image.dtype != np.uint8:
        raise M2HError(f"{name}: pixels are {image.dtype}, expected uint8: convert it to 8 bits a channel")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels not in (1, 3, 4):
        raise M2HError(f"{name}: {channels} channels, expected grey, colour or colour with alpha")
    if min(image.shape[:2]) < MIN_SIDE:
        raise M2HError(
            f"{name}: {image.shape[1]} x {image.shape[0]} pixels is too small: at least {MIN_SIDE} x {MIN_SIDE}"
        )
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image if channels == 3 else image[:, :, :3]


class Preprocess:
    """Resize, reorder and normalise into one buffer that is reused from call to call.

    The resize is bilinear with half-pixel centres and no antialias, on 8-bit pixels: within 1/255 of the published
    node, which resizes in float.
    """

    def __init__(
        self, normalisation: Normalisation, height: int, width: int, *, color: Literal["BGR", "RGB"] = "BGR"
    ) -> None:
        self.size = (width, height)
        # Plane c of the network's input is RGB channel c.
        self._planes: Sequence[int] = (2, 1, 0) if color == "BGR" else (0, 1, 2)
        levels = np.arange(256, dtype=np.float64) / 255
        self._tables = [
            ((levels - mean) / std).astype(np.float32)
            for mean, std in zip(normalisation.mean, normalisation.std, strict=True)
        ]
        self._resized = np.empty((height, width, 3), np.uint8)
        self._out = np.empty((1, 3, height, width), np.float32)

    def __call__(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """uint8 (H, W, 3) to float32 (1, 3, height, width). The result is overwritten by the next call."""
        image = as_color_image(image)
        if (image.shape[1], image.shape[0]) == self.size:
            resized = image
        else:
            resized = cv2.resize(image, self.size, dst=self._resized, interpolation=cv2.INTER_LINEAR)
        for plane, (channel, table) in enumerate(zip(self._planes, self._tables, strict=True)):
            np.take(table, resized[:, :, channel], out=self._out[0, plane], mode="clip")
        return self._out
