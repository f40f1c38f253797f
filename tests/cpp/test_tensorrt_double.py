"""Test libm2h's TensorRT backend on a double of CUDA and TensorRT that runs on the CPU and fails on request.

`cpp/tests/gpu_double/double.cpp` describes the double; everything is built with AddressSanitizer, which also finds
memory, streams and graphs that are not released.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from m2h_deploy.files.cache import read_checked, write_checked
from tests.pages import REPOSITORY

pytestmark = pytest.mark.cpp

CPP = REPOSITORY / "cpp"
FLAGS = "-std=c++17 -O0 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -Wall -Wextra -Wshadow -Werror"
INCLUDES = [f"-I{CPP / folder}" for folder in ("tests/gpu_double", "include", "src")]
PLAN = "image in u8 -1 4 6 3\ndepth out f32 -1 4 6\nlabels out u8 -1 4 6\n"
CODE_PLAN = "code\n" + PLAN.replace("-1", "1")
VERSIONS = {"tensorrt": "11.1.0.76", "tensorrt-rtx": "1.4.0.76"}
FRAMES = ["frame 10 11", "frame 20 21", "frame 30 31", "frame 40 41"]


@dataclass(frozen=True)
class Said:
    """The output of one run of m2h_gpu."""

    code: int
    lines: list[str]

    @property
    def frames(self) -> list[str]:
        return [line for line in self.lines if line.startswith(("frame ", "failed: "))]

    @property
    def counts(self) -> dict[str, int]:
        pairs = (pair.rsplit("=", 1) for pair in self.lines[-1].split("; ") if pair)
        return {name: int(count) for name, count in pairs}

    def line(self, start: str) -> str:
        return next((line for line in self.lines if line.startswith(start)), "")


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> dict[str, Path]:
    """Build m2h_gpu for both products."""
    folder = tmp_path_factory.mktemp("double")

    def compile_(*words: object) -> None:
        command = ["c++", *FLAGS.split(), *INCLUDES, "-DM2H_NO_OPENCV", *map(str, words)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    common = ("m2h", "runtime", "bundle", "manifest", "point_cloud", "sha256", "cache")
    compile_("-c", *(CPP / "src" / f"{name}.cpp" for name in common))
    sources = [CPP / name for name in ("src/backend.cpp", "src/backend_tensorrt.cpp", "tests/gpu.cpp")]
    sources.append(CPP / "tests" / "gpu_double" / "double.cpp")
    for kind in VERSIONS:
        product = ["-DM2H_DOUBLE_RTX"] if kind == "tensorrt-rtx" else []
        objects = (f"{name}.o" for name in common)
        compile_(*product, f'-DM2H_TENSORRT="{kind}"', *sources, *objects, "-o", kind, "-pthread")
    return {kind: folder / kind for kind in VERSIONS}


@pytest.fixture
def run(programs, tmp_path):
    """Return a function that writes a bundle, runs m2h_gpu on it, and returns what it printed."""

    def run(kind="tensorrt", faults="", device="1", allow=False, plan=PLAN, **engine) -> Said:
        bundle = write_bundle(tmp_path / "bundle", kind, plan, engine)
        environment = {**os.environ, "M2H_FAULTS": faults, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        words = [programs[kind], bundle, device, "1" if allow else "0"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.stderr == "", done.stderr[-4000:]  # the sanitizers'
        return Said(done.returncode, done.stdout.splitlines())

    return run


def write_bundle(folder: Path, kind: str, plan: str, engine: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.plan").write_text(plan, encoding="utf-8")
    shapes = {"depth": "float32", "labels": "uint8"}
    manifest = {
        "schema_version": 1,
        "model": {"variant": "m2h-tiny"},
        "sensor": {},
        "input": {"name": "image", "width": 6, "height": 4, "layout": "NHWC", "dtype": "uint8"},
        "outputs": [{"name": name, "dtype": dtype, "shape": [None, 4, 6]} for name, dtype in shapes.items()],
        "depth_range": [0.1, 10],
        "classes": {"names": ["wall"], "palette": [[0, 0, 0]]},
        "engine": {"kind": kind, "version": VERSIONS[kind], "precision": "fp32", "file": "model.plan", **engine},
        "files": {"model.plan": hashlib.sha256(plan.encode()).hexdigest()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", list(VERSIONS))
@pytest.mark.parametrize("faults", ["", "integrated"])
def test_each_frame_gives_its_own_results_and_the_callers_gpu_stays_current(run, kind, faults):
    said = run(kind, faults)
    assert said.code == 0
    assert said.frames == FRAMES
    assert said.line("device") == "device 0"
    assert "GPU 1 (8.6)" in said.line("engine")
    assert said.line("warning") == ""
    assert ("copy" in said.counts) == (faults == "")  # an integrated GPU shares the host's memory


def test_tensorrt_captures_one_graph_and_launches_it_for_every_frame(run):
    counts = run().counts
    assert (counts["enqueue"], counts["launch"]) == (2, 4)  # the first run, and the captured one
    assert counts["copy"] == 4


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("begin capture", "cannot begin the capture: CUDA: another error"),
        ("captured enqueue", "operation not permitted when stream is capturing"),
        ("end capture", "cannot end the capture"),
        ("instantiate", "cannot make the CUDA graph: CUDA: out of memory"),
    ],
)
def test_a_failed_capture_falls_back_to_plain_launches_with_a_warning(run, fault, reason):
    said = run(faults=fault)
    assert said.code == 0
    assert said.frames == FRAMES
    assert "launch" not in said.counts
    assert said.line("warning").startswith("warning: no CUDA graph")
    assert reason in said.line("warning")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no driver", "no NVIDIA driver is found"),
        ("old driver", "supports CUDA 12.6, and libm2h was built with CUDA 13.0: update the driver"),
        ("no device", "the NVIDIA driver finds no GPU"),
        ("runtime", "does not start"),
        ("cuda of tensorrt", "does not start: CUDA initialization failure"),
        ("deserialize", "refuses the plan; build it again on this machine: the plan is of another device"),
        ("context", "cannot make an execution context (usually the GPU has too little free memory): Error Code 2"),
        ("input shape", "cannot run single frames of this plan: the profile does not contain this shape"),
        ("host alloc", "cannot allocate page-locked memory: CUDA: out of memory (cudaErrorMemoryAllocation)"),
        ("malloc", "cannot allocate GPU memory: CUDA: out of memory"),
        ("address@2", "does not take the address of 'depth': the address is not aligned"),
        ("copy@2", "cannot copy the results from the GPU"),
        ("enqueue", "could not run: an illegal memory access"),
        ("synchronize", "cannot run the plan: CUDA: another error"),
    ],
)
@pytest.mark.parametrize("kind", list(VERSIONS))
def test_a_failure_while_opening_is_named_and_releases_everything(run, kind, fault, words):
    said = run(kind, fault)
    assert said.code == 2
    assert words in said.line("error")
    assert said.line("device") == "device 0"


@pytest.mark.parametrize("fault", ["no driver", "old driver", "no device"])
def test_tensorrt_is_not_called_without_a_usable_gpu(run, fault):
    assert "runtime" not in run(faults=fault).counts


@pytest.mark.parametrize("fault", ["config", "set cache", "graph strategy"])
def test_each_setting_of_tensorrt_rtx_is_checked(run, fault):
    assert run("tensorrt-rtx", fault).line("error").endswith("it gives no reason")


@pytest.mark.parametrize("fault", ["launch@2", "synchronize@4"])
def test_a_failed_frame_is_an_error_and_the_next_one_succeeds(run, fault):
    frames = run(faults=fault).frames
    failed = [frame.startswith("failed: ") for frame in frames]
    assert sum(failed) == 1
    assert [frame for frame, bad in zip(frames, failed, strict=True) if not bad] == [
        frame for frame, bad in zip(FRAMES, failed, strict=True) if not bad
    ]


@pytest.mark.parametrize("device", ["2", "cuda:7", "GPU"])
def test_a_gpu_that_does_not_exist_is_refused(run, device):
    said = run(device=device)
    assert said.code == 2
    assert "GPU" in said.line("error")


def test_the_plan_is_checked_for_the_chosen_gpu(run):
    assert run("tensorrt-rtx", device="1").code == 0  # the double's plans are for the second GPU
    assert "it was built for other GPUs" in run("tensorrt-rtx", device="0").line("error")


def test_a_plan_for_another_compute_capability_is_refused(run):
    assert run(targets=["8.0", "8.6"]).code == 0
    assert "built for compute capability 8.0, 8.9 and this GPU has 8.6" in run(targets=["8.0", "8.9"]).line("error")


def test_code_in_a_plan_runs_only_if_the_caller_allows_it(run):
    options = {"version_compatible": True}
    said = run(plan=CODE_PLAN, options=options)
    assert said.code == 2
    assert "set allow_engine_code if you trust its source" in said.line("error")
    assert run(plan=CODE_PLAN, options=options, allow=True).frames == FRAMES
    # The permission is not for plans whose manifest does not name the code.
    assert "host code is not allowed" in run(plan=CODE_PLAN, allow=True).line("error")


@pytest.mark.parametrize(
    ("built", "compatible", "runs"),
    [
        ("11.1.0.76", False, True),
        ("11.1.0", False, True),
        ("11.1.0.75", False, False),
        ("11.0.0.1", False, False),
        ("11.0.0.1", True, True),
        ("10.3.0", True, True),
        ("11.2.0", True, False),
        ("9.3.0", True, False),
        ("unknown", True, False),
    ],
)
def test_a_plan_runs_on_its_own_version_and_a_compatible_one_on_later_ones(run, built, compatible, runs):
    said = run(version=built, options={"version_compatible": compatible}, allow=True)
    assert said.code == (0 if runs else 2)
    assert runs or f"was built by TensorRT {built} and 11.1.0.76 is installed" in said.line("error")


@pytest.mark.parametrize(
    "plan",
    [
        PLAN.replace("depth", "deep"),
        PLAN.replace("image in u8", "image in f32"),
        PLAN.replace("f32 -1 4 6", "f32 -1 4 7"),
        PLAN.replace("labels out", "labels in"),
        PLAN + "more out f32 1\n",
        "image in u8 2 4 6 3\ndepth out f32 2 4 6\nlabels out u8 2 4 6\n",
    ],
)
def test_a_plan_that_contradicts_the_manifest_is_refused(run, plan):
    assert "are not what the manifest says" in run(plan=plan).line("error")


def kernels_of(folder: Path) -> Path:
    [file] = (folder / "cache" / "m2h-deploy" / "tensorrt-rtx").iterdir()
    return file


def test_compiled_kernels_are_shared_with_python_by_file_name_and_format(run, tmp_path):
    assert run("tensorrt-rtx").counts["compile"] == 1
    file = kernels_of(tmp_path)
    digest = hashlib.sha256(PLAN.encode()).hexdigest()
    assert file.name == f"{digest}.1.4.0.76.sm86.cache"
    assert read_checked(file) == b"compiled"
    assert file.parent.stat().st_mode & 0o777 == 0o700
    again = run("tensorrt-rtx")
    assert "compile" not in again.counts
    assert again.counts["eager"] == again.counts["whole graph"] == 1
    assert write_checked(file, b"by Python")
    assert "compile" not in run("tensorrt-rtx").counts
    assert read_checked(file) == b"by Python"


def test_kernels_that_are_compiled_later_are_saved_when_the_runtime_is_closed(run, tmp_path):
    run("tensorrt-rtx", "more kernels@3")
    assert read_checked(kernels_of(tmp_path)) == b"compiled more"


def test_damaged_and_outdated_kernels_are_compiled_again(run, tmp_path):
    run("tensorrt-rtx")
    file = kernels_of(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    assert run("tensorrt-rtx").counts["compile"] == 1
    assert read_checked(file) == b"compiled"
    said = run("tensorrt-rtx", "old kernels")
    assert said.frames == FRAMES
    assert said.counts["compile"] == 1


def test_a_cache_folder_that_cannot_be_made_is_not_an_error(run, tmp_path):
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert run("tensorrt-rtx").frames == FRAMES
