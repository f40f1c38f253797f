"""Test why a GPU cannot be used, with a library that answers as drivers of other machines."""

from __future__ import annotations

import sys

import pytest

from m2h_deploy.backends import driver
from m2h_deploy.backends.driver import Gpu, capability_here, extra_here, missing_gpu, on_jetson, read_driver
from m2h_deploy.backends.tensorrt_api import check_started
from m2h_deploy.backends.tensorrt_log import Messages
from m2h_deploy.errors import install_extra
from m2h_deploy.profiling import hardware
from tests.commands import refused
from tests.fake_driver import compile_library, fake_driver
from tests.test_lowest_versions import extras, requirements


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return str(fake_driver(tmp_path_factory.mktemp("driver")))


@pytest.fixture
def machine(library, monkeypatch):
    """Return a function that sets this machine's driver, its GPUs, and the installed cuda-bindings."""

    def make(bindings: str | None = "13.5.0", **answers: int) -> None:
        monkeypatch.setattr(driver, "LIBRARY", library)
        monkeypatch.setattr(driver, "installed_version", lambda name: bindings)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in answers.items():
            monkeypatch.setenv(f"FAKE_{name}", str(value))

    return make


def test_a_machine_without_a_driver_lacks_its_library(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-no-machine.so.1")
    missing = missing_gpu()
    assert missing.cause == "no driver"
    assert str(missing) == "no NVIDIA driver is installed: libcuda-of-no-machine.so.1 is missing"
    assert read_driver().cuda is None
    assert "no NVIDIA driver is installed" in refused(capability_here)


@pytest.mark.parametrize(
    ("answers", "bindings", "cause", "reason"),
    [
        (
            {"CUDA": 12060},
            "13.5.0",
            "old driver",
            "the NVIDIA driver supports CUDA 12.6, and cuda-bindings 13.5.0 needs 13.0: install "
            "the extra for CUDA 12 (-cu12, or jetson) in place of the packages for 13, or a newer driver",
        ),
        (
            {"CUDA": 11080},
            "12.9.1",
            "old driver",
            "the NVIDIA driver supports CUDA 11.8, and cuda-bindings 12.9.1 needs 12.0: install a newer driver",
        ),
        ({"INIT": 100}, "13.5.0", "no device", "the NVIDIA driver finds no GPU"),
        ({"COUNT": 0}, "13.5.0", "no device", "the NVIDIA driver finds no GPU"),
        (
            {"INIT": 803},
            "13.5.0",
            "failure",
            "the NVIDIA driver fails: cuInit: system has unsupported display driver / cuda driver combination (803)",
        ),
        ({"INIT": 999}, None, "failure", "the NVIDIA driver fails: cuInit: unknown error (999)"),
    ],
)
def test_each_cause_has_its_own_message(answers, bindings, cause, reason, machine):
    machine(bindings, **answers)
    missing = missing_gpu()
    assert (missing.cause, str(missing)) == (cause, reason)


@pytest.mark.parametrize(
    ("version", "bindings"),
    [(12060, "12.9.1"), (12000, "12.9.10"), (13000, "12.9.1"), (13000, "13.5.0"), (11080, None)],
)
def test_bindings_fit_drivers_of_their_major_version_and_later(version, bindings, machine):
    machine(bindings, CUDA=version)
    assert missing_gpu() is None


def test_a_library_that_is_no_driver_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty.c").write_text("int nothing;")
    monkeypatch.setattr(driver, "LIBRARY", str(compile_library(tmp_path, "libcuda.so.1", tmp_path / "empty.c")))
    assert missing_gpu().cause == "failure"
    assert str(missing_gpu()).endswith("libcuda.so.1 has no cuDriverGetVersion")


def test_building_does_not_need_bindings_that_fit_the_driver(machine):
    machine("13.5.0", CUDA=12060)
    assert missing_gpu(bindings=False) is None
    assert capability_here() == "8.6"


def test_an_index_that_no_gpu_has_is_named(machine, monkeypatch):
    machine(COUNT=2)
    assert missing_gpu(1) is None
    assert str(missing_gpu(2)) == "there is no GPU 2: the last one is 1"
    assert missing_gpu(2).cause == "no such device"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert "the last one is 1 (CUDA_VISIBLE_DEVICES is '3,5')" in refused(capability_here, 7)


def test_the_driver_describes_its_gpus(machine):
    machine(CUDA=13020, COUNT=2, CAPABILITY=121)
    found = read_driver()
    assert (found.cuda, found.cuda_major, found.missing) == ("13.2", 13, None)
    assert found.gpus == (Gpu("Fake 0", "12.1", 2**33), Gpu("Fake 1", "12.1", 2**33))


def test_the_hardware_report_has_the_gpus_where_nvml_is_missing(machine, monkeypatch):
    machine(CUDA=12060, CAPABILITY=87)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvidia = hardware.read_nvidia()
    assert nvidia.cuda == "12.6"
    assert nvidia.gpus == (Gpu("Fake 0", "8.7", 2**33),)


@pytest.mark.parametrize(
    ("architecture", "files", "jetson"),
    [
        ("aarch64", {"proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0"}, True),
        ("aarch64", {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0"}, True),
        ("aarch64", {"proc/device-tree/model": "Raspberry Pi 5 Model B\0"}, False),
        ("aarch64", {}, False),
        ("x86_64", {"etc/nv_tegra_release": ""}, False),
    ],
)
def test_a_jetson_is_recognized(architecture, files, jetson, tmp_path, monkeypatch):
    monkeypatch.setattr(driver.platform, "machine", lambda: architecture)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert on_jetson(tmp_path) is jetson


@pytest.mark.parametrize("extra", ["gpu", "tensorrt", "tensorrt-rtx"])
def test_the_extra_fits_the_driver(extra, machine, monkeypatch):
    machine(CUDA=13000)
    assert extra_here(extra) == extra
    monkeypatch.setenv("FAKE_CUDA", "12060")
    assert extra_here(extra) == f"{extra}-cu12"
    assert f"{extra}-cu12" in extras()
    assert extra_here("openvino") == "openvino"
    monkeypatch.setattr(driver, "on_jetson", lambda: True)
    if extra == "tensorrt":
        assert extra_here(extra) == "jetson"
        assert "--system-site-packages" in install_extra("jetson")


def test_the_jetson_extra_leaves_tensorrt_to_jetpack():
    assert not any("tensorrt" in text for text in requirements("jetson"))
    assert "cuda-bindings==12.9.1" in requirements("jetson")


def test_tensorrt_that_does_not_start_is_an_error_in_its_own_words():
    check_started("TensorRT 10.16.1", Messages(), object())
    failed = Messages(errors=["CUDA initialization failure with error: 35", "another"])
    said = refused(check_started, "TensorRT 10.16.1", failed, object())
    assert said == "TensorRT 10.16.1 does not start: CUDA initialization failure with error: 35"
    assert refused(check_started, "TensorRT 10.3.0", Messages(), None).endswith("it gives no reason")
