"""One network at one size and batch, and the files that its engines are built from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import torch

from benchmarks.gpu_timing import Roof, Timer
from engines import Lowering, build_bundle
from engines.manifest import input_spec
from engines.options import EngineOptions
from engines.precision.lowering import Float32Graph, lower
from export import ExportOptions, Sensor, add_sensor, export_onnx
from export.deploy_form import to_deploy
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.choices import check_choice
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import whole_file
from m2h_deploy.model import M2H, save_checkpoint
from m2h_deploy.model.config import VARIANTS
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.profiling.costs import node_costs, total
from tests.networks import random_network

#: Width and height of the camera's image, which is resized to the network's size.
CAMERA = (640, 480)


@dataclass(frozen=True)
class Cell:
    """One network at one size and batch."""

    variant: str
    height: int
    width: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Parse VARIANT:HEIGHTxWIDTH:BATCH. Raises M2HError on anything else, and on what cannot be exported."""
        try:
            variant, size, batch = text.split(":")
            height, width = (int(side) for side in size.split("x"))
            cell = cls(variant, height, width, int(batch))
        except ValueError:
            raise M2HError(f"cell '{text}': give VARIANT:HEIGHTxWIDTH:BATCH, such as m2h-small:224x224:1") from None
        check_choice("variant", variant, VARIANTS)
        ExportOptions(height=height, width=width, batch=cell.batch)  # refuses an invalid size or batch
        return cell

    def __str__(self) -> str:
        return f"{self.variant} {self.height}x{self.width} batch {self.batch}"


@dataclass(frozen=True)
class Bench:
    """The device and its limits."""

    device: torch.device
    half: torch.dtype
    timer: Timer
    roof: Roof
    capability: str | None
    """Compute capability of the GPU; None on a CPU."""

    @classmethod
    def on(cls, device: str, runs: int) -> Bench:
        """Measure the limits of a device. Raises M2HError if it is missing."""
        if device == "cuda" and not torch.cuda.is_available():
            raise M2HError("no CUDA device that this PyTorch can use: run this on a machine with one, or --device cpu")
        # IEEE float32, by which parity is judged.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        place, half = torch.device(device), torch.float16 if device == "cuda" else torch.bfloat16
        timer = Timer.on(place, runs)
        capability = ".".join(map(str, torch.cuda.get_device_capability())) if device == "cuda" else None
        return cls(place, half, timer, Roof.measure(timer, place, half), capability)


class Workspace:
    """The network of a cell and its files in `folder`, each made when it is first used. Weights are random."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        self.cell, self._folder = cell, folder
        self.least_ms: float | None = None
        """Least time on the roofline; None until `export`."""

    @cached_property
    def model(self) -> M2H:
        """The network on the CPU."""
        return random_network(self.cell.variant).requires_grad_(False)

    def network(self, form: str) -> torch.nn.Module:
        """Return a new copy of the network on the CPU in a form: reference or deploy."""
        return copy.deepcopy(self.model) if form == "reference" else to_deploy(self.model, *self._sides)

    def export(self, roof: Roof) -> None:
        """Export the deploy form, and place it on the roofline in half precision."""
        height, width = self._sides
        graph = self._folder / "fp32.onnx"
        export_onnx(self.model, graph, height=height, width=width, batch=self.cell.batch)
        costs = node_costs(onnx.load(graph))
        macs, nbytes = total(node.macs for node in costs), total(node.nbytes for node in costs)
        self.least_ms = roof.least_ms(macs, nbytes // 2)

    def build(self, engine: str, precision: str, options: EngineOptions, *, raw_pixels: bool) -> Bundle:
        """Build a bundle from the exported graph, or from its raw-pixel graph; each replaces the previous one."""
        graph = self._graph(precision)
        source = self._with_pixels(graph) if raw_pixels else graph
        return build_bundle(source, self._folder / "bundle", engine=engine, options=options)

    def _graph(self, precision: str) -> Path:
        """Return the exported graph in a precision; it is lowered once for all engines."""
        path = self._folder / f"{precision}.onnx"
        if not path.is_file():
            exported = self._graph("fp32")
            proto = onnx.load(exported)
            info = GraphInfo.read(proto, exported)
            # Time depends on neither weights nor ranges: one frame is enough to calibrate on.
            lowering = Lowering(frames=str(self.rooms / "images"), count=1, held_out=1)
            lowering = lowering if precision == "int8" else Lowering()
            graph = Float32Graph(exported, info, input_spec(proto, info))
            with whole_file(path) as temporary:
                lower(graph, temporary, precision, lowering, lowering.pictures(precision))
        return path

    def _with_pixels(self, graph: Path) -> Path:
        """Return a copy of a graph in any precision that takes raw pixels."""
        proto = onnx.load(graph)
        replace(GraphInfo.read(proto, graph), lowered=None).write(proto)  # its self-test is that of the plain graph
        path = graph.with_name(f"raw-{graph.name}")
        onnx.save(add_sensor(proto, Sensor(CAMERA)), path)
        return path

    @cached_property
    def rooms(self) -> Path:
        """A data set of rendered rooms."""
        return write_multitask_folder(self._folder / "rooms", Rooms(8, 7, *self._sides))

    @cached_property
    def checkpoint(self) -> Path:
        """The network's checkpoint."""
        return save_checkpoint(self.model, self._folder / "model.safetensors")

    @property
    def _sides(self) -> tuple[int, int]:
        return self.cell.height, self.cell.width
