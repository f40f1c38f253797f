"""`export_onnx`: an M2H network to a checked ONNX file."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export import graph
from export.check import CheckReport, check_export
from export.deploy_form import to_deploy
from export.options import DEFAULT_OPSET, PUBLISHED, ExportOptions
from export.raw_pixels import Sensor, add_sensor
from export.raw_pixels_check import check_sensor
from export.static_form import to_static
from export.windows import add_function_bodies, use_functions
from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.classes import default_classes
from m2h_deploy.errors import CheckFailed
from m2h_deploy.files.atomic import check_writable, library_path, whole_file
from m2h_deploy.model.checkpoint import weights_digest
from m2h_deploy.model.network import M2H
from m2h_deploy.onnx_graph.info import Form, GraphInfo, Windows
from m2h_deploy.runtime.preprocess import Normalization
from m2h_deploy.version import __version__


class _Outputs(nn.Module):
    """The traced module: a tuple of the wanted tasks, so that unwanted heads leave the graph."""

    def __init__(self, network: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tuple(tasks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(image)
        return tuple(outputs[task] for task in self.tasks)


@dataclass(frozen=True)
class ExportResult:
    """An exported file, and how far it is from the checkpoint."""

    path: Path
    report: CheckReport


def export_onnx(
    model: M2H,
    path: str | os.PathLike[str],
    *,
    height: int = 224,
    width: int = 224,
    batch: int = 1,
    dynamic_batch: bool = False,
    opset: int = DEFAULT_OPSET,
    tasks: Sequence[str] | None = None,
    windows: Windows = "standard",
    form: Form = "deploy",
    normalization: Normalization = PUBLISHED,
    classes: Classes | None = None,
    sensor: Sensor | None = None,
    images: Sequence[np.ndarray] = (),
) -> ExportResult:
    """Write `model` as ONNX and check the file against it.

    The graph has one input `image` (batch, 3, height, width) float32, normalized, and one output a task, in the
    order of TASKS. Height and width are static, the batch too unless `dynamic_batch`; `windows="functions"` keeps
    WMCA's partition as ONNX functions (see `export.windows`). `form="deploy"` is the network rewritten to do less work
    (see `export.deploy_form`), the same function up to rounding; "reference" is the network as published.
    `normalization` is how images were normalized in training, and `classes` names and colors the semantic classes
    (those of the data set that has as many, where None): both are recorded in the file for everything that reads it.
    With `sensor` the graph takes a camera's raw pixels and gives finished results (see `export.raw_pixels.add_sensor`);
    its outputs decide the tasks.

    The check compares names, shapes and values with `model` on `images` (uint8 BGR, H x W x 3; a rendered room
    where none is given) and on random input; a sensor graph is then compared with the plain one between Python's
    preprocess and postprocess. The file appears only when the checks pass. Raises M2HError on options that make no
    graph and CheckFailed, with the report, on a failed check.
    """
    path = check_writable(path)
    options = ExportOptions(
        height, width, batch, dynamic_batch, opset, tasks, windows, form, normalization, classes, sensor
    )
    options.check_model(model.config)
    proto = _trace(model, options)
    graph.name_by_module(proto)
    if dynamic_batch:
        graph.free_batch(proto)
    proto.producer_name, proto.producer_version = "m2h-deploy", __version__
    del proto.metadata_props[:]
    _graph_info(model, options).write(proto)
    proto = graph.infer_shapes(proto)

    with whole_file(path) as temporary:
        onnx.save(proto, temporary)
        with library_path(temporary) as file:
            report = check_export(model, file, images=images)
        _require(report, "the exported graph", "the checkpoint")
        if sensor is not None:
            plain = proto.SerializeToString()
            onnx.save(add_sensor(proto, sensor), temporary)
            with library_path(temporary) as file:
                report = report.joined(check_sensor(plain, file, images=images))
            _require(report, "the sensor graph", "preprocess, network and postprocess")
    return ExportResult(path, report)


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
    """What another program must know to use the file, and what made it."""
    return GraphInfo(
        variant=model.config.variant,
        config=model.config.to_dict(),
        weights_sha256=weights_digest(model),
        tasks=options.network_tasks,
        normalization=options.normalization,
        classes=options.classes or default_classes(model.config.num_classes),
        form=options.form,
        windows=options.windows,
        version=__version__,
        torch=torch.__version__,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about torchvision and its own internals off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
