"""Peers of a bundle for `bench --peers`: the checkpoint in PyTorch, and a plain export on the same engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.registry import ENGINES, options_of
from m2h_deploy.backends import KINDS, Backend, BackendOptions, open_backend
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.causes import reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.profiling import Subject, subject_of
from m2h_deploy.runtime.runtime import Runtime

if TYPE_CHECKING:
    import torch

    from m2h_deploy.model import M2H


@contextmanager
def open_peers(
    checkpoint: str, threads: int | None, warn: Callable[[str], None]
) -> Iterator[Callable[[Runtime], list[Subject]]]:
    """Yield a function that makes the peers of a bundle; their files are removed after the block.

    Each peer has the pre- and postprocessing of the bundle's own runtime. `warn` is called for each peer that cannot be
    made.

    Raises:
        M2HError: The checkpoint cannot be loaded.
    """
    import torch

    from m2h_deploy.model import load_checkpoint

    model = load_checkpoint(checkpoint).eval().requires_grad_(False)
    if threads is not None:
        torch.set_num_threads(threads)
    with scratch_folder("m2h-peers-") as folder:

        def make(runtime: Runtime) -> list[Subject]:
            return list(_peers(model, runtime, folder, threads, warn))

        yield make


def _peers(
    model: M2H, runtime: Runtime, folder: Path, threads: int | None, warn: Callable[[str], None]
) -> Iterator[Subject]:
    import torch

    bundle = runtime.bundle
    if bundle.manifest.sensor is not None:
        raise M2HError(f"{bundle.path} is a sensor graph: give --peers a bundle of the plain network first")
    needs_gpu = KINDS[bundle.manifest.engine.kind].needs_gpu
    device = "cuda" if needs_gpu and torch.cuda.is_available() else "cpu"
    model = model.to(device)
    used = threads if device == "cuda" else torch.get_num_threads()
    eager = TorchBackend(model, device, f"PyTorch {torch.__version__}, eager, {device}")
    yield subject_of(Runtime(bundle, eager), "PyTorch eager", threads=used, peer=True)
    compiled = TorchBackend(torch.compile(model), device, f"PyTorch {torch.__version__}, torch.compile, {device}")
    try:
        spec = bundle.manifest.input
        compiled.run(np.zeros((spec.batch or 1, 3, spec.height, spec.width), np.float32))
        yield subject_of(Runtime(bundle, compiled), "torch.compile", threads=used, peer=True)
    except Exception as error:  # its errors share no base type; without a C++ compiler this peer cannot be made
        warn(f"torch.compile is left out: {reason(error)[:150]}")
    model.to("cpu")
    try:
        plain = plain_bundle(model, bundle, folder, threads)
        backend = open_backend(plain, BackendOptions(threads=threads))
        name = f"plain export, {plain.manifest.engine.kind}"
        yield subject_of(Runtime(plain, backend), name, threads=threads, peer=True)
    except M2HError as error:
        warn(f"the plain export is left out: {error}")
    if device == "cuda":
        model.to(device)


class TorchBackend(Backend):
    """A PyTorch network with the interface of an engine."""

    def __init__(self, network: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], device: str, words: str) -> None:
        self._network, self._device = network, device
        self.description = words

    def run(
        self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Run the network on `image`, float32 (N, 3, H, W); the outputs are copied into `out` if it is given."""
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
        """Raise M2HError: PyTorch allocates its own outputs."""
        raise M2HError("PyTorch makes its own outputs")

    def close(self) -> None:
        """Do nothing: only the network itself is held."""


def write_plain(model: M2H, path: Path, height: int, width: int, batch: int = 1) -> Path:
    """Write the unmodified result of `torch.onnx.export` for the network to `path`."""
    import torch

    from m2h_deploy.tasks import TASKS

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
    """Build the plain export, in float32, for the engine kind of `bundle`, with the bundle's own options."""
    manifest = bundle.manifest
    spec, engine = manifest.input, manifest.engine
    if (spec.dtype, *{output.dtype for output in manifest.outputs}) != ("float32", "float32"):
        raise M2HError("the bundle's inputs or outputs are not float32")
    source = write_plain(model, folder / "plain.onnx", spec.height, spec.width, spec.batch or 1)
    place = folder / "bundle"
    place.mkdir()
    threads = None if KINDS[engine.kind].needs_gpu else threads
    options = options_of(engine.kind, {"threads": threads, "provider": engine.options.get("provider")})
    info = ENGINES[engine.kind].build(source, place, "fp32", options)
    files = {file.name: file_sha256(file) for file in place.iterdir()}
    update = {
        "engine": info,
        "files": files,
        "self_test": None,
        "input": spec.model_copy(update={"batch": spec.batch or 1}),
    }
    return Bundle(place, manifest.model_copy(update=update))
