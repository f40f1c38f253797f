"""The result of `bench`, and its formats: JSON, CSV, the record in a bundle's manifest."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_deploy.files.atomic import write_text
from m2h_deploy.profiling.camera_load import CameraRun
from m2h_deploy.profiling.layers import LayerProfile
from m2h_deploy.profiling.loadgen import LoadRun
from m2h_deploy.profiling.machine import Machine
from m2h_deploy.profiling.measure import STAGES, Samples
from m2h_deploy.profiling.memory import Memory
from m2h_deploy.profiling.roofline import Roofline
from m2h_deploy.profiling.statistics import Estimate, Summary
from m2h_deploy.profiling.telemetry import Reading
from m2h_deploy.profiling.warmup import WarmUp
from m2h_deploy.version import __version__


@dataclass(frozen=True)
class SubjectResult:
    """One subject, run on frame after frame without a pause, in turns with the others."""

    name: str
    description: str
    precision: str
    threads: int | None
    peer: bool
    warm_up: WarmUp
    samples: Samples
    summary: dict[str, Summary]
    """Milliseconds: `total`, then each stage."""
    on_device: Summary | None
    """Milliseconds of the engine alone by the GPU's events, without copies; None on a CPU."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster a subject is than the first, over the rounds that both ran in."""

    subject: str
    baseline: str
    total: Estimate
    inference: Estimate


@dataclass(frozen=True)
class CameraResult:
    """A camera run with a subject."""

    subject: str
    run: CameraRun
    samples: Samples


@dataclass(frozen=True)
class BenchResult:
    """All measurements of one `bench` run."""

    machine: Machine
    when: str
    image: tuple[int, int]
    """Height and width of the frames."""
    network: tuple[int, int]
    """Height and width of the network's input."""
    seconds: float
    subjects: tuple[SubjectResult, ...]
    ratios: tuple[Ratio, ...]
    loads: tuple[LoadRun, ...]
    cameras: tuple[CameraResult, ...]
    layers: tuple[LayerProfile, ...]
    roofline: Roofline | None
    memory: Memory
    readings: tuple[Reading, ...]
    warnings: tuple[str, ...]


def to_json(result: BenchResult) -> dict[str, Any]:
    """Return the result as JSON-compatible values, without individual samples; non-finite numbers are null."""
    values: dict[str, Any] = {"tool": f"m2h-deploy {__version__}"}
    for field in dataclasses.fields(result):
        values[field.name] = _plain(getattr(result, field.name))
    values["cameras"] = [camera_figures(camera) for camera in result.cameras]
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Samples):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(inner) for name, inner in fields if not isinstance(inner, Samples)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def camera_figures(camera: CameraResult) -> dict[str, Any]:
    """Return a camera's figures as JSON-compatible values."""
    run = camera.run
    return {
        "subject": camera.subject,
        "camera": _plain(run.camera),
        "deadline_ms": run.camera.limit_ms,
        "delivered": len(run.deliveries),
        "dropped": len(run.dropped),
        "misses": run.misses,
        "in_time": run.in_time,
        "delivered_rate": run.delivered_rate,
        "utilization": run.utilization,
        "age_ms": _plain(run.age),
        "service_ms": _plain(run.service),
    }


def mean_readings(readings: tuple[Reading, ...]) -> dict[str, tuple[float, float, float]]:
    """Return minimum, mean and maximum of every reading, by name."""
    series: dict[str, list[float]] = {}
    for reading in readings:
        for name, value in reading.values.items():
            series.setdefault(name, []).append(value)
    return {name: (min(values), sum(values) / len(values), max(values)) for name, values in series.items()}


_COLUMNS = ("measurement", "subject", "run", "started_s", "total_ms", *(f"{stage}_ms" for stage in STAGES))
_CAMERA_COLUMNS = ("frame", "arrived_s", "delivered_s", "age_ms", "dropped")


def write_csv(result: BenchResult, path: str | os.PathLike[str]) -> Path:
    """Write every sample: one line per run, and for a camera one per dropped frame. Raises M2HError on failure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_CAMERA_COLUMNS))
    for subject in result.subjects:
        writer.writerows(_without_camera(_rows("closed loop", subject.name, subject.samples)))
    for load in result.loads:
        rows = _rows(f"loadgen {load.settings.scenario}", load.subject, load.samples)
        writer.writerows(_without_camera(rows))
    for camera in result.cameras:
        writer.writerows(_camera_rows(camera))
    return write_text(path, buffer.getvalue())


def _rows(measurement: str, subject: str, samples: Samples) -> Iterator[list[Any]]:
    stages = [samples.stages.get(stage, []) for stage in STAGES]
    for index, (started, total) in enumerate(zip(samples.started, samples.total, strict=True)):
        values = [f"{stage[index]:.4f}" if stage else "" for stage in stages]
        yield [measurement, subject, index, f"{started:.6f}", f"{total:.4f}", *values]


def _without_camera(rows: Iterator[list[Any]]) -> Iterator[list[Any]]:
    return (row + [""] * len(_CAMERA_COLUMNS) for row in rows)


def _camera_rows(camera: CameraResult) -> Iterator[list[Any]]:
    run = camera.run
    measurement = f"camera {run.camera.policy} {run.camera.rate:g}"
    for row, delivery in zip(_rows(measurement, camera.subject, camera.samples), run.deliveries, strict=True):
        arrived, delivered = ((moment - run.start) / 1e9 for moment in (delivery.arrived, delivery.delivered))
        yield [*row, delivery.frame, f"{arrived:.6f}", f"{delivered:.6f}", f"{delivery.age_ms:.4f}", 0]
    for frame in run.dropped:
        arrived = frame / run.camera.rate
        yield [measurement, camera.subject, "", "", "", *([""] * len(STAGES)), frame, f"{arrived:.6f}", "", "", 1]


def latency_record(result: BenchResult, name: str) -> dict[str, Any]:
    """Return the record of subject `name` for its bundle's manifest: the machine and the figures."""
    subject = next(subject for subject in result.subjects if subject.name == name)
    machine = result.machine
    record: dict[str, Any] = {
        "tool": f"m2h-deploy {__version__}",
        "when": result.when,
        "machine": {
            "cpu": machine.cpu,
            "cores": len(machine.affinity),
            "gpu": machine.gpu,
            "system": machine.system,
            "packages": machine.packages,
        },
        "engine": subject.description,
        "threads": subject.threads,
        "image": {"height": result.image[0], "width": result.image[1]},
        "runs": subject.summary["total"].count,
        "milliseconds": {stage: _plain(summary) for stage, summary in subject.summary.items()},
        "on_device_milliseconds": _plain(subject.on_device),
        "peak_memory_mb": result.memory.peak,
    }
    loads = [load for load in result.loads if load.subject == name]
    if loads:
        record["loadgen"] = [
            {
                "scenario": load.settings.scenario,
                "result": load.summary.line,
                "trial": load.trial,
                load.summary.figure: load.summary.value,
            }
            for load in loads
        ]
    cameras = [camera_figures(camera) for camera in result.cameras if camera.subject == name]
    if cameras:
        record["cameras"] = cameras
    return record
