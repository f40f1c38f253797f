"""Predictions to files: depth in millimetres, labels, a picture, and all of it as npz on request."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle import Classes
from m2h_deploy.errors import M2HError
from m2h_deploy.files import write_bytes
from m2h_deploy.postprocess import Prediction
from m2h_deploy.visualize import draw_prediction


def write_prediction(
    folder: Path, name: str, image: NDArray[np.uint8], prediction: Prediction, classes: Classes, *, npz: bool = False
) -> list[Path]:
    """Write `<name>_overlay.png`, `<name>_depth.png`, `<name>_labels.png` and, if asked, `<name>.npz`.

    Depth is uint16 millimetres (0 to 65.5 m), labels are uint8 class indices. Each file appears whole or not at all.
    Returns the paths; raises M2HError when the folder cannot be written.
    """
    pictures = {"overlay": draw_prediction(image, prediction, classes)}
    if prediction.depth is not None:
        pictures["depth"] = np.clip(np.rint(prediction.depth * 1000), 0, 65535).astype(np.uint16)  # type: ignore[assignment]
    if prediction.semantics is not None:
        pictures["labels"] = prediction.semantics
    written = [write_png(folder / f"{name}_{kind}.png", picture) for kind, picture in pictures.items()]
    if npz:
        arrays = {
            task: value
            for task in ("depth", "semantics", "normals", "edges")
            if (value := getattr(prediction, task)) is not None
        }
        written.append(_write_npz(folder / f"{name}.npz", arrays))
    return written


def write_png(path: Path, picture: NDArray) -> Path:
    """`picture` (uint8 or uint16; grey or BGR) as PNG, in one step."""
    ok, content = cv2.imencode(".png", picture)
    if not ok:
        raise M2HError(f"cannot encode {path} as PNG")
    return write_bytes(path, content.tobytes())


def _write_npz(path: Path, arrays: dict[str, NDArray]) -> Path:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return write_bytes(path, buffer.getvalue())
