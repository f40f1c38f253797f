"""Install NVIDIA's Python packages into environments of their own, and run the command line there without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy.bundle.folder import load_bundle, write_manifest
from tests.backends.trt_names import missing_names
from tests.commands import COMMAND, ROOT
from tests.fake_driver import compile_library, fake_driver

#: Names of TensorRT-RTX alone: the code asks first for the class or the method that leads to them.
ONLY_RTX = {
    "IBuilderConfig|IRuntimeConfig.create_runtime_cache",
    "IBuilderConfig|IRuntimeConfig.cuda_graph_strategy",
    "IBuilderConfig|IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IBuilderConfig|IRuntimeConfig.num_compute_capabilities",
    "IBuilderConfig|IRuntimeConfig.set_runtime_cache",
    "ICudaEngine.create_runtime_config",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "trt.ComputeCapability",
    "trt.EngineInvalidityDiagnostics",
    "trt.EngineValidity.INVALID",
}

NO_DRIVER = "no NVIDIA driver is installed: libcuda.so.1 is missing"


class Environment:
    """A virtual environment with some packages before those of this one."""

    def __init__(self, folder: Path, *packages: str, alias: str | None = None) -> None:
        """Install `packages`; the module `alias` is also imported as `tensorrt`. Skips the test if pip cannot."""
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = str(folder / "bin" / "python")
        pip = [self.python, "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")
        (place,) = folder.glob("lib/python*/site-packages")
        (place / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        if alias is not None:
            (place / "tensorrt.py").write_text(f"from {alias} import *\nfrom {alias} import __version__\n")

    def run(self, *arguments: object, **changes: object) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in changes.items()}
        command = [self.python, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
        assert done.returncode >= 0, f"ended by signal {-done.returncode}: {done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def table(self, **changes: object) -> str:
        """Return the table of `doctor`."""
        done = self.run(*COMMAND[1:], "doctor", **changes)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *arguments: object, **changes: object) -> str:
        """Return the one line of a command that must end with exit code 2."""
        done = self.run(*COMMAND[1:], *arguments, **changes)
        assert done.returncode == 2, done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        return line


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """Return the folder of a library that answers as a driver with one GPU."""
    return fake_driver(tmp_path_factory.mktemp("driver")).parent


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    """Return the folder of libraries that let the bindings of TensorRT 10 and 11 load."""
    folder = tmp_path_factory.mktemp("stubs")
    for major in (10, 11):
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            compile_library(folder, f"lib{name}.so.{major}", Path(__file__).parent / "stub_tensorrt.c")
    return folder


@pytest.fixture(scope="module")
def place(tiny_onnx, tmp_path_factory) -> Path:
    """Return a folder with a picture and two bundles: `rtx`, and its copy `full`."""
    pytest.importorskip("tensorrt_rtx")
    from engines import build_bundle

    folder = tmp_path_factory.mktemp("place")
    cv2.imwrite(str(folder / "black.png"), np.zeros((64, 64, 3), np.uint8))
    build_bundle(tiny_onnx, folder / "rtx", engine="tensorrt-rtx")
    shutil.copytree(folder / "rtx", folder / "full")
    return folder


def call_full(bundle: Path, version: str) -> None:
    """Change a manifest to say that TensorRT of this version built the plan."""
    manifest = load_bundle(bundle).manifest
    engine = manifest.engine.model_copy(update={"kind": "tensorrt", "version": version})
    write_manifest(bundle, manifest.model_copy(update={"engine": engine}))


def test_tensorrt_rtx_has_every_name_that_is_used():
    assert missing_names(pytest.importorskip("tensorrt_rtx")) == set()


@pytest.mark.slow
@pytest.mark.parametrize("package", ["tensorrt-cu13-bindings", "tensorrt-cu12-bindings==10.3.0"])
def test_tensorrt_has_every_name_that_is_used(package, stubs, tmp_path):
    environment = Environment(tmp_path / "venv", "--no-deps", package)
    done = environment.run("-m", "tests.backends.trt_names", "tensorrt_bindings", LD_LIBRARY_PATH=stubs)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) - ONLY_RTX == set()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["12.8.0", "12.9.1", "13.5.0"])
def test_every_version_of_the_bindings_gives_one_line_or_a_table(version, place, driver, tmp_path):
    environment = Environment(tmp_path / "venv", f"cuda-bindings=={version}")
    run = ("run", place / "rtx", place / "black.png", "-o", tmp_path / "out")
    assert f"running needs an NVIDIA GPU: {NO_DRIVER}" in environment.table()
    assert NO_DRIVER in environment.refusal(*run)
    old = {"LD_LIBRARY_PATH": driver, "FAKE_CUDA": 12060}
    table, line = environment.table(**old), environment.refusal(*run, **old)
    assert "CUDA 12.6; Fake 0 (compute capability 8.6)" in table
    needed = f"cuda-bindings {version} needs 13.0: install the extra for CUDA 12 (-cu12"
    for said in (table, line):
        assert (needed in said) is version.startswith("13")


@pytest.mark.slow
def test_the_lean_tensorrt_does_not_crash_without_a_gpu(place, tiny_onnx, driver, tmp_path):
    environment = Environment(tmp_path / "venv", "tensorrt-lean-cu13", alias="tensorrt_lean")
    call_full(place / "full", environment.run("-c", "import tensorrt; print(tensorrt.__version__)").stdout.strip())
    assert NO_DRIVER in environment.table()
    assert NO_DRIVER in environment.refusal("run", place / "full", place / "black.png", "-o", tmp_path / "out")
    build = ("build", tiny_onnx, "-o", tmp_path / "b", "--engine", "tensorrt")
    assert f"builds only on a machine with a GPU: {NO_DRIVER}" in environment.refusal(*build)
    program = (
        "from m2h_deploy.backends.tensorrt_api import load_tensorrt, start\n"
        "from m2h_deploy.backends.tensorrt_log import listen\n"
        "from m2h_deploy.errors import EngineError\n"
        "try: start(load_tensorrt('tensorrt').Runtime, 'TensorRT', *listen('tensorrt'))\n"
        "except EngineError as error: print(error)"
    )
    for libraries in ("", driver):
        said = environment.run("-c", program, LD_LIBRARY_PATH=libraries).stdout
        assert said.startswith("TensorRT does not start: ")
        assert "CUDA" in said


@pytest.mark.slow
def test_a_tensorrt_that_makes_no_builder_is_an_error(tiny_onnx, driver, stubs, tmp_path):
    environment = Environment(tmp_path / "venv", "--no-deps", "tensorrt-cu13-bindings", alias="tensorrt_bindings")
    build = ("build", tiny_onnx, "-o", tmp_path / "b", "--engine", "tensorrt")
    line = environment.refusal(*build)
    assert "TensorRT, which cannot be imported (libnv" in line
    assert f"its plans need an NVIDIA GPU, and here {NO_DRIVER}" in line
    assert NO_DRIVER in environment.refusal(*build, LD_LIBRARY_PATH=stubs)
    with_gpu = {"LD_LIBRARY_PATH": f"{driver}:{stubs}", "FAKE_CUDA": 13000}
    assert environment.refusal(*build, **with_gpu).endswith("does not start: it gives no reason")
