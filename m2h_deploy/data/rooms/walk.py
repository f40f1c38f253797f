"""Sequence of a camera that is carried through one synthetic room, with exact labels and poses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.frame import Frame, Intrinsics, Pose
from m2h_deploy.data.rooms.geometry import Camera, Hits, look
from m2h_deploy.data.rooms.layout import make_room
from m2h_deploy.data.rooms.path import CameraPath
from m2h_deploy.data.rooms.render import check_room, label_view, room_intrinsics, see
from m2h_deploy.data.rooms.shading import Exposure, draw_exposure, expose, meter, radiance
from m2h_deploy.data.rooms.shadows import fixed_shadows, random_shadows
from m2h_deploy.errors import M2HError

Array = npt.NDArray[np.floating]

#: Time stamp of the first frame, seconds.
START = 1000.0
#: Images per second that a sequence can have.
RATES = (0.1, 240.0)
#: Last number of a random generator's seed; that of a single room has only the seed and the number of the room.
_ROOM, _PATH, _CAMERA, _WAVES, _FRAME = range(1, 6)
#: Views that the exposure of the whole sequence is metered on: times in seconds, height and width in pixels.
_METERED_TIMES, _METERED_SIZE = (0.0, 4.0, 8.0, 12.0, 16.0), (36, 48)
#: Share of the time between two frames that the shutter is open, its longest time in seconds, and views averaged.
_SHUTTER, _LONGEST_SHUTTER, _SUBFRAMES = 0.5, 0.05, 5
#: Range of changes of the exposure, and factor of stronger noise.
_EXPOSURES, _NOISE = (0.6, 1.6), 4.0


@dataclass(frozen=True)
class Effects:
    """Flaws of a camera that a sequence can show; labels never have them."""

    blur: bool = False
    """Motion blur."""
    exposure: bool = False
    """Slow changes of the exposure, as auto exposure makes them."""
    noise: bool = False
    """Stronger sensor noise."""


class RoomWalk:
    """Data set of the frames of one camera path through the room of a seed, rendered on access.

    The frames of a shorter walk of the same seed and rate are the first frames of a longer one.

    Args:
        count: number of frames.
        seed: of the room and the path, >= 0. These rooms are not those of `Rooms`.
        rate: images per second, 0.1 to 240.
        height: pixels, >= 16.
        width: pixels, >= 16.
        effects: flaws of the camera.
        fov: horizontal field of view, degrees; None for NYUv2's.

    Raises:
        M2HError: a number is out of range.
    """

    class_names = NYU40_CLASSES
    derived: frozenset[str] = frozenset()

    def __init__(
        self,
        count: int,
        seed: int = 0,
        rate: float = 10.0,
        height: int = 240,
        width: int = 320,
        effects: Effects | None = None,
        fov: float | None = None,
    ) -> None:
        check_room(seed, 0, height, width, fov)
        if count < 1:
            raise M2HError(f"a sequence of {count} frames: expected at least 1")
        if not RATES[0] <= rate <= RATES[1]:
            raise M2HError(f"{rate:g} images per second: expected {RATES[0]:g} to {RATES[1]:g}")
        self.count, self.seed, self.rate, self.size = count, seed, rate, (height, width)
        self.effects = effects or Effects()
        self.room = make_room(self._random(_ROOM))
        self.intrinsics: Intrinsics = room_intrinsics(height, width, fov)
        self._path = CameraPath(self.room, self._random(_PATH))
        self._shadows = fixed_shadows(self.room)
        self._waves = self._random(_WAVES).uniform(0.0, 1.0, (2, 2))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self.count:
            raise IndexError(index)
        time = index / self.rate
        camera, hits = self._view(time)
        light = self._light(camera, hits)
        if self.effects.blur:
            shutter = min(_SHUTTER / self.rate, _LONGEST_SHUTTER)
            for part in range(1 - _SUBFRAMES, _SUBFRAMES, 2):
                if part:
                    light = light + self._light(*self._view(time + shutter * part / (2 * _SUBFRAMES)))
            light = light / _SUBFRAMES
        image = expose(light, self._exposure(time), np.random.default_rng([self.seed, index, _FRAME]))
        frame, _ = label_view(self.room, camera, hits, image, f"{self.timestamp(index):.6f}")
        return replace(frame, timestamp=self.timestamp(index), pose=self.pose(index))

    def timestamp(self, index: int) -> float:
        """Return the time of a frame, seconds, rounded to microseconds."""
        return round(START + index / self.rate, 6)

    def pose(self, index: int) -> Pose:
        """Return the pose of a frame."""
        camera = self._camera(index / self.rate)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.rotation, camera.position
        return pose

    def _view(self, time: float) -> tuple[Camera, Hits]:
        camera = self._camera(time)
        return camera, see(self.room, camera)

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0, purpose])

    def _camera(self, time: float) -> Camera:
        position, turn = self._path.at(time)
        return look(position, turn, self.intrinsics, self.size)

    def _light(self, camera: Camera, hits: Hits) -> Array:
        return radiance(self.room, camera, hits, self._shadows, self._settings[0], smooth=True)[0]

    @cached_property
    def _settings(self) -> tuple[float, Exposure]:
        """Mean light on the surfaces, and settings of the camera, measured on a few views along the path."""
        rng = self._random(_CAMERA)
        shadows = random_shadows(self.room, rng)
        lights, means = [], []
        for time in _METERED_TIMES:
            camera = look(*self._path.at(time), room_intrinsics(*_METERED_SIZE), _METERED_SIZE)
            light, mean = radiance(self.room, camera, see(self.room, camera), shadows)
            lights.append(light)
            means.append(mean)
        exposure = draw_exposure(meter(np.concatenate(lights)), rng)
        if self.effects.noise:
            exposure = replace(exposure, noise=exposure.noise * _NOISE)
        return float(np.mean(means)), exposure

    def _exposure(self, time: float) -> Exposure:
        exposure = self._settings[1]
        if not self.effects.exposure:
            return exposure
        speeds, phases = 2 * np.pi / (4.0 + 6.0 * self._waves[0]), 2 * np.pi * self._waves[1]
        wave = float(np.mean(np.sin(speeds * time + phases)))
        low, high = np.log(_EXPOSURES)
        return replace(exposure, gain=exposure.gain * float(np.exp(low + (high - low) * (wave + 1) / 2)))
