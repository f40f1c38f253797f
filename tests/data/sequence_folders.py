"""Write small sequences in the layouts of public data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (48, 64)
CAMERA = {"width": 64, "height": 48, "fx": 50.0, "fy": 51.0, "cx": 31.5, "cy": 23.5}
START = 1000.0


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return noise, another for each index, whose first pixel is (index, 1, 2)."""
    image = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
    image[0, 0] = index, 1, 2
    return image


def write_tum(root: Path, count: int = 4, step: float = 0.1, *, poses: str | None = None) -> Path:
    """Write a sequence of `count` images that moves along x at 1 m/s; image i < 10 has depth 1 + i m and label i."""
    names = [f"{START + step * index:.6f}" for index in range(count)]
    for index, name in enumerate(names):
        png(root / "rgb" / f"{name}.png", picture(index))
        png(root / "depth" / f"{name}.png", np.full(SIZE, 5000 * (1 + index % 10), np.uint16))
        png(root / "labels" / f"{name}.png", np.full(SIZE, index, np.uint8))
    for kind in ("rgb", "depth", "labels"):
        lines = [f"{name} {kind}/{name}.png" for name in names]
        (root / f"{kind}.txt").write_text("# timestamp filename\n" + "\n".join(lines) + "\n")
    own = "".join(f"{name} {step * index:.6f} 0 0 0 0 0 1\n" for index, name in enumerate(names))
    (root / "groundtruth.txt").write_text("# timestamp tx ty tz qx qy qz qw\n" + (own if poses is None else poses))
    write_camera(root)
    return root


def write_camera(root: Path, **changes: Any) -> None:
    (root / "camera.json").write_text(json.dumps({**CAMERA, **changes}))


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix)


def moved(x: float) -> np.ndarray:
    """Return the pose of a camera that is turned by a quarter about the optical axis, at x."""
    return np.array([[0.0, -1, 0, x], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_seven_scenes(root: Path, count: int = 3) -> Path:
    """Write a sequence; image i has depth 1 + i meters, and an invalid pixel, and x = i."""
    for index in range(count):
        depth = np.full(SIZE, 1000 * (1 + index), np.uint16)
        depth[0, :2] = 0, 65535
        png(root / f"frame-{index:06d}.color.png", picture(index))
        png(root / f"frame-{index:06d}.depth.png", depth)
        write_matrix(root / f"frame-{index:06d}.pose.txt", moved(index))
    return root


def write_scannet(root: Path, count: int = 11) -> Path:
    """Write an exported scene whose depth camera has half as many pixels; image i has depth 1 + i m at x = i."""
    for index in range(count):
        png(root / "color" / f"{index}.jpg", picture(index))
        png(root / "depth" / f"{index}.png", np.full((24, 32), 1000 * (1 + index), np.uint16))
        write_matrix(root / "pose" / f"{index}.txt", moved(index))
    for name, (fx, fy, cx, cy) in {"color": (50, 51, 31.5, 23.5), "depth": (25, 25.5, 15.5, 11.5)}.items():
        matrix = np.array([[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        write_matrix(root / "intrinsic" / f"intrinsic_{name}.txt", matrix)
    return root
