"""Procedural materials: color, gloss and emitted light of a point on a surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Color = tuple[float, float, float]

_TILE = 128


@dataclass(frozen=True)
class Material:
    """Procedural material: pattern `kind` of size `scale` (meters), colors in linear RGB 0..1."""

    kind: str
    color: Color
    second: Color = (0.5, 0.5, 0.5)
    scale: float = 0.1
    gloss: float = 0.0
    glow: float = 0.0
    shift: float = 0.0


def noise_tile(rng: np.random.Generator) -> Array:
    """Draw the random lattice that all patterns of a scene use: float32 (128, 128), 0..1."""
    tile: Array = rng.random((_TILE, _TILE), dtype=np.float32)
    return tile


def noise(tile: Array, u: Array, v: Array) -> Array:
    """Compute smooth value noise, 0..1, with one lattice cell per unit of u and v."""
    iu, iv = np.floor(u), np.floor(v)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    i0, j0 = iu.astype(np.int64) % _TILE, iv.astype(np.int64) % _TILE
    i1, j1 = (i0 + 1) % _TILE, (j0 + 1) % _TILE
    top = tile[j0, i0] * (1 - fu) + tile[j0, i1] * fu
    low = tile[j1, i0] * (1 - fu) + tile[j1, i1] * fu
    value: Array = top * (1 - fv) + low * fv
    return value


def _surface_coordinates(local: Array, normals: Array) -> tuple[Array, Array]:
    """Compute two coordinates in meters along the surface, on the two axes most perpendicular to the normal."""
    axis = np.abs(normals).argmax(axis=-1)
    u = np.where(axis == 0, local[:, 1], local[:, 0])
    v = np.where(axis == 2, local[:, 1], local[:, 2])
    return u, v


def _mix(a: Color | Array, b: Color | Array, t: Array) -> Array:
    first, second = np.asarray(a, float), np.asarray(b, float)
    mixed: Array = first + (second - first) * t[:, None]
    return mixed


def paint(material: Material, tile: Array, local: Array, normals: Array, half: Array) -> tuple[Array, Array]:
    """Compute color and emitted light of points.

    Args:
        material: the material.
        tile: the lattice of `noise_tile`.
        local: points (N, 3) in the solid's own frame, meters.
        normals: (N, 3), in the same frame.
        half: half sizes (3,) of the solid, meters.

    Returns:
        Color (N, 3) and emitted light (N, 3), linear RGB.
    """
    u, v = _surface_coordinates(local, normals)
    u, v = u + material.shift, v + 0.37 * material.shift
    pattern = _PATTERNS[material.kind]
    color = pattern(material, tile, u, v, local / np.maximum(half, 1e-6))
    return color, color * material.glow


def _plain(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    soft = noise(tile, u * 1.5, v * 1.5) * 0.6 + noise(tile, u * 40, v * 40) * 0.4
    return _mix(m.color, np.asarray(m.color) * 0.86, soft)


def _wood(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    wave = noise(tile, u * 2.0, v * 2.0) * 0.06
    grain = noise(tile, u * 3.0 + 9.0, (v + wave) * 60.0) * 0.6 + noise(tile, u * 9.0, (v + wave) * 160.0) * 0.4
    return _mix(m.color, m.second, grain)


def _planks(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    row = np.floor(v / m.scale)
    along = u / (m.scale * 8.0) + row * 0.381
    tone = noise(tile, np.floor(along) * 7.0 + 0.5, row * 3.0 + 0.5)
    grain = noise(tile, u * 4.0 + row * 11.0, v * 90.0)
    board = _mix(m.color, m.second, 0.55 * tone + 0.45 * grain)
    seam = (v / m.scale - row < 0.03) | (along - np.floor(along) < 0.006)
    return board * np.where(seam, 0.45, 1.0)[:, None]


def _carpet(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    fine = noise(tile, u * 170, v * 170) * 0.55 + noise(tile, u * 60, v * 60) * 0.3 + noise(tile, u * 2, v * 2) * 0.15
    return _mix(m.color, np.asarray(m.color) * 0.55, fine)


def _tiles(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    cell_u, cell_v = u / m.scale, v / m.scale
    iu, iv = np.floor(cell_u), np.floor(cell_v)
    tone = noise(tile, iu * 5.0 + 0.5, iv * 3.0 + 0.5) * 0.7 + noise(tile, u * 12, v * 12) * 0.3
    face = _mix(m.color, np.asarray(m.color) * 0.8, tone)
    grout = (cell_u - iu < 0.03) | (cell_v - iv < 0.03)
    return np.where(grout[:, None], np.asarray(m.second), face)


def _checks(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    a, b = np.floor(u / m.scale) % 2, np.floor(v / m.scale) % 2
    weave = noise(tile, u * 120, v * 120)
    return _mix(m.color, m.second, 0.5 * (a + b)) * (0.85 + 0.15 * weave)[:, None]


def _stripes(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    phase = u / m.scale
    band = (phase - np.floor(phase) < 0.5).astype(float)
    return _mix(m.color, m.second, band) * (0.92 + 0.08 * noise(tile, u * 50, v * 50))[:, None]


def _dots(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    cu, cv = u / m.scale, v / m.scale
    cu = cu + 0.5 * (np.floor(cv) % 2)
    round_ = np.hypot(cu - np.floor(cu) - 0.5, cv - np.floor(cv) - 0.5)
    wobble = 0.08 * noise(tile, u * 30, v * 30)
    return _mix(m.color, m.second, np.clip((0.3 - round_ + wobble) * 12, 0, 1))


def _fabric(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    fold = noise(tile, u * 5, v * 5)
    weave = noise(tile, u * 140, v * 25) * 0.5 + noise(tile, u * 25, v * 140) * 0.5
    return _mix(m.color, np.asarray(m.color) * 0.6, 0.5 * fold + 0.5 * weave)


def _pleats(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (u / m.scale + 0.6 * noise(tile, u * 3, v * 0.7)))
    return _mix(np.asarray(m.color) * 0.55, m.color, wave) * (0.9 + 0.1 * noise(tile, u * 90, v * 90))[:, None]


def _picture(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    # A picture spans its local x and z axes; y is its thickness.
    x, z = unit[:, 0], unit[:, 2]
    border = np.maximum(np.abs(x), np.abs(z))
    blobs = noise(tile, x * 2.2 + m.shift * 13, z * 2.2)
    detail = noise(tile, x * 7 + m.shift * 29, z * 7 + 3)
    art = _mix(m.color, m.second, np.clip(blobs * 1.6 - 0.3, 0, 1)) * (0.45 + 0.75 * detail)[:, None]
    art[:, 2] += 0.15 * (z > 0.1 * np.sin(5 * x + m.shift))
    art = np.where((border > 0.72)[:, None], 0.8, art)
    return np.where((border > 0.88)[:, None], np.asarray((0.05, 0.035, 0.02)) * (1 + 6 * (m.shift % 1)), art)


def _panes(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    x, z = unit[:, 0], unit[:, 2]
    hills = -0.25 + 0.5 * noise(tile, x * 2 + m.shift, x * 0 + m.shift)
    leaves = noise(tile, x * 9 + m.shift, z * 9)
    sky = _mix(m.color, (1.0, 1.0, 1.0), np.clip(0.5 - 0.5 * z + 0.3 * noise(tile, x * 2, z * 3), 0, 1))
    green = _mix(m.second, np.asarray(m.second) * 0.35, leaves)
    view = np.where((z < hills)[:, None], green, sky)
    bar = (np.abs(x) < 0.035) | (np.abs(z) < 0.025) | (np.abs(x) > 0.93) | (np.abs(z) > 0.93)
    return np.where(bar[:, None], 0.42, view)


def _screen(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    x, z = unit[:, 0], unit[:, 2]
    sheen = np.clip(0.5 + 0.5 * (x * 0.6 + z), 0, 1) ** 3
    face = _mix(m.color, np.asarray(m.color) * 3.5 + 0.02, sheen)
    return np.where((np.maximum(np.abs(x), np.abs(z)) > 0.94)[:, None], 0.008, face)


def _door(m: Material, tile: Array, u: Array, v: Array, unit: Array) -> Array:
    x, z = np.abs(unit[:, 0]), unit[:, 2]
    base = _wood(m, tile, v, u, unit)
    panel = np.maximum(np.abs(x - 0.45) / 0.3, np.minimum(np.abs(z - 0.45) / 0.4, np.abs(z + 0.5) / 0.35))
    groove = (panel > 0.93) & (panel < 1.05)
    edge = (x > 0.9) | (z > 0.95)
    return base * np.where(groove, 0.5, np.where(edge, 1.15, 1.0))[:, None]


_PATTERNS = {
    "plain": _plain,
    "wood": _wood,
    "planks": _planks,
    "carpet": _carpet,
    "tiles": _tiles,
    "checks": _checks,
    "stripes": _stripes,
    "dots": _dots,
    "fabric": _fabric,
    "pleats": _pleats,
    "picture": _picture,
    "panes": _panes,
    "screen": _screen,
    "door": _door,
}
