"""Options of `export_onnx`, validated before a checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from export.raw_pixels import Sensor
from m2h_deploy.bundle.manifest import MAX_CLASSES, Classes, LabelMap
from m2h_deploy.choices import Form, LabelResolution, Windows, check_choice
from m2h_deploy.data.classes import default_classes
from m2h_deploy.errors import M2HError
from m2h_deploy.label_spaces.space import LabelSpace
from m2h_deploy.model.config import ModelConfig
from m2h_deploy.runtime.preprocess import PRESETS, Normalization
from m2h_deploy.tasks import TASKS

#: TensorRT 10.3 (JetPack 6) parses opset 9 to 20, ONNX Runtime and OpenVINO parse newer ones too: 20 is the newest that
#: all three accept, and the first with Gelu as one operator.
DEFAULT_OPSET = 20
OPSETS = range(18, 24)

MIN_SIDE, MAX_SIDE = 14, 4096
PUBLISHED = PRESETS["published"]


class ExportKeywords(TypedDict, total=False):
    """The options of an export as keywords of `export_onnx`: the fields of `ExportOptions`."""

    height: int
    width: int
    batch: int
    dynamic_batch: bool
    opset: int
    tasks: Sequence[str] | None
    windows: Windows
    form: Form
    normalization: Normalization
    classes: Classes | None
    sensor: Sensor | None
    label_map: LabelSpace | None
    label_resolution: LabelResolution


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Raises:
        M2HError: The options do not describe a valid graph, or one of them makes another one ineffective.
    """

    height: int = 224
    """Height of the network's input in pixels, 14 to 4096."""
    width: int = 224
    """Width of the network's input in pixels, 14 to 4096."""
    batch: int = 1
    """Frames in a batch, 1 to 64."""
    dynamic_batch: bool = False
    """Leave the batch size free."""
    opset: int = DEFAULT_OPSET
    tasks: Sequence[str] | None = None
    """Outputs to keep; None: all. With `sensor` its outputs determine them."""
    windows: Windows = "standard"
    """"functions" keeps WMCA's partition as ONNX functions (see `export.windows`)."""
    form: Form = "deploy"
    """"deploy": rewritten to do less work (see `export.deploy_form`), the same function up to rounding; "reference": as
    published."""
    normalization: Normalization = PUBLISHED
    """Normalization of images in training; recorded in the file."""
    classes: Classes | None = None
    """Names and colors of the semantic classes, recorded in the file; None: those of the data set with as many."""
    sensor: Sensor | None = None
    """Take a camera's raw pixels and return final results (see `export.raw_pixels.add_sensor`)."""
    label_map: LabelSpace | None = None
    """Give labels in this space: logits are reduced over groups of the network's classes (see `export.label_map`)."""
    label_resolution: LabelResolution = "network"
    """"network": argmax of the logits, then labels are resized to the image; "full": logits are resized, then argmax.
    A sensor graph does so itself; for other graphs the runtime does, as the file's metadata says."""

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not MIN_SIDE <= side <= MAX_SIDE:
                raise M2HError(f"{name} {side}: must be between {MIN_SIDE} and {MAX_SIDE} pixels")
        if not 1 <= self.batch <= 64:
            raise M2HError(f"batch {self.batch}: must be between 1 and 64")
        if self.dynamic_batch and self.batch != 1:
            raise M2HError(f"batch {self.batch} has no effect with a dynamic batch size: leave one of the two out")
        if self.opset not in OPSETS:
            raise M2HError(
                f"opset {self.opset}: must be between {OPSETS.start} and {OPSETS.stop - 1}, {DEFAULT_OPSET} fits most"
            )
        check_choice("windows", self.windows, Windows)
        check_choice("form", self.form, Form)
        check_choice("label resolution", self.label_resolution, LabelResolution)
        self._check_tasks()
        self._check_normalization()
        if "semantics" not in self.network_tasks:
            if self.label_map is not None:
                raise M2HError("a label map needs the output semantics: keep it, or leave the label map out")
            if self.label_resolution != "network":
                raise M2HError("labels of full resolution need the output semantics: keep it, or leave them out")

    def _check_tasks(self) -> None:
        if self.tasks is None:
            return
        if self.sensor is not None:
            raise M2HError("the sensor chooses the outputs of a sensor graph: leave the tasks out")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise M2HError(f"outputs {', '.join(unknown) or 'none'}: choose from {', '.join(TASKS)}")

    def _check_normalization(self) -> None:
        given = self.normalization
        for name, values in (("mean", given.mean), ("std", given.std)):
            if given.scale != PUBLISHED.scale or not all(0 <= value <= 1 for value in values):
                raise M2HError(
                    f"{name} {','.join(f'{value:g}' for value in values)}: give units of 0 to 1, as torchvision does; "
                    "for pixels of 0 to 255 divide by 255"
                )

    def check_model(self, config: ModelConfig) -> None:
        """Raise M2HError if the options do not fit the network of `config`."""
        count = config.num_classes
        if count > MAX_CLASSES:
            raise M2HError(f"{count} classes: labels have 8 bits, which hold at most {MAX_CLASSES}")
        given = len(self.classes.names) if self.classes is not None else count
        if given != count:
            missing = "; its first class may be 'unknown'" if given == count - 1 else ""
            raise M2HError(f"{given} classes are named, the checkpoint has {count}: name each{missing}")
        self.labels_of(config)
        if self.windows == "functions" and config.cross_task != "wmca":
            raise M2HError("the network has no windows to keep as functions (its cross_task is not wmca): leave it out")

    def labels_of(self, config: ModelConfig) -> tuple[Classes, LabelMap | None]:
        """Return the classes of the graph's labels, and their groups with a label map.

        Raises:
            M2HError: The label map does not fit the network's classes.
        """
        network = self.classes or default_classes(config.num_classes)
        return (network, None) if self.label_map is None else self.label_map.resolve(network)

    @property
    def network_tasks(self) -> tuple[str, ...]:
        """The network's outputs in the graph, in the order of TASKS."""
        wanted = TASKS if self.tasks is None else self.tasks
        return tuple(task for task in TASKS if task in (wanted if self.sensor is None else self.sensor.tasks))
