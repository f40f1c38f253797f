"""Print a bench result in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2h_deploy.profiling.measure import STAGES
from m2h_deploy.profiling.report import words
from m2h_deploy.profiling.result import BenchResult

#: Index of the coefficient of variation in `words.latency_cells`.
_VARIATION = words.LATENCY_COLUMNS.index("variation") - 1


def print_bench(result: BenchResult, console: Console) -> None:
    """Print all tables of the result, then its warnings."""
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
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _latency(result: BenchResult) -> Table:
    table = _table("one frame after another (95 % interval)", *words.LATENCY_COLUMNS)
    for subject in result.subjects:
        total = subject.summary["total"]
        cells: list[str | Text] = [*words.latency_cells(total)]
        cells[_VARIATION] = Text(str(cells[_VARIATION]), style="" if total.steady else "yellow")
        table.add_row(Text(subject.name), *cells)
    return table


def _stages(result: BenchResult) -> Table:
    table = _table("stages, median ms (share of the frame)", "", *STAGES)
    for subject in result.subjects:
        medians = [subject.summary[stage].p50.value for stage in STAGES]
        cells = [f"{words.number(value)} ({100 * value / max(sum(medians), 1e-9):.1f} %)" for value in medians]
        table.add_row(Text(subject.name), *cells)
    return table


def _ratios(result: BenchResult) -> Table:
    table = _table(f"times as fast as {result.ratios[0].baseline} (95 % interval)", *words.RATIO_COLUMNS)
    for ratio in result.ratios:
        table.add_row(Text(ratio.subject), words.times(ratio.total), words.times(ratio.inference))
    return table


def _loads(result: BenchResult) -> Table:
    trial = next((f", trials of {load.settings.duration_s:g} s" for load in result.loads if load.trial), "")
    table = _table(f"MLPerf LoadGen{trial}", *words.LOAD_COLUMNS)
    for load in result.loads:
        scenario, verdict, *cells = words.load_cells(load)
        table.add_row(
            Text(load.subject), scenario, Text(verdict, style="green" if load.summary.valid else "red"), *cells
        )
    return table


def _cameras(result: BenchResult) -> Table:
    camera = result.cameras[0].run.camera
    title = f"camera, {camera.rate:g} frames a second, deadline {words.number(camera.limit_ms)} ms; age at delivery"
    table = _table(title, *words.CAMERA_COLUMNS)
    for entry in result.cameras:
        table.add_row(Text(entry.subject), *words.camera_cells(entry.run, intervals=False))
    return table


def _machine(result: BenchResult) -> Table:
    table = _table("", *words.MACHINE_COLUMNS)
    for name, value in words.machine_rows(result).items():
        table.add_row(Text(name), value)
    return table
