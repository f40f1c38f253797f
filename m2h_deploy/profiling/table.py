"""A bench result in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2h_deploy.profiling import words
from m2h_deploy.profiling.measure import STAGES
from m2h_deploy.profiling.result import BenchResult


def print_bench(result: BenchResult, console: Console) -> None:
    """Print every table of the result, then its warnings."""
    height, width = result.image
    net_height, net_width = result.network
    console.print(Text(f"frames {width} x {height}, network {net_width} x {net_height}, {result.seconds:.0f} s"))
    for name, value in words.machine_facts(result.machine).items():
        console.print(Text(f"{name}: {value}"), soft_wrap=True)
    for subject in result.subjects:
        console.print(Text(f"{subject.name}: {words.subject_facts(subject)}"), soft_wrap=True)
        if subject.on_device is not None:
            console.print(Text(f"{subject.name}: {words.device_facts(subject.on_device)}"), soft_wrap=True)
    console.print()
    for table in _tables(result):
        console.print(table)
        console.print()
    for warning in result.warnings:
        console.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)


def _tables(result: BenchResult) -> Iterator[Table]:
    yield _latency(result)
    yield _stages(result)
    if result.ratios:
        yield _ratios(result)
    if result.loads:
        yield _loads(result)
    if result.cameras:
        yield _cameras(result)
    for profile in result.layers:
        title = (
            f"layers of {profile.subject} by block, {profile.runs} profiled runs, {words.number(profile.total_ms)} ms"
        )
        table = _table(title, *words.BLOCK_COLUMNS)
        for block in profile.blocks:
            table.add_row(*words.block_cells(block))
        yield table
    yield _machine(result)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _latency(result: BenchResult) -> Table:
    table = _table(
        "one frame after another, ms (95 % interval)",
        "",
        "runs",
        "p50",
        "p90",
        "p99",
        "most",
        "variation",
        "per second",
    )
    for subject in result.subjects:
        total = subject.summary["total"]
        variation = Text(f"{100 * total.variation:.1f} %", style="" if total.steady else "yellow")
        cells = [words.interval(estimate) for estimate in (total.p50, total.p90, total.p99)]
        table.add_row(
            Text(subject.name),
            str(total.count),
            *cells,
            words.number(total.most),
            variation,
            words.number(1000 / total.mean),
        )
    return table


def _stages(result: BenchResult) -> Table:
    table = _table("stages, median ms (share of the frame)", "", *STAGES)
    for subject in result.subjects:
        medians = [subject.summary[stage].p50.value for stage in STAGES]
        cells = [f"{words.number(value)} ({100 * value / max(sum(medians), 1e-9):.1f} %)" for value in medians]
        table.add_row(Text(subject.name), *cells)
    return table


def _ratios(result: BenchResult) -> Table:
    table = _table(f"times as fast as {result.ratios[0].baseline} (95 % interval)", "", "whole frame", "inference")
    for ratio in result.ratios:
        table.add_row(Text(ratio.subject), words.times(ratio.total), words.times(ratio.inference))
    return table


def _loads(result: BenchResult) -> Table:
    trial = next((f", trials of {load.settings.duration_s:g} s" for load in result.loads if load.trial), "")
    columns = ("scenario", "LoadGen says", "figure", "queries", "frames", "p50", "p99 ms")
    table = _table(f"MLPerf LoadGen{trial}", "", *columns)
    for load in result.loads:
        total = load.samples.summary()["total"]
        table.add_row(
            Text(load.subject),
            load.settings.scenario,
            Text(load.summary.line, style="green" if load.summary.valid else "red"),
            words.load_figure(load.summary),
            str(load.queries),
            str(total.count),
            words.number(total.p50.value),
            words.number(total.p99.value),
        )
    return table


def _cameras(result: BenchResult) -> Table:
    camera = result.cameras[0].run.camera
    title = f"camera, {camera.rate:g} frames a second, deadline {words.number(camera.limit_ms)} ms; age at delivery, ms"
    columns = ("p50", "p90", "p99", "most", "late", "dropped", "in time", "/s", "busy")
    table = _table(title, "", "policy", *columns)
    for entry in result.cameras:
        run, age = entry.run, entry.run.age
        table.add_row(
            Text(entry.subject),
            run.camera.policy,
            *(words.number(value) for value in (age.p50.value, age.p90.value, age.p99.value, age.most)),
            f"{run.misses}/{len(run.deliveries)}",
            f"{len(run.dropped)}/{run.camera.frames}",
            f"{100 * run.in_time:.1f} %",
            words.number(run.delivered_rate),
            f"{100 * run.utilisation:.0f} %",
        )
    return table


def _machine(result: BenchResult) -> Table:
    table = _table("the machine meanwhile", "", "mean (least to most)")
    for name, value in words.reading_words(result).items():
        table.add_row(Text(name), value)
    table.add_row("resident memory", words.memory_words(result))
    if result.roofline is not None:
        roof = result.roofline
        table.add_row(
            "roofline",
            f"{roof.gflops:.0f} GFLOP/s float32, {roof.gigabytes:.1f} GB/s copied, {roof.threads} thread"
            f"{'s' if roof.threads > 1 else ''}",
        )
    return table
