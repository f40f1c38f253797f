"""Furniture as groups of solids, with the typical colors of each class.

Frame of an object: origin on the floor at the center of its footprint, x along its width, back at -y and front at +y, z
up, in meters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.rooms.geometry import BOX, CYLINDER, ELLIPSOID, rotation_x
from m2h_deploy.data.rooms.materials import Color, Material

Array = npt.NDArray[np.floating]
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Part:
    """Solid in its object's frame. Parts with the same `item` are one instance, of one class."""

    kind: str
    label: str
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    item: int = 0
    rotation: Array | None = None


@dataclass(frozen=True, eq=False)
class Thing:
    """Parts, and the floor rectangle (width, depth) that they cover, in meters."""

    parts: list[Part]
    width: float
    depth: float


@dataclass(frozen=True)
class Style:
    """Colors that the objects of one room share."""

    wood: Color
    wood_dark: Color
    cloth: Color
    accent: Color
    metal: Color


WOODS: tuple[tuple[Color, Color], ...] = (
    ((0.42, 0.23, 0.10), (0.26, 0.12, 0.045)),
    ((0.55, 0.36, 0.18), (0.40, 0.23, 0.10)),
    ((0.20, 0.095, 0.045), (0.10, 0.042, 0.02)),
    ((0.62, 0.47, 0.29), (0.48, 0.33, 0.18)),
    ((0.33, 0.14, 0.07), (0.20, 0.07, 0.03)),
    ((0.66, 0.64, 0.60), (0.56, 0.54, 0.50)),
)

CLOTHS: tuple[Color, ...] = (
    (0.30, 0.05, 0.05), (0.07, 0.11, 0.25), (0.10, 0.18, 0.09), (0.36, 0.27, 0.16), (0.16, 0.15, 0.15),
    (0.45, 0.38, 0.30), (0.22, 0.10, 0.17), (0.05, 0.19, 0.20), (0.50, 0.22, 0.07), (0.04, 0.045, 0.06),
)  # fmt: skip

_BRIGHT: tuple[Color, ...] = (
    (0.55, 0.06, 0.05), (0.06, 0.16, 0.45), (0.07, 0.30, 0.10), (0.65, 0.45, 0.06), (0.60, 0.55, 0.45),
    (0.04, 0.04, 0.05), (0.35, 0.08, 0.25), (0.05, 0.32, 0.36), (0.62, 0.25, 0.05), (0.30, 0.28, 0.26),
)  # fmt: skip


def make_style(rng: Rng) -> Style:
    """Draw the colors of a room's furniture."""
    wood, dark = WOODS[rng.integers(len(WOODS))]
    cloth, accent = (vary(rng, CLOTHS[i]) for i in rng.choice(len(CLOTHS), 2, replace=False))
    gray = float(rng.uniform(0.05, 0.4))
    return Style(vary(rng, wood, 0.12), vary(rng, dark, 0.12), cloth, accent, (gray, gray, gray))


def vary(rng: Rng, color: Color, amount: float = 0.2) -> Color:
    """Change brightness and hue of `color` (linear RGB) randomly, by about `amount` (0..1)."""
    gain = rng.uniform(1 - amount, 1 + amount) * rng.uniform(1 - amount / 3, 1 + amount / 3, 3)
    r, g, b = np.clip(np.asarray(color) * gain, 0.01, 0.9)
    return float(r), float(g), float(b)


def _box(label: str, low: tuple[float, ...], high: tuple[float, ...], material: Material, item: int = 0) -> Part:
    a, b = np.asarray(low), np.asarray(high)
    x, y, z = (a + b) / 2
    hx, hy, hz = (b - a) / 2
    return Part(BOX, label, (float(x), float(y), float(z)), (float(hx), float(hy), float(hz)), material, item)


def _legs(label: str, w: float, d: float, height: float, thick: float, material: Material) -> list[Part]:
    half = (thick / 2, thick / 2, height / 2)
    corners = [(sx * (w / 2 - thick), sy * (d / 2 - thick), height / 2) for sx in (-1, 1) for sy in (-1, 1)]
    return [Part(BOX, label, corner, half, material) for corner in corners]


def _wood(rng: Rng, style: Style, gloss: float = 0.15) -> Material:
    return Material("wood", style.wood, style.wood_dark, gloss=gloss, shift=float(rng.uniform(0, 40)))


def _pillow(rng: Rng, style: Style, at: tuple[float, float, float], size: float, lean: float, item: int) -> Part:
    kind = str(rng.choice(["fabric", "stripes", "dots", "checks"]))
    base = (0.72, 0.70, 0.66) if rng.random() < 0.5 else _BRIGHT[rng.integers(len(_BRIGHT))]
    cover = Material(kind, vary(rng, base), vary(rng, style.accent), float(rng.uniform(0.04, 0.09)))
    half = (size * 0.5, size * 0.36, size * 0.17)
    return Part(ELLIPSOID, "pillow", at, half, cover, item, rotation_x(lean))


def bed(rng: Rng, style: Style) -> Thing:
    """Make a single or double bed with a headboard, a cover and pillows."""
    w, d = float(rng.uniform(1.0, 1.9)), float(rng.uniform(1.95, 2.15))
    base, top = 0.28, float(rng.uniform(0.45, 0.6))
    wood = _wood(rng, style)
    sheet = Material("fabric", vary(rng, (0.66, 0.65, 0.63), 0.12))
    kind = str(rng.choice(["fabric", "checks", "stripes", "dots"]))
    cover_color = vary(rng, style.cloth if rng.random() < 0.6 else (0.55, 0.52, 0.50), 0.3)
    cover = Material(kind, cover_color, vary(rng, (0.6, 0.58, 0.52)), float(rng.uniform(0.08, 0.25)))
    y0, y1 = -d / 2, d / 2
    fold = y0 + float(rng.uniform(0.55, 0.8))
    parts = [
        _box("bed", (-w / 2, y0, 0), (w / 2, y0 + 0.06, float(rng.uniform(0.85, 1.2))), wood),
        _box("bed", (-w / 2 + 0.02, y0 + 0.06, 0.08), (w / 2 - 0.02, y1 - 0.03, base), wood),
        _box("bed", (-w / 2 + 0.03, y0 + 0.06, base), (w / 2 - 0.03, y1 - 0.04, top), sheet),
        _box("bed", (-w / 2, fold, 0.16), (w / 2, y1, top + 0.04), cover),
    ]
    count = 2 if w > 1.3 else 1
    for n in range(count):
        x = (n - (count - 1) / 2) * w * 0.46
        parts.append(_pillow(rng, style, (x, y0 + 0.3, top + 0.12), 0.62, float(rng.uniform(0.2, 0.7)), n + 1))
    return Thing(parts, w, d)


def sofa(rng: Rng, style: Style) -> Thing:
    """Make a sofa for two or three, with cushions and up to two pillows."""
    w, d = float(rng.uniform(1.5, 2.3)), float(rng.uniform(0.8, 0.95))
    seat, back, arm = 0.42, float(rng.uniform(0.75, 0.92)), float(rng.uniform(0.12, 0.22))
    kind = str(rng.choice(["fabric", "fabric", "plain", "stripes"]))
    color = style.cloth
    cloth = Material(kind, color, vary(rng, color, 0.4), 0.06, gloss=0.25 if kind == "plain" else 0.0)
    cushion = Material(kind, vary(rng, color, 0.1), vary(rng, color, 0.4), 0.06, shift=1.3)
    y0, y1 = -d / 2, d / 2
    parts = [
        _box("sofa", (-w / 2, y0, 0.06), (w / 2, y1 - 0.03, seat - 0.13), cloth),
        _box("sofa", (-w / 2, y0, 0.06), (w / 2, y0 + 0.2, back - 0.06), cloth),
    ]
    for side in (-1, 1):
        inner, outer = sorted((side * (w / 2 - arm), side * w / 2))
        parts.append(_box("sofa", (inner, y0, 0.06), (outer, y1, 0.56), cloth))
    count = 3 if w > 1.9 else 2
    step = (w - 2 * arm) / count
    for n in range(count):
        left = -w / 2 + arm + n * step
        parts.append(_box("sofa", (left + 0.008, y0 + 0.2, seat - 0.12), (left + step - 0.008, y1, seat), cushion))
        parts.append(_box("sofa", (left + 0.01, y0 + 0.18, seat), (left + step - 0.01, y0 + 0.34, back), cushion))
    for n in range(int(rng.integers(0, 3))):
        x = float(rng.uniform(-w / 2 + arm + 0.2, w / 2 - arm - 0.2))
        parts.append(_pillow(rng, style, (x, y0 + 0.46, seat + 0.19), 0.44, 1.2, n + 1))
    return Thing(parts, w, d)


def chair(rng: Rng, style: Style) -> Thing:
    """Make a wooden or metal chair; the seat and the back may be padded."""
    w, d = float(rng.uniform(0.42, 0.5)), float(rng.uniform(0.42, 0.5))
    seat, back = float(rng.uniform(0.43, 0.48)), float(rng.uniform(0.82, 1.0))
    frame = _wood(rng, style) if rng.random() < 0.7 else Material("plain", style.metal, gloss=0.4)
    padded = rng.random() < 0.6
    pad = Material("fabric", vary(rng, style.accent, 0.3)) if padded else frame
    parts = _legs("chair", w, d, seat, 0.04, frame)
    parts.append(_box("chair", (-w / 2, -d / 2, seat - 0.03), (w / 2, d / 2, seat + 0.02), pad))
    for side in (-1, 1):
        x = side * (w / 2 - 0.025)
        parts.append(_box("chair", (x - 0.02, -d / 2, seat), (x + 0.02, -d / 2 + 0.04, back), frame))
    if padded:
        parts.append(_box("chair", (-w / 2 + 0.03, -d / 2, seat + 0.14), (w / 2 - 0.03, -d / 2 + 0.05, back), pad))
    else:
        for level in np.linspace(seat + 0.14, back - 0.05, 3):
            z = float(level)
            parts.append(_box("chair", (-w / 2 + 0.03, -d / 2, z), (w / 2 - 0.03, -d / 2 + 0.03, z + 0.06), frame))
    return Thing(parts, w, d)


def table(rng: Rng, style: Style, low: bool = False) -> Thing:
    """Make a dining table, square or round, or a coffee table (`low`), often with books or a carton on it."""
    w = float(rng.uniform(0.8, 1.2) if low else rng.uniform(1.1, 1.7))
    d = float(rng.uniform(0.5, 0.65) if low else rng.uniform(0.7, 0.9))
    height = float(rng.uniform(0.38, 0.46) if low else rng.uniform(0.71, 0.77))
    wood = _wood(rng, style, 0.3)
    parts: list[Part]
    if not low and rng.random() < 0.3:
        radius = d * 0.62
        w = d = radius * 2
        parts = [
            Part(CYLINDER, "table", (0, 0, height - 0.02), (radius, radius, 0.02), wood),
            Part(CYLINDER, "table", (0, 0, height / 2), (0.05, 0.05, height / 2 - 0.01), wood),
            Part(CYLINDER, "table", (0, 0, 0.02), (radius * 0.5, radius * 0.5, 0.02), wood),
        ]
    else:
        parts = [_box("table", (-w / 2, -d / 2, height - 0.04), (w / 2, d / 2, height), wood)]
        parts += _legs("table", w, d, height - 0.04, 0.06, wood)
    if rng.random() < 0.7:
        parts += _stack_of_books(rng, float(rng.uniform(-0.2, 0.2)) * w, height, 1)
    if rng.random() < 0.35:
        parts.append(carton(rng, (float(rng.choice([-0.3, 0.3])) * w, 0.0, height), 0.7, 9))
    return Thing(parts, w, d)


def _stack_of_books(rng: Rng, x: float, z: float, item: int) -> list[Part]:
    parts = []
    for _ in range(int(rng.integers(2, 6))):
        w, d, h = rng.uniform(0.16, 0.24), rng.uniform(0.12, 0.17), rng.uniform(0.02, 0.045)
        cover = Material("plain", vary(rng, _BRIGHT[rng.integers(len(_BRIGHT))]), gloss=0.1)
        parts.append(_box("books", (x - w / 2, -d / 2, z), (x + w / 2, d / 2, z + h), cover, item))
        z += float(h)
    return parts


def carton(rng: Rng, at: tuple[float, float, float], size: float, item: int) -> Part:
    """Make one cardboard (or painted) box that stands at `at`; `size` scales it."""
    hx, hy, hz = (float(v) * size for v in rng.uniform((0.15, 0.12, 0.1), (0.28, 0.22, 0.22)))
    color = vary(rng, (0.42, 0.27, 0.13) if rng.random() < 0.75 else _BRIGHT[rng.integers(len(_BRIGHT))])
    x, y, z = at
    return Part(BOX, "box", (x, y, z + hz), (hx, hy, hz), Material("plain", color), item)


def boxes(rng: Rng, style: Style) -> Thing:
    """Make one carton, or two stacked ones."""
    parts = [carton(rng, (0.0, 0.0, 0.0), 1.0, 0)]
    if rng.random() < 0.4:
        parts.append(carton(rng, (0.02, 0.0, 2 * parts[0].half[2]), 0.7, 1))
    return Thing(parts, 2 * parts[0].half[0], 2 * parts[0].half[1])


def cabinet(rng: Rng, style: Style, low: bool = False) -> Thing:
    """Make a cabinet with doors or drawers, or a bedside cabinet (`low`), often with a lamp, books or a carton."""
    w = float(rng.uniform(0.45, 0.6) if low else rng.uniform(0.8, 1.6))
    d, h = float(rng.uniform(0.38, 0.55)), float(rng.uniform(0.5, 0.62) if low else rng.choice([0.8, 0.9, 1.3, 2.0]))
    wood, front = _wood(rng, style), _wood(rng, style)
    knob = Material("plain", style.metal, gloss=0.6)
    parts = [_box("cabinet", (-w / 2, -d / 2, 0.0), (w / 2, d / 2 - 0.025, h), wood)]
    columns, rows = (1, 2) if low else (max(2, round(w / 0.45)), 1 if h > 1.2 or rng.random() < 0.4 else 3)
    for c in range(columns):
        for r in range(rows):
            x0, x1 = -w / 2 + w * c / columns + 0.01, -w / 2 + w * (c + 1) / columns - 0.01
            z0, z1 = 0.07 + (h - 0.09) * r / rows, 0.07 + (h - 0.09) * (r + 1) / rows - 0.015
            parts.append(_box("cabinet", (x0, d / 2 - 0.025, z0), (x1, d / 2, z1), front))
            x, z = ((x0 + x1) / 2, (z0 + z1) / 2) if rows > 1 else (x1 - 0.05, (z0 + z1) / 2)
            parts.append(Part(ELLIPSOID, "cabinet", (x, d / 2 + 0.012, z), (0.018, 0.02, 0.018), knob))
    if h < 1.0 and rng.random() < (0.9 if low else 0.5):
        parts += lamp_parts(rng, style, (float(rng.uniform(-0.25, 0.25)) * w, 0.0, h), 0.48, 20)
    elif h < 1.0 and rng.random() < 0.5:
        parts += _stack_of_books(rng, 0.0, h, 21)
    elif rng.random() < 0.4:
        parts.append(carton(rng, (0.0, -0.02, h), 0.9, 22))
    return Thing(parts, w, d)


def bedside(rng: Rng, style: Style) -> Thing:
    """Make a bedside cabinet with two drawers."""
    return cabinet(rng, style, low=True)


def coffee_table(rng: Rng, style: Style) -> Thing:
    """Make a coffee table."""
    return table(rng, style, low=True)


def bookshelf(rng: Rng, style: Style) -> Thing:
    """Make an open shelf of four or five rows of books."""
    w, d, h = float(rng.uniform(0.75, 1.3)), 0.3, float(rng.uniform(1.5, 2.1))
    wood = _wood(rng, style)
    t, rows = 0.025, int(rng.integers(4, 6))
    parts = [
        _box("bookshelf", (-w / 2, -d / 2, 0), (-w / 2 + t, d / 2, h), wood),
        _box("bookshelf", (w / 2 - t, -d / 2, 0), (w / 2, d / 2, h), wood),
        _box("bookshelf", (-w / 2, -d / 2, 0), (w / 2, -d / 2 + 0.012, h), wood),
    ]
    levels = [0.06 + (h - 0.08) * n / rows for n in range(rows + 1)]
    for number, z in enumerate(levels):
        parts.append(_box("bookshelf", (-w / 2 + t, -d / 2, z - t / 2), (w / 2 - t, d / 2, z + t / 2), wood))
        if number < rows:
            parts += _row_of_books(rng, w - 2 * t, d, z + t / 2, levels[number + 1] - z - t, number + 1)
    return Thing(parts, w, d)


def _row_of_books(rng: Rng, width: float, depth: float, z: float, room: float, item: int) -> list[Part]:
    parts: list[Part] = []
    x, end = -width / 2 + 0.005, -width / 2 + width * float(rng.uniform(0.4, 1.0))
    while x < end - 0.05:
        thick = float(rng.uniform(0.022, 0.055))
        h, d = room * float(rng.uniform(0.6, 0.94)), float(rng.uniform(0.16, 0.24))
        cover = Material("plain", vary(rng, _BRIGHT[rng.integers(len(_BRIGHT))], 0.3), gloss=0.1)
        parts.append(_box("books", (x, -depth / 2 + 0.012, z), (x + thick, -depth / 2 + 0.012 + d, z + h), cover, item))
        x += thick + 0.0015
    return parts


def lamp_parts(rng: Rng, style: Style, at: tuple[float, float, float], height: float, item: int) -> list[Part]:
    """Make a lamp with a shade that stands at `at`; the shade glows if the lamp is on.

    Args:
        rng: random generator.
        style: colors of the room.
        at: foot of the lamp, meters, in the frame of the object.
        height: meters.
        item: instance number of the parts.
    """
    x, y, z = at
    radius = float(rng.uniform(0.11, 0.15)) * (1.4 if height > 1 else 1.0)
    stand = Material("plain", vary(rng, style.metal), gloss=0.5)
    shade = Material("fabric", vary(rng, (0.85, 0.76, 0.58), 0.1), glow=float(rng.choice([0.1, 1.2, 2.2])))
    drop = 0.12 if height < 1 else 0.15
    return [
        Part(CYLINDER, "lamp", (x, y, z + 0.012), (radius * 0.75, radius * 0.75, 0.012), stand, item),
        Part(CYLINDER, "lamp", (x, y, z + height / 2), (0.016, 0.016, height / 2 - 0.02), stand, item),
        Part(CYLINDER, "lamp", (x, y, z + height - drop), (radius, radius, drop), shade, item),
    ]


def floor_lamp(rng: Rng, style: Style) -> Thing:
    """Make a lamp that stands on the floor, 1.45 to 1.7 m high."""
    return Thing(lamp_parts(rng, style, (0.0, 0.0, 0.0), float(rng.uniform(1.45, 1.7)), 0), 0.4, 0.4)


def television(rng: Rng, style: Style) -> Thing:
    """Make a television on a low cabinet."""
    w, d, h = float(rng.uniform(1.1, 1.6)), 0.42, float(rng.uniform(0.42, 0.58))
    wood = _wood(rng, style)
    screen = Material("screen", (0.012, 0.014, 0.018), gloss=0.7)
    sw = w * float(rng.uniform(0.36, 0.46))
    sh = sw * 0.58
    parts = [
        _box("cabinet", (-w / 2, -d / 2, 0), (w / 2, d / 2 - 0.02, h), wood),
        _box("television", (-0.15, -0.1, h), (0.15, 0.08, h + 0.02), screen, 1),
        _box("television", (-0.03, -0.05, h), (0.03, -0.02, h + 0.1), screen, 1),
        Part(BOX, "television", (0, 0.0, h + 0.07 + sh), (sw, 0.025, sh), screen, 1),
    ]
    for side in (-1, 1):
        x0, x1 = sorted((side * 0.01, side * (w / 2 - 0.01)))
        parts.append(_box("cabinet", (x0, d / 2 - 0.02, 0.06), (x1, d / 2, h - 0.03), _wood(rng, style)))
    return Thing(parts, w, d)


def rug(rng: Rng, style: Style) -> Thing:
    """Make a rug that lies on the floor (class "floor mat")."""
    w, d = float(rng.uniform(1.3, 2.2)), float(rng.uniform(0.9, 1.5))
    kind = str(rng.choice(["carpet", "stripes", "checks", "dots"]))
    color = Material(kind, vary(rng, style.accent, 0.4), vary(rng, (0.5, 0.42, 0.30)), float(rng.uniform(0.1, 0.3)))
    return Thing([_box("floor mat", (-w / 2, -d / 2, 0.0), (w / 2, d / 2, 0.012), color)], w, d)


Builder = Callable[[Rng, Style], Thing]
