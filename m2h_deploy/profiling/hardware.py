"""Read the CPU, memory and NVIDIA GPUs of this machine; unknown values are None or empty."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_deploy.backends.driver import LIBRARY, Gpu, read_driver

#: Features of x86-64 and Arm CPUs that affect an engine's choice of kernels, by their names in Linux.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Cpu:
    """The processor and the main memory."""

    model: str
    features: tuple[str, ...]
    """The supported ones of FEATURES."""
    cores: int
    """Cores that this process may use, including hyperthreads."""
    memory_bytes: int | None


@dataclass(frozen=True)
class Nvidia:
    """The NVIDIA driver and its GPUs; None and empty on a machine without them."""

    driver: str | None
    gpus: tuple[Gpu, ...]
    source: str
    """Source of the information: nvidia-ml-py, the driver's library or its file; a message if no source works."""
    cuda: str | None = None
    """The latest version of CUDA that the driver supports."""


def read_cpu(root: Path = Path("/")) -> Cpu:
    """Read this machine's CPU; `root` is the parent of /proc."""
    text = read_text(root / "proc/cpuinfo") or ""
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)[:1]).split())
    return Cpu(
        model=cpu_name(root),
        features=tuple(feature for feature in FEATURES if feature in flags),
        cores=usable_cores(),
        memory_bytes=memory_bytes(root),
    )


def cpu_name(root: Path) -> str:
    """Return the name of the board, such as a Jetson's, or of the CPU; its architecture where neither is told."""
    board = read_text(root / "proc/device-tree/model")
    if board:
        return board.rstrip("\x00")
    text = read_text(root / "proc/cpuinfo") or ""
    names = re.findall(r"^(?:model name|Hardware|Model)\s*:\s*(.*)$", text, re.MULTILINE)
    return names[0].strip() if names else platform.machine()


def memory_bytes(root: Path) -> int | None:
    """Return the size of the main memory; None where it is not told."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def read_text(path: Path) -> str | None:
    """Return the text of a small file of the kernel's, stripped; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return None


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_nvidia() -> Nvidia:
    """Read driver and GPUs from the first working source: nvidia-ml-py, the driver's library, its file in /proc."""
    # Without the driver NVML fails in different ways, when imported or when called.
    with suppress(Exception):
        return _ask_nvml()
    version, driver = driver_of(read_text(_DRIVER_FILE) or ""), read_driver()
    if driver.gpus:
        return Nvidia(version, driver.gpus, LIBRARY, driver.cuda)
    source = str(_DRIVER_FILE) if version else str(driver.missing)
    return Nvidia(version, (), source, driver.cuda)


def driver_of(text: str) -> str | None:
    """Parse the driver's version from the text of /proc/driver/nvidia/version."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None


def _ask_nvml() -> Nvidia:
    import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

    pynvml.nvmlInit()
    try:
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            gpus.append(Gpu(_string(pynvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", memory))
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        cuda = f"{number // 1000}.{number % 1000 // 10}"
        return Nvidia(_string(pynvml.nvmlSystemGetDriverVersion()), tuple(gpus), "nvidia-ml-py", cuda)
    finally:
        pynvml.nvmlShutdown()


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
