"""Report which engine kinds this machine has, how to install the others, and which known issues apply."""

from __future__ import annotations

import importlib
import platform
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from engines.inspect.known_issues import KNOWN_ISSUES, Installed, KnownIssue, applies
from engines.registry import ENGINES
from m2h_deploy.backends import KINDS
from m2h_deploy.backends.driver import NoGpu, extra_here, missing_gpu
from m2h_deploy.causes import reason
from m2h_deploy.errors import install_extra
from m2h_deploy.profiling.hardware import Cpu, Nvidia, read_cpu, read_nvidia
from m2h_deploy.version import __version__, installed_version


@dataclass(frozen=True)
class EngineStatus:
    """One engine kind on this machine."""

    kind: str
    version: str | None
    """None: not installed, or its module cannot be imported."""
    devices: tuple[str, ...]
    """Providers (ONNX Runtime), devices (OpenVINO) or GPUs (TensorRT) that it can use here."""
    install: str | None
    """Command that installs it; None if it is installed."""
    details: str
    """The same as text."""


def examine() -> dict[str, Any]:
    """Return Python, machine, every engine kind and the known issues as JSON-compatible values.

    `known_issues` lists all of them, each with `applies`: whether its engine, version and device are all present.
    """
    cpu, nvidia, missing = read_cpu(), read_nvidia(), missing_gpu()
    engines = [_engine(kind, nvidia, missing) for kind in ENGINES]
    here = Installed(
        engines={engine.kind: engine.version for engine in engines if engine.version},
        capabilities=[gpu.compute_capability for gpu in nvidia.gpus if gpu.compute_capability],
        cpu_features=frozenset(cpu.features),
        distributions=frozenset(filter(installed_version, (n for kind in KINDS.values() for n in kind.distributions))),
    )
    return {
        "m2h_deploy": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cpu.cores,
        "torch": installed_version("torch"),
        "cpu": asdict(cpu),
        "nvidia": asdict(nvidia) | {"missing": missing and str(missing)},
        "engines": [asdict(engine) for engine in engines],
        "known_issues": [_issue(issue, here) for issue in KNOWN_ISSUES],
    }


def _issue(issue: KnownIssue, here: Installed) -> dict[str, Any]:
    return {
        "engine": issue.engine,
        "versions": list(issue.versions),
        "condition": issue.condition,
        "effect": issue.effect,
        "remedy": issue.remedy,
        "link": issue.link,
        "applies": applies(issue, here),
    }


def _engine(kind: str, nvidia: Nvidia, missing: NoGpu | None) -> EngineStatus:
    engine, row = KINDS[kind], ENGINES[kind].doctor
    install = install_extra(extra_here(engine.extra))
    version = next((found for name in engine.distributions if (found := installed_version(name))), None)
    if version is None:
        details = [f"not installed: {install}", row.note(nvidia, missing)]
        return EngineStatus(kind, None, (), install, "; ".join(filter(None, details)))
    try:
        devices, note = row.devices(importlib.import_module(engine.module), nvidia), row.note(nvidia, missing)
    except Exception as error:  # a broken native library can raise any type
        return EngineStatus(kind, None, (), None, f"{version} is installed but does not load: {reason(error)}")
    return EngineStatus(kind, version, devices, None, "; ".join(filter(None, (", ".join(devices), note))))


def render(report: dict[str, Any]) -> list[RenderableType]:
    """Render a report of `examine` for a terminal; only the known issues that apply here are shown."""
    table = Table("", "engine", "version", "details", box=None)
    for engine in report["engines"]:
        mark = "[green]✓[/]" if engine["version"] else "[red]✗[/]"
        table.add_row(mark, engine["kind"], engine["version"] or "-", Text(engine["details"]))
    return [_machine_table(report), table, *_issue_tables(report["known_issues"])]


def _machine_table(report: dict[str, Any]) -> Table:
    cpu = Cpu(**report["cpu"])
    memory = f", {cpu.memory_bytes / 2**30:.0f} GiB" if cpu.memory_bytes else ""
    gpus = [f"{gpu['name']} (compute capability {gpu['compute_capability']})" for gpu in report["nvidia"]["gpus"]]
    rows = {
        "m2h-deploy": report["m2h_deploy"],
        "python": f"{report['python']}, {report['machine']}",
        "torch": report["torch"] or "not installed (a device needs none)",
        "cpu": f"{cpu.model}, {cpu.cores} cores{memory}",
        "cpu features": ", ".join(cpu.features) or "-",
        "nvidia": "; ".join(filter(None, [_driver(report["nvidia"]), *gpus, report["nvidia"]["missing"]])),
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    return table


def _driver(nvidia: dict[str, Any]) -> str:
    version = nvidia["driver"] and f"driver {nvidia['driver']}"
    cuda = nvidia["cuda"] and f"CUDA {nvidia['cuda']}"
    return ", ".join(filter(None, (version, cuda)))


def _issue_tables(issues: list[dict[str, Any]]) -> list[RenderableType]:
    mine = [issue for issue in issues if issue["applies"]]
    if not mine:
        return [Text(f"none of {len(issues)} known issues applies to what is installed here", style="green")]
    table = Table(box=None)
    for title in ("known to go wrong here", "with", "what happens", "what to do"):
        table.add_column(title, overflow="fold")  # a truncated link cannot be opened
    for issue in mine:
        remedy = issue["remedy"] + (f" ({issue['link']})" if issue["link"] else "")
        table.add_row(*(Text(text) for text in (issue["engine"], issue["condition"], issue["effect"], remedy)))
    return [table]
