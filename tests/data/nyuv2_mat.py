"""Write synthetic rooms in NYUv2's official layout, as a fixture for its reader."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

from m2h_deploy.data.classes import IGNORE_LABEL, NYU40_CLASSES
from m2h_deploy.data.nyuv2 import MAPPING_NAME, SPLITS_NAME
from m2h_deploy.data.rooms.render import render_room_with_instances

#: The rooms of the fixtures: seed, number, height and width.
SEED, FRAMES, SIZE = 9, 3, (48, 64)


def write_mat(path: str | Path, frames: int, seed: int = 0, height: int = 48, width: int = 64, train: int = 0) -> Path:
    """Write rooms 0..frames-1 of series `seed` to `path`, with splits.mat and classMapping40.mat beside it.

    The first `train` rooms are for training. Raw labels 1..40 are the 40 classes themselves.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(1, frames + 1, dtype=np.uint16)[:, None]
    savemat(path.with_name(SPLITS_NAME), {"trainNdxs": numbers[:train], "testNdxs": numbers[train:]})
    count = len(NYU40_CLASSES)
    mapping = np.minimum(np.arange(1, 895), count).astype(np.uint8)[None]
    savemat(path.with_name(MAPPING_NAME), {"mapClass": mapping})
    rooms = [render_room_with_instances(seed, index, height, width) for index in range(frames)]
    # MATLAB is column-major, so HDF5 holds the transposed arrays.
    with h5py.File(path, "w") as file:
        file["images"] = np.stack([frame.image[..., ::-1].transpose(2, 1, 0) for frame, _ in rooms])
        file["depths"] = np.stack([frame.depth.T for frame, _ in rooms])
        stored = [np.where(f.semantics == IGNORE_LABEL, 0, f.semantics.astype(np.uint16) + 1) for f, _ in rooms]
        file["labels"] = np.stack([labels.astype(np.uint16).T for labels in stored])
        file["instances"] = np.stack([objects.T for _, objects in rooms])
    return path
