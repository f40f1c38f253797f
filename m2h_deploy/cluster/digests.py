"""Digests of everything that a result depends on: a result whose digest still matches is reused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.version import __version__


def job_digest(manifest: Manifest, settings: dict[str, Any]) -> str:
    """Return the digest of an engine and the settings of its job.

    The manifest names every file's sha256. Its parity and latency results are excluded: recording them does not change
    the engine.
    """
    engine = manifest.model_copy(update={"parity": None, "latency": None}).model_dump(mode="json")
    return _sha256({"version": __version__, "engine": engine, "settings": settings})


def files_digest(job: str, name: str, files: Iterable[Path]) -> str:
    """Return the digest of a frame in files, under `job`: names, sizes and modification times, or absence."""
    return _sha256({"job": job, "name": name, "files": [(file.name, *_stat(file)) for file in files]})


def frame_digest(job: str, source: Dataset, index: int) -> str:
    """Return the digest of frame `index` of a data set, under `job`: by its files, or without files by its content."""
    files_of = getattr(source, "files_of", None)
    if files_of is not None:
        files: tuple[Path, ...] = files_of(index)
        names = getattr(source, "names", None)
        return files_digest(job, names[index] if names else str(files[0]), files)
    return _content_digest(job, source[index])


def reference_digest(reference: str | os.PathLike[str]) -> str:
    """Return the digest of a checkpoint, the name of shipped weights, or an ONNX file.

    Raises:
        M2HError: The reference is missing.
    """
    if Path(reference).is_file():
        return _onnx_digest(Path(reference)) if Path(reference).suffix == ".onnx" else file_sha256(Path(reference))
    from m2h_deploy.model.checkpoint import resolve_checkpoint

    return file_sha256(resolve_checkpoint(reference))


def _onnx_digest(path: Path) -> str:
    """Return the digest of an ONNX file, including weights in other files if onnx is installed."""
    try:
        from m2h_deploy.onnx_graph.files import onnx_sha256

        return onnx_sha256(path)
    except (ModuleNotFoundError, M2HError):  # a file that is not ONNX is rejected when it is opened
        return file_sha256(path)


def _content_digest(job: str, frame: Frame) -> str:
    digest = hashlib.sha256(f"{job} {frame.name}".encode())
    for part in (frame.image, frame.depth, frame.normals, frame.semantics, frame.edges):
        digest.update(b"none" if part is None else f"{part.shape} {part.dtype}".encode() + part.tobytes())
    return digest.hexdigest()


def _stat(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
