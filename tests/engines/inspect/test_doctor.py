"""Test that the doctor reports what is installed, how to install the rest, and which known issues apply."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re

import pytest
from rich.console import Console

from engines.inspect import doctor
from engines.inspect.known_issues import KNOWN_ISSUES, Installed, affects, applies
from m2h_deploy.backends import KINDS
from m2h_deploy.backends.driver import Gpu, NoGpu, extra_here
from m2h_deploy.errors import install_extra
from m2h_deploy.profiling.hardware import Nvidia, driver_of, read_cpu, read_nvidia


@pytest.fixture(scope="module")
def report() -> dict:
    return doctor.examine()


def _printed(report: dict) -> str:
    console = Console(file=io.StringIO(), width=250)
    for renderable in doctor.render(report):
        console.print(renderable)
    return console.file.getvalue()


def _attention_issues(version: str, capabilities: list[str]) -> list[str]:
    here = Installed(engines={"tensorrt": version}, capabilities=capabilities)
    return [i.versions[0] for i in KNOWN_ISSUES if applies(i, here) and i.engine == "tensorrt" and "ViT" in i.condition]


def test_every_engine_kind_is_reported_with_its_install_command(report):
    engines = {engine["kind"]: engine for engine in report["engines"]}
    assert set(engines) == set(KINDS)
    assert engines["onnxruntime"]["version"] == importlib.metadata.version("onnxruntime")
    assert "CPU" in engines["onnxruntime"]["devices"]
    for engine in engines.values():
        assert engine["details"]
        if engine["version"] is None and engine["install"]:
            assert engine["install"] == install_extra(extra_here(KINDS[engine["kind"]].extra))
    json.dumps(report)


def test_the_processor_is_described(report):
    cpu = report["cpu"]
    assert cpu["model"]
    assert cpu["cores"] == report["cores"] >= 1
    assert cpu["memory_bytes"] > 2**28
    assert read_cpu().model == cpu["model"]


def test_a_machine_without_a_gpu_is_reported_without_an_error():
    nvidia = read_nvidia()
    assert nvidia.source
    assert nvidia.driver is not None or nvidia.gpus == ()


def test_the_driver_version_is_read_from_its_file():
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@host)"
    assert driver_of(line) == "580.95.05"
    assert driver_of("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Tue") == "535.161.08"
    assert driver_of("") is None


def test_a_broken_library_is_distinguished_from_a_missing_one(monkeypatch):
    def broken(name: str):
        raise OSError("libfoo.so: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    status = doctor._engine("onnxruntime", Nvidia(None, (), ""), None)
    assert status.version is None
    assert "does not load: libfoo.so" in status.details
    assert "\n" not in status.details


def test_tensorrt_reports_the_gpus(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: "10.13.0")
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: object())
    with_gpu = Nvidia("580.95", (Gpu("RTX 3080", "8.6", 2**33),), "test")
    for kind in ("tensorrt", "tensorrt-rtx"):
        status = doctor._engine(kind, with_gpu, None)
        assert (status.devices, status.details) == (("RTX 3080 (8.6)",), "RTX 3080 (8.6)")
    missing = NoGpu("no driver", "no NVIDIA driver is installed")
    without = doctor._engine("tensorrt-rtx", Nvidia(None, (), ""), missing)
    assert without.version == "10.13.0"
    assert without.details == "builds without a GPU; running needs an NVIDIA GPU: no NVIDIA driver is installed"
    assert doctor._engine("tensorrt", Nvidia(None, (), ""), missing).details == f"needs an NVIDIA GPU: {missing}"


def test_a_gpu_that_plans_cannot_use_yet_is_listed_with_what_is_missing(monkeypatch):
    monkeypatch.setattr("engines.registry.installed_version", lambda name: None if name == "cuda-core" else "1.0")
    gpu = Nvidia("540.4", (Gpu("RTX 3080", "8.6", 2**33),), "test")
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: object())
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.7.1.116")
    old = NoGpu("old driver", "the NVIDIA driver supports CUDA 12.6")
    for kind in ("tensorrt", "tensorrt-rtx"):
        assert doctor._engine(kind, gpu, old).details == f"RTX 3080 (8.6); plans do not run here: {old}"
        details = doctor._engine(kind, gpu, None).details
        assert details.startswith("RTX 3080 (8.6); running a plan needs cuda-core: ")


@pytest.mark.parametrize(("name", "capability"), [("Orin", "8.7"), ("H100", "9.0"), ("B200", "10.0"), ("Thor", "11.0")])
@pytest.mark.parametrize("version", ["1.7.1.116", None])
def test_tensorrt_rtx_is_not_advised_where_it_does_not_run(name, capability, version, monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: version)
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: object())
    status = doctor._engine("tensorrt-rtx", Nvidia("580.95", (Gpu(name, capability, 2**36),), "test"), None)
    assert status.devices == ()
    assert status.details.endswith(f"does not run on this GPU ({name}, {capability}): use tensorrt")


def test_the_package_that_is_imported_is_named_where_two_overwrite_each_other(monkeypatch):
    versions = {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr("engines.registry.installed_version", versions.get)
    monkeypatch.setattr("onnxruntime.__version__", "1.31.1")
    for providers, package in (
        (["CPUExecutionProvider"], "onnxruntime"),
        (["CUDAExecutionProvider"], "onnxruntime-gpu"),
    ):
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda found=providers: found)
        details = doctor._engine("onnxruntime", Nvidia(None, (), ""), None).details
        assert "onnxruntime 1.31.0 and onnxruntime-gpu 1.31.1 overwrite each other" in details
        assert details.endswith(f"import onnxruntime gives 1.31.1 of {package}")
    versions.pop("onnxruntime-gpu")
    assert "overwrite" not in doctor._engine("onnxruntime", Nvidia(None, (), ""), None).details


@pytest.mark.parametrize(
    ("version", "capabilities", "expected"),
    [
        ("10.3.0.30", ["8.7"], ["10.3"]),
        ("10.4.0", ["8.6"], ["10.4"]),
        ("10.16.1.11", ["12.0"], ["10.16"]),
        ("10.16.1.11", [], ["10.16"]),
        ("10.16.1.11", ["8.6"], []),
        ("10.13.3", ["12.0"], []),
        ("10.30.0", ["8.6"], []),
    ],
)
def test_the_wrong_attention_issue_depends_on_version_and_gpu(version, capabilities, expected):
    assert _attention_issues(version, capabilities) == expected


def test_versions_are_compared_as_numbers():
    first_release, migration = (i for i in KNOWN_ISSUES if i.versions in (("10.0.0",), (">=11",)))
    assert affects(first_release, "10.0.0b6")
    assert affects(first_release, "10.0.0.6")
    assert not affects(first_release, "10.0.1")
    assert affects(migration, "11.3.0")
    assert not affects(migration, "10.16.1")
    assert not affects(migration, "unknown")


def test_issues_of_a_cpu_or_packages_apply_only_if_these_are_present():
    precision = next(i for i in KNOWN_ISSUES if "amx_bf16" in i.cpu_features)
    both = next(i for i in KNOWN_ISSUES if len(i.distributions) == 2)
    here = Installed(engines={"openvino": "2026.4.1", "onnxruntime": "1.20"}, distributions={"onnxruntime"})
    assert not applies(precision, here)
    assert not applies(both, here)
    there = Installed(here.engines, (), {"amx_bf16"}, {"onnxruntime", "onnxruntime-gpu"})
    assert applies(precision, there)
    assert applies(both, there)
    assert not applies(precision, Installed({}, (), {"amx_bf16"}))


def test_every_known_issue_has_a_remedy_and_a_link():
    for issue in KNOWN_ISSUES:
        assert issue.engine in KINDS
        assert issue.condition
        assert issue.effect
        assert issue.remedy
        assert issue.link is None or re.fullmatch(
            r"https://(github\.com/[\w.-]+/[\w.-]+/issues/\d+|docs\.\S+)", issue.link
        )


def test_only_issues_that_apply_are_shown(report):
    quiet = [{**issue, "applies": False} for issue in report["known_issues"]]
    assert "none of" in _printed({**report, "known_issues": quiet})
    loud = [{**issue, "applies": issue["link"] and issue["link"].endswith("/4837")} for issue in report["known_issues"]]
    text = _printed({**report, "known_issues": loud})
    assert "https://github.com/NVIDIA/TensorRT/issues/4837" in text
    assert "issues/4723" not in text
    assert "tensorrt-rtx" in text
