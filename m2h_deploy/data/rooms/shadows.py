"""Soft shadows: the share of a lamp's or window's light that reaches points on surfaces.

Single rooms draw one shadow ray for each point. A sequence must not flicker: there the share is that of fixed points of
the lamp, computed once for the nodes of a lattice on each flat face and interpolated between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.rooms.geometry import BOX, Hits, Solid, shadowed
from m2h_deploy.data.rooms.layout import Light, Room

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

#: Computes the share (N,) of a light, 0..1, that reaches points.
Shadows = Callable[[Light, "Points"], Array]

#: Distance of the starts of shadow rays from their surface, and of two nodes of the lattice, meters.
_LIFT, _LATTICE = 0.012, 0.06
#: Points of a lamp, in -1..1 of its extent: a Halton sequence.
_SAMPLES = 10
#: Bits of a node's number on each axis of a face.
_BITS = 10


@dataclass(frozen=True, eq=False)
class Points:
    """Points on surfaces, in world and local frames as in `Hits`; arrays are (N,) or (N, 3)."""

    solid: npt.NDArray[np.int32]
    points: Array
    normals: Array
    local: Array
    local_normals: Array


def every(hits: Hits, step: int) -> Points:
    """Return the points of every `step`-th row and column."""
    return Points(
        hits.solid[::step, ::step].ravel(),
        *(v[::step, ::step].reshape(-1, 3) for v in (hits.points, hits.normals, hits.local, hits.local_normals)),
    )


def random_shadows(room: Room, rng: Rng) -> Shadows:
    """Draw one shadow ray for each point."""
    casters = _casters(room)

    def share(light: Light, seen: Points) -> Array:
        starts = seen.points + _LIFT * seen.normals
        jitter = rng.uniform(-1, 1, starts.shape) * light.spread
        return 1.0 - shadowed(casters, light.position + jitter, starts)

    return share


def fixed_shadows(room: Room) -> Shadows:
    """Compute shadows that depend only on the point; what was computed once is kept."""
    casters = _casters(room)
    samples = 2.0 * np.stack([_halton(base) for base in (2, 3, 5)], axis=-1) - 1.0
    kept: dict[Light, tuple[npt.NDArray[np.int64], Array]] = {}

    def reached(light: Light, starts: Array) -> Array:
        if not len(starts):
            return np.zeros(0)
        # One call for all samples, because a call takes time for each caster.
        ends = np.tile(light.position + samples * light.spread, (len(starts), 1))
        blocked = shadowed(casters, ends, np.repeat(starts, len(samples), axis=0))
        return 1.0 - np.asarray(blocked.reshape(-1, len(samples)).mean(axis=-1))

    def share(light: Light, seen: Points) -> Array:
        flat = np.array([s.kind == BOX for s in room.solids] + [True] * 6)[seen.solid]
        nodes, weights = _nodes(seen, flat)
        known, values = kept.get(light, (np.zeros(0, np.int64), np.zeros(0)))
        new = np.setdiff1d(nodes, known)
        curved = (seen.points + _LIFT * seen.normals)[~flat]
        found = reached(light, np.concatenate([_node_starts(room, new), curved]))
        known, values = np.concatenate([known, new]), np.concatenate([values, found[: len(new)]])
        order = np.argsort(known)
        known, values = kept[light] = known[order], values[order]
        result = np.zeros(len(seen.solid))
        result[flat] = (values[np.searchsorted(known, nodes)] * weights).sum(axis=0)
        result[~flat] = found[len(new) :]
        return result

    return share


def _casters(room: Room) -> list[Solid]:
    # Shadows of thin objects on walls, lamp shades and stands are not worth the time.
    return [s for s in room.solids if s.half.min() > 0.004 and s.material.glow == 0 and np.prod(s.half) > 6e-6]


def _halton(base: int) -> Array:
    values = np.zeros(_SAMPLES)
    for number in range(_SAMPLES):
        rest, digit = number + 1, 1.0 / base
        while rest:
            values[number] += rest % base * digit
            rest, digit = rest // base, digit / base
    return values


def _nodes(seen: Points, chosen: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], Array]:
    """Compute the numbers and the weights (4, N) of the lattice nodes around the chosen points, which are on faces."""
    local, normals = seen.local[chosen], seen.local_normals[chosen]
    axis = np.abs(normals).argmax(axis=-1)
    rows = np.arange(len(axis))
    face = (seen.solid[chosen].astype(np.int64) + 6) * 6 + axis * 2 + (normals[rows, axis] > 0)
    u, v = (local[rows, (axis + turn) % 3] / _LATTICE for turn in (1, 2))
    corner_u, corner_v = np.floor(u), np.floor(v)
    numbers, weights = [], []
    for du in (0, 1):
        for dv in (0, 1):
            iu, iv = (corner_u + du).astype(np.int64), (corner_v + dv).astype(np.int64)
            half = 1 << (_BITS - 1)
            numbers.append((face << _BITS | iu + half) << _BITS | iv + half)
            weights.append((1 - np.abs(u - iu)) * (1 - np.abs(v - iv)))
    return np.array(numbers), np.array(weights)


def _node_starts(room: Room, nodes: npt.NDArray[np.int64]) -> Array:
    """Compute where the shadow rays of nodes start, (N, 3), in the world; nodes beside a face are moved to its edge."""
    half = 1 << (_BITS - 1)
    face, u, v = nodes >> 2 * _BITS, (nodes >> _BITS & 2 * half - 1) - half, (nodes & 2 * half - 1) - half
    starts = np.zeros((len(nodes), 3))
    for number in np.unique(face):
        here = face == number
        index, (axis, positive) = int(number) // 6 - 6, divmod(int(number) % 6, 2)
        solid = room.solids[index] if index >= 0 else None
        low, high = (np.zeros(3), room.size) if solid is None else (-solid.half, solid.half)
        outward = bool(positive) == (solid is not None)
        local = np.zeros((int(here.sum()), 3))
        local[:, axis] = (high if outward else low)[axis] + _LIFT * (1 if positive else -1)
        for turn, steps in ((1, u[here]), (2, v[here])):
            other = (axis + turn) % 3
            local[:, other] = np.clip(steps * _LATTICE, low[other], high[other])
        starts[here] = local if solid is None else local @ solid.rotation.T + solid.center
    return starts
