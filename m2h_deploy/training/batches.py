"""Batches of labeled frames as tensors, and the paper's augmentations (section IV B)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_deploy.data import IGNORE_LABEL
from m2h_deploy.runtime.preprocess import Normalization
from m2h_deploy.training.cache import UNKNOWN_EDGE, FrameCache


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random augmentations; 0 disables one."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    """Fraction of the hue circle, 0..0.5."""
    gamma: float = 0.2
    flip: float = 0.5
    """Probability of a horizontal flip."""


@dataclass(frozen=True)
class Batch:
    """Images of N frames, and their labels at H x W pixels. The labels may have another size than the images.

    - image: float32 (N, 3, H, W), RGB 0..1
    - depth: float32 (N, 1, H, W), meters, 0 where unknown
    - semantics: int64 (N, H, W), the network's class index: 0 is "unknown", 1..40 are the data's 0..39; -1 unlabeled
    - normals: float32 (N, 3, H, W), zeros where unknown
    - edges: float32 (N, 1, H, W), 0 or 1, -1 where unknown
    """

    image: Tensor
    depth: Tensor
    semantics: Tensor
    normals: Tensor
    edges: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy all tensors to `device`."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def network_input(self, normalization: Normalization) -> Tensor:
        """Normalize the image for the network: float32 (N, 3, H, W)."""
        return normalized(self.image, normalization)


def normalized(image: Tensor, normalization: Normalization) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation; `image` is (N, 3, H, W), RGB 0..1."""
    mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
    return (image - mean) / std


def read_batch(cache: FrameCache, indices: np.ndarray, size: tuple[int, int]) -> Batch:
    """Read frames as tensors, resized to one size: images by area, labels by nearest neighbor, edges by maximum.

    Edges are one pixel wide. In a smaller edge map a pixel is therefore an edge if any of the pixels that it covers is
    one.

    Args:
        cache: the frames.
        indices: which frames, int (N,).
        size: (height, width), pixels.
    """
    image = torch.from_numpy(_images(cache, indices, size)).permute(0, 3, 1, 2).float() / 255
    semantics = torch.from_numpy(cache.semantics[indices].astype(np.int64))
    semantics = torch.where(semantics == IGNORE_LABEL, -1, semantics + 1)
    edges = torch.from_numpy(cache.edges[indices].astype(np.float32))[:, None]
    edges = torch.where(edges == UNKNOWN_EDGE, -1.0, edges)
    depth = torch.from_numpy(cache.depth[indices].astype(np.float32))[:, None]
    normals = torch.from_numpy(cache.normals[indices].astype(np.float32)).permute(0, 3, 1, 2)
    batch = Batch(image, depth, semantics, normals, edges)
    return batch if tuple(cache.image.shape[1:3]) == size else resize_labels(batch, size)


def _images(cache: FrameCache, indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    frames = [cache.image[i] for i in indices]
    if frames[0].shape[:2] != size:
        frames = [cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA) for frame in frames]
    return np.ascontiguousarray(np.stack(frames)[..., ::-1])


def resize_labels(batch: Batch, size: tuple[int, int]) -> Batch:
    """Resize the labels, but not the image, to `size` (height, width): nearest neighbor, edges by maximum."""
    semantics = F.interpolate(batch.semantics[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    return replace(
        batch,
        depth=F.interpolate(batch.depth, size=size, mode="nearest-exact"),
        semantics=semantics,
        normals=F.interpolate(batch.normals, size=size, mode="nearest-exact"),
        edges=F.adaptive_max_pool2d(batch.edges, size),
    )


def crop_labels(batch: Batch, part: Callable[[Tensor], Tensor]) -> Batch:
    """Replace each label map by `part` of it; the image stays whole.

    Args:
        batch: the batch.
        part: crops a tensor whose last two dimensions are H and W.
    """
    labels = {f.name: part(getattr(batch, f.name)) for f in fields(batch) if f.name != "image"}
    return replace(batch, **labels)


def flip(batch: Batch, chosen: Tensor) -> Batch:
    """Mirror some frames of a batch left to right, and change the sign of their normals' x component.

    Args:
        batch: the batch.
        chosen: bool (N,), the frames to mirror.
    """
    mirror = chosen.view(-1, 1, 1, 1)
    sign = batch.normals.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
    return Batch(
        image=torch.where(mirror, batch.image.flip(-1), batch.image),
        depth=torch.where(mirror, batch.depth.flip(-1), batch.depth),
        semantics=torch.where(mirror[:, 0], batch.semantics.flip(-1), batch.semantics),
        normals=torch.where(mirror, batch.normals.flip(-1) * sign, batch.normals),
        edges=torch.where(mirror, batch.edges.flip(-1), batch.edges),
    )


def augment(batch: Batch, config: AugmentConfig, seed: int) -> Batch:
    """Apply random brightness, contrast, gamma, hue, saturation and horizontal flip, drawn for each frame.

    The result depends only on the arguments, so that a resumed run sees the same frames.

    Args:
        batch: the batch; labels change only by the flip.
        config: ranges of the augmentations.
        seed: seed of the random draws.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(batch.image)
    chosen = torch.rand(count, generator=generator) < config.flip
    image = batch.image
    for name, adjust in _adjustments().items():
        # Drawn even if unused, so that disabling one augmentation does not change the others.
        spread = 2 * torch.rand(count, generator=generator) - 1
        amount = getattr(config, name)
        if amount:
            image = adjust(image, amount * spread).clamp(0, 1)
    return flip(replace(batch, image=image), chosen)


@cache
def _adjustments() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Map each field of AugmentConfig to a function of image (N, 3, H, W), RGB 0..1, and signed amount (N,)."""
    from kornia import enhance

    return {
        "brightness": lambda image, x: image * (1 + x).view(-1, 1, 1, 1),
        "contrast": lambda image, x: enhance.adjust_contrast_with_mean_subtraction(image, 1 + x),
        "gamma": lambda image, x: enhance.adjust_gamma(image, 1 + x),
        "saturation": lambda image, x: enhance.adjust_saturation_with_gray_subtraction(image, 1 + x),
        "hue": lambda image, x: enhance.adjust_hue(image, 2 * math.pi * x),
    }


def epoch_order(count: int, batch_size: int, seed: Sequence[int], epoch: int) -> Iterator[np.ndarray]:
    """Yield the indices of each batch of an epoch, in an order set by (seed, epoch).

    An incomplete last batch is dropped. Fewer frames than a batch make one batch.

    Args:
        count: number of frames.
        batch_size: frames per batch.
        seed: non-negative integers.
        epoch: 0-based.
    """
    order = np.random.default_rng([*seed, epoch]).permutation(count)
    size = min(batch_size, count)
    for start in range(0, count - size + 1, size):
        yield np.sort(order[start : start + size])
