"""Test that libm2h's points equal those that NumPy computes, and that wrong arguments are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.cpp

WIDTH, HEIGHT = 37, 23
CAMERA = (31.7, 29.3, 17.9, 11.2)


@dataclass
class Scene:
    """One frame with every kind of invalid depth, in the files that m2h_points reads."""

    folder: Path
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, **arrays: np.ndarray) -> None:
        self.arrays |= arrays
        for name, array in arrays.items():
            array.tofile(self.folder / f"{name}.raw")

    def read(self, name: str, kind: type, *components: int) -> np.ndarray:
        return np.fromfile(self.folder / f"{name}.raw", kind).reshape(-1, *components)


@pytest.fixture
def scene(tmp_path) -> Scene:
    random = np.random.default_rng(3)
    depth = random.uniform(0.2, 9, (HEIGHT, WIDTH)).astype(np.float32)
    for number, value in enumerate((np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-42)):
        depth[3 * number % HEIGHT, 5 * number] = value
    normals = random.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    scene = Scene(tmp_path)
    scene.write(
        depth=depth,
        labels=random.integers(0, 256, (HEIGHT, WIDTH), np.uint8),
        normals=normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        image=random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
    )
    return scene


@pytest.fixture
def points(built, scene):
    """Return a function that runs m2h_points on the scene."""

    def run(step=1, dense=0, color="bgr", gap=0, camera=CAMERA, size=(WIDTH, HEIGHT), expect=0) -> str:
        words = [scene.folder, *size, *camera, step, dense, color, gap]
        return built.call("tools/m2h_points", *words, expect=expect).strip()

    return run


def reference(scene: Scene, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (H, W, 3) and which of them have depth, of every `step`-th row and column."""
    fx, fy, cx, cy = CAMERA
    z = scene.arrays["depth"][::step, ::step]
    valid = np.isfinite(z) & (z > 0)
    x = ((np.arange(0, WIDTH, step) - cx) / fx).astype(np.float32)
    y = ((np.arange(0, HEIGHT, step) - cy) / fy).astype(np.float32)
    z = np.where(valid, z, np.float32(np.nan))
    return np.stack([x * z, y[:, None] * z, z], axis=-1), valid


@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize("dense", [0, 1])
def test_points_equal_numpys(scene, points, step, dense):
    xyz, valid = reference(scene, step)
    rows, columns = valid.shape
    kept = valid.ravel() if dense else np.ones(valid.size, bool)
    assert points(step, dense) == (f"{valid.sum()} 1" if dense else f"{columns} {rows}")
    assert step > 5 or valid.sum() < valid.size

    def wanted(array: np.ndarray) -> np.ndarray:
        return array.reshape(valid.size, -1)[kept]

    np.testing.assert_array_equal(scene.read("xyz", np.float32, 3), wanted(xyz))
    taken = {name: array[::step, ::step] for name, array in scene.arrays.items()}
    np.testing.assert_array_equal(scene.read("point_labels", np.uint8, 1), wanted(taken["labels"]))
    np.testing.assert_array_equal(scene.read("rgb", np.uint8, 3), wanted(taken["image"][..., ::-1]))
    normals = np.where(valid[..., None], -taken["normals"], np.float32(np.nan))
    np.testing.assert_array_equal(scene.read("point_normals", np.float32, 3), wanted(normals))


def test_rgb_images_and_gaps_between_rows_are_read(scene, points):
    image = scene.arrays["image"]
    gaps = np.zeros((HEIGHT, 3 * WIDTH + 7), np.uint8)
    gaps[:, : 3 * WIDTH] = image.reshape(HEIGHT, -1)
    scene.write(image=gaps)
    points(color="rgb", gap=7)
    np.testing.assert_array_equal(scene.read("rgb", np.uint8, 3), image.reshape(-1, 3))


def test_axes_are_right_down_and_forward(scene, points):
    """A floor, whose normal the network gives as up, is below the camera and its normal points up."""
    scene.write(
        depth=np.full((HEIGHT, WIDTH), 2, np.float32), normals=np.tile(np.float32([0, 1, 0]), (HEIGHT, WIDTH, 1))
    )
    points()
    x, y, z = scene.read("xyz", np.float32, 3)[-1]  # the corner at the bottom right
    assert x > 0 and y > 0 and z == 2
    np.testing.assert_array_equal(scene.read("point_normals", np.float32, 3)[-1], [0, -1, 0])


def test_results_that_are_missing_are_left_out(scene, points):
    for name in ("labels", "normals", "image"):
        (scene.folder / f"{name}.raw").unlink()
    points()
    assert len(scene.read("xyz", np.float32, 3)) == WIDTH * HEIGHT
    for name in ("point_labels", "point_normals", "rgb"):
        assert (scene.folder / f"{name}.raw").stat().st_size == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"color": "nv12"}, "an NV12 image has no RGB values: convert it to BGR, or leave rgb NULL"),
        ({"camera": (0, 1, 0, 0)}, "fx and fy must be finite and above 0"),
        ({"camera": (1, "nan", 0, 0)}, "fx and fy must be finite and above 0"),
        ({"camera": (1, 1, "inf", 0)}, "cx and cy must be finite"),
        ({"step": -1}, "step must be 1 to 16384"),
        ({"step": 20000}, "step must be 1 to 16384"),
        ({"size": (WIDTH + 1, HEIGHT)}, "depth of this camera has"),
        ({"size": (0, HEIGHT)}, "0 x 23 pixels: expected 1 to 16384"),
    ],
)
def test_wrong_arguments_are_named(points, arguments, said):
    message = points(**arguments, expect=2)
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message


def test_a_frame_without_depth_is_refused(scene, points):
    (scene.folder / "depth.raw").unlink()
    assert "results have no depth" in points(expect=2)
