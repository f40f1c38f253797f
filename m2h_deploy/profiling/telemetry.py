"""Record clocks, temperatures, power and load during a measurement, from the sensors that the machine has."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from m2h_deploy.profiling.hardware import read_text

#: Seconds between two readings: short enough to detect throttling, long enough not to disturb the measurement.
INTERVAL = 0.5


class Probe(Protocol):
    """A source of readings. Unavailable values are left out; it never raises."""

    def read(self) -> dict[str, float]:
        """Return values by name, with the unit in brackets: `CPU clock (MHz)`."""
        ...


@dataclass(frozen=True)
class Reading:
    """Values of all probes at one time."""

    seconds: float
    values: dict[str, float]


class CpuClock:
    """Mean clock of the cores, from cpufreq, else from /proc/cpuinfo."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._files = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))

    def read(self) -> dict[str, float]:
        """Return the mean clock in MHz, empty if unknown."""
        clocks = [int(text) / 1000 for file in self._files if (text := read_text(file)) and text.isdecimal()]
        if not clocks:
            lines = (read_text(self._root / "proc/cpuinfo") or "").splitlines()
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
        return {"CPU clock (MHz)": sum(clocks) / len(clocks)} if clocks else {}


class OtherLoad:
    """Share of the processor time that other processes used since the last reading."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._last = self._state()

    def _state(self) -> tuple[float, float, float] | None:
        line = (read_text(self._root / "proc/stat") or "").split("\n", 1)[0].split()
        if len(line) < 9 or line[0] != "cpu":
            return None
        ticks = [int(value) for value in line[1:9]]
        hertz = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
        return sum(ticks) / hertz, (sum(ticks) - idle) / hertz, time.process_time()

    def read(self) -> dict[str, float]:
        """Return the load in percent of all cores, empty if unknown."""
        last, self._last = self._last, self._state()
        if last is None or self._last is None or self._last[0] <= last[0]:
            return {}
        passed, busy, own = (now - then for now, then in zip(self._last, last, strict=True))
        return {"other load (%)": 100 * min(1.0, max(0.0, (busy - own) / passed))}


class Thermal:
    """Temperatures of the kernel's thermal zones."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._zones = sorted(root.glob("sys/class/thermal/thermal_zone*"))

    def read(self) -> dict[str, float]:
        """Return the temperatures in °C by zone type; the highest if several zones have one type."""
        values: dict[str, float] = {}
        for zone in self._zones:
            text = read_text(zone / "temp")
            if text is None or not text.lstrip("-").isdecimal():
                continue
            name = f"{read_text(zone / 'type') or zone.name} (°C)"
            values[name] = max(values.get(name, -273.0), int(text) / 1000)
        return values


class Rapl:
    """Power of the processor packages, from their energy counters (Intel and AMD)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._domains = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]*"))
        self._last: dict[Path, tuple[float, int]] = {}
        self.read()

    def read(self, now: float | None = None) -> dict[str, float]:
        """Return the mean power in watts since the last reading, by domain; `now` is in seconds."""
        now = time.monotonic() if now is None else now
        values = {}
        for domain in self._domains:
            text = read_text(domain / "energy_uj")
            if text is None or not text.isdecimal():
                continue
            energy = int(text)
            last, self._last[domain] = self._last.get(domain), (now, energy)
            if last is None or now <= last[0]:
                continue
            used = energy - last[1]
            if used < 0:  # the counter wrapped around
                used += int(read_text(domain / "max_energy_range_uj") or 0)
            values[f"{read_text(domain / 'name') or domain.name} (W)"] = used / 1e6 / (now - last[0])
        return values


class Nvml:
    """Clocks, temperature, power and memory of the first NVIDIA GPU, through nvidia-ml-py."""

    def __init__(self, index: int = 0) -> None:
        import pynvml  # type: ignore[import-untyped, unused-ignore]

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(self._gpu)
        self.name = name.decode() if isinstance(name, bytes) else str(name)

    def read(self) -> dict[str, float]:
        """Return clocks in MHz, temperature in °C, power and its limit in watts, this process's memory in MB."""
        nvml, gpu = self._nvml, self._gpu
        asked = {
            "GPU clock (MHz)": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "GPU memory clock (MHz)": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "GPU (°C)": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            "GPU (W)": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "GPU power limit (W)": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
            "GPU memory of this process (MB)": self._memory,
        }
        values = {}
        for name, ask in asked.items():
            try:
                value = ask()
            except nvml.NVMLError:  # not supported by this GPU
                continue
            if value is not None:
                values[name] = float(value)
        return values

    def _memory(self) -> float | None:
        mine = [p for p in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._gpu) if p.pid == os.getpid()]
        return mine[0].usedGpuMemory / 1e6 if mine and mine[0].usedGpuMemory is not None else None


class Jetson:
    """Temperatures, power and GPU clock of a Jetson, through jetson-stats."""

    def __init__(self) -> None:
        from jtop import jtop  # type: ignore[import-not-found, unused-ignore]

        self._jtop: Any = jtop()
        self._jtop.start()
        self.name = "Jetson"

    def read(self) -> dict[str, float]:
        """Return temperatures in °C, the board's power in watts and the GPU's clock in MHz."""
        values: dict[str, float] = {}
        for name, zone in dict(self._jtop.temperature).items():
            if zone.get("online", True):
                values[f"{name} (°C)"] = float(zone["temp"])
        total = dict(self._jtop.power).get("tot", {})
        if "power" in total:
            values["board (W)"] = total["power"] / 1000
        for name, gpu in dict(self._jtop.gpu).items():
            clock = gpu.get("freq", {}).get("cur")
            if clock is not None:
                values[f"{name} clock (MHz)"] = clock / 1000
        return values


def find_probes(root: Path = Path("/")) -> tuple[Probe, ...]:
    """Return the probes of this machine; those whose library or device is missing are left out."""
    probes: list[Probe] = [CpuClock(root), OtherLoad(root), Thermal(root), Rapl(root)]
    for kind in (Nvml, Jetson):
        try:
            probes.append(kind())
        except Exception:  # a missing library, driver, device or permission raises different types
            continue
    return tuple(probes)


def gpu_name(probes: Sequence[Probe]) -> str | None:
    """Return the name of the GPU that a probe watches, or None."""
    return next((probe.name for probe in probes if isinstance(probe, (Nvml, Jetson))), None)


@contextmanager
def watch(probes: Sequence[Probe], interval: float = INTERVAL) -> Iterator[list[Reading]]:
    """Read `probes` every `interval` seconds while the block runs; the yielded list is complete after it."""
    readings: list[Reading] = []
    start = time.perf_counter()
    done = threading.Event()

    def read() -> None:
        values: dict[str, float] = {}
        for probe in probes:
            values |= probe.read()
        readings.append(Reading(time.perf_counter() - start, values))

    def loop() -> None:
        while not done.wait(interval):
            read()

    thread = threading.Thread(target=loop, name="sensors", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        done.set()
        thread.join()
        read()
