"""Build for ONNX Runtime: the optimized graph as an engine file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.options import EngineOptions, Tool, check_cpu_precision
from m2h_deploy.backends import BackendOptions
from m2h_deploy.backends.driver import extra_here
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.causes import failure
from m2h_deploy.choices import Provider, check_choice
from m2h_deploy.errors import M2HError, install_extra, missing_extra
from m2h_deploy.files.atomic import library_path

ENGINE_FILE = "model.onnx"


@dataclass(frozen=True)
class OnnxRuntimeOptions(EngineOptions):
    """Build options for ONNX Runtime, and the defaults that the bundle records."""

    threads: int | None = None
    """CPU threads; None: all."""
    provider: Provider = "cpu"

    def __post_init__(self) -> None:
        BackendOptions(threads=self.threads)  # refuses an invalid number of threads
        check_choice("provider", self.provider, Provider)


def build_onnxruntime(
    model: Path, folder: Path, precision: str = "fp32", options: OnnxRuntimeOptions | None = None
) -> EngineInfo:
    """Optimize the graph of `model`, which is already in `precision`, and save it in `folder`.

    The level is `extended`: fused attention, GELU and norms, valid on every CPU. The layout changes of level `all`
    (NCHWc) depend on the CPU's vector width, so they are left to the session on the device, which makes them when it
    loads the file. Other providers have their own fusions and get the graph unchanged.

    Raises:
        M2HError: The provider is unknown or not in this ONNX Runtime, or ONNX Runtime cannot load the graph.
    """
    options = options or OnnxRuntimeOptions()
    ort = check_onnxruntime(options)
    # The provider's own default is TF32, whose 10 bits are less than a bundle of precision fp32 promises.
    exact = {"use_tf32": "0"} if options.provider == "cuda" and precision == "fp32" else {}
    recorded = {"provider": options.provider, "provider_options": exact, "threads": options.threads}
    info = EngineInfo(
        kind="onnxruntime",
        version=ort.__version__,
        precision=precision,  # type: ignore[arg-type]
        file=ENGINE_FILE,
        options={key: value for key, value in recorded.items() if value},
    )
    if options.provider != "cpu":
        shutil.copyfile(model, folder / ENGINE_FILE)
        return info
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        with library_path(model) as name, library_path(folder / ENGINE_FILE) as optimized:
            session_options.optimized_model_filepath = optimized
            ort.InferenceSession(name, session_options, providers=["CPUExecutionProvider"])
    except M2HError:
        raise
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise failure(error, f"ONNX Runtime cannot load {model}") from None
    return info


def onnxruntime_tool(options: OnnxRuntimeOptions, precision: str) -> Tool:
    """Return the tool that lowers a graph for the provider. Raises M2HError for FP16 on the CPU."""
    if options.provider != "cpu":
        return "modelopt"
    if precision == "fp16":
        raise M2HError(
            "ONNX Runtime has no FP16 kernels for a CPU: it would convert every tensor to float32 and back, and be "
            "slower than fp32: leave the precision out, use --engine openvino, or --provider cuda"
        )
    return "onnxruntime"


def check_precision(options: OnnxRuntimeOptions, precision: str | None) -> None:
    """Raise M2HError if the provider does not compute in `precision`; None is one that is not known yet."""
    if options.provider == "cpu":
        check_cpu_precision(precision)


def check_onnxruntime(options: OnnxRuntimeOptions) -> Any:
    """Return the module. Raises M2HError if it is not installed, or the provider is unknown or not in it."""
    try:
        import onnxruntime

        from m2h_deploy.backends.onnxruntime import PROVIDERS
    except ModuleNotFoundError:
        raise missing_extra("onnxruntime", "onnxruntime", "the engine onnxruntime") from None
    provider = options.provider
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise M2HError(
            f"this ONNX Runtime lacks the provider '{provider}': on the target, pip uninstall onnxruntime, and "
            f"{install_extra(extra_here('gpu'))}"
        )
    return onnxruntime
