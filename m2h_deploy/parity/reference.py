"""The reference of a parity run: the PyTorch network of a checkpoint, or without torch the float32 ONNX file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import InputSpec, LabelMap
from m2h_deploy.errors import M2HError, MissingExtra, missing_extra
from m2h_deploy.files.atomic import library_path
from m2h_deploy.label_spaces.reduce import reduce_logits
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.runtime.preprocess import normalization_of
from m2h_deploy.tasks import TASKS

Outputs = dict[str, NDArray[np.float32]]


class Reference(Protocol):
    """The network that an engine is compared with."""

    description: str
    weights_sha256: str
    tasks: tuple[str, ...]

    def run(self, image: NDArray[np.float32]) -> Outputs:
        """Run the network on (1, 3, H, W) float32, normalized; return the outputs by name, (1, C, H, W) each."""
        ...


def open_reference(
    path: str | os.PathLike[str], spec: InputSpec, threads: int | None = None, label_map: LabelMap | None = None
) -> Reference:
    """Open the reference at `path` for an engine of input `spec`.

    Args:
        path: A checkpoint (or the name of shipped weights), which needs torch, or an ONNX file of m2h-deploy export in
            float32, which needs ONNX Runtime.
        spec: The engine's input.
        threads: CPU threads in ONNX Runtime; all by default.
        label_map: The engine's label map: a reference without it gets its logits reduced likewise.

    Raises:
        M2HError: The file is neither, or a required package is not installed.
    """
    if Path(path).suffix == ".onnx":
        return _OnnxReference(Path(path), spec, threads, label_map)
    try:
        return _TorchReference(path, label_map)
    except ModuleNotFoundError as error:
        missing = missing_extra(str(error.name), "export", f"the reference {path}")
        raise MissingExtra(f"{missing}; or give the float32 .onnx file of the same export") from None


def _check_count(path: str | os.PathLike[str], classes: int, label_map: LabelMap | None) -> None:
    if label_map is not None and len(label_map.network_classes) != classes:
        raise M2HError(
            f"{path} has {classes} classes, the engine's label map is for {len(label_map.network_classes)}: give the "
            "file the bundle was built from"
        )


class _TorchReference:
    def __init__(self, path: str | os.PathLike[str], label_map: LabelMap | None) -> None:
        import torch

        from m2h_deploy.model.checkpoint import load_checkpoint, weights_digest

        self._torch, self._label_map = torch, label_map
        self._model = load_checkpoint(path)
        _check_count(path, self._model.config.num_classes, label_map)
        self.description = f"PyTorch {torch.__version__}, float32, {self._model.config.variant}"
        self.weights_sha256 = weights_digest(self._model)
        self.tasks: tuple[str, ...] = TASKS

    def run(self, image: NDArray[np.float32]) -> Outputs:
        with self._torch.inference_mode():
            outputs = self._model(self._torch.from_numpy(image))
        return _reduced({name: tensor.numpy() for name, tensor in outputs.items()}, self._label_map)


class _OnnxReference:
    def __init__(self, path: Path, spec: InputSpec, threads: int | None, label_map: LabelMap | None) -> None:
        if not path.is_file():
            raise M2HError(f"no reference at {path}: give a checkpoint or the .onnx file of m2h-deploy export")
        try:
            import onnxruntime as ort

            from m2h_deploy.onnx_graph.session import cpu_session
        except ImportError as error:
            raise missing_extra("onnxruntime", "onnxruntime", f"the reference {path}", error=error) from None
        threads = threads or len(os.sched_getaffinity(0))
        with _content(path) as content:  # optimize="basic": a reference computes the graph without fusions
            self._session = cpu_session(content, path, optimize="basic", threads=threads)
        info = GraphInfo.parse(self._session.get_modelmeta().custom_metadata_map, path)
        if info.sensor is not None:
            raise M2HError(f"{path} is a sensor graph: give the checkpoint, or the file of the same export without it")
        if info.normalization != normalization_of(spec):
            raise M2HError(
                f"{path} and the engine have different normalizations: give the file that the engine was built from"
            )
        if info.precision not in (None, "fp32"):
            raise M2HError(f"{path} is {info.precision}: a reference must be float32, the file before lowering")
        self._label_map = _map_to_apply(path, info.label_map, label_map)
        _check_count(path, len(info.classes.names), self._label_map)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise M2HError(f"{path} does not take one image of N x 3 x height x width: export it again")
        given = inputs[0]
        if list(given.shape[2:]) != [spec.height, spec.width]:
            size = "x".join(str(side) for side in given.shape[2:])
            raise M2HError(f"{path} takes {size} pixels, the engine {spec.height}x{spec.width}: export it at that size")
        if given.type != "tensor(float)":
            raise M2HError(f"{path} takes {given.type}: a reference must be float32")
        self._batch = given.shape[0] if isinstance(given.shape[0], int) else 1
        self._path = path
        self.tasks = tuple(node.name for node in self._session.get_outputs() if node.name in TASKS)
        self.weights_sha256 = info.weights_sha256
        self.description = f"ONNX Runtime {ort.__version__}, float32 graph, {info.variant}"

    def run(self, image: NDArray[np.float32]) -> Outputs:
        batch = np.repeat(image, self._batch, axis=0) if self._batch > 1 else image
        from m2h_deploy.onnx_graph.session import run_session

        outputs = run_session(self._session, batch, self._path, self.tasks)
        return _reduced({name: value[:1] for name, value in outputs.items()}, self._label_map)


def _map_to_apply(path: Path, own: LabelMap | None, wanted: LabelMap | None) -> LabelMap | None:
    """Return the label map to reduce the logits of the file `path` by: none if it has the wanted one itself."""
    if own is None or own == wanted:
        return wanted if own is None else None
    words = "another label map" if wanted is not None else f"the label map {own.name}, the engine none"
    raise M2HError(f"{path} and the engine differ: it has {words}: give the file that the engine was built from")


def _reduced(outputs: Outputs, label_map: LabelMap | None) -> Outputs:
    if label_map is not None and "semantics" in outputs:
        outputs["semantics"] = reduce_logits(outputs["semantics"], label_map)
    return outputs


@contextmanager
def _content(path: Path) -> Iterator[str | bytes]:
    """Yield ONNX Runtime's input: the path, or the whole graph if its weights are in other files.

    ONNX Runtime cannot read shape data from another file. On a device without onnx, it gets the path in any case.
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
