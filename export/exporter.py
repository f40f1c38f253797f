"""`export_onnx`: an M2H network to a checked ONNX file."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export import graph
from export.check import CheckReport, check_export
from export.deploy_form import to_deploy
from export.sensor import Sensor, add_sensor
from export.sensor_check import check_sensor
from export.static_form import to_static
from export.windows import add_function_bodies, use_functions
from m2h_deploy import __version__
from m2h_deploy.consistency import MAX_CLASSES
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files import check_writable, library_path, whole_file
from m2h_deploy.model.checkpoint import weights_digest
from m2h_deploy.model.config import TASKS
from m2h_deploy.model.network import M2H
from m2h_deploy.preprocess import PRESETS

#: TensorRT 10.3 (JetPack 6) parses opset 9 to 20, ONNX Runtime and OpenVINO go further: 20 is the newest that all
#: three take, and the first with Gelu as one operator.
DEFAULT_OPSET = 20
OPSETS = range(18, 24)

MIN_SIDE, MAX_SIDE = 14, 4096
Form = Literal["reference", "deploy"]
Windows = Literal["standard", "functions"]


class _Outputs(nn.Module):
    """The traced module: a tuple of the wanted tasks, so that heads nobody wants leave the graph."""

    def __init__(self, network: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tuple(tasks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(image)
        return tuple(outputs[task] for task in self.tasks)


def export_onnx(
    model: M2H,
    path: str | os.PathLike[str],
    *,
    height: int = 224,
    width: int = 224,
    batch: int = 1,
    dynamic_batch: bool = False,
    opset: int = DEFAULT_OPSET,
    tasks: Sequence[str] = TASKS,
    windows: Windows = "standard",
    form: Form = "deploy",
    preset: str = "published",
    sensor: Sensor | None = None,
    images: Sequence[np.ndarray] = (),
    on_check: Callable[[CheckReport], None] | None = None,
) -> Path:
    """Write `model` as ONNX and check the file against it. Returns the path.

    The graph has one input `image` (batch, 3, height, width) float32, normalised, and one output a task, in the
    order of TASKS. Height and width are static, the batch too unless `dynamic_batch`; `windows="functions"` keeps
    WMCA's partition as ONNX functions (see `export.windows`). `form="deploy"` is the network rewritten to do less work
    (see `export.deploy_form`), the same function up to rounding; "reference" is the network as published. `preset` is
    how images were normalised in training.
    With `sensor` the graph takes a camera's raw pixels and gives finished results (see `export.sensor.add_sensor`);
    its outputs decide the tasks.

    The check compares names, shapes and values with `model` on `images` (uint8 BGR, H x W x 3; a rendered room
    where none is given) and on random input, and hands its report to `on_check`; a sensor graph is then compared with
    the plain one between Python's preprocess and postprocess. The file appears only when the checks
    pass. Raises M2HError on options that make no graph and CheckFailed on a failed check.
    """
    path = Path(path)
    _check_options(height, width, batch, opset, tasks, windows, form, preset, path)
    if model.config.num_classes > MAX_CLASSES:
        raise M2HError(f"{model.config.num_classes} classes: labels have 8 bits, which hold at most {MAX_CLASSES}")
    tasks = [task for task in TASKS if task in (tasks if sensor is None else sensor.tasks)]
    proto = _trace(model, height, width, 1 if dynamic_batch else batch, opset, tasks, windows, form)
    graph.name_by_module(proto)
    if dynamic_batch:
        graph.free_batch(proto)
    proto.producer_name, proto.producer_version = "m2h-deploy", __version__
    graph.set_metadata(proto, _metadata(model, tasks, windows, form, preset))
    proto = graph.infer_shapes(proto)

    with whole_file(path) as temporary:
        onnx.save(proto, temporary)
        with library_path(temporary) as file:
            report = check_export(model, file, images=images)
        _require(report, "the exported graph", "the checkpoint", on_check)
        if sensor is not None:
            plain = proto.SerializeToString()
            onnx.save(add_sensor(proto, sensor), temporary)
            with library_path(temporary) as file:
                report = check_sensor(plain, file, images=images)
            _require(report, "the sensor graph", "preprocess, network and postprocess", on_check)
    return path


def _require(report: CheckReport, what: str, reference: str, on_check: Callable[[CheckReport], None] | None) -> None:
    if on_check is not None:
        on_check(report)
    if not report.passed:
        raise CheckFailed(f"{what} does not match {reference}: {'; '.join(report.failures)}")


def _check_options(
    height: int,
    width: int,
    batch: int,
    opset: int,
    tasks: Sequence[str],
    windows: str,
    form: str,
    preset: str,
    path: Path,
) -> None:
    for name, side in (("height", height), ("width", width)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise M2HError(f"{name} {side}: must be between {MIN_SIDE} and {MAX_SIDE} pixels")
    if not 1 <= batch <= 64:
        raise M2HError(f"batch {batch}: must be between 1 and 64")
    if opset not in OPSETS:
        raise M2HError(
            f"opset {opset}: must be between {OPSETS.start} and {OPSETS.stop - 1}, {DEFAULT_OPSET} fits most"
        )
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise M2HError(f"tasks {', '.join(unknown) or 'none'}: choose from {', '.join(TASKS)}")
    if windows not in ("standard", "functions"):
        raise M2HError(f"windows '{windows}': choose standard or functions")
    if form not in ("reference", "deploy"):
        raise M2HError(f"form '{form}': choose reference or deploy")
    if preset not in PRESETS:
        raise M2HError(f"preset '{preset}': choose one of {', '.join(PRESETS)}")
    check_writable(path)


def _trace(
    model: M2H,
    height: int,
    width: int,
    batch: int,
    opset: int,
    tasks: Sequence[str],
    windows: Windows,
    form: Form,
) -> onnx.ModelProto:
    network = to_static(model.eval(), height, width) if form == "reference" else to_deploy(model, height, width)
    if windows == "functions":
        use_functions(network)
    traced = _Outputs(network, tasks).eval()
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            traced,
            (torch.zeros(batch, 3, height, width),),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=list(tasks),
            verbose=False,
        )
    assert program is not None
    proto = copy.deepcopy(program.model_proto)
    if windows == "functions":
        add_function_bodies(proto, graph.static_shapes(proto))
    return proto


def _metadata(model: M2H, tasks: Sequence[str], windows: str, form: str, preset: str) -> dict[str, str]:
    """What another program must know to use the file, and what made it."""
    return {
        "m2h.version": __version__,
        "m2h.variant": model.config.variant,
        "m2h.config": json.dumps(model.config.to_dict()),
        "m2h.weights_sha256": weights_digest(model),
        "m2h.tasks": ",".join(tasks),
        "m2h.preset": preset,
        "m2h.form": form,
        "m2h.windows": windows,
        "m2h.torch": torch.__version__,
    }


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
