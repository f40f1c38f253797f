"""Report a parity result: a table in the terminal, an HTML page, a JUnit file for build servers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.parity.gates import GateResult
from m2h_deploy.parity.result import VerifyResult
from m2h_deploy.parity.tasks import TaskResult
from m2h_deploy.parity.tensors import TensorResult
from m2h_deploy.visualize.html import data_url, render_page

_MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red"), "unsure": ("?", "yellow")}
_WORDS = {"pass": "Passed", "fail": "Failed", "unsure": "Too few frames to tell"}
_DECIMALS = {"m": 3, "%": 2, "°": 2}

#: Start and end of a gate's bar: in multiples of the limit for a loss, in dB for PSNR.
_LOSS_SPAN, _PSNR_SPAN = (-0.5, 2.0), (0.0, 140.0)


def print_result(result: VerifyResult, console: Console) -> None:
    """Print the outputs, the tasks, the gates and the verdict as tables."""
    data = result.data
    sides = f"{result.bundle} ({result.engine.description}, {result.precision}) against {result.reference.description}"
    console.print(Text(f"{sides}, {data.frames} of {data.of} frames of {data.name}\n"))
    console.print(_tensor_table(result))
    console.print(_task_table(result))
    console.print(Text("worse by: positive is worse, as in the gates\n", style="dim"))
    for note in _notes(result):
        console.print(Text(note, style="yellow"), soft_wrap=True)
    table = Table("", "gate", "", box=None, show_header=False)
    for gate in result.gates:
        mark, color = _MARKS[gate.verdict]
        table.add_row(Text(mark, style=color), Text(gate.message))
    console.print(table)
    mark, color = _MARKS[result.verdict]
    console.print(Text(f"{_WORDS[result.verdict].upper()}: {_count(result)}", style=f"bold {color}"), soft_wrap=True)


def _tensor_table(result: VerifyResult) -> Table:
    table = Table(*TENSOR_COLUMNS, box=None)
    for tensor in result.tensors:
        table.add_row(*_tensor_cells(tensor))
    return table


#: Headings of `_tensor_cells`.
TENSOR_COLUMNS = ("raw output", "unit", "max error", "mean error", "PSNR", "cosine", "same class", "not finite")


def _tensor_cells(tensor: TensorResult) -> list[str]:
    return [
        tensor.output,
        tensor.unit,
        f"{tensor.max_error:.3g}",
        f"{tensor.mean_error:.3g}",
        f"{tensor.psnr:.1f} dB",
        f"{tensor.cosine:.6f}",
        "" if tensor.label_agreement is None else f"{100 * tensor.label_agreement:.2f} %",
        str(tensor.nonfinite),
    ]


def _task_table(result: VerifyResult) -> Table:
    table = Table("task", *TASK_COLUMNS, box=None)
    for task in result.tasks:
        table.add_row(task.task, *_task_cells(task).values())
    return table


#: Headings of `_task_cells`.
TASK_COLUMNS = ("metric", "truth", "reference", "engine", "engine worse by", "95 % interval")


def _task_cells(task: TaskResult) -> dict[str, str]:
    places = _DECIMALS[task.unit]
    low, high = task.interval
    return {
        "metric": f"{task.metric}, {task.unit}",
        "truth": f"{'derived ' if task.derived else ''}{task.against}",
        "reference": "-" if task.reference is None else _number(task.reference, places),
        "engine": _number(task.engine, places),
        "worse_by": _number(task.worse_by, places + 1, sign=True),
        "interval": f"{_number(low, places + 1, sign=True)} to {_number(high, places + 1, sign=True)}",
    }


def _number(value: float, places: int, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "none"
    if math.isinf(value):
        return "+∞" if value > 0 else "-∞"
    return f"{round(value, places) + 0.0:{'+' if sign else ''}.{places}f}"  # + 0.0: no negative zero


def _notes(result: VerifyResult) -> list[str]:
    notes = []
    derived = [task.task for task in result.tasks if task.derived]
    if derived:
        notes.append(f"{', '.join(derived)}: labels derived from other labels, not comparable with the paper's Table I")
    unlabeled = [task.task for task in result.tasks if task.against == "reference"]
    if unlabeled:
        notes.append(
            f"{', '.join(unlabeled)}: no labels in the data, so the truth is the reference's own prediction and the "
            "figure is the engine's agreement with it, not an accuracy"
        )
    if result.reference.weights_sha256 != result.engine.weights_sha256:
        notes.append("reference and engine have different weights")
    return notes


def _count(result: VerifyResult) -> str:
    passed = sum(gate.verdict == "pass" for gate in result.gates)
    counted = f"{passed} of {len(result.gates)} gates passed on {result.data.frames} frames"
    return f"{counted}; {result.advice}" if result.verdict == "unsure" else counted


def write_junit(result: VerifyResult, path: str | os.PathLike[str]) -> Path:
    """Write one test case per gate for build servers; an unsure gate is a failure of type `TooFewFrames`.

    Raises:
        M2HError: The file cannot be written.
    """
    failures = [gate for gate in result.gates if gate.verdict != "pass"]
    name = f"m2h-deploy verify {result.bundle}"
    counts = {"tests": str(len(result.gates)), "failures": str(len(failures)), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": name, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    facts = {
        "data": result.data.name,
        "frames": str(result.data.frames),
        "engine": result.engine.description,
        "precision": result.precision,
        "reference": result.reference.description,
        "weights_sha256": result.engine.weights_sha256,
    }
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", {"name": key, "value": value})
    for gate in result.gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "m2h_deploy.parity", "name": gate.name})
        if gate.verdict == "pass":
            ElementTree.SubElement(case, "system-out").text = gate.message
        else:
            kind = "GateFailed" if gate.verdict == "fail" else "TooFewFrames"
            ElementTree.SubElement(case, "failure", {"type": kind, "message": gate.message})
    ElementTree.indent(root)
    return write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


@dataclass(frozen=True)
class _Bar:
    """A gate's interval and limit as positions from 0 to 100 on a line."""

    low: float
    high: float
    value: float
    limit: float


def write_html(result: VerifyResult, path: str | os.PathLike[str]) -> Path:
    """Write the result as one self-contained HTML page: verdict, gates, tables, worst frames.

    With `located` it shows the chart of errors by block.

    Raises:
        M2HError: The page cannot be written, or jinja2 (for `located` also matplotlib) is not installed.
    """
    chart = None
    if result.located is not None:
        from m2h_deploy.parity.chart import draw_errors

        chart = data_url("image/png", draw_errors(result.located))
    page = render_page(
        "parity.html",
        result=result,
        verdict=_WORDS[result.verdict],
        count=_count(result),
        marks={key: mark for key, (mark, _) in _MARKS.items()},
        words=_WORDS,
        gates=[(gate, _bar(gate)) for gate in result.gates],
        task_columns=TASK_COLUMNS,
        tasks=[(task.task, *_task_cells(task).values()) for task in result.tasks],
        tensor_columns=TENSOR_COLUMNS,
        tensors=[_tensor_cells(tensor) for tensor in result.tensors],
        notes=_notes(result),
        worst=[
            (worst, {name: data_url("image/jpeg", content) for name, content in worst.pictures.items()})
            for worst in result.worst
        ],
        located=result.located,
        chart=chart,
    )
    return write_bytes(path, page)


def _bar(gate: GateResult) -> _Bar | None:
    """Return the bar of a gate; None without one: the self-test, a limit of 0, or nothing measured."""
    if gate.limit is None or gate.value is None or gate.interval is None or gate.limit == 0:
        return None
    if math.isnan(gate.value) or any(math.isnan(end) for end in gate.interval):
        return None
    psnr = gate.unit == "dB"
    start, end = _PSNR_SPAN if psnr else _LOSS_SPAN
    scale = 1.0 if psnr else gate.limit

    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value / scale - start) / (end - start))), 2)

    low, high = gate.interval
    return _Bar(place(low), place(high), place(gate.value), place(gate.limit))
