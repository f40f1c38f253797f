"""PyTorch in the GPU benchmark: golden parity, and its ways to run a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_cell import Bench, Workspace
from benchmarks.gpu_record import Row, attempt
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.model import load_checkpoint
from tests.golden import filler

PARITY = "golden parity"

Outputs = dict[str, torch.Tensor]


def parity_rows(bench: Bench) -> Iterator[Row]:
    """Compare the reference on this device with the golden measurements of the published code, by output."""
    for file in sorted(filler.HERE.glob("*_1x3x224x224_seed0.npz")):
        name = file.name.split("_1x3")[0]
        with scratch_folder("m2h-golden-") as folder:
            weights = {key: torch.from_numpy(value) for key, value in filler.weights(name).items()}
            torch.save(weights, folder / "weights.pt")
            model = load_checkpoint(folder / "weights.pt").to(bench.device)
        image, measured = torch.from_numpy(filler.image(1, 224, 224)).to(bench.device), np.load(file)
        for precision in ("fp32", "half"):
            outputs = runner(bench, model, image, half=precision == "half")()
            words = ", ".join(f"{task} {_worst_share(value, measured, task):.1e}" for task, value in outputs.items())
            yield Row(f"{name} 224x224", f"{PARITY} {precision}", note=f"largest errors: {words}")


def _worst_share(value: torch.Tensor, measured: Any, task: str) -> float:
    """Return the largest error of an output at the measured positions, every eighth pixel, over its deviation."""
    error = np.abs(value[:, :, ::8, ::8].float().cpu().numpy() - measured[f"out_{task}"])
    return float(error.max() / measured[f"stat_{task}"][1])


@dataclass(frozen=True)
class TorchWay:
    """One form of the network in PyTorch, as it is and as a CUDA graph. `half` is autocast."""

    form: str
    half: bool
    compiled: bool = False
    by_name: bool = False
    """Run only if `--ways` selects it."""
    exports = False

    @property
    def name(self) -> str:
        """Name of the way."""
        return f"{'torch.compile' if self.compiled else 'PyTorch eager'} {'half' if self.half else 'fp32'} {self.form}"

    def refusal(self, bench: Bench) -> str | None:
        """Return why it cannot run here: it can."""
        return None

    def rows(self, bench: Bench, work: Workspace) -> Iterator[Row]:
        """Measure the way, launched kernel by kernel and, in half precision, as a CUDA graph."""
        cell = work.cell
        network = work.network(self.form).to(bench.device)
        if self.compiled:
            torch._dynamo.reset()
            network = torch.compile(network, dynamic=False)
        host = torch.rand(cell.batch, 3, cell.height, cell.width)
        image = host.to(bench.device)
        run = runner(bench, network, image, half=self.half)

        def row(name: str, run: Callable[[], Outputs]) -> Row:
            def frame() -> list[torch.Tensor]:
                image.copy_(host)
                return [value.cpu() for value in run().values()]

            times, frame_ms = bench.timer.times(run), bench.timer.frames(frame)
            return Row.of(cell, name, times, frame_ms=frame_ms, roofline_ms=work.least_ms)

        yield attempt(cell, self.name, lambda: row(self.name, run))
        if self.half:
            name = f"{self.name} CUDA graph"
            yield attempt(cell, name, lambda: row(name, captured(bench, run)))


FORMS = ("reference", "deploy")
EAGER_WAYS = tuple(TorchWay(form, half) for form in FORMS for half in (False, True))
#: Compiling takes longest.
COMPILED_WAYS = tuple(TorchWay(form, half=True, compiled=True, by_name=form == "deploy") for form in FORMS)


def runner(bench: Bench, network: Any, image: torch.Tensor, *, half: bool) -> Callable[[], Outputs]:
    """Return a function that runs `network` on `image`, a tensor that stays in place."""

    def run() -> Outputs:
        with torch.inference_mode(), torch.autocast(bench.device.type, bench.half, enabled=half):
            outputs: Outputs = network(image)
            return outputs

    return run


def captured(bench: Bench, run: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """Capture `run` as a CUDA graph and return a function that replays it, always into the same outputs.

    The warm-up runs on a side stream, as https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks for.
    """
    if bench.capability is None:
        raise M2HError("CUDA graphs need an NVIDIA GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
