"""ONNX Runtime: the optimized graph as an engine file."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime as ort

from m2h_deploy.backends.onnxruntime import PROVIDERS
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.causes import failure
from m2h_deploy.errors import M2HError, install_extra
from m2h_deploy.files.atomic import library_path

ENGINE_FILE = "model.onnx"


def build_onnxruntime(
    model: Path,
    folder: Path,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    provider: str = "cpu",
) -> EngineInfo:
    """Optimize the graph of `model` and keep it in `folder`, to be run by `provider` (see `backends.onnxruntime`).

    The level is `extended`: fused attention, GELU and norms, valid on every CPU. The layout changes of level `all`
    (NCHWc) depend on the CPU's vector width, so they are left to the session on the device, which makes them when it
    loads the file. Other providers fuse for themselves and get the graph as it is. Raises M2HError when `provider` is
    unknown or this ONNX Runtime lacks it.
    """
    check_provider(provider)
    if provider != "cpu":
        shutil.copyfile(model, folder / ENGINE_FILE)
        return _info(precision, threads, provider)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        with library_path(model) as name, library_path(folder / ENGINE_FILE) as optimized:
            options.optimized_model_filepath = optimized
            ort.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except M2HError:
        raise
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise failure(error, f"ONNX Runtime cannot load {model}") from None
    return _info(precision, threads, provider)


def check_provider(provider: str) -> None:
    """Raises M2HError when `provider` is unknown or this ONNX Runtime lacks it."""
    if provider not in PROVIDERS:
        raise M2HError(f"provider '{provider}': choose one of {', '.join(PROVIDERS)}")
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise M2HError(f"this ONNX Runtime lacks the provider '{provider}': {install_extra('gpu')}, on the target")


def _info(precision: str, threads: int | None, provider: str) -> EngineInfo:
    # The provider's own default is TF32, whose 10 bits are not what a bundle of precision fp32 promises.
    exact = {"use_tf32": "0"} if provider == "cuda" and precision == "fp32" else {}
    options = {"provider": provider, "provider_options": exact, "threads": threads}
    return EngineInfo(
        kind="onnxruntime",
        version=ort.__version__,
        precision=precision,  # type: ignore[arg-type]
        file=ENGINE_FILE,
        options={key: value for key, value in options.items() if value},
    )
