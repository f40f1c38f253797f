"""Test that fine-tuning for INT8 trains with the build's rounding and gives an ordinary checkpoint."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from m2h_deploy.blocks import block_of
from m2h_deploy.errors import M2HError
from m2h_deploy.model import M2H, build_model, load_checkpoint, save_checkpoint
from m2h_deploy.training import TrainConfig, train
from m2h_deploy.training.config import StageConfig
from m2h_deploy.training.qat import insert_quantizers, quantized_layers, without_quantizers
from m2h_deploy.training.record import read_record
from m2h_deploy.training.state import load_state
from m2h_deploy.training.warmstart import prepare_fresh
from tests.training.conftest import SMALL


@pytest.fixture(scope="module")
def modelopt() -> None:
    for module in ("requests", "huggingface_hub", "modelopt.torch.quantization"):
        pytest.importorskip(module, reason="needs the `qat` extra", exc_type=ImportError)


def small_network() -> M2H:
    torch.manual_seed(0)
    model = build_model("m2h-tiny", **SMALL.model)
    prepare_fresh(model, layer_scale=1.0)
    return model.eval()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    start = save_checkpoint(small_network(), tmp_path_factory.mktemp("start") / "start.safetensors")
    stage = StageConfig("fine-tuning", epochs=4, batch_size=4, learning_rate=3e-3, clip_norm=1.0)
    return replace(SMALL, checkpoint=str(start), stages=(stage,))


@pytest.fixture(scope="module")
def whole(modelopt: None, config: TrainConfig, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("qat") / "run"
    train(config, folder, cache=frames, device="cpu", qat=True)
    return folder


@pytest.fixture(scope="module")
def quantized(modelopt: None) -> M2H:
    model = small_network()
    insert_quantizers(model, images())
    return model


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 42, 42, generator=generator) for _ in range(2)]


def rounding(model: M2H) -> dict[str, nn.Module]:
    """Return the layers whose input and weight are both rounded."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "weight_quantizer") and module.weight_quantizer.is_enabled
    }


@pytest.mark.slow
def test_the_layers_are_those_that_the_int8_build_quantizes(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("modelopt.onnx.quantization", exc_type=ImportError)
    from engines.precision.quantization import QuantPolicy, chosen_layers
    from export import export_onnx
    from m2h_deploy.onnx_graph.files import read_onnx
    from m2h_deploy.onnx_graph.functions import inline_functions

    model = small_network()
    proto, _ = inline_functions(
        read_onnx(export_onnx(model, tmp_path / "m.onnx", height=42, width=42, form="reference").path)
    )
    chosen = set(chosen_layers(proto, QuantPolicy()))
    # A unit shared by two maps is one module, but two nodes with one weight.
    built = {(block_of(node.name).split(".")[0], node.input[1]) for node in proto.graph.node if node.name in chosen}
    trained = Counter(name.split(".")[0] for name in quantized_layers(model))
    assert trained == Counter(block for block, _ in built)
    assert set(trained) == {"backbone", "msf", "context", "heads"}


@pytest.mark.parametrize("variant", ["m2h", "m2h-tiny"])
@pytest.mark.parametrize("context", ["restoration", "ggfm"])
def test_first_and_last_layers_gates_mstr_and_wmca_stay_in_float(variant: str, context: str) -> None:
    with torch.device("meta"):
        model = build_model(variant, backbone="vit_tiny", channels=16, head_channels=(8, 8), context=context)
    names = quantized_layers(model)
    for part in ("patch_embed", "mstr.", "wmca.", ".gate", "squeeze", "excite", "pooled", ".final", ".spatial"):
        assert not [name for name in names if part in name], part
    for part in ("attn.qkv", "mlp.fc2", "msf.edges.project", "context.merge.", "heads.depth.aspp.project"):
        assert [name for name in names if part in name], part


def test_only_convolutions_and_linear_layers_carry_quantizers(quantized: M2H) -> None:
    layers = rounding(quantized)
    assert tuple(layers) == quantized_layers(quantized)
    assert all(isinstance(module, nn.Conv2d | nn.Linear) for module in layers.values())
    on = [n for n, m in quantized.named_modules() if n.endswith("_quantizer") and getattr(m, "is_enabled", False)]
    assert sorted(on) == sorted(f"{name}.{part}_quantizer" for name in layers for part in ("input", "weight"))


def test_ranges_are_the_largest_values_on_the_frames(quantized: M2H) -> None:
    from m2h_deploy.training.forward import forward

    plain, seen = small_network(), {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = max(seen.get(name, 0.0), float(inputs[0].abs().max()))

        return look

    for name in quantized_layers(plain):
        plain.get_submodule(name).register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for image in images():
            forward(plain, image)
    for name, module in rounding(quantized).items():
        assert float(module.input_quantizer.amax) == pytest.approx(seen[name], rel=1e-4), name


def test_inputs_and_weights_take_at_most_256_values_a_range(quantized: M2H) -> None:
    layer = rounding(quantized)["heads.depth.upsample1.conv1.pointwise"]
    x = torch.randn(1, layer.in_channels, 40, 40)
    scale = float(layer.input_quantizer.amax) / 127
    steps = layer.input_quantizer(x).detach() / scale
    assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= 128
    with torch.no_grad():
        layer.weight[0] *= 10
        weight, largest = layer.weight_quantizer(layer.weight), layer.weight.abs().amax((1, 2, 3), keepdim=True)
        steps = weight * 127 / largest
        layer.weight[0] /= 10
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.abs().amax((1, 2, 3)) == pytest.approx(127, abs=1e-3), "each channel has its own range, as it is now"


def test_removing_quantizers_gives_the_weights_back(quantized: M2H) -> None:
    plain, start = without_quantizers(quantized).state_dict(), small_network().state_dict()
    assert plain.keys() == start.keys()
    assert all(torch.equal(plain[name], start[name]) for name in start)
    with torch.no_grad():
        image = images()[0]
        difference = quantized(image)["depth"] - small_network()(image)["depth"]
    assert difference.abs().max() > 1e-4, "rounding must be felt"


def test_the_checkpoint_is_an_ordinary_one(whole: Path, config: TrainConfig) -> None:
    start, end = (load_checkpoint(path).state_dict() for path in (config.checkpoint, whole / "model.safetensors"))
    assert {n: t.shape for n, t in start.items()} == {n: t.shape for n, t in end.items()}
    assert not torch.equal(start["backbone.blocks.0.attn.qkv.weight"], end["backbone.blocks.0.attn.qkv.weight"])


def test_the_loss_under_quantization_falls(whole: Path) -> None:
    totals = [float(row["total"]) for row in read_record(whole / "losses.csv")]
    assert np.mean(totals[-3:]) < 0.95 * np.mean(totals[:3])


def test_the_evaluation_reports_before_and_after(whole: Path) -> None:
    result = json.loads((whole / "evaluation.json").read_text())
    assert result["before"]["frames"] == result["frames"] == 2
    assert result["before"]["depth"]["rmse"] != result["depth"]["rmse"]
    lines = (whole / "evaluation.md").read_text().splitlines()
    assert lines[0] == "| metric | INT8, fine-tuned | INT8, before |"
    assert all(line.count("|") == 4 for line in lines)


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    whole: Path, config: TrainConfig, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2h_deploy.training import loop

    class Killed(BaseException):
        """Raise an exception that the program does not handle, like a power failure."""

    original = loop._step

    def dies(stage: loop.Stage, sample: object, done: int, total: int) -> dict[str, float]:
        losses = original(stage, sample, done, total)
        if stage.run.position.total + 1 == 5:
            raise Killed
        return losses

    folder = tmp_path / "killed"
    monkeypatch.setattr(loop, "_step", dies)
    with pytest.raises(Killed):
        train(config, folder, cache=frames, device="cpu", qat=True)
    monkeypatch.undo()
    kept = load_state(folder / "state.pt")["model"]
    assert [name for name in kept if name.endswith("input_quantizer._amax")], "ranges belong to the state"
    with pytest.raises(M2HError, match="with --qat: resume it the same way"):
        train(config, folder, existing="resume", cache=frames, device="cpu")
    train(config, folder, existing="resume", cache=frames, device="cpu", qat=True)
    for file in ("model.safetensors", "losses.csv", "evaluation.json"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


def test_without_a_checkpoint_there_is_nothing_to_fine_tune(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(M2HError, match="set checkpoint in the config") as error:
        train(SMALL, tmp_path / "run", cache=frames, qat=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_its_extra(
    config: TrainConfig, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "modelopt"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(M2HError, match=r"modelopt\S*, which is not installed: .*'\.\[qat\]'") as error:
        train(config, tmp_path / "run", cache=frames, qat=True)
    assert "\n" not in str(error.value)
