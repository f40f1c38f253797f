"""The engines of the GPU benchmark: bundles of TensorRT, TensorRT-RTX, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.gpu_cell import CAMERA, Bench, Workspace
from benchmarks.gpu_record import Row, attempt
from benchmarks.gpu_timing import Times
from engines import OnnxRuntimeOptions
from engines.precision.modelopt import require_modelopt
from engines.registry import engine_builder
from engines.targets import check_rtx_targets
from m2h_deploy.backends import KINDS, Backend, BackendOptions, open_backend
from m2h_deploy.backends.driver import missing_gpu
from m2h_deploy.backends.onnxruntime import PROVIDERS
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.self_test import pattern
from m2h_deploy.choices import Provider
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.parity import verify
from m2h_deploy.runtime.runtime import Runtime


@dataclass(frozen=True)
class EngineWay:
    """One engine kind in one precision, from the plain graph or from the graph that takes raw pixels."""

    kind: str
    precision: str
    provider: Provider | None = None
    """Execution provider of ONNX Runtime."""
    raw_pixels: bool = False
    by_name: bool = False
    """Run only if `--ways` selects it."""
    exports = True

    @property
    def name(self) -> str:
        """Name of the way."""
        words = (self.kind, self.precision, self.provider, "raw pixels" if self.raw_pixels else None)
        return " ".join(word for word in words if word)

    def refusal(self, bench: Bench) -> str | None:
        """Return why it cannot run here, None if it can. Builds nothing."""
        try:
            self._check(bench.capability)
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed"
        except M2HError as error:
            return str(error)
        return None

    def _check(self, capability: str | None) -> None:
        if KINDS[self.kind].needs_gpu or self.provider is not None:
            if capability is None:
                raise M2HError("needs an NVIDIA GPU")
            if "tensorrt-rtx" in (self.kind, str(self.provider).removeprefix("nv-")):
                check_rtx_targets((capability,))
        if KINDS[self.kind].needs_gpu and (missing := missing_gpu()):
            raise M2HError(f"needs an NVIDIA GPU: {missing}")
        engine_builder(self.kind).check_machine(self._options)
        if self.precision != "fp32":
            require_modelopt()

    @property
    def _options(self) -> Any:
        return OnnxRuntimeOptions(provider=self.provider) if self.provider else engine_builder(self.kind).options()

    def rows(self, bench: Bench, work: Workspace) -> Iterator[Row]:
        """Build a bundle and measure it. Compare it with PyTorch if it takes single tensors and is not INT8.

        INT8 is calibrated for time alone.
        """
        torch.cuda.empty_cache()  # a small GPU needs the memory of PyTorch's rows for the engine
        bundle = work.build(self.kind, self.precision, self._options, raw_pixels=self.raw_pixels)
        if KINDS[self.kind].needs_gpu and not self.raw_pixels:
            graphs = {f"{self.name} CUDA graph {word}": word == "on" for word in ("on", "off")}
        else:
            graphs = {self.name: True}
        for name, cuda_graph in graphs.items():
            yield attempt(work.cell, name, partial(self._row, bench, work, bundle, name, cuda_graph))
        if work.cell.batch == 1 and not self.raw_pixels and self.precision != "int8":
            name = f"{self.name} verify"
            yield attempt(work.cell, name, lambda: Row(str(work.cell), name, note=summary(work, bundle)))

    def _row(self, bench: Bench, work: Workspace, bundle: Bundle, name: str, cuda_graph: bool) -> Row:
        batch, timer = work.cell.batch, bench.timer
        tensor, photo = pattern(bundle.manifest.input), render_room(0, 0, CAMERA[1], CAMERA[0]).image
        start = time.perf_counter()
        with Runtime(bundle, open_backend(bundle, BackendOptions(extra={"cuda_graph": cuda_graph}))) as runtime:
            runtime.backend.run(tensor)
            words = [f"first result after {time.perf_counter() - start:.1f} s"]
            frame_ms = timer.frames(partial(runtime.backend.run, tensor))
            predict = partial(runtime, photo) if batch == 1 else partial(runtime.batch, [photo] * batch)
            image_ms = timer.frames(predict)
            times, reason = device_times(bench, bundle, runtime.backend, batch)
        words.append(reason if times is None else f"copies and runner {frame_ms - times.single:.2f} ms")
        values = {"frame_ms": frame_ms, "image_ms": image_ms, "roofline_ms": work.least_ms}
        return Row.of(work.cell, name, times, **values, note=", ".join(words))


#: In the order of their importance: a short run may end before the last ones.
GPU_ENGINES = (
    EngineWay("tensorrt", "fp16"),
    EngineWay("tensorrt-rtx", "fp16"),
    EngineWay("onnxruntime", "fp16", "cuda"),
    EngineWay("onnxruntime", "fp32", "cuda"),
    EngineWay("tensorrt", "fp16", raw_pixels=True),
    EngineWay("tensorrt-rtx", "fp16", raw_pixels=True),
    EngineWay("onnxruntime", "fp16", "cuda", raw_pixels=True),
    EngineWay("onnxruntime", "fp16", "nv-tensorrt-rtx"),
    EngineWay("tensorrt-rtx", "int8"),
    EngineWay("tensorrt", "int8", by_name=True),
)

CPU_ENGINES = (
    EngineWay("onnxruntime", "fp32"),
    EngineWay("onnxruntime", "fp32", raw_pixels=True),
    EngineWay("openvino", "fp32"),
)


def summary(work: Workspace, bundle: Bundle) -> str:
    """Compare the bundle with PyTorch on eight rendered rooms, and return the result in words."""
    return verify(bundle.path, str(work.checkpoint), work.rooms, limit=8).summary


def device_times(bench: Bench, bundle: Bundle, backend: Backend, batch: int) -> tuple[Times | None, str]:
    """Measure the engine alone; return None and the reason if that is impossible."""
    try:
        if bundle.manifest.engine.kind == "onnxruntime":
            return bench.timer.times(*bound_session(bundle, bench.device)), ""
        enqueue, stream = getattr(backend, "enqueue", None), getattr(backend, "stream_handle", None)
        if enqueue is None or stream is None:
            return None, "wall time only: the engine has no stream"
        return bench.timer.times(partial(enqueue, batch), torch.cuda.ExternalStream(stream)), ""
    except Exception as error:  # such as a provider that takes no stream
        return None, f"wall time only: {first_line(error)[:120]}"


def bound_session(bundle: Bundle, device: torch.device) -> tuple[Callable[[], Any], torch.cuda.Stream | None]:
    """Open the bundle's graph on tensors of `device`.

    Returns:
        A function that enqueues one run without copies, and its stream; None on a CPU.
    """
    manifest = bundle.manifest
    provider = str(manifest.engine.options.get("provider", "cpu"))
    options = dict(manifest.engine.options.get("provider_options", {}))
    stream = None
    if provider != "cpu":
        stream = torch.cuda.Stream()
        options["user_compute_stream"] = str(stream.cuda_stream)
        if provider != "cuda":  # which lacks this option
            options["has_user_compute_stream"] = "1"
    session = ort.InferenceSession(bundle.engine_file, providers=[(PROVIDERS[provider], options)])
    binding, tensors = session.io_binding(), []
    batch = manifest.input.batch or 1
    sides = {manifest.input.name: manifest.input.sides} | {out.name: out.shape[1:] for out in manifest.outputs}
    for spec in (manifest.input, *manifest.outputs):
        tensor = torch.zeros((batch, *sides[spec.name]), dtype=getattr(torch, spec.dtype), device=device)
        bind = binding.bind_input if spec is manifest.input else binding.bind_output
        bind(spec.name, device.type, 0, np.dtype(spec.dtype), tensor.shape, tensor.data_ptr())
        tensors.append(tensor)
    asynchronous = ort.RunOptions()
    asynchronous.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue() -> list[torch.Tensor]:
        session.run_with_iobinding(binding, asynchronous)
        return tensors  # which the session writes to

    return enqueue, stream
