"""Export an M2H network to a checked ONNX file."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export import graph
from export.check import CheckReport, check_export
from export.deploy_form import to_deploy
from export.label_map import reduce_semantics
from export.options import ExportKeywords, ExportOptions
from export.raw_pixels import add_sensor
from export.raw_pixels_check import check_sensor
from export.static_form import to_static
from export.windows import add_function_bodies, use_functions
from m2h_deploy.errors import CheckFailed
from m2h_deploy.files.atomic import check_writable, library_path, whole_file
from m2h_deploy.model.checkpoint import weights_digest
from m2h_deploy.model.network import M2H
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Outputs(nn.Module):
    """The traced module: a tuple of the requested tasks, so that the other heads are not part of the graph."""

    def __init__(self, network: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tuple(tasks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the requested outputs for images (N, 3, H, W)."""
        outputs = self.network(image)
        return tuple(outputs[task] for task in self.tasks)


@dataclass(frozen=True)
class ExportResult:
    """An exported file and its differences from the checkpoint."""

    path: Path
    report: CheckReport


def export_onnx(
    model: M2H,
    path: str | os.PathLike[str],
    *,
    images: Sequence[np.ndarray] = (),
    **options: Unpack[ExportKeywords],
) -> ExportResult:
    """Write `model` as ONNX and check the file against it.

    ```python
    export_onnx(model, "model.onnx", height=480, width=640)
    ```

    The graph has one input `image` (batch, 3, height, width) float32, normalized, and one output per task, in the order
    of TASKS. Height and width are static, the batch too unless it is dynamic. The options are the fields of
    `ExportOptions`.

    The check compares names, shapes and values with `model` on `images` (uint8 BGR, H x W x 3; a rendered room by
    default) and on noise; a sensor graph is then compared with the plain one between Python's preprocess and
    postprocess. The file is written only if the checks pass.

    Raises:
        M2HError: The options do not describe a valid graph.
        CheckFailed: A check failed; the error carries the report.
    """
    path, chosen = check_writable(path), ExportOptions(**options)
    chosen.check_model(model.config)
    proto = make_graph(model, chosen)

    with whole_file(path) as temporary:
        onnx.save(proto, temporary)
        with library_path(temporary) as file:
            report = check_export(model, file, images=images)
        _require(report, "the exported graph", "the checkpoint")
        if chosen.sensor is not None:
            plain = proto.SerializeToString()
            onnx.save(add_sensor(proto, chosen.sensor), temporary)
            with library_path(temporary) as file:
                report = report.joined(check_sensor(plain, file, images=images))
            _require(report, "the sensor graph", "preprocess, network and postprocess")
    return ExportResult(path, report)


def make_graph(model: M2H, options: ExportOptions) -> onnx.ModelProto:
    """Trace `model` and return the graph with its metadata, unchecked and without the sensor's part.

    `export_onnx` is the function to use; benchmarks that only need a graph of the right size save the check.
    """
    proto = _trace(model, options)
    graph.name_by_module(proto)
    if options.dynamic_batch:
        graph.free_batch(proto)
    info = _graph_info(model, options)
    if info.label_map is not None:
        reduce_semantics(proto, info.label_map)
    proto.producer_name, proto.producer_version = "m2h-deploy", __version__
    del proto.metadata_props[:]
    info.write(proto)
    return graph.infer_shapes(proto)


def _require(report: CheckReport, what: str, reference: str) -> None:
    if not report.passed:
        raise CheckFailed(f"{what} does not match {reference}: {'; '.join(report.failures)}", report)


def _trace(model: M2H, options: ExportOptions) -> onnx.ModelProto:
    height, width, tasks = options.height, options.width, options.network_tasks
    plain = options.form == "reference"
    network = to_static(model.eval(), height, width) if plain else to_deploy(model, height, width)
    if options.windows == "functions":
        use_functions(network)
    traced = _Outputs(network, tasks).eval()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            traced,
            (torch.zeros(options.batch, 3, height, width),),
            dynamo=True,
            opset_version=options.opset,
            input_names=["image"],
            output_names=list(tasks),
            verbose=False,
        )
    assert program is not None
    proto = copy.deepcopy(program.model_proto)
    if options.windows == "functions":
        add_function_bodies(proto, graph.static_shapes(proto))
    return proto


def _graph_info(model: M2H, options: ExportOptions) -> GraphInfo:
    """Return what another program must know to use the file, and what made it."""
    classes, label_map = options.labels_of(model.config)
    return GraphInfo(
        variant=model.config.variant,
        config=model.config.to_dict(),
        weights_sha256=weights_digest(model),
        tasks=options.network_tasks,
        normalization=options.normalization,
        classes=classes,
        form=options.form,
        windows=options.windows,
        version=__version__,
        torch=torch.__version__,
        label_map=label_map,
        label_resolution=options.label_resolution,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's log messages about torchvision and its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
