"""Random layout of a furnished room: walls, openings, furniture along the walls and in the middle, a camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import nyu_class
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms import furniture as f
from m2h_deploy.data.rooms.geometry import BOX, Camera, Solid, cast, look, rotation_z
from m2h_deploy.data.rooms.materials import Color, Material, noise_tile

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

#: First instance number of objects; 1..6 are the room's faces.
_FIRST_INSTANCE = 7


@dataclass(frozen=True, eq=False)
class Light:
    """Lamp or window. Light leaves a patch of `spread` meters; `color` includes the power."""

    position: Array
    spread: Array
    color: Array
    facing: Array | None = None


@dataclass(frozen=True, eq=False)
class Room:
    """Scene ready to be rendered. `faces` are the materials of x=0, x=X, y=0, y=Y, floor, ceiling."""

    size: Array
    faces: tuple[Material, ...]
    solids: list[Solid]
    lights: list[Light]
    ambient: Array
    tile: Array


@dataclass(eq=False)
class _Plan:
    """Room that is being furnished."""

    size: Array
    solids: list[Solid] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    #: Occupied areas of each wall as (from, to, bottom, top), meters.
    hung: list[list[tuple[float, float, float, float]]] = field(default_factory=lambda: [[], [], [], []])
    instances: int = _FIRST_INSTANCE


# Walls are numbered y=0, x=X, y=Y, x=0; yaw turns an object's front (+y) into the room.
_YAW = (0.0, np.pi / 2, np.pi, -np.pi / 2)


def _wall_length(plan: _Plan, wall: int) -> float:
    return float(plan.size[wall % 2])


def _at_wall(plan: _Plan, wall: int, along: float, out: float) -> Array:
    """Compute the floor point that is `along` meters along a wall and `out` meters away from it."""
    x, y = float(plan.size[0]), float(plan.size[1])
    points = ((along, out), (x - out, along), (x - along, y - out), (out, y - along))
    return np.array([*points[wall], 0.0])


def _put(plan: _Plan, thing: f.Thing, position: Array, yaw: float) -> None:
    turn = rotation_z(yaw)
    numbers: dict[int, int] = {}
    for part in thing.parts:
        if part.item not in numbers:
            numbers[part.item] = plan.instances
            plan.instances += 1
        own = turn if part.rotation is None else turn @ part.rotation
        center = position + turn @ np.asarray(part.center)
        half = np.asarray(part.half, float)
        plan.solids.append(
            Solid(part.kind, center, half, own, nyu_class(part.label), numbers[part.item], part.material)
        )
        if part.label == "lamp" and part.material.glow > 0.5:
            power = np.array([1.0, 0.78, 0.5]) * part.material.glow * 0.5
            plan.lights.append(Light(center + np.array([0.0, 0.0, half[2] * 1.1 + 0.02]), np.full(3, 0.05), power))


def _footprint(thing: f.Thing, position: Array, yaw: float, margin: float) -> tuple[float, float, float, float]:
    c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
    hx, hy = (c * thing.width + s * thing.depth) / 2 + margin, (s * thing.width + c * thing.depth) / 2 + margin
    return position[0] - hx, position[1] - hy, position[0] + hx, position[1] + hy


def _free(plan: _Plan, area: tuple[float, float, float, float], slack: float = 0.0) -> bool:
    x0, y0, x1, y1 = area
    if x0 < -slack or y0 < -slack or x1 > plan.size[0] + slack or y1 > plan.size[1] + slack:
        return False
    return not any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in plan.taken)


def _against_wall(plan: _Plan, rng: Rng, builder: f.Builder, style: f.Style, walls: list[int]) -> int | None:
    """Place an object with its back to one of `walls`; return the wall, or None if it fits at none of them."""
    thing = builder(rng, style)
    for wall in walls:
        for _ in range(6):
            spare = _wall_length(plan, wall) - thing.width - 0.1
            if spare <= 0:
                break
            along = 0.05 + thing.width / 2 + float(rng.uniform(0, spare))
            position = _at_wall(plan, wall, along, thing.depth / 2 + 0.015)
            area = _footprint(thing, position, _YAW[wall], 0.01)
            if _free(plan, area, slack=0.02) and not _covers_opening(plan, wall, along, thing):
                _put(plan, thing, position, _YAW[wall])
                plan.taken.append(area)
                top = max(p.center[2] + p.half[2] for p in thing.parts)
                plan.hung[wall].append((along - thing.width / 2, along + thing.width / 2, 0.0, top))
                return wall
    return None


def _covers_opening(plan: _Plan, wall: int, along: float, thing: f.Thing) -> bool:
    top = max(p.center[2] + p.half[2] for p in thing.parts)
    low, high = along - thing.width / 2, along + thing.width / 2
    return any(low < b and a < high and bottom < top - 0.15 for a, b, bottom, _ in plan.hung[wall])


def _in_the_open(plan: _Plan, rng: Rng, thing: f.Thing, yaw: float, block: bool = True) -> Array | None:
    for _ in range(12):
        reach = np.array([thing.width, thing.depth]).max() / 2 + 0.1
        if (plan.size[:2] <= 2 * reach).any():
            return None
        position = np.array([*rng.uniform(reach, plan.size[:2] - reach), 0.0])
        area = _footprint(thing, position, yaw, 0.05)
        if not block or _free(plan, area):
            _put(plan, thing, position, yaw)
            if block:
                plan.taken.append(area)
            return position
    return None


def _hang(plan: _Plan, rng: Rng, wall: int, size: tuple[float, float, float], bottom: float) -> float | None:
    """Reserve a free area of a wall for a (width, thickness, height); return its middle along the wall, or None."""
    w, _, h = size
    length = _wall_length(plan, wall)
    for _ in range(8):
        if length < w + 0.3:
            return None
        along = float(rng.uniform(w / 2 + 0.12, length - w / 2 - 0.12))
        low, high = along - w / 2 - 0.06, along + w / 2 + 0.06
        clash = any(low < b and a < high and bottom < t + 0.05 and z < bottom + h for a, b, z, t in plan.hung[wall])
        if not clash:
            plan.hung[wall].append((low, high, bottom, bottom + h))
            return along
    return None


def _flat(label: str, size: tuple[float, float, float], bottom: float, material: Material) -> f.Part:
    w, t, h = size
    return f.Part(BOX, label, (0.0, t / 2, bottom + h / 2), (w / 2, t / 2, h / 2), material)


def _add_door(plan: _Plan, rng: Rng, style: f.Style, wall: int) -> None:
    w, h = float(rng.uniform(0.8, 0.95)), float(rng.uniform(1.98, 2.08))
    along = _hang(plan, rng, wall, (w + 0.16, 0.05, h), 0.0)
    if along is None:
        return
    pale = rng.random() < 0.5
    color: Color = f.vary(rng, (0.68, 0.66, 0.61), 0.1) if pale else style.wood
    second: Color = f.vary(rng, color, 0.1) if pale else style.wood_dark
    leaf = Material("door", color, second, gloss=0.1)
    trim = Material("plain", f.vary(rng, (0.72, 0.70, 0.66), 0.08))
    knob = Material("plain", style.metal, gloss=0.7)
    parts = [
        _flat("door", (w + 0.16, 0.02, h + 0.08), 0.0, trim),
        _flat("door", (w, 0.035, h), 0.0, leaf),
        f.Part("ellipsoid", "door", (w * 0.42, 0.07, 1.0), (0.03, 0.035, 0.03), knob),
    ]
    position = _at_wall(plan, wall, along, 0.0)
    _put(plan, f.Thing(parts, w, 0.04), position, _YAW[wall])
    # The floor in front of a door is kept free.
    gap = f.Thing([], w, 1.2)
    plan.taken.append(_footprint(gap, _at_wall(plan, wall, along, 0.6), _YAW[wall], 0.0))


def _add_window(plan: _Plan, rng: Rng, style: f.Style, wall: int, day: float) -> None:
    w, h, bottom = float(rng.uniform(0.9, 1.8)), float(rng.uniform(1.0, 1.3)), float(rng.uniform(0.85, 1.0))
    curtained = rng.random() < 0.65
    side = float(rng.uniform(0.25, 0.4)) if curtained else 0.05
    along = _hang(plan, rng, wall, (w + 2 * side, 0.1, h), bottom)
    if along is None:
        return
    view = Material(
        "panes", (0.45, 0.62, 0.9), f.vary(rng, (0.18, 0.28, 0.1), 0.4), glow=2.2 * day, shift=float(rng.uniform(0, 50))
    )
    trim = Material("plain", f.vary(rng, (0.72, 0.71, 0.68), 0.08))
    parts = [
        _flat("window", (w + 0.14, 0.03, h + 0.14), bottom - 0.07, trim),
        _flat("window", (w, 0.034, h), bottom, view),
        _flat("window", (w + 0.2, 0.12, 0.03), bottom - 0.09, trim),
    ]
    if curtained:
        parts += _curtains(rng, style, (w, side), min(bottom + h + 0.2, float(plan.size[2]) - 0.03), bottom)
    _put(plan, f.Thing(parts, w, 0.1), _at_wall(plan, wall, along, 0.0), _YAW[wall])
    inward = rotation_z(_YAW[wall]) @ np.array([0.0, 1.0, 0.0])
    tangent = np.abs(rotation_z(_YAW[wall]) @ np.array([1.0, 0.0, 0.0]))
    center = _at_wall(plan, wall, along, 0.06) + np.array([0.0, 0.0, bottom + h / 2])
    power = np.array([0.86, 0.95, 1.1]) * day * w * h * 2.6
    plan.lights.append(Light(center, tangent * w * 0.45 + np.array([0, 0, h * 0.45]), power, inward))


def _curtains(rng: Rng, style: f.Style, widths: tuple[float, float], top: float, sill: float) -> list[f.Part]:
    """Make a curtain on each side of a window; `widths` are the window's and that of a curtain beside it."""
    window, side = widths
    color: Color = style.accent if rng.random() < 0.5 else (0.6, 0.55, 0.45)
    cloth = Material("pleats", f.vary(rng, color, 0.3), scale=0.11)
    low = 0.04 if rng.random() < 0.6 else sill - 0.15
    half = (side / 2 + 0.08, 0.03, (top - low) / 2)
    middles = [(sign * (window / 2 + side / 2 - 0.08), 0.15, (top + low) / 2) for sign in (-1, 1)]
    return [f.Part(BOX, "curtain", middle, half, cloth, n + 1) for n, middle in enumerate(middles)]


def _add_picture(plan: _Plan, rng: Rng, wall: int) -> None:
    w, h = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.3, 0.7))
    bottom = float(rng.uniform(1.25, 1.45))
    along = _hang(plan, rng, wall, (w, 0.03, h), bottom)
    if along is None:
        return
    a, b = (f.vary(rng, f.CLOTHS[i], 0.5) for i in rng.choice(len(f.CLOTHS), 2, replace=False))
    bright: Color = (min(a[0] * 2.5, 0.9), min(a[1] * 2.5, 0.9), min(a[2] * 2.5, 0.9))
    art = Material("picture", bright, b, gloss=0.15, shift=float(rng.uniform(0, 30)))
    thing = f.Thing([_flat("picture", (w, 0.025, h), bottom, art)], w, 0.03)
    _put(plan, thing, _at_wall(plan, wall, along, 0.0), _YAW[wall])


def _surfaces(rng: Rng, style: f.Style) -> tuple[Material, ...]:
    paints: tuple[Color, ...] = (
        (0.70, 0.67, 0.60), (0.62, 0.62, 0.60), (0.66, 0.58, 0.44), (0.48, 0.56, 0.60), (0.52, 0.60, 0.46),
        (0.66, 0.50, 0.42), (0.72, 0.71, 0.69), (0.60, 0.52, 0.32),
    )  # fmt: skip
    color = f.vary(rng, paints[rng.integers(len(paints))], 0.1)
    kind = str(rng.choice(["plain", "plain", "plain", "stripes", "dots"]))
    second = f.vary(rng, color, 0.12)
    walls = [Material(kind, color, second, float(rng.choice([0.12, 0.2])), shift=float(n)) for n in range(4)]
    if rng.random() < 0.25:
        walls[rng.integers(4)] = Material("plain", f.vary(rng, f.CLOTHS[rng.integers(len(f.CLOTHS))], 0.4))
    wood, dark = f.WOODS[rng.integers(len(f.WOODS) - 1)]
    side = float(rng.uniform(0.3, 0.5))
    floors = (
        Material("planks", f.vary(rng, wood), f.vary(rng, dark), float(rng.uniform(0.07, 0.14)), gloss=0.35),
        Material("carpet", f.vary(rng, f.CLOTHS[rng.integers(3, 6)], 0.4)),
        Material("tiles", f.vary(rng, (0.55, 0.48, 0.38), 0.3), (0.25, 0.22, 0.2), side, gloss=0.4),
    )
    floor = floors[rng.choice(3, p=[0.5, 0.35, 0.15])]
    ceiling = Material("plain", f.vary(rng, (0.74, 0.73, 0.70), 0.06))
    return (*walls, floor, ceiling)


def _furnish_bedroom(plan: _Plan, rng: Rng, style: f.Style, walls: list[int]) -> None:
    wall = _against_wall(plan, rng, f.bed, style, walls)
    if wall is not None:
        _against_wall(plan, rng, f.bedside, style, [wall])
    wanted: list[f.Builder] = [f.cabinet, f.bookshelf, f.chair, f.floor_lamp, f.television, f.boxes]
    for number in rng.permutation(len(wanted))[: int(rng.integers(3, 6))]:
        _against_wall(plan, rng, wanted[number], style, list(rng.permutation(4)))


def _furnish_living(plan: _Plan, rng: Rng, style: f.Style, walls: list[int]) -> None:
    wall = _against_wall(plan, rng, f.sofa, style, walls)
    if wall is not None:
        _against_wall(plan, rng, f.television, style, [(wall + 2) % 4, *walls])
        _against_wall(plan, rng, f.floor_lamp, style, [wall])
    _in_the_open(plan, rng, f.coffee_table(rng, style), float(rng.choice(_YAW)))
    wanted: list[f.Builder] = [f.cabinet, f.bookshelf, f.sofa, f.boxes, f.chair]
    for number in rng.permutation(len(wanted))[: int(rng.integers(2, 5))]:
        _against_wall(plan, rng, wanted[number], style, list(rng.permutation(4)))


def _furnish_dining(plan: _Plan, rng: Rng, style: f.Style, walls: list[int]) -> None:
    table = f.table(rng, style)
    yaw = float(rng.choice(_YAW[:2]))
    middle = _in_the_open(plan, rng, table, yaw)
    if middle is not None:
        seats = [(0.0, 1, np.pi), (0.0, -1, 0.0), (-0.3, 1, np.pi), (0.3, -1, 0.0)]
        for x, side, turn in seats[: int(rng.integers(2, 5))]:
            seat = f.chair(rng, style)
            offset = np.array([x * table.width, side * (table.depth / 2 + 0.16), 0.0])
            place = middle + rotation_z(yaw) @ offset
            if np.all(place[:2] > 0.35) and np.all(place[:2] < plan.size[:2] - 0.35):
                _put(plan, seat, place, yaw + turn + float(rng.normal(0, 0.12)))
                plan.taken.append(_footprint(seat, place, yaw, 0.05))
    wanted: list[f.Builder] = [f.cabinet, f.bookshelf, f.cabinet, f.boxes, f.chair, f.sofa, f.floor_lamp]
    for number in rng.permutation(len(wanted))[: int(rng.integers(3, 6))]:
        _against_wall(plan, rng, wanted[number], style, list(rng.permutation(4)))


def make_room(rng: Rng) -> Room:
    """Make a furnished bedroom, living room, dining room or study."""
    plan = _Plan(np.array([rng.uniform(3.2, 5.6), rng.uniform(3.6, 6.4), rng.uniform(2.35, 2.8)]))
    style, tile = f.make_style(rng), noise_tile(rng)
    faces = _surfaces(rng, style)
    day = float(rng.choice([0.05, 0.7, 1.0, 1.4], p=[0.2, 0.25, 0.3, 0.25]))
    walls = [int(w) for w in rng.permutation(4)]
    _add_door(plan, rng, style, walls[0])
    for wall in walls[1 : 2 + int(rng.integers(1, 3))]:
        _add_window(plan, rng, style, wall, day)
    order = [int(w) for w in rng.permutation(4)]
    furnish = (_furnish_bedroom, _furnish_living, _furnish_dining)[rng.choice(3, p=[0.42, 0.32, 0.26])]
    furnish(plan, rng, style, order)
    if rng.random() < 0.55:
        _in_the_open(plan, rng, f.rug(rng, style), float(rng.choice(_YAW[:2])), block=False)
    if rng.random() < 0.5:
        _in_the_open(plan, rng, f.boxes(rng, style), float(rng.uniform(0, 3)))
    for wall in rng.choice(4, int(rng.integers(2, 6))):
        _add_picture(plan, rng, int(wall))
    lit = 1.0 if day < 0.5 else float(rng.choice([0.15, 0.6, 1.0]))
    warm = np.array([1.0, rng.uniform(0.8, 0.95), rng.uniform(0.6, 0.85)])
    spot = np.array([*(plan.size[:2] * rng.uniform(0.35, 0.65, 2)), plan.size[2] - 0.22])
    plan.lights.insert(0, Light(spot, np.array([0.25, 0.25, 0.05]), warm * 2.4 * lit))
    total = sum((light.color for light in plan.lights), np.zeros(3))
    area = float(plan.size[0] * plan.size[1])
    return Room(plan.size, faces, plan.solids, plan.lights, total / area * 0.85 + 0.02, tile)


def choose_camera(room: Room, rng: Rng, intrinsics: Intrinsics, size: tuple[int, int]) -> Camera:
    """Choose the view, of ten drawn at robot or eye height, that shows most classes from a suitable distance.

    Args:
        room: the room.
        rng: random generator.
        intrinsics: of the camera, pixels.
        size: (height, width) of the image, pixels.
    """
    coarse = intrinsics.scaled(24, 32, *size)
    labels = np.array([solid.label for solid in room.solids], int)
    best: tuple[float, Camera] | None = None
    for _ in range(10):
        corner = np.where(rng.random(2) < 0.5, rng.uniform(0.06, 0.3, 2), rng.uniform(0.7, 0.94, 2))
        position = np.array([*(corner * room.size[:2]), rng.uniform(0.75, 1.65)])
        position[:2] = np.clip(position[:2], 0.3, room.size[:2] - 0.3)
        target = room.size[:2] * rng.uniform(0.3, 0.7, 2)
        yaw = float(np.arctan2(-(target - position[:2])[0], (target - position[:2])[1]) + rng.normal(0, 0.25))
        pitch = float(rng.normal(-0.14, 0.12) - 0.12 * (position[2] - 1.2))
        turn = (yaw, pitch, float(rng.normal(0, 0.02)))
        depth, index, _ = cast(room.solids, room.size, look(position, turn, coarse, (24, 32)))
        seen = np.bincount(labels[index[index >= 0]], minlength=1)
        variety = float((seen >= 4).sum()) + 3.0 * min(float((index >= 0).mean()), 0.5)
        score = variety - 8.0 * float((depth < 0.7).mean()) - 4.0 * max(0.0, 1.8 - float(np.median(depth)))
        # A camera inside a solid does not see the solid, so the labels would be wrong.
        score -= 100.0 * any(_contains(solid, position) for solid in room.solids)
        camera = look(position, turn, intrinsics, size)
        if best is None or score > best[0]:
            best = (score, camera)
    assert best is not None
    return best[1]


def _contains(solid: Solid, point: Array) -> bool:
    return bool((np.abs((point - solid.center) @ solid.rotation) < solid.half + 0.05).all())
