"""Test libm2h on an NVIDIA GPU: it is built with the machine's TensorRT, and gives what Python gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from engines import build_bundle
from export import Sensor, add_sensor
from m2h_deploy import Runtime
from m2h_deploy.data.rooms.render import render_room
from tests.commands import ROOT

#: The folder of TensorRT or TensorRT-RTX, with include/ and lib/.
PLACES = {"tensorrt": "M2H_TENSORRT_ROOT", "tensorrt-rtx": "M2H_TENSORRT_RTX_ROOT"}


def call(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def build_program(folder: Path, *flags: str) -> Path:
    """Build libm2h and its example; return the program."""
    engines = ("-DM2H_WITH_OPENVINO=OFF", "-DM2H_WITH_ONNXRUNTIME=OFF")
    call("cmake", "-S", ROOT / "cpp", "-B", folder, *(flags or engines))
    call("cmake", "--build", folder, "--parallel")
    (program,) = (path for path in folder.rglob("m2h_run") if path.is_file())
    return program


def compare(program: Path, bundle: Path, folder: Path) -> None:
    """Compare the program's results for three pictures with Python's."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for index in range(3):
        cv2.imwrite(str(pictures / f"{index}.ppm"), render_room(1, index, 112, 140).image)
    (folder / "out").mkdir()
    call(program, bundle, pictures, folder / "out")
    with Runtime.load(bundle) as runtime:
        for index in range(3):
            prediction = runtime(cv2.imread(str(pictures / f"{index}.ppm")))
            (depth,) = (folder / "out").glob(f"{index}_depth.p*")
            (labels,) = (folder / "out").glob(f"{index}_labels.p*")
            found = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED) / 1000
            np.testing.assert_allclose(found, prediction.depth, atol=2e-3)
            assert (cv2.imread(str(labels), cv2.IMREAD_UNCHANGED) == prediction.semantics).mean() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("kind", PLACES)
def test_results_equal_pythons(tiny_onnx, tmp_path, kind):
    place = os.environ.get(PLACES[kind])
    if place is None or shutil.which("cmake") is None:
        pytest.skip(f"needs CMake, and {PLACES[kind]}, the folder of {kind}")
    onnx.save(add_sensor(onnx.load(tiny_onnx), Sensor((140, 112))), tmp_path / "sensor.onnx")
    bundle = build_bundle(tmp_path / "sensor.onnx", tmp_path / "bundle", engine=kind).path
    flags = (f"-DTENSORRT_ROOT={place}", f"-DM2H_TENSORRT_FLAVOR={kind}", "-DM2H_WITH_TENSORRT=ON")
    compare(build_program(tmp_path / "build", *flags), bundle, tmp_path)
