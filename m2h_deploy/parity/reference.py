"""The reference of a parity run: the PyTorch network of a checkpoint, or the float32 ONNX file without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import InputSpec
from m2h_deploy.causes import failure
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import library_path
from m2h_deploy.runtime.preprocess import Normalization, normalization_of

Outputs = dict[str, NDArray[np.float32]]

_TASKS = ("depth", "semantics", "normals", "edges")


class Reference(Protocol):
    """What an engine is measured against."""

    description: str
    weights_sha256: str
    tasks: tuple[str, ...]

    def run(self, image: NDArray[np.float32]) -> Outputs:
        """(1, 3, H, W) float32, normalized, to the outputs by name, (1, C, H, W) each."""
        ...


def open_reference(path: str | os.PathLike[str], spec: InputSpec, threads: int | None = None) -> Reference:
    """The reference at `path` for an engine of input `spec`; `threads` CPU threads in ONNX Runtime, all by default.

    `path` is a checkpoint (or the name of shipped weights), which needs torch, or an ONNX file of m2h-deploy export
    in float32, which needs ONNX Runtime. Raises M2HError when it is neither, or what it needs is not installed.
    """
    if Path(path).suffix == ".onnx":
        return _OnnxReference(Path(path), spec, threads)
    try:
        return _TorchReference(path)
    except ModuleNotFoundError as error:
        missing = missing_extra(str(error.name), "export", f"the reference {path}")
        raise M2HError(f"{missing}; or give the float32 .onnx file of the same export") from None


class _TorchReference:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        import torch

        from m2h_deploy.model.checkpoint import load_checkpoint, weights_digest

        self._torch = torch
        self._model = load_checkpoint(path)
        self.description = f"PyTorch {torch.__version__}, float32, {self._model.config.variant}"
        self.weights_sha256 = weights_digest(self._model)
        self.tasks: tuple[str, ...] = _TASKS

    def run(self, image: NDArray[np.float32]) -> Outputs:
        with self._torch.inference_mode():
            outputs = self._model(self._torch.from_numpy(image))
        return {name: tensor.numpy() for name, tensor in outputs.items()}


class _OnnxReference:
    def __init__(self, path: Path, spec: InputSpec, threads: int | None) -> None:
        if not path.is_file():
            raise M2HError(f"no reference at {path}: give a checkpoint or the .onnx file of m2h-deploy export")
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing_extra("onnxruntime", "onnxruntime", f"the reference {path}", error=error) from None
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two engines share the cores
        # A reference computes the graph as it was written.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            with _content(path) as content:
                self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except M2HError:
            raise
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise failure(error, f"ONNX Runtime cannot load {path}") from None
        card: dict[str, Any] = self._session.get_modelmeta().custom_metadata_map
        if "m2h.sensor" in card:
            raise M2HError(f"{path} is a sensor graph: give the checkpoint, or the file of the same export without it")
        if "m2h.weights_sha256" not in card:
            raise M2HError(f"{path} was not made by m2h-deploy export: it does not name its weights")
        stated = card.get("m2h.normalization")
        if stated is not None and Normalization.from_json(stated) != normalization_of(spec):
            raise M2HError(
                f"{path} and the engine have different normalizations: give the file that the engine was built from"
            )
        if card.get("m2h.precision", "fp32") != "fp32":
            raise M2HError(f"{path} is {card['m2h.precision']}: a reference must be float32, the file before lowering")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise M2HError(f"{path} does not take one image of N x 3 x height x width: export it again")
        given = inputs[0]
        if list(given.shape[2:]) != [spec.height, spec.width]:
            size = "x".join(str(side) for side in given.shape[2:])
            raise M2HError(f"{path} takes {size} pixels, the engine {spec.height}x{spec.width}: export it at that size")
        if given.type != "tensor(float)":
            raise M2HError(f"{path} takes {given.type}: a reference must be float32")
        self._input = given.name
        self._batch = given.shape[0] if isinstance(given.shape[0], int) else 1
        self._path = path
        self.tasks = tuple(node.name for node in self._session.get_outputs() if node.name in _TASKS)
        self.weights_sha256 = str(card["m2h.weights_sha256"])
        self.description = f"ONNX Runtime {ort.__version__}, float32 graph, {card.get('m2h.variant', 'M2H')}"

    def run(self, image: NDArray[np.float32]) -> Outputs:
        batch = np.repeat(image, self._batch, axis=0) if self._batch > 1 else image
        try:
            values = self._session.run(list(self.tasks), {self._input: batch})
        except Exception as error:  # as above
            raise failure(error, f"ONNX Runtime cannot run {self._path}") from None
        return {name: value[:1] for name, value in zip(self.tasks, values, strict=True)}


@contextmanager
def _content(path: Path) -> Iterator[str | bytes]:
    """What ONNX Runtime opens: the path, or the whole graph where weights lie in other files.

    It does not take the shapes of a graph from another file. A device without onnx leaves that to it.
    """
    try:
        from m2h_deploy.onnx_graph.files import external_files, read_onnx

        whole = bool(external_files(path))
    except ModuleNotFoundError:
        whole = False
    if whole:
        yield read_onnx(path).SerializeToString()
        return
    with library_path(path) as name:
        yield name
