"""Fixtures for the tests of libm2h: the library and its programs, built by the commands of docs/cpp.md."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.runtime.preprocess import bgr_to_nv12
from tests.pages import REPOSITORY, Page, shell_environment

PAGE = Page("cpp.md")

#: OpenVINO and its TBB keep some allocations until the process ends.
SUPPRESSIONS = "leak:libopenvino\nleak:libtbb\nleak:libhwloc\n"


@dataclass(frozen=True)
class Built:
    """A folder in which the page's commands were run."""

    folder: Path
    environment: dict[str, str]

    @property
    def bundle(self) -> Path:
        return self.folder / "robot" / "bundle"

    def call(self, *words: object, expect: int = 0) -> str:
        """Run a program that must end with `expect`, and return its stdout and stderr."""
        command = [str(word) for word in words]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == expect, f"{command}: {done.returncode}\n{said[-4000:]}"
        assert "Sanitizer" not in said
        return said

    def driver(self, *words: object, expect: int = 0) -> str:
        return self.call("tools/m2h_driver", *words, expect=expect)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Built:
    """Run the page from top to bottom, then build the tests' programs against the installed library."""
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "suppressions").write_text(SUPPRESSIONS)
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    environment = {
        **shell_environment(folder),
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "ASAN_OPTIONS": "detect_leaks=1",
        # TBB opens its helper with RTLD_DEEPBIND, at which AddressSanitizer ends the process. OpenVINO's own TBB has an
        # option to avoid that; an older system TBB, which OpenCV may load, has not.
        "TBB_ENABLE_SANITIZERS": "1",
        "LD_LIBRARY_PATH": str(Path(str(importlib.util.find_spec("openvino").origin)).parent / "libs"),
        "LSAN_OPTIONS": f"suppressions={folder / 'suppressions'}:print_suppressions=0",
    }
    own = folder / "own"
    own.mkdir()
    (own / "CMakeLists.txt").write_text(PAGE.blocks("cmake")[0])
    (own / "main.cpp").write_text(PAGE.blocks("cpp")[0])
    (folder / "pictures").mkdir()
    for index in range(2):
        cv2.imwrite(str(folder / "pictures" / f"room{index}.ppm"), room(index))
    # `python` is a wrapper script on this path; CMake gets the interpreter itself.
    script = "set -e\n" + "\n".join(PAGE.blocks("bash")).replace("$(which python)", sys.executable)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    result = Built(folder, environment)
    prefix = f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}"
    result.call("cmake", "-S", REPOSITORY / "cpp" / "tests", "-B", "tools", prefix)
    result.call("cmake", "--build", "tools")
    return result


def room(index: int) -> np.ndarray:
    return render_room(5, index, height=480, width=640).image


@pytest.fixture(scope="session")
def runtime(built):
    with Runtime.load(built.bundle) as opened:
        yield opened


def frame(
    built: Built, bundle: Path, raw: np.ndarray, color: str, stride: int = 0, *, calibrated: bool = True
) -> dict[str, np.ndarray]:
    """Run libm2h on one picture and return its results, flat."""
    out = built.folder / "frame"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    raw.tofile(out / "image.raw")
    built.driver("frame" if calibrated else "uncalibrated", bundle, out / "image.raw", out, color, stride)
    types = {"depth": np.float32, "labels": np.uint8, "normals": np.float32, "edges": np.float32}
    return {
        name: np.fromfile(out / f"{name}.raw", kind) for name, kind in types.items() if (out / f"{name}.raw").is_file()
    }


@pytest.fixture
def damaged(built, tmp_path):
    """Return a copy of the bundle, and a function that returns libm2h's message when it opens the copy."""
    copy = shutil.copytree(built.bundle, tmp_path / "bundle")

    def opened(expect: int = 2) -> str:
        said = built.driver("open", copy, expect=expect)
        assert said.startswith("error: ") == (expect != 0), said
        assert said.count("\n") == 1
        return said

    return copy, opened


def change(bundle: Path, edit) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def nv12_bundle(tmp_path_factory) -> Path:
    """Build m2h-tiny for a 160 x 120 camera: NV12 in, millimeters and labels out."""
    import onnx

    from engines import build_bundle
    from export import Sensor, add_sensor, export_onnx
    from m2h_deploy.model import load_checkpoint

    folder = tmp_path_factory.mktemp("nv12")
    plain = export_onnx(load_checkpoint("m2h-tiny"), folder / "plain.onnx", height=112, width=140, form="deploy").path
    sensor = Sensor((160, 120), "nv12", ("depth", "labels"), "uint16")
    onnx.save(add_sensor(onnx.load(plain), sensor), folder / "sensor.onnx")
    return build_bundle(folder / "sensor.onnx", folder / "bundle", engine="openvino").path


@pytest.fixture
def millimeters(nv12_bundle, tmp_path) -> tuple[Path, np.ndarray]:
    """Return a copy of `nv12_bundle`, and a picture for it."""
    raw = bgr_to_nv12(render_room(5, 0, height=120, width=160).image)
    return shutil.copytree(nv12_bundle, tmp_path / "bundle"), raw
