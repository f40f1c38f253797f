"""Write a bench result as one HTML page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.profiling.layers import BlockTime
from m2h_deploy.profiling.measure import STAGES
from m2h_deploy.profiling.report import charts, words
from m2h_deploy.profiling.result import BenchResult, SubjectResult
from m2h_deploy.visualize.html import Cell, render_page


def write_page(result: BenchResult, path: str | os.PathLike[str]) -> Path:
    """Write the self-contained page: distribution, timeline, stages, camera, LoadGen, layers, machine.

    Raises:
        M2HError: The page cannot be written, or jinja2 is not installed.
    """
    page = render_page(
        "bench.html",
        result=result,
        stage_names=STAGES,
        words=words,
        subjects=_subjects(result),
        latency=_latency(result),
        slowest_ms=max(subject.summary["total"].p50.value for subject in result.subjects),
        ratios=[(ratio.subject, words.times(ratio.total), words.times(ratio.inference)) for ratio in result.ratios],
        cameras=_cameras(result),
        camera_rows=[(camera.subject, *words.camera_cells(camera.run)) for camera in result.cameras],
        loads=_loads(result),
        load_rows=_load_rows(result),
        layers=[_layers(result, index) for index in range(len(result.layers))],
        facts=words.machine_facts(result.machine),
        machine=_machine(result),
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
        "stages": list(zip(STAGES, stages, [words.number(value) for value in stages], strict=True)),
        "sum": sum(stages),
        "histogram": charts.histogram(
            subject.samples.total, low, high, (total.p50.value, total.p90.value, total.p99.value)
        ),
        "timeline": charts.timeline(subject.samples.started, subject.samples.total, top=top),
    }


def _latency(result: BenchResult) -> list[list[Cell | str]]:
    rows: list[list[Cell | str]] = []
    for subject in result.subjects:
        total = subject.summary["total"]
        cells: list[Cell | str] = [subject.name, *words.latency_cells(total)]
        if not total.steady:
            place = words.LATENCY_COLUMNS.index("variation")
            cells[place] = Cell(str(cells[place]), "unsure")
        rows.append(cells)
    return rows


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
                "chart": charts.timeline(arrived, ages, limit=limit, top=max(age.most, limit) * 1.08),
            }
        )
    return entries


def _loads(result: BenchResult) -> list[dict[str, Any]]:
    return [
        {
            "name": load.subject,
            "scenario": load.settings.scenario,
            "checks": ", ".join(f"{name}: {value}" for name, value in load.summary.checks.items()),
            "text": load.summary.text,
        }
        for load in result.loads
    ]


def _load_rows(result: BenchResult) -> list[list[Cell | str]]:
    rows: list[list[Cell | str]] = []
    for load in result.loads:
        scenario, verdict, *cells = words.load_cells(load)
        trial = f"trial of {load.settings.duration_s:g} s" if load.trial else "LoadGen's own duration"
        style = "pass" if load.summary.valid else "fail"
        rows.append([load.subject, f"{scenario}, {trial}", Cell(verdict, style), *cells])
    return rows


def _layers(result: BenchResult, index: int) -> dict[str, Any]:
    profile = result.layers[index]
    widest = max((block.share for block in profile.blocks), default=1.0) or 1.0
    return {
        "name": profile.subject,
        "runs": profile.runs,
        "total": words.number(profile.total_ms),
        "rows": [_block_row(block, 100 * block.share / widest) for block in profile.blocks],
        "slowest": [
            (Cell(layer.name, "code"), layer.kind, words.number(layer.milliseconds)) for layer in profile.slowest
        ],
    }


def _block_row(block: BlockTime, width: float) -> list[Cell | str]:
    """Return the cells of a block, its share with a bar of `width` percent."""
    cells: list[Cell | str] = [*words.block_cells(block)]
    place = words.BLOCK_COLUMNS.index("share")
    cells[place] = Cell(str(cells[place]), drawing=f'<i class="share" style="width: {width:.1f}%"></i>')
    return cells


def _machine(result: BenchResult) -> list[tuple[str, str, Cell]]:
    rows = []
    for name, text in words.machine_rows(result).items():
        points = [(reading.seconds, reading.values[name]) for reading in result.readings if name in reading.values]
        line = charts.sparkline([x for x, _ in points], [y for _, y in points])
        drawing = (
            f'<svg class="spark" viewBox="0 0 1000 200" preserveAspectRatio="none" aria-hidden="true">{line}</svg>'
        )
        rows.append((name, text, Cell(drawing=drawing if line else "")))
    return rows
