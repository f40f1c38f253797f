"""Describe the machine of a measurement: processor, threads, affinity, versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from m2h_deploy.backends import KINDS
from m2h_deploy.profiling.hardware import cpu_name, memory_bytes, read_text
from m2h_deploy.version import installed_version

#: Packages whose version affects latency.
_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    *(name for kind in KINDS.values() for name in kind.distributions),
    "torch",
)

#: Environment variables that often set the threads of numerical libraries.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """A machine and the resources that this process may use."""

    cpu: str
    cores: int
    affinity: tuple[int, ...]
    """Cores that this process may run on."""
    governor: str | None
    """The kernel's CPU frequency governor; None if unknown."""
    load: float
    """Load average of the last minute before the measurement; above 0 if other processes ran."""
    memory_gb: float | None
    system: str
    python: str
    packages: dict[str, str]
    variables: dict[str, str]
    gpu: str | None = None


def describe_machine(root: Path = Path("/"), gpu: str | None = None) -> Machine:
    """Describe this machine; `root` is the parent of /proc and /sys."""
    memory = memory_bytes(root)
    return Machine(
        cpu=cpu_name(root),
        cores=os.cpu_count() or 1,
        affinity=tuple(sorted(os.sched_getaffinity(0))),
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load=os.getloadavg()[0],
        memory_gb=None if memory is None else memory / 1e9,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        gpu=gpu,
    )


def _versions() -> dict[str, str]:
    return {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}
