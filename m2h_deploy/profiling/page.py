"""A bench result as one HTML page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m2h_deploy.files import write_bytes
from m2h_deploy.pages import render_page
from m2h_deploy.profiling import charts, words
from m2h_deploy.profiling.measure import STAGES
from m2h_deploy.profiling.result import BenchResult, SubjectResult


def write_page(result: BenchResult, path: str | os.PathLike[str]) -> Path:
    """Write the page: distribution, timeline, stages, camera, LoadGen, layers, machine. It needs no other file.

    Raises M2HError when it cannot be written or jinja2 is not installed.
    """
    page = render_page(
        "bench.html",
        result=result,
        stage_names=STAGES,
        subjects=_subjects(result),
        slowest_ms=max(subject.summary["total"].p50.value for subject in result.subjects),
        ratios=[(ratio, words.times(ratio.total), words.times(ratio.inference)) for ratio in result.ratios],
        cameras=_cameras(result),
        loads=_loads(result),
        layers=[_layers(result, index) for index in range(len(result.layers))],
        block_columns=words.BLOCK_COLUMNS,
        facts=words.machine_facts(result.machine),
        memory=words.memory_words(result),
        readings=_readings(result),
        roofline=result.roofline,
    )
    return write_bytes(path, page)


def _subjects(result: BenchResult) -> list[dict[str, Any]]:
    low, high = charts.span([subject.samples.total for subject in result.subjects])
    top = max(high, max(subject.summary["total"].p99.value for subject in result.subjects)) * 1.05
    return [_subject(subject, low, high, top) for subject in result.subjects]


def _subject(subject: SubjectResult, low: float, high: float, top: float) -> dict[str, Any]:
    total = subject.summary["total"]
    stages = [subject.summary[stage].p50.value for stage in STAGES]
    return {
        "name": subject.name,
        "about": words.subject_facts(subject),
        "on_device": words.device_facts(subject.on_device) if subject.on_device else None,
        "cells": [
            str(total.count),
            *(words.interval(estimate) for estimate in (total.p50, total.p90, total.p99)),
            words.number(total.most),
            f"{100 * total.variation:.1f} %",
            words.number(1000 / total.mean),
        ],
        "steady": total.steady,
        "stages": list(zip(STAGES, stages, [words.number(value) for value in stages], strict=True)),
        "sum": sum(stages),
        "histogram": charts.histogram(
            subject.samples.total, low, high, (total.p50.value, total.p90.value, total.p99.value)
        ),
        "timeline": charts.timeline(subject.samples.started, subject.samples.total, top=top),
    }


def _cameras(result: BenchResult) -> list[dict[str, Any]]:
    entries = []
    for camera in result.cameras:
        run, age = camera.run, camera.run.age
        limit = run.camera.limit_ms
        arrived = [(delivery.arrived - run.start) / 1e9 for delivery in run.deliveries]
        ages = [delivery.age_ms for delivery in run.deliveries]
        entries.append(
            {
                "name": camera.subject,
                "policy": run.camera.policy,
                "rate": f"{run.camera.rate:g}",
                "limit": words.number(limit),
                "cells": [
                    *(words.interval(estimate) for estimate in (age.p50, age.p90, age.p99)),
                    words.number(age.most),
                    f"{run.misses} of {len(run.deliveries)}",
                    f"{len(run.dropped)} of {run.camera.frames}",
                    f"{100 * run.in_time:.1f} %",
                    words.number(run.delivered_rate),
                    f"{run.utilisation:.2f}",
                ],
                "chart": charts.timeline(arrived, ages, limit=limit, top=max(age.most, limit) * 1.08),
            }
        )
    return entries


def _loads(result: BenchResult) -> list[dict[str, Any]]:
    return [
        {
            "name": load.subject,
            "scenario": load.settings.scenario,
            "trial": f"trial of {load.settings.duration_s:g} s" if load.trial else "LoadGen's own duration",
            "valid": load.summary.valid,
            "line": load.summary.line,
            "figure": words.load_figure(load.summary),
            "queries": load.queries,
            "frames": len(load.samples.total),
            "checks": ", ".join(f"{name}: {value}" for name, value in load.summary.checks.items()),
            "text": load.summary.text,
        }
        for load in result.loads
    ]


def _layers(result: BenchResult, index: int) -> dict[str, Any]:
    profile = result.layers[index]
    widest = max((block.share for block in profile.blocks), default=1.0) or 1.0
    return {
        "name": profile.subject,
        "runs": profile.runs,
        "total": words.number(profile.total_ms),
        "rows": [(words.block_cells(block), round(100 * block.share / widest, 1)) for block in profile.blocks],
        "slowest": [(layer.name, layer.kind, words.number(layer.milliseconds)) for layer in profile.slowest],
    }


def _readings(result: BenchResult) -> list[tuple[str, str, str]]:
    rows = []
    for name, text in words.reading_words(result).items():
        points = [(reading.seconds, reading.values[name]) for reading in result.readings if name in reading.values]
        rows.append((name, text, charts.sparkline([x for x, _ in points], [y for _, y in points])))
    return rows
