"""Ask the NVIDIA driver for its GPUs, and find out why an engine cannot use one.

The driver's own library is called through ctypes, so that the answer needs no CUDA package and is the same beside every
version of cuda-bindings: 12.8 raises RuntimeError without a driver, and 12.9 and 13 report CUDA error 35 both without
a driver and with one that is too old.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m2h_deploy.errors import M2HError
from m2h_deploy.version import installed_version

LIBRARY = "libcuda.so.1"

#: Attributes of cuDeviceGetAttribute: the two numbers of the compute capability.
_CAPABILITY = (75, 76)

_NO_DEVICE = 100


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    compute_capability: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class NoGpu:
    """Why no GPU can be used here; its text is the reason."""

    cause: Literal["no driver", "old driver", "no device", "no such device", "failure"]
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine."""

    cuda: str | None
    """The latest version of CUDA that it supports, such as `12.6`; None without a driver."""
    gpus: tuple[Gpu, ...] = ()
    missing: NoGpu | None = None
    """Why it gives no GPU; None if it gives any."""

    @property
    def cuda_major(self) -> int | None:
        """The first number of `cuda`."""
        return None if self.cuda is None else int(self.cuda.split(".")[0])


class _DriverError(Exception):
    """A call of the driver that failed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def read_driver() -> Driver:
    """Return the driver of this machine and its GPUs, those that CUDA_VISIBLE_DEVICES leaves."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return Driver(None, missing=NoGpu("no driver", f"no NVIDIA driver is installed: {LIBRARY} is missing"))
    cuda = None
    try:
        number = ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(number))
        cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
        _call(library, "cuInit", 0)
        _call(library, "cuDeviceGetCount", ctypes.byref(number))
        gpus = tuple(_gpu(library, index) for index in range(number.value))
    except _DriverError as error:
        if error.code != _NO_DEVICE:
            return Driver(cuda, missing=NoGpu("failure", f"the NVIDIA driver fails: {error}"))
        gpus = ()
    return Driver(cuda, gpus, None if gpus else NoGpu("no device", f"the NVIDIA driver finds no GPU{_visible()}"))


def _call(library: Any, name: str, *arguments: Any) -> None:
    """Call a function of the driver. Raises _DriverError, with the driver's own text, if it fails."""
    try:
        code = getattr(library, name)(*arguments)
    except AttributeError:
        raise _DriverError(-1, f"{LIBRARY} has no {name}") from None
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        raise _DriverError(code, f"{name}: {(text.value or b'unknown error').decode()} ({code})")


def _gpu(library: Any, index: int) -> Gpu:
    device, value, size, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, len(name), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    numbers = []
    for attribute in _CAPABILITY:
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    return Gpu(name.value.decode(errors="replace"), f"{numbers[0]}.{numbers[1]}", size.value)


def _visible() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES is '{visible}')"


def missing_gpu(device: int = 0, *, bindings: bool = True) -> NoGpu | None:
    """Return why the GPU of index `device` cannot be used here; None if it can.

    Args:
        device: The index, among those that CUDA_VISIBLE_DEVICES leaves.
        bindings: Whether the installed cuda-bindings must fit the driver, too, as running an engine requires.
    """
    driver = read_driver()
    if driver.missing is not None:
        return driver.missing
    if bindings and (reason := _newer_bindings(driver)) is not None:
        return NoGpu("old driver", reason)
    if device >= len(driver.gpus):
        return NoGpu("no such device", f"there is no GPU {device}: the last one is {len(driver.gpus) - 1}{_visible()}")
    return None


def _newer_bindings(driver: Driver) -> str | None:
    """Return what to install if the installed cuda-bindings need a newer driver (CUDA error 35); None if they fit."""
    version = installed_version("cuda-bindings")
    if version is None:
        return None  # whoever imports them names the extra
    needed, found = int(version.split(".")[0]), driver.cuda_major
    if found is None or found >= needed:
        return None
    fitting = "the extra for CUDA 12 (-cu12, or jetson) in place of the packages for 13, or " if found == 12 else ""
    return (
        f"the NVIDIA driver supports CUDA {driver.cuda}, and cuda-bindings {version} needs {needed}.0: "
        f"install {fitting}a newer driver"
    )


def capability_here(device: int = 0) -> str:
    """Return the compute capability of the GPU of index `device`, such as `8.6`. Raises M2HError without one."""
    missing = missing_gpu(device, bindings=False)
    if missing is not None:
        raise M2HError(str(missing))
    return str(read_driver().gpus[device].compute_capability)


def on_jetson(root: Path = Path("/")) -> bool:
    """Return whether this machine is a Jetson, whose TensorRT comes with JetPack; `root` is the parent of /proc."""
    if platform.machine() != "aarch64":
        return False
    if (root / "etc/nv_tegra_release").exists():
        return True
    try:
        return b"nvidia" in (root / "proc/device-tree/model").read_bytes().lower()
    except OSError:
        return False


def extra_here(extra: str) -> str:
    """Return the extra that fits this machine's driver in place of `extra`: `jetson`, or the one for CUDA 12."""
    if extra not in _CUDA_13:
        return extra
    if extra == "tensorrt" and on_jetson():
        return "jetson"
    return f"{extra}-cu12" if read_driver().cuda_major == 12 else extra


#: Extras whose packages need a driver of CUDA 13. Each has a counterpart for CUDA 12.
_CUDA_13 = ("gpu", "tensorrt", "tensorrt-rtx")
