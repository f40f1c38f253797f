"""Measure how much faster bundles are than another one, interleaved on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle.folder import Bundle, record_result
from m2h_deploy.profiling.machine import describe_machine
from m2h_deploy.profiling.measure import Timer, frames, interleave, subject_of
from m2h_deploy.profiling.statistics import Estimate, percentile, speedup
from m2h_deploy.runtime.runtime import Runtime

#: Frames that every engine runs before the measurement, and the fewest and the seconds of it.
WARM_UP, ROUNDS, SECONDS = 2, 8, 4.0


@dataclass(frozen=True)
class Speed:
    """Time of a bundle's engine for one frame, without preprocessing and postprocessing, and against the other."""

    milliseconds: Estimate
    times_as_fast: Estimate
    """Median over rounds of the other's time over this one's, with its 95 % interval."""
    threads: int | None
    """Requested number of threads; None: the bundle's own choice."""
    engine: str
    processor: str

    def to_json(self) -> dict[str, Any]:
        """Return the record for a manifest."""
        return asdict(self)


def compare_with_float32(bundle: Bundle, float32: Path, opening: BackendOptions) -> Bundle:
    """Measure how much faster `bundle` is than the bundle `float32`, of the same engine, and record it.

    Raises:
        M2HError: One of them cannot be run here.
    """
    _, (speed,) = measure_speed((float32, None), [(bundle.path, None)], opening=opening)
    return record_result(bundle, speed=speed.to_json())


def measure_speed(
    baseline: tuple[Path, int | None],
    others: Sequence[tuple[Path, int | None]],
    *,
    opening: BackendOptions | None = None,
    seconds: float = SECONDS,
    progress: Callable[[float], None] | None = None,
) -> tuple[Speed, list[Speed]]:
    """Run the bundle `baseline` and the `others`, each with its number of threads, in turns on the same frames.

    `opening` has the plug-ins and the permission that TensorRT's bundles may need.

    Returns:
        The speed of the baseline, which is once as fast as itself, and those of the others.

    Raises:
        M2HError: A bundle cannot be opened or run here.
    """
    machine, options = describe_machine(), opening or BackendOptions()
    code: dict[str, Any] = {"plugins": options.plugins, "allow_engine_code": options.allow_engine_code}
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(Runtime.load(path, self_test=False, threads=threads, **code))
            for path, threads in [baseline, *others]
        ]
        subjects = [subject_of(runtime, str(index)) for index, runtime in enumerate(opened)]
        sensor = opened[0].manifest.sensor
        own = opened[0].manifest.input
        size = (own.height, own.width) if sensor is not None else (480, 640)
        timer = Timer(frames(4, *size))
        interleave(subjects, timer, duration_s=0, min_rounds=WARM_UP)
        samples = interleave(subjects, timer, duration_s=seconds, min_rounds=ROUNDS, progress=progress)
        engines = [runtime.backend.description for runtime in opened]
    times = [samples[subject.name].stages["inference"] for subject in subjects]
    threads = [count for _, count in (baseline, *others)]
    found = [
        Speed(percentile(own_times, 0.5), speedup(times[0], own_times), count, engine, machine.cpu)
        for own_times, count, engine in zip(times, threads, engines, strict=True)
    ]
    return found[0], found[1:]
