"""Measure bundles, and peers to compare them with, side by side."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from m2h_deploy.backends import KINDS, BackendOptions
from m2h_deploy.bundle.folder import Bundle, check_recordable, load_bundle, record_result
from m2h_deploy.choices import QueuePolicy, Scenario
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import printable
from m2h_deploy.profiling.camera_load import Camera, run_camera
from m2h_deploy.profiling.layers import BlockCost, LayerProfile, profile_layers, summarize_layers
from m2h_deploy.profiling.loadgen import (
    LoadRun,
    LoadSettings,
    check_logs_folder,
    load_loadgen,
    run_scenario,
)
from m2h_deploy.profiling.machine import describe_machine
from m2h_deploy.profiling.measure import Image, Samples, Subject, Timer, frames, interleave, subject_of
from m2h_deploy.profiling.memory import Memory, peak_mb, reset_peak, resident_mb
from m2h_deploy.profiling.result import BenchResult, CameraResult, Ratio, SubjectResult, latency_record
from m2h_deploy.profiling.roofline import Roofline, measure_roofline
from m2h_deploy.profiling.statistics import speedup, summarize
from m2h_deploy.profiling.telemetry import find_probes, gpu_name, watch
from m2h_deploy.profiling.warmup import WarmUp, warm_up
from m2h_deploy.profiling.warnings import find_warnings
from m2h_deploy.runtime.runtime import Runtime

_log = logging.getLogger("m2h_deploy.profiling.bench")

#: Number of different frames to measure on: a single repeated frame would stay in the caches.
_FRAMES = 8

#: Called with the current step and the share of it that is done (0 to 1).
Progress = Callable[[str, float], None]

#: Makes the subjects that the first bundle is compared with.
Peers = Callable[[Runtime], Iterable[Subject]]


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Raises:
        M2HError: A value is invalid.
    """

    height: int = 480
    width: int = 640
    """Size of the camera's frames in pixels."""
    threads: int | None = None
    device: str | None = None
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries of TensorRT that may be loaded."""
    allow_engine_code: bool = False
    """Allow the code in a version-compatible plan of TensorRT to be executed."""
    duration_s: float | None = None
    """Seconds of each measurement; None: 10, and LoadGen's own 600 in its scenarios."""
    min_rounds: int = 20
    scenarios: tuple[Scenario, ...] = ()
    streams: int = 8
    qps: float | None = None
    camera_rate: float | None = None
    policies: tuple[QueuePolicy, ...] = ("latest",)
    queue: int | None = None
    """Largest number of waiting frames with the policy queue; None: unlimited."""
    deadline_ms: float | None = None
    """Deadline of the camera (None: one period) and of LoadGen's server scenario (None: 100 ms)."""
    layers: bool = True
    graphs: tuple[Path, ...] = ()
    """ONNX files that bundles were built from, to count what their blocks compute where the engine is a plan."""
    logs: Path | None = None

    @property
    def opening(self) -> dict[str, Any]:
        """The options for opening the bundles, as keywords."""
        return {name: getattr(self, name) for name in ("threads", "device", "plugins", "allow_engine_code")}

    def __post_init__(self) -> None:
        if not (16 <= self.height <= 16384 and 16 <= self.width <= 16384):
            raise M2HError(f"frames of {self.width} x {self.height} pixels: sides must be between 16 and 16384")
        if self.duration_s is not None and not 0 < self.duration_s < float("inf"):
            raise M2HError(f"duration {self.duration_s:g} s: must be above 0")
        for scenario in self.scenarios:
            self.load(scenario, 10.0)
        if self.camera_rate is not None:
            for policy in self.policies:
                self.camera(policy)

    @property
    def seconds(self) -> float:
        """Duration of each measurement in seconds."""
        return 10.0 if self.duration_s is None else self.duration_s

    @property
    def warm_up_s(self) -> float:
        """Seconds after which an unstable warm-up is given up."""
        return min(20.0, max(2.0, 2 * self.seconds))

    def load(self, scenario: Scenario, expected_ms: float) -> LoadSettings:
        """Return LoadGen's settings of a scenario; `expected_ms` is the approximate time of a frame."""
        deadline = 100.0 if self.deadline_ms is None else self.deadline_ms
        return LoadSettings(scenario, self.duration_s, expected_ms, self.qps, deadline, self.streams)

    def camera(self, policy: QueuePolicy) -> Camera:
        """Return the camera of a policy, with as many frames as it gives in the measurement's duration."""
        rate = self.camera_rate or 0.0
        frames = max(1, round(rate * self.seconds)) if 0 < rate < float("inf") else 1
        return Camera(rate, frames, policy, self.deadline_ms, self.queue if policy == "queue" else None)


def bench(
    paths: Sequence[str | os.PathLike[str]],
    settings: BenchSettings | None = None,
    *,
    peers: Peers | None = None,
    record: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure the bundles at `paths`, in turns, and compare the others with the first.

    ```python
    result = bench(["bundle/"], BenchSettings(camera_rate=30))
    result.subjects[0].summary["total"].p99, result.cameras[0].run.age.p99
    ```

    `peers` makes more subjects from the first bundle's runtime. With `record`, the result is written to each bundle's
    manifest at the end: an interrupted run leaves the bundles unchanged.

    Raises:
        M2HError: A bundle cannot be read, run, compared (another image size) or, with `record`, written.
    """
    settings = settings or BenchSettings()
    tell = progress or (lambda what, share: None)
    bundles = _open_bundles(paths, settings, record)
    counted = [_costs(bundle, settings) for bundle in bundles]
    images = frames(_FRAMES, settings.height, settings.width)
    before = resident_mb()
    reset_peak()
    with contextlib.ExitStack() as stack:
        tell("loading", 0.0)
        names = _names(bundles)
        threads = settings.threads
        runtimes = [stack.enter_context(Runtime.load(bundle, **settings.opening)) for bundle in bundles]
        subjects = [
            subject_of(runtime, name, threads=threads or runtime.manifest.engine.options.get("threads"))
            for runtime, name in zip(runtimes, names, strict=True)
        ]
        loaded = resident_mb()
        others = (lambda: peers(runtimes[0])) if peers is not None else None
        result = _measure(bundles, subjects, settings, images, (before, loaded), others, counted, tell)
    if record:
        for bundle, name in zip(bundles, names, strict=True):
            record_result(bundle, latency=latency_record(result, name))
    return result


def _costs(bundle: Bundle, settings: BenchSettings) -> Mapping[str, BlockCost] | None:
    """Return what the blocks of a bundle compute and move; None where that is not asked for or cannot be counted."""
    if not settings.layers:
        return None
    try:
        from m2h_deploy.profiling.costs import block_costs
    except ModuleNotFoundError as error:  # a device may lack onnx
        _log.warning(str(missing_extra(str(error.name), "build", "counting MACs and bytes")))
        return None
    return block_costs(bundle, settings.graphs)


def _open_bundles(paths: Sequence[str | os.PathLike[str]], settings: BenchSettings, record: bool) -> list[Bundle]:
    """Open the bundles, and check before the first run that the result can be stored."""
    if settings.scenarios:
        load_loadgen()
    if not paths:
        raise M2HError("no bundle: give at least one")
    bundles = [load_bundle(path) for path in paths]
    first = bundles[0].manifest.network_input
    for bundle in bundles:
        own = bundle.manifest.input
        if bundle.manifest.sensor is not None and (own.height, own.width) != (settings.height, settings.width):
            raise M2HError(
                f"{bundle.path} is a sensor graph for frames of {own.width} x {own.height}, and they have "
                f"{settings.width} x {settings.height}: give --size {own.width}x{own.height}"
            )
        other = bundle.manifest.network_input
        if (other.height, other.width) != (first.height, first.width):
            raise M2HError(
                f"{bundle.path} takes {other.width} x {other.height} and {bundles[0].path} {first.width} x "
                f"{first.height}: only bundles of one image size can be compared"
            )
    if record:
        for bundle in bundles:
            check_recordable(bundle)
    if settings.logs is not None:
        for name in _names(bundles):
            for scenario in settings.scenarios:
                check_logs_folder(_logs_of(settings.logs, name, scenario))
    return bundles


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Return short unique names: the folder's, with a number if another bundle has the same."""
    names: list[str] = []
    for bundle in bundles:
        base = printable(bundle.path.resolve().name)
        name, number = base, 2
        while name in names:
            name, number = f"{base} ({number})", number + 1
        names.append(name)
    return names


def _logs_of(logs: Path, name: str, scenario: str) -> Path:
    return logs / f"{name}-{scenario}"


def _measure(
    bundles: Sequence[Bundle],
    subjects: Sequence[Subject],
    settings: BenchSettings,
    images: list[Image],
    memory: tuple[float | None, float | None],
    others: Callable[[], Iterable[Subject]] | None,
    costs: Sequence[Mapping[str, BlockCost] | None],
    tell: Progress,
) -> BenchResult:
    when, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    probes = find_probes()
    machine = describe_machine(gpu=gpu_name(probes))
    every = list(subjects)
    if others is not None:
        tell("preparing what to compare with", 0.0)
        every += others()
    timer = Timer(images)
    with watch(probes) as readings:
        warm = _warm_up(every, timer, settings.warm_up_s, tell)
        samples = interleave(
            every,
            timer,
            duration_s=settings.seconds,
            min_rounds=settings.min_rounds,
            progress=lambda share: tell("measuring", share),
        )
        peak = peak_mb()
        results = _subject_results(every, bundles, warm, samples)
        loads = _loads(subjects, results, settings, timer, len(images), tell)
        cameras = _cameras(subjects, settings, timer, tell)
    layers, roofline, notes = _layers(bundles, subjects, settings, costs, tell) if settings.layers else ((), None, ())
    spec = bundles[0].manifest.network_input
    result = BenchResult(
        machine=machine,
        when=when,
        image=(settings.height, settings.width),
        network=(spec.height, spec.width),
        seconds=time.perf_counter() - start,
        subjects=results,
        ratios=_ratios(results),
        loads=loads,
        cameras=cameras,
        layers=layers,
        roofline=roofline,
        memory=Memory(*memory, peak),
        readings=tuple(readings),
        warnings=notes,
    )
    return find_warnings(result)


def _warm_up(subjects: Sequence[Subject], timer: Timer, limit_s: float, tell: Progress) -> dict[str, WarmUp]:
    warm = {}
    for index, subject in enumerate(subjects):
        tell(f"warming up {subject.name}", index / len(subjects))
        rubbish = Samples()

        def run(subject: Subject = subject, rubbish: Samples = rubbish) -> None:
            timer.run(subject, 0, rubbish)

        warm[subject.name] = warm_up(run, limit_s=limit_s)
    return warm


def _subject_results(
    subjects: Sequence[Subject], bundles: Sequence[Bundle], warm: Mapping[str, WarmUp], samples: Mapping[str, Samples]
) -> tuple[SubjectResult, ...]:
    precisions = [bundle.manifest.engine.precision for bundle in bundles]
    return tuple(
        SubjectResult(
            name=subject.name,
            description=subject.description,
            precision=precisions[index] if index < len(precisions) else "fp32",
            threads=subject.threads,
            peer=subject.peer,
            warm_up=warm[subject.name],
            samples=samples[subject.name],
            summary=samples[subject.name].summary(),
            on_device=summarize(subject.on_device(len(samples[subject.name].total))) if subject.on_device else None,
        )
        for index, subject in enumerate(subjects)
    )


def _ratios(results: Sequence[SubjectResult]) -> tuple[Ratio, ...]:
    first = results[0]
    return tuple(
        Ratio(
            subject=other.name,
            baseline=first.name,
            total=speedup(first.samples.total, other.samples.total),
            inference=speedup(first.samples.stages["inference"], other.samples.stages["inference"]),
        )
        for other in results[1:]
    )


def _loads(
    subjects: Sequence[Subject],
    results: Sequence[SubjectResult],
    settings: BenchSettings,
    timer: Timer,
    images: int,
    tell: Progress,
) -> tuple[LoadRun, ...]:
    runs = []
    for scenario in settings.scenarios:
        for subject, result in zip(subjects, results, strict=False):  # peers have no scenarios
            total = result.summary["total"]
            # Offline, LoadGen plans its samples by this: planned too slow, they would end before the duration.
            load = settings.load(scenario, total.least if scenario == "offline" else total.p50.value)
            what = f"LoadGen {scenario}, {subject.name}"
            tell(what, 0.0)
            begin = timer.seconds()
            least = settings.duration_s or 600.0

            def done(count: int, what: str = what, begin: float = begin, least: float = least) -> None:
                tell(f"{what}, {count} frames", min(1.0, (timer.seconds() - begin) / least))

            logs = _logs_of(settings.logs, subject.name, scenario) if settings.logs is not None else None
            runs.append(run_scenario(subject, load, timer, logs=logs, images=images, progress=done))
    return tuple(runs)


def _cameras(
    subjects: Sequence[Subject], settings: BenchSettings, timer: Timer, tell: Progress
) -> tuple[CameraResult, ...]:
    if settings.camera_rate is None:
        return ()
    results = []
    for policy in settings.policies:
        for subject in subjects:
            camera, samples = settings.camera(policy), Samples()

            def serve(frame: int, subject: Subject = subject, samples: Samples = samples) -> None:
                timer.run(subject, frame, samples)

            def arrived(count: int, subject: Subject = subject, camera: Camera = camera) -> None:
                tell(f"camera {camera.rate:g} a second, {camera.policy}, {subject.name}", count / camera.frames)

            results.append(CameraResult(subject.name, run_camera(camera, serve, timer.clock, arrived), samples))
    return tuple(results)


def _layers(
    bundles: Sequence[Bundle],
    subjects: Sequence[Subject],
    settings: BenchSettings,
    costs: Sequence[Mapping[str, BlockCost] | None],
    tell: Progress,
) -> tuple[tuple[LayerProfile, ...], Roofline | None, tuple[str, ...]]:
    """Return profiles, the roofline, and a note for each bundle that cannot be profiled."""
    on_cpu = not any(KINDS[bundle.manifest.engine.kind].needs_gpu for bundle in bundles)
    tell("measuring the roofline", 0.0)
    threads = subjects[0].threads or len(os.sched_getaffinity(0))
    roofline = measure_roofline(threads) if on_cpu else None  # numpy's product runs on the CPU
    profiles, notes = [], []
    for index, (bundle, subject) in enumerate(zip(bundles, subjects, strict=True)):
        tell(f"profiling the layers of {subject.name}", index / len(bundles))
        try:
            runs = profile_layers(bundle, BackendOptions(**settings.opening))
        except M2HError as error:
            notes.append(f"no layers of {subject.name}: {error}")
        else:
            profiles.append(summarize_layers(subject.name, runs, costs[index], roofline))
    return tuple(profiles), roofline, tuple(notes)
