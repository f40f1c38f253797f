"""Resolve the extras for GPUs with pip, for the machines that they are for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tests.test_lowest_versions import extras

pytestmark = pytest.mark.slow

GPU_EXTRAS = {name for name in extras() if name in ("gpu", "jetson") or name.startswith(("gpu-", "tensorrt"))}

CASES = [
    ("jetson", "aarch64", "3.10", {"cuda-bindings": "12."}),
    ("tensorrt", "aarch64", "3.10", {"cuda-bindings": "12."}),
    ("tensorrt", "aarch64", "3.12", {"cuda-bindings": "13.", "tensorrt-cu13-bindings": "1"}),
    ("tensorrt", "x86_64", "3.11", {"cuda-bindings": "13.", "tensorrt-cu13-bindings": "1"}),
    ("tensorrt-cu12", "x86_64", "3.11", {"cuda-bindings": "12.", "tensorrt-cu12-bindings": "1"}),
    ("tensorrt-rtx", "x86_64", "3.11", {"cuda-bindings": "13.", "tensorrt-rtx-cu13-bindings": "1."}),
    ("tensorrt-rtx-cu12", "x86_64", "3.11", {"cuda-bindings": "12.", "tensorrt-rtx-cu12-bindings": "1."}),
    ("gpu", "x86_64", "3.11", {"onnxruntime-gpu": "1."}),
    ("gpu-cu12", "x86_64", "3.11", {"onnxruntime-gpu": "1.2", "nvidia-cudnn-cu12": "9."}),
]


def test_every_gpu_extra_is_resolved_here():
    assert {case[0] for case in CASES} == GPU_EXTRAS


@pytest.mark.parametrize("which", ["newest", "lowest"])
@pytest.mark.parametrize(("extra", "machine", "python", "expected"), CASES)
def test_an_extra_fits_the_driver_of_its_machine(extra, machine, python, expected, which, tmp_path):
    found = resolve(requirements(extra, machine, python, lowest=which == "lowest"), machine, python, tmp_path)
    assert {name: found.get(name, "")[: len(start)] for name, start in expected.items()} == expected
    if which == "newest":
        cuda_12 = expected.get("cuda-bindings") == "12." or extra == "gpu-cu12"
        assert [name for name in found if ("cu13" if cuda_12 else "cu12") in name] == []
    if extra == "jetson" or (machine, python) == ("aarch64", "3.10"):
        assert [name for name in found if "tensorrt" in name] == [], "JetPack has its own"
    elif "cuda-bindings" in expected:
        assert "cuda-core" in found


def requirements(extra: str, machine: str, python: str, *, lowest: bool) -> list[str]:
    """Return the requirements of an extra that apply to a machine, without their markers, as wheels."""
    target = {"platform_machine": machine, "python_version": python}
    declared = [Requirement(text) for text in extras()[extra]]
    chosen = []
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate(target):
            specifier = str(requirement.specifier)
            if lowest:
                specifier = next(f"=={part.version}" for part in requirement.specifier if part.operator == ">=")
            # NVIDIA's own packages of these names have no wheel: they bring the two that have.
            name = f"{requirement.name}-bindings" if "tensorrt" in requirement.name else requirement.name
            options = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            chosen.append(f"{name}{options}{specifier}")
    return chosen


def resolve(wanted: list[str], machine: str, python: str, folder) -> dict[str, str]:
    """Return the versions that pip would install on a machine. Skips the test if pip reaches no index."""
    kinds = (*(f"manylinux_2_{minor}" for minor in range(17, 36)), "manylinux2014", "manylinux2010", "manylinux1")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report=-"]
    pip += ["--only-binary=:all:", f"--target={folder}", "--implementation=cp", f"--python-version={python}"]
    pip += [f"--platform={kind}_{machine}" for kind in kinds]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
    if "connection" in done.stderr.lower():
        pytest.skip("pip reaches no index")
    assert done.returncode == 0, done.stderr
    entries = [entry["metadata"] for entry in json.loads(done.stdout)["install"]]
    return {entry["name"].lower().replace("_", "-"): entry["version"] for entry in entries}
