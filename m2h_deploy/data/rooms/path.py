"""Path of a camera that is carried through a furnished room: walking and looking around, smooth in time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.rooms.floor import FreeFloor
from m2h_deploy.data.rooms.geometry import first_hit
from m2h_deploy.data.rooms.layout import Room

Array = npt.NDArray[np.floating]
Rng = np.random.Generator

#: Least distance of the camera's center to every surface, meters.
CLEARANCE = 0.25
#: Range of walking speeds, m/s, and of the fastest turn, degrees per second.
_SPEED, _TURN = (0.35, 0.55), (25.0, 38.0)
#: Height of the camera of a robot or of a person's hand, meters.
_HEIGHT = (0.9, 1.6)
#: Time step of the unfiltered path, half width of the filters, time between two decisions where to look: seconds.
_STEP, _MOVE_FILTER, _TURN_FILTER, _LOOK = 0.02, 0.7, 0.8, 1.0
#: The path begins before the first frame, so that the filters and a shutter have a past.
_PAST = 1.0
#: The unfiltered way keeps the clearance plus what the filter can deviate from it (a Hann window's mean distance from
#: its middle is 0.297 half widths), plus half the distance of its points.
_WAY_CLEARANCE = CLEARANCE + 0.297 * _SPEED[1] * _MOVE_FILTER + 0.03
#: Slow movement of the carrier: amplitude in meters or radians.
_BOB, _NOD, _SWAY = 0.03, 0.07, 0.015
#: Directions of the panorama that decides where to look, those that a view covers, elevations in radians.
_AZIMUTHS, _COVERED, _ELEVATIONS = 48, 3, (-0.5, -0.3, -0.1, 0.1, 0.3)
#: Side of a cell of the memory of what was seen, meters.
_VOXEL = 0.25


class CameraPath:
    """Endless path, determined by the room and the random generator; its parts are computed as they are needed."""

    def __init__(self, room: Room, rng: Rng) -> None:
        self._room = room
        self._rng = rng
        self._height = float(rng.uniform(*_HEIGHT))
        self._speed = float(rng.uniform(*_SPEED))
        self._turn = float(np.radians(rng.uniform(*_TURN)))
        self._pitch = float(-0.19 - 0.12 * (self._height - 1.2) + rng.uniform(-0.04, 0.04))
        self._waves = [(2 * np.pi / rng.uniform(4, 9), rng.uniform(0, 2 * np.pi)) for _ in range(3)]
        self._floor = FreeFloor(room, self._height, _WAY_CLEARANCE)
        self._goals = [self._floor.cells[rng.integers(len(self._floor.cells))]]
        self._places = self._floor.place(self._goals[0])[None]
        self._seen = np.zeros(np.ceil(room.size / _VOXEL).astype(int) + 1, int)
        self._yaws = np.zeros(0)

    def at(self, time: float) -> tuple[Array, tuple[float, float, float]]:
        """Compute where the camera is at a time (seconds, at least -0.2).

        Returns:
            Position (3,) in meters, and yaw, pitch and roll in radians as `look` takes them.
        """
        bob, nod, sway = (float(np.sin(speed * time + phase)) for speed, phase in self._waves)
        own = time + _PAST
        while len(self._yaws) * _STEP <= own + _TURN_FILTER:
            self._look_on()
        position = np.array([*self._place(own), self._height + _BOB * bob])
        return position, (float(_filtered(self._yaws, own, _TURN_FILTER)), self._pitch + _NOD * nod, _SWAY * sway)

    def _place(self, own: float) -> Array:
        while len(self._places) * _STEP <= own + _MOVE_FILTER:
            self._walk_on()
        return _filtered(self._places, own, _MOVE_FILTER)

    def _walk_on(self) -> None:
        """Append the way to a new goal: the one of several that is farthest from the last ones and from furniture."""
        floor = self._floor
        candidates = floor.cells[self._rng.integers(len(floor.cells), size=8)]
        recent = np.array(self._goals[-4:])
        places = floor.place(candidates)
        apart = np.linalg.norm(places[:, None] - floor.place(recent), axis=-1).min(axis=-1)
        goal = candidates[int((apart + floor.clearance(places)).argmax())]
        line = self._floor.way(self._goals[-1], goal)
        lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=-1))])
        steps = int(np.ceil(lengths[-1] / (self._speed * _STEP))) or round(_LOOK / _STEP)  # 0 where it cannot move
        at = np.linspace(0, lengths[-1], steps + 1)[1:]
        walked = np.stack([np.interp(at, lengths, line[:, axis]) for axis in (0, 1)], axis=-1)
        self._places = np.concatenate([self._places, walked])
        self._goals.append(goal)

    def _look_on(self) -> None:
        """Append the turn of the next second, towards the view that is best at its end."""
        last = float(self._yaws[-1]) if len(self._yaws) else None
        now = len(self._yaws) * _STEP
        goal = self._choose_view(np.array([*self._place(now + _LOOK), self._height]), last)
        steps = round(_LOOK / _STEP)
        if last is None:
            turned = np.full(steps, goal)
        else:
            most = self._turn * _STEP * np.arange(1, steps + 1)
            turned = last + np.clip(goal - last, -most, most)
        self._yaws = np.concatenate([self._yaws, turned])

    def _choose_view(self, position: Array, last: float | None) -> float:
        """Choose the yaw of the view that shows most of what is 1 to 4 m away and was seldom seen; remember it."""
        yaws = np.arange(_AZIMUTHS) * 2 * np.pi / _AZIMUTHS
        elevations = self._pitch + np.array(_ELEVATIONS)
        flat = np.stack([-np.sin(yaws), np.cos(yaws)], axis=-1)[:, None] * np.cos(elevations)[:, None]
        rays = np.concatenate([flat, np.broadcast_to(np.sin(elevations)[:, None], (*flat.shape[:2], 1))], axis=-1)
        distance, furniture = first_hit(self._room.solids, self._room.size, position, rays)
        voxels = tuple(np.moveaxis(((position + distance[..., None] * rays) / _VOXEL).astype(int), -1, 0))
        suitable = np.interp(distance, (0.6, 1.2, 4.0, 6.0), (-1.5, 1.0, 1.0, 0.4))
        interest = np.where(furniture, 1.0, 0.6) * 2.0 / (2.0 + self._seen[voxels])
        value = np.where(suitable > 0, suitable * interest, suitable).mean(axis=-1)
        score = sum(np.roll(value, shift) for shift in range(-_COVERED, _COVERED + 1)) / (2 * _COVERED + 1)
        if last is not None:
            yaws = last + (yaws - last + np.pi) % (2 * np.pi) - np.pi
            score = score - 0.1 * np.abs(yaws - last)
        best = int(np.argmax(score))
        window = np.arange(best - _COVERED, best + _COVERED + 1) % _AZIMUTHS
        np.add.at(self._seen, tuple(axis[window] for axis in voxels), 1)
        return float(yaws[best])


def _filtered(samples: Array, time: float, half: float) -> Array:
    """Average samples, `_STEP` seconds apart, around `time` with a Hann window of 2 * `half` seconds."""
    first, last = int(np.ceil((time - half) / _STEP)), int(np.floor((time + half) / _STEP))
    numbers = np.arange(first, last + 1)
    weights = 1.0 + np.cos(np.pi * (numbers * _STEP - time) / half)
    average: Array = weights @ samples[first : last + 1] / weights.sum()
    return average
