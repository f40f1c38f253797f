"""Write predictions to files: depth in millimeters, labels, a picture, and optionally all outputs as .npz."""

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
from m2h_deploy.sources.source import SourceFrame
from m2h_deploy.tasks import TASKS
from m2h_deploy.visualize.draw import draw_prediction


class ResultFiles(Sink):
    """Sink that writes the results of each frame into a folder, see `write_prediction`."""

    def __init__(self, folder: Path, classes: Classes, *, npz: bool = False, overwrite: bool = True) -> None:
        """Write into a folder.

        Args:
            folder: the folder.
            classes: names and colors of the semantic classes.
            npz: also write all outputs as .npz.
            overwrite: whether files that m2h-deploy did not write may be replaced; if not, `add` raises M2HError.
        """
        self._folder, self._classes, self._npz, self._overwrite = folder, classes, npz, overwrite
        self.written: list[Path] = []
        """Files of the last frame."""

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Write the files of one frame, and list them in `written`.

        Args:
            frame: the frame; its name begins the names of the files.
            prediction: its prediction, of the size of the image.

        Raises:
            M2HError: the folder cannot be written, or a file must not be replaced.
        """
        if not self._overwrite:
            check_result(self._folder, frame.name, npz=self._npz)
        self.written = write_prediction(self._folder, frame.name, frame.image, prediction, self._classes, npz=self._npz)


def write_prediction(
    folder: Path, name: str, image: NDArray[np.uint8], prediction: Prediction, classes: Classes, *, npz: bool = False
) -> list[Path]:
    """Write `<name>_overlay.png`, `<name>_depth.png`, `<name>_labels.png` and optionally `<name>.npz`.

    Depth is uint16 millimeters (0 to 65.5 m), labels are uint8 class indices. Each file is written atomically and
    replaces an existing one; see `check_results`.

    Args:
        folder: the folder.
        name: beginning of the names of the files.
        image: uint8 (H, W, 3) BGR.
        prediction: its prediction, of the size of the image.
        classes: names and colors of the semantic classes.
        npz: also write all outputs as .npz.

    Returns:
        The paths of the files.

    Raises:
        M2HError: the folder cannot be written.
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
    """Check that `write_prediction` would replace only files that m2h-deploy wrote.

    Args:
        folder: as for `write_prediction`.
        name: as for `write_prediction`.
        npz: as for `write_prediction`.

    Raises:
        M2HError: a file of another origin has one of the names.
    """
    for ending, kind in _ENDINGS.items():
        if npz or kind != "npz":
            check_output(folder / f"{name}{ending}", kind, access=False)


def check_results(folder: Path, names: Container[str], *, npz: bool = False) -> None:
    """Check all frames like `check_result`, before the first one is predicted.

    Args:
        folder: the folder, which need not exist.
        names: names of the frames.
        npz: as for `write_prediction`.

    Raises:
        M2HError: a file of another origin has one of the names.
    """
    if not folder.is_dir():
        return
    for file in sorted(entry.name for entry in folder.iterdir()):
        endings = [ending for ending in _ENDINGS if file.endswith(ending) and (npz or _ENDINGS[ending] != "npz")]
        for ending in endings:
            if file.removesuffix(ending) in names:
                check_output(folder / file, _ENDINGS[ending], access=False)


def maps_of(prediction: Prediction) -> dict[str, NDArray[Any]]:
    """Convert the outputs that are stored as images.

    Returns:
        `depth`, uint16 (H, W) millimeters (0 to 65.5 m), and `labels`, uint8 (H, W), without those that the prediction
        lacks.
    """
    maps: dict[str, NDArray[Any]] = {}
    if prediction.depth is not None:
        maps["depth"] = np.clip(np.rint(prediction.depth * 1000), 0, 65535).astype(np.uint16)
    if prediction.semantics is not None:
        maps["labels"] = prediction.semantics
    return maps


def all_finite(prediction: Prediction, tasks: Iterable[str]) -> bool:
    """Return whether the outputs of these tasks contain only finite values."""
    return all(np.isfinite(getattr(prediction, task)).all() for task in tasks)


def encode_png(picture: NDArray) -> bytes:
    """Encode `picture` (uint8 or uint16; gray or BGR) as PNG."""
    ok, content = cv2.imencode(".png", picture)
    if not ok:
        raise M2HError(f"cannot encode {picture.dtype} {picture.shape} as PNG")
    return bytes(content.tobytes())


def encode_npz(prediction: Prediction) -> bytes:
    """Encode all outputs as a compressed .npz file, by task."""
    arrays = {task: value for task in TASKS if (value := getattr(prediction, task)) is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
