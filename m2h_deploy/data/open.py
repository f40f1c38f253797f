"""Detect the layout of a data set and open it."""

from __future__ import annotations

from pathlib import Path

from m2h_deploy.data.cityscapes import Cityscapes
from m2h_deploy.data.folders import ImageFolder, RGBDPairs
from m2h_deploy.data.frame import Dataset
from m2h_deploy.data.hypersim import SPLIT_NAME, Hypersim
from m2h_deploy.data.nyuv2 import MAT_NAME, NYUv2
from m2h_deploy.data.sequences.open import LAYOUTS, is_sequence, open_sequence
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import IMAGE_SUFFIXES
from m2h_deploy.files.names import is_file, is_folder

_KNOWN = (
    f"{MAT_NAME} (NYUv2), gt_sets/ (multi-task NYUv2), leftImg8bit/ (Cityscapes), ai_*/images/ (Hypersim), "
    f"rgb_* with sync_depth_* (RGB-D pairs), {LAYOUTS}, images"
)


def open_dataset(path: str | Path, split: str = "val") -> Dataset:
    """Open the data set at `path`, in any known layout.

    ```python
    for frame in open_dataset("NYUDv2"):
        print(frame.name, frame.image.shape)
    ```

    Args:
        path: a folder, or the labeled .mat file of NYUv2 (with splits.mat and classMapping40.mat beside it).
        split: "train", "val", "test" or "all". Ignored for sequences, image folders and RGB-D pairs, and for
            Hypersim if the list of its split is absent.

    Raises:
        M2HError: `path` does not exist or has no known layout; the message lists the known layouts.
    """
    path = Path(path)
    if is_file(path):
        if path.suffix.lower() == ".mat":
            return NYUv2.from_mat(path, split=split)
        raise M2HError(f"{path}: a file, but not {MAT_NAME}; give a data set's folder. Looked for: {_KNOWN}")
    if not is_folder(path):
        raise M2HError(f"{path}: no such file or folder")
    if (path / "gt_sets").is_dir():
        return NYUv2.from_folder(path, split)
    if (path / MAT_NAME).is_file():
        return NYUv2.from_mat(path / MAT_NAME, split=split)
    if (path / "leftImg8bit").is_dir():
        return Cityscapes.open(path, split)
    if next(path.glob("ai_*/images"), None):
        return Hypersim.open(path, split if (path / SPLIT_NAME).is_file() else "all")
    if is_sequence(path):
        return open_sequence(path)
    if next(path.rglob("sync_depth_*.png"), None):
        return RGBDPairs.open(path)
    if any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir()):
        return ImageFolder.open(path)
    raise M2HError(f"{path}: no known data set. Looked for: {_KNOWN}")
