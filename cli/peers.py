"""What `bench --peers` compares a bundle with: the checkpoint in PyTorch, and a plain export on the bundle's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.bundle.manifest import Bundle, EngineInfo, file_sha256
from m2h_deploy.causes import reason
from m2h_deploy.console import say
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.profiling import Subject, subject_of
from m2h_deploy.runtime.runtime import Runtime

if TYPE_CHECKING:
    import torch

    from m2h_deploy.model import M2H


@contextmanager
def open_peers(checkpoint: str, threads: int | None) -> Iterator[Callable[[Runtime], list[Subject]]]:
    """A function that makes the peers of a bundle; what they need on disk is gone after the block.

    Each has the pre- and postprocessing of the bundle's own runtime. Raises M2HError on anything but a checkpoint.
    """
    import torch

    from m2h_deploy.model import load_checkpoint

    model = load_checkpoint(checkpoint).eval().requires_grad_(False)
    if threads is not None:
        torch.set_num_threads(threads)
    with scratch_folder("m2h-peers-") as folder:

        def make(runtime: Runtime) -> list[Subject]:
            return list(_peers(model, runtime, folder, threads))

        yield make


def _peers(model: M2H, runtime: Runtime, folder: Path, threads: int | None) -> Iterator[Subject]:
    import torch

    bundle = runtime.bundle
    if bundle.manifest.sensor is not None:
        raise M2HError(f"{bundle.path} is a sensor graph: give --peers a bundle of the plain network first")
    device = "cuda" if bundle.manifest.engine.kind.startswith("tensorrt") and torch.cuda.is_available() else "cpu"
    model = model.to(device)
    used = threads if device == "cuda" else torch.get_num_threads()
    eager = TorchBackend(model, device, f"PyTorch {torch.__version__}, eager, {device}")
    yield subject_of(Runtime(bundle, eager), "PyTorch eager", threads=used, peer=True)
    compiled = TorchBackend(torch.compile(model), device, f"PyTorch {torch.__version__}, torch.compile, {device}")
    try:
        spec = bundle.manifest.input
        compiled.run(np.zeros((spec.batch or 1, 3, spec.height, spec.width), np.float32))
        yield subject_of(Runtime(bundle, compiled), "torch.compile", threads=used, peer=True)
    except Exception as error:  # its errors share no type; a machine without a C++ compiler has no such peer
        say(f"torch.compile is left out: {reason(error)[:150]}", "yellow")
    model.to("cpu")
    try:
        plain = plain_bundle(model, bundle, folder, threads)
        backend = open_backend(plain, BackendOptions(threads=threads))
        name = f"plain export, {plain.manifest.engine.kind}"
        yield subject_of(Runtime(plain, backend), name, threads=threads, peer=True)
    except M2HError as error:
        say(f"the plain export is left out: {error}", "yellow")
    if device == "cuda":
        model.to(device)


class TorchBackend:
    """A network in PyTorch behind the interface of an engine."""

    def __init__(self, network: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], device: str, words: str) -> None:
        self._network, self._device = network, device
        self.description = words

    def run(
        self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        import torch

        with torch.inference_mode():
            outputs = self._network(torch.from_numpy(image).to(self._device))
            arrays = {name: value.float().cpu().numpy() for name, value in outputs.items()}
        if out is not None:
            for name, array in out.items():
                np.copyto(array, arrays[name])
            return out
        return arrays

    def new_outputs(self, batch: int = 1) -> dict[str, NDArray[np.float32]]:
        raise M2HError("PyTorch makes its own outputs")

    def close(self) -> None:
        """Nothing to give back."""


def write_plain(model: M2H, path: Path, height: int, width: int, batch: int = 1) -> Path:
    """What `torch.onnx.export` makes of the network, and nothing else."""
    import torch

    from m2h_deploy.model import TASKS

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.model(image)
            return tuple(outputs[task] for task in TASKS)

    names: Any = {"input_names": ["image"], "output_names": list(TASKS)}
    image = torch.zeros(batch, 3, height, width)
    torch.onnx.export(
        Outputs().eval(), (image,), path, dynamo=True, opset_version=20, external_data=False, verbose=False, **names
    )
    return path


def plain_bundle(model: M2H, bundle: Bundle, folder: Path, threads: int | None) -> Bundle:
    """The plain export, in float32, built for the kind of engine that `bundle` has, with the bundle's own options."""
    from engines.onnxruntime import build_onnxruntime
    from engines.openvino import build_openvino
    from engines.tensorrt import build_tensorrt

    manifest = bundle.manifest
    spec, options = manifest.input, manifest.engine.options
    if (spec.dtype, *{output.dtype for output in manifest.outputs}) != ("float32", "float32"):
        raise M2HError("the bundle's inputs or outputs are not float32")
    source = write_plain(model, folder / "plain.onnx", spec.height, spec.width, spec.batch or 1)
    place = folder / "bundle"
    place.mkdir()
    info: EngineInfo
    if manifest.engine.kind == "onnxruntime":
        info = build_onnxruntime(source, place, threads=threads, provider=str(options.get("provider", "cpu")))
    elif manifest.engine.kind == "openvino":
        info = build_openvino(source, place, precision="fp32", threads=threads)
    else:
        info = build_tensorrt(source, place, flavor=manifest.engine.kind, precision="fp32", options=None)
    files = {file.name: file_sha256(file) for file in place.iterdir()}
    update = {
        "engine": info,
        "files": files,
        "self_test": None,
        "input": spec.model_copy(update={"batch": spec.batch or 1}),
    }
    return Bundle(place, manifest.model_copy(update=update))
