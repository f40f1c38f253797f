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
    """Write a sequence of `count` images that moves along x at 1 m/s; image i has depth 1 + i meters and label i."""
    names = [f"{START + step * index:.6f}" for index in range(count)]
    for index, name in enumerate(names):
        png(root / "rgb" / f"{name}.png", picture(index))
        png(root / "depth" / f"{name}.png", np.full(SIZE, 5000 * (1 + index), np.uint16))
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
