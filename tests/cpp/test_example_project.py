"""Build the C++ project of examples/ against the installed libm2h, and run it on raw frames."""

from __future__ import annotations

import re
import subprocess

import cv2
import numpy as np
import pytest

from m2h_deploy import Runtime
from tests.pages import REPOSITORY

pytestmark = pytest.mark.cpp


@pytest.fixture(scope="module")
def nearest(built):
    prefix = f"-DCMAKE_PREFIX_PATH={built.folder / 'prefix'}"
    built.call("cmake", "-S", REPOSITORY / "examples" / "cpp", "-B", "nearest", prefix)
    built.call("cmake", "--build", "nearest")
    return built.folder / "nearest" / "nearest"


def test_the_nearest_point_of_every_frame_is_that_of_python(built, nearest):
    pictures = [cv2.imread(str(path)) for path in sorted((built.folder / "pictures").iterdir())]
    frames = b"".join(picture.tobytes() for picture in pictures)
    done = subprocess.run([nearest, built.bundle], input=frames, env=built.environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(pictures) == 2
    with Runtime.load(built.bundle) as runtime:
        for index, (picture, line) in enumerate(zip(pictures, lines, strict=True)):
            found = re.fullmatch(rf"frame {index}: (\S+) m at x=(\d+) y=(\d+), (.*)", line)
            prediction = runtime(picture)
            assert float(found[1]) == pytest.approx(float(prediction.depth.min()), abs=2e-3)
            row, column = int(found[3]), int(found[2])
            assert prediction.depth[row, column] == pytest.approx(np.min(prediction.depth), abs=2e-3)
            assert found[4] in runtime.manifest.classes.names


def test_a_missing_bundle_is_one_line(built, nearest):
    said = built.call(nearest, "nowhere", expect=2)
    assert said.startswith("error: nowhere") and said.count("\n") == 1
    assert built.call(nearest, expect=2).startswith("usage: ")
