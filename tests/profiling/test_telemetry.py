"""Test that sensors are read in their units, and that missing sensors are omitted."""

from __future__ import annotations

import mmap
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from m2h_deploy.profiling.hardware import cpu_name, read_cpu
from m2h_deploy.profiling.machine import describe_machine
from m2h_deploy.profiling.memory import peak_mb, reset_peak, resident_mb
from m2h_deploy.profiling.telemetry import CpuClock, Nvml, OtherLoad, Rapl, Thermal, find_probes, watch


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_clocks_are_the_mean_of_the_cores_in_megahertz(tmp_path):
    for core, kilohertz in enumerate((1_200_000, 1_800_000)):
        put(tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", str(kilohertz))
    assert CpuClock(tmp_path).read() == {"CPU clock (MHz)": 1500.0}


def test_clocks_are_taken_from_cpuinfo_where_the_kernel_has_no_cpufreq(tmp_path):
    put(tmp_path / "proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2000.0\nprocessor\t: 1\ncpu MHz\t\t: 3000.0")
    assert CpuClock(tmp_path).read() == {"CPU clock (MHz)": 2500.0}


def test_the_hottest_zone_of_each_kind_is_reported(tmp_path):
    for zone, (kind, temperature) in enumerate([("cpu-thermal", "51500"), ("cpu-thermal", "63000"), ("gpu", "-2000")]):
        put(tmp_path / f"sys/class/thermal/thermal_zone{zone}/type", kind)
        put(tmp_path / f"sys/class/thermal/thermal_zone{zone}/temp", temperature)
    put(tmp_path / "sys/class/thermal/thermal_zone3/temp", "garbage")
    assert Thermal(tmp_path).read() == {"cpu-thermal (°C)": 63.0, "gpu (°C)": -2.0}


def test_a_gpu_is_read_in_megahertz_and_watts_without_what_it_does_not_support(monkeypatch):
    class NVMLError(Exception):
        pass

    def unsupported(*arguments):
        raise NVMLError

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda gpu: b"NVIDIA H100",
        nvmlDeviceGetClockInfo=lambda gpu, clock: {1: 1980, 2: 2619}[clock],
        nvmlDeviceGetTemperature=unsupported,
        nvmlDeviceGetPowerUsage=lambda gpu: 350_500,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 700_000,
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=3_000_000)],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    probe = Nvml()
    assert probe.name == "NVIDIA H100"
    assert probe.read() == {
        "GPU clock (MHz)": 1980.0,
        "GPU memory clock (MHz)": 2619.0,
        "GPU (W)": 350.5,
        "GPU power limit (W)": 700.0,
        "GPU memory of this process (MB)": 3.0,
    }


def test_power_is_energy_over_time_across_a_counter_overflow(tmp_path):
    domain = tmp_path / "sys/class/powercap/intel-rapl:0"
    put(domain / "name", "package-0")
    put(domain / "max_energy_range_uj", "100000000")
    put(domain / "energy_uj", "90000000")
    rapl = Rapl(tmp_path)
    rapl.read(now=10.0)
    put(domain / "energy_uj", "99000000")
    assert rapl.read(now=11.0) == {"package-0 (W)": pytest.approx(9.0)}
    put(domain / "energy_uj", "4000000")
    assert rapl.read(now=12.0) == {"package-0 (W)": pytest.approx(5.0)}


def test_the_load_of_other_processes_excludes_this_one(tmp_path):
    put(tmp_path / "proc/stat", "cpu 1000 0 0 1000 0 0 0 0 0 0\ncpu0 1 2 3")
    load = OtherLoad(tmp_path)
    put(tmp_path / "proc/stat", "cpu 4000 0 0 7000 0 0 0 0 0 0")
    assert load.read()["other load (%)"] == pytest.approx(100 * 3000 / 9000, abs=0.5)


def test_a_machine_without_sensors_gives_no_readings(tmp_path):
    for probe in (CpuClock(tmp_path), OtherLoad(tmp_path), Thermal(tmp_path), Rapl(tmp_path)):
        assert probe.read() == {}
    machine = describe_machine(tmp_path)
    assert machine.governor is None
    assert machine.memory_gb is None


def test_a_board_is_named_before_its_processor(tmp_path):
    assert cpu_name(tmp_path) == platform.machine()
    put(tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu avx2 sse")
    put(tmp_path / "proc/meminfo", "MemTotal:       16000 kB\nMemFree:         1 kB")
    assert read_cpu(tmp_path) == replace(read_cpu(), model="A Processor", features=("avx2",), memory_bytes=16_384_000)
    assert describe_machine(tmp_path).memory_gb == pytest.approx(0.016384)
    put(tmp_path / "proc/device-tree/model", "A Board\0")
    assert describe_machine(tmp_path).cpu == read_cpu(tmp_path).model == "A Board"


def test_this_machine_is_read_while_a_block_runs():
    with watch(find_probes(), interval=0.01) as readings:
        sum(range(10_000))
    assert readings
    assert [reading.seconds for reading in readings] == sorted(reading.seconds for reading in readings)
    machine = describe_machine()
    assert machine.cpu
    assert set(machine.affinity) <= set(range(4096))
    assert "numpy" in machine.packages


def test_peak_memory_includes_freed_memory():
    if resident_mb() is None:
        pytest.skip("this machine does not tell")
    reset_peak()
    with mmap.mmap(-1, 300_000_000) as block:  # not from an allocator, which may keep it
        np.frombuffer(block, np.uint8)[:] = 1
        during = resident_mb()
    peak, after = peak_mb(), resident_mb()
    assert during is not None and peak is not None and after is not None
    assert peak > during - 10 > after + 200
