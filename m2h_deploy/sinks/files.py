"""Predictions to files: depth in millimeters, labels, a picture, and all of it as npz on request."""

from __future__ import annotations

import io
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.files.provenance import Kind, check_output, mark_npz, mark_png
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sinks import Sink
from m2h_deploy.sources import SourceFrame
from m2h_deploy.tasks import TASKS
from m2h_deploy.visualize.draw import draw_prediction


class ResultFiles(Sink):
    """Writes the results of each frame into a folder, see `write_prediction`."""

    def __init__(self, folder: Path, classes: Classes, *, npz: bool = False, overwrite: bool = True) -> None:
        """Without `overwrite`, a file that m2h-deploy did not write is not replaced: `add` raises M2HError."""
        self._folder, self._classes, self._npz, self._overwrite = folder, classes, npz, overwrite
        self.written: list[Path] = []
        """The files of the last frame."""

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        if not self._overwrite:
            check_result(self._folder, frame.name, npz=self._npz)
        self.written = write_prediction(self._folder, frame.name, frame.image, prediction, self._classes, npz=self._npz)


def write_prediction(
    folder: Path, name: str, image: NDArray[np.uint8], prediction: Prediction, classes: Classes, *, npz: bool = False
) -> list[Path]:
    """Write `<name>_overlay.png`, `<name>_depth.png`, `<name>_labels.png` and, if asked, `<name>.npz`.

    Depth is uint16 millimeters (0 to 65.5 m), labels are uint8 class indices. Each file is written atomically and
    replaces what is there: see `check_results`.
    Returns the paths; raises M2HError when the folder cannot be written.
    """
    pictures = {"overlay": draw_prediction(image, prediction, classes), **maps_of(prediction)}
    written = [
        write_bytes(folder / f"{name}_{kind}.png", mark_png(encode_png(picture))) for kind, picture in pictures.items()
    ]
    if npz:
        written.append(write_bytes(folder / f"{name}.npz", mark_npz(encode_npz(prediction))))
    return written


_ENDINGS: dict[str, Kind] = {"_overlay.png": "png", "_depth.png": "png", "_labels.png": "png", ".npz": "npz"}


def check_result(folder: Path, name: str, *, npz: bool = False) -> None:
    """Raises M2HError where `write_prediction` would replace a file that it did not write."""
    for ending, kind in _ENDINGS.items():
        if npz or kind != "npz":
            check_output(folder / f"{name}{ending}", kind, access=False)


def check_results(folder: Path, names: Container[str], *, npz: bool = False) -> None:
    """Raises the M2HError of `check_result` for any frame of `names`: before the first of them is predicted."""
    if not folder.is_dir():
        return
    for file in sorted(entry.name for entry in folder.iterdir()):
        endings = [ending for ending in _ENDINGS if file.endswith(ending) and (npz or _ENDINGS[ending] != "npz")]
        for ending in endings:
            if file.removesuffix(ending) in names:
                check_output(folder / file, _ENDINGS[ending], access=False)


def maps_of(prediction: Prediction) -> dict[str, NDArray[Any]]:
    """`depth`, uint16 (H, W) millimeters (0 to 65.5 m), and `labels`, uint8 (H, W), as far as they are there."""
    maps: dict[str, NDArray[Any]] = {}
    if prediction.depth is not None:
        maps["depth"] = np.clip(np.rint(prediction.depth * 1000), 0, 65535).astype(np.uint16)
    if prediction.semantics is not None:
        maps["labels"] = prediction.semantics
    return maps


def all_finite(prediction: Prediction, tasks: Iterable[str]) -> bool:
    """Whether every value of these tasks is a number."""
    return all(np.isfinite(getattr(prediction, task)).all() for task in tasks)


def encode_png(picture: NDArray) -> bytes:
    """`picture` (uint8 or uint16; gray or BGR) as the content of a PNG file."""
    ok, content = cv2.imencode(".png", picture)
    if not ok:
        raise M2HError(f"cannot encode {picture.dtype} {picture.shape} as PNG")
    return bytes(content.tobytes())


def encode_npz(prediction: Prediction) -> bytes:
    """Every output as the content of a compressed .npz file."""
    arrays = {task: value for task in TASKS if (value := getattr(prediction, task)) is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
