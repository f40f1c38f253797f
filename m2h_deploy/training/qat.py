"""Quantization-aware fine-tuning: training with the rounding of an INT8 engine.

NVIDIA ModelOpt puts quantizers on the layers that an INT8 build quantizes by default. Inputs are rounded to 8 bits with
one range per layer, the largest magnitude on calibration frames, as in the build. Weights are rounded with one range
per output channel, their largest magnitude at that step, as in the build. The gradient of rounding is 1 within the
range and 0 for values clipped at its end (straight-through estimator).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m2h_deploy.blocks import KEPT_IN_FLOAT, matches
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.model import M2H
from m2h_deploy.runtime.preprocess import PRESETS
from m2h_deploy.training.batches import read_batch
from m2h_deploy.training.cache import FrameCache
from m2h_deploy.training.config import TrainConfig
from m2h_deploy.training.forward import forward
from m2h_deploy.training.speed import CPUAttention

#: Frames that ranges are measured on, the default of an INT8 build.
CALIBRATION_FRAMES = 64
_BATCH = 8

_INPUT = {"num_bits": 8, "axis": None}
_WEIGHT = {"num_bits": 8, "axis": 0, "type": "dynamic"}


def check_qat(config: TrainConfig) -> None:
    """Check that a run can be fine-tuned with quantizers.

    Raises:
        M2HError: the config has no checkpoint to start from, or ModelOpt's PyTorch part cannot be imported.
    """
    if not config.checkpoint:
        raise M2HError("quantization-aware fine-tuning starts from trained weights: set checkpoint in the config")
    _modelopt()


def quantized_layers(model: M2H) -> tuple[str, ...]:
    """List the names of the modules that INT8 quantizes by default, in the model's order."""
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not matches(_node_path(model, name), KEPT_IN_FLOAT)
    )


def calibration_batches(config: TrainConfig, frames: FrameCache, device: torch.device) -> Iterator[Tensor]:
    """Yield the first frames of the training set as the network sees them, not augmented.

    Args:
        config: size and normalization of the images.
        frames: the training set; at most CALIBRATION_FRAMES of it are used.
        device: where the batches are put.

    Yields:
        float32 (N, 3, H, W), N at most 8.
    """
    count = min(CALIBRATION_FRAMES, len(frames))
    for start in range(0, count, _BATCH):
        indices = np.arange(start, min(start + _BATCH, count))
        batch = read_batch(frames, indices, (config.data.height, config.data.width))
        yield batch.to(device).network_input(PRESETS[config.preset])


def insert_quantizers(model: M2H, images: Iterable[Tensor]) -> None:
    """Quantize the layers of `quantized_layers` in place.

    The ranges become buffers in the state dict and do not change in training. The model's training mode is restored.

    Args:
        model: the network.
        images: batches (N, 3, H, W) that the ranges are measured on.

    Raises:
        M2HError: ModelOpt is not installed.
    """
    mtq = _modelopt()
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in quantized_layers(model):
        entries.append({"quantizer_name": f"{name}.input_quantizer", "cfg": _INPUT})
        entries.append({"quantizer_name": f"{name}.weight_quantizer", "cfg": _WEIGHT})

    def see_images(network: M2H) -> None:
        with torch.no_grad(), CPUAttention():
            for image in images:
                # The rearranged pass convolves before it resizes, like training and the deployed graph.
                forward(network, image)

    training = model.training
    model.eval()
    with _quiet():
        mtq.quantize(model, {"quant_cfg": entries, "algorithm": "max"}, see_images)
    model.train(training)


def without_quantizers(model: M2H) -> M2H:
    """Make an ordinary network with the unrounded weights of a quantized one, on the CPU and in eval mode."""
    plain = M2H(model.config)
    weights = model.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain.eval()


def _node_path(model: nn.Module, name: str) -> str:
    """Convert a module's name to the prefix of its ONNX nodes: `heads.depth.final` gives `/heads.depth/final/`."""
    path, parent = "", model
    for part in name.split("."):
        path += ("." if isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential) else "/") + part
        parent = parent.get_submodule(part)
    return f"{path}/"


def _modelopt() -> Any:
    try:
        with _quiet():
            return importlib.import_module("modelopt.torch.quantization")
    except ImportError as error:
        raise missing_extra(error.name or "modelopt", "qat", "quantization-aware fine-tuning", error=error) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress ModelOpt's output and warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
