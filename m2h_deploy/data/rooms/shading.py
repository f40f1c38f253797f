"""Image formation: light, soft shadows, indirect light, gloss, exposure and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.rooms.geometry import Camera, Hits, dot, groups
from m2h_deploy.data.rooms.layout import Light, Room
from m2h_deploy.data.rooms.materials import paint
from m2h_deploy.data.rooms.shadows import Shadows, every

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

#: Step, in pixels, of the grid that shadows are computed on.
_SHADOW_STEP = 3
#: Points within a pixel that its color is averaged over where textures must not flicker, and the longest displacement
#: of such a point on a surface, meters.
_SUBPIXELS, _LONGEST_SPOT = ((0.125, 0.375), (-0.375, 0.125), (-0.125, -0.375), (0.375, -0.125)), 0.2


def _surface_colors(room: Room, hits: Hits, spots: list[Array]) -> tuple[Array, Array, Array]:
    """Compute albedo (H, W, 3), emitted light (H, W, 3) and gloss (H, W).

    The colors are averages over `spots`, displacements (H, W, 3) on the surface from the centers of the pixels.
    """
    albedo, glow = np.zeros((*hits.depth.shape, 3)), np.zeros((*hits.depth.shape, 3))
    gloss = np.zeros(hits.depth.shape)
    for number, pixels in groups(hits.solid):
        material = room.faces[-1 - number] if number < 0 else room.solids[number].material
        half = room.size / 2 if number < 0 else room.solids[number].half
        local, normals = hits.local[pixels], hits.local_normals[pixels]
        if spots:
            turn = np.eye(3) if number < 0 else room.solids[number].rotation
            local = np.concatenate([local + spot[pixels] @ turn for spot in spots])
            normals = np.tile(normals, (len(spots), 1))
        painted = paint(material, room.tile, local, normals, half)
        albedo[pixels], glow[pixels] = (v.reshape(-1, len(pixels[0]), 3).mean(axis=0) for v in painted)
        gloss[pixels] = material.gloss
    return albedo, glow, gloss


@dataclass(frozen=True)
class Exposure:
    """Settings of a camera: what the images of one sequence have in common."""

    gain: float
    balance: Array
    """White balance, factors (3,) for red, green and blue."""
    blur: float
    """Standard deviation of the lens blur, pixels."""
    noise: float
    """Standard deviation of the sensor noise in the dark; full scale is 1."""


def _spots(camera: Camera, hits: Hits) -> list[Array]:
    """Compute the displacements (H, W, 3) on the surfaces to four more points within each pixel."""
    rays = hits.points - camera.position
    towards = dot(rays, hits.normals)
    spots = []
    for x, y in _SUBPIXELS:
        sideways = camera.rotation @ np.array([x / camera.intrinsics.fx, y / camera.intrinsics.fy, 0.0])
        slope = (hits.normals @ sideways) / np.minimum(towards, -1e-9)
        spot = hits.depth[..., None] * (sideways - rays * slope[..., None])
        length = np.sqrt(dot(spot, spot))
        spots.append(spot * np.minimum(1.0, _LONGEST_SPOT / np.maximum(length, 1e-9))[..., None])
    return spots


def _shadow_map(light: Light, shadows: Shadows, hits: Hits) -> Array:
    """Compute the share of light (0..1) that reaches each pixel: shadow rays on a coarse grid, smoothed."""
    step = _SHADOW_STEP
    coarse = shadows(light, every(hits, step)).reshape(hits.depth[::step, ::step].shape).astype(np.float32)
    coarse = cv2.GaussianBlur(coarse, (0, 0), 1.1)
    height, width = hits.depth.shape
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float64)


def _occlusion(room: Room, hits: Hits) -> Array:
    """Compute the darkening (H, W) near the room's corners and beside nearer objects in the depth image."""
    dark = np.ones(hits.depth.shape)
    for axis in range(3):
        for wall in (0.0, float(room.size[axis])):
            away = np.abs(hits.points[..., axis] - wall)
            facing = 1.0 - np.abs(hits.normals[..., axis])
            dark *= 1.0 - 0.38 * facing * np.exp(-away / 0.28)
    depth = hits.depth.astype(np.float32)
    for sigma, strength in ((3.0, 0.5), (9.0, 0.45)):
        reach = sigma * hits.depth.shape[1] / 320.0
        gap = (depth - cv2.GaussianBlur(depth, (0, 0), reach)) / depth
        dark *= 1.0 - strength * np.clip(gap * 4.0, 0.0, 0.6)
    return dark


def _direct(light: Light, hits: Hits, camera: Camera, gloss: Array, lit: Array) -> tuple[Array, Array]:
    """Compute diffuse and specular light (H, W, 3) from one source."""
    towards = light.position - hits.points
    square = dot(towards, towards)
    towards /= np.sqrt(square)[..., None]
    size = float((light.spread**2).sum())
    fall = lit / (square + 0.25 + size)
    if light.facing is not None:
        fall = fall * np.clip(-(towards @ light.facing), 0.0, 1.0) * 1.6
    cosine = np.clip(dot(towards, hits.normals), 0.0, 1.0)
    view = camera.position - hits.points
    half = towards + view / np.sqrt(dot(view, view))[..., None]
    alignment = np.clip(dot(half, hits.normals) / (np.sqrt(dot(half, half)) + 1e-9), 0.0, 1.0)
    # The 48th power sets the width of the highlight; it is computed by squaring.
    narrow = alignment**2 * alignment
    narrow = ((narrow**2) ** 2) ** 2
    shine = narrow * narrow * gloss * (cosine > 0)
    return (fall * cosine)[..., None] * light.color, (fall * shine * 1.2)[..., None] * light.color


def radiance(
    room: Room, camera: Camera, hits: Hits, shadows: Shadows, surroundings: float | None = None, smooth: bool = False
) -> tuple[Array, float]:
    """Compute the light that arrives at the camera.

    Args:
        room: the room.
        camera: the camera.
        hits: what the camera sees.
        shadows: computes the shadows.
        surroundings: mean light on the surfaces, which lamps and windows outshine by a fixed factor; None: that of
            this view.
        smooth: average textures over each pixel, so that they do not flicker when the camera moves.

    Returns:
        Linear RGB light (H, W, 3) in arbitrary units, and the mean light on the surfaces of this view.
    """
    albedo, glow, gloss = _surface_colors(room, hits, _spots(camera, hits) if smooth else [])
    up = hits.normals[..., 2]
    bounce = room.ambient * (0.85 + 0.15 * up[..., None]) * _occlusion(room, hits)[..., None]
    diffuse, shine = bounce, np.zeros_like(albedo)
    for number, light in enumerate(room.lights):
        if float(light.color.max()) < 0.02:
            continue
        # Only the ceiling light and windows cast shadows, because small lamps are many and weak.
        sharp = number == 0 or light.facing is not None
        lit = _shadow_map(light, shadows, hits) if sharp else np.ones(hits.depth.shape)
        d, s = _direct(light, hits, camera, gloss, lit)
        diffuse, shine = diffuse + d, shine + s
    mean = float(np.mean(diffuse))
    result: Array = albedo * diffuse + shine + glow * (mean if surroundings is None else surroundings) * 2.2
    return result, mean


def meter(light: Array) -> float:
    """Measure the brightness of linear RGB light (H, W, 3) as auto exposure does."""
    luminance = light @ np.array([0.2126, 0.7152, 0.0722])
    # Bright windows are limited, so that exposure is metered for the room.
    return float(np.mean(np.minimum(luminance, 4 * np.median(luminance))))


def draw_exposure(metered: float, rng: Rng) -> Exposure:
    """Draw the settings of a camera with auto exposure and white balance, which both have errors."""
    gain = 0.24 * float(rng.uniform(0.7, 1.35)) / max(metered, 1e-6)
    balance = 1.0 + rng.normal(0.0, 0.05, 3)
    return Exposure(gain, balance, float(rng.uniform(0.45, 0.75)), float(rng.uniform(0.003, 0.012)))


def expose(light: Array, exposure: Exposure, rng: Rng) -> npt.NDArray[np.uint8]:
    """Convert light to a photograph: exposure, white balance, vignette, lens blur, noise, gamma.

    Args:
        light: linear RGB (H, W, 3).
        exposure: settings of the camera.
        rng: random generator of the noise.

    Returns:
        uint8 (H, W, 3), BGR.
    """
    height, width = light.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot((x - width / 2) / width, (y - height / 2) / width)
    exposed = light * exposure.gain * exposure.balance * (1.0 - 0.45 * radius**2)[..., None]
    exposed = cv2.GaussianBlur(exposed.astype(np.float32), (0, 0), exposure.blur)
    level = exposure.noise
    noise = rng.standard_normal(exposed.shape, np.float32) * np.sqrt(level**2 + exposed.clip(0) * level * 0.12)
    exposed = np.clip(exposed + noise, 0.0, None)
    # A soft shoulder prevents windows and lamps from clipping to flat white.
    toned = np.where(exposed > 0.6, 0.6 + 0.4 * np.tanh((exposed - 0.6) / 0.6), exposed)
    encoded = np.rint(255.0 * toned ** (1 / 2.2)).astype(np.uint8)
    return np.ascontiguousarray(encoded[..., ::-1])
