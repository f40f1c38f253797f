"""Test training: losses fall, a frozen backbone does not change, a student approaches its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.model import TASKS, build_model, load_checkpoint, save_checkpoint
from m2h_deploy.training import TrainConfig, evaluate, load_config, train
from m2h_deploy.training.config import StageConfig
from m2h_deploy.training.distillation import distillation_losses
from m2h_deploy.training.record import read_record
from m2h_deploy.training.warmstart import CELLS, PatchNetwork, prepare_fresh


def one_stage(config: TrainConfig, **values: object) -> TrainConfig:
    return replace(config, stages=(StageConfig("only", batch_size=4, **values),))  # type: ignore[arg-type]


def test_every_loss_falls(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    config = one_stage(small, epochs=6, learning_rate=3e-3, clip_norm=1.0)
    train(config, tmp_path / "run", cache=frames, device="cpu")
    rows = read_record(tmp_path / "run" / "losses.csv")
    for task in TASKS:
        values = [float(row[f"loss_{task}"]) for row in rows]
        assert sum(values[-4:]) < 0.98 * sum(values[:4]), task


def test_a_frozen_backbone_does_not_move(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    config = one_stage(small, epochs=1, train_backbone=False, learning_rate=1e-2)
    torch.manual_seed(0)
    start = save_checkpoint(build_model("m2h-tiny", **config.model), tmp_path / "start.safetensors")
    train(replace(config, checkpoint=str(start)), tmp_path / "run", cache=frames, device="cpu")
    before, after = (
        load_checkpoint(start).state_dict(),
        load_checkpoint(tmp_path / "run" / "model.safetensors").state_dict(),
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith("backbone.")]
    assert [name for name in moved if name.startswith("heads.depth.")]


def test_the_backbones_own_weights_can_be_loaded(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    backbone = build_model("m2h-tiny").backbone
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    config = one_stage(small, epochs=1, train_backbone=False)
    train(replace(config, backbone=str(tmp_path / "backbone.pth")), tmp_path / "run", cache=frames, device="cpu")
    loaded = load_checkpoint(tmp_path / "run" / "model.safetensors").backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in backbone.state_dict().items())


def test_weights_of_another_backbone_are_refused(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(M2HError, match=r"other\.pth is not a DINOv2 state dict for vit_tiny") as error:
        train(replace(small, backbone=str(tmp_path / "other.pth")), tmp_path / "run", cache=frames)
    assert "\n" not in str(error.value)


def test_backbone_weights_of_an_integer_type_are_refused(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    state = dict(build_model("m2h-tiny").backbone.state_dict())
    name = "blocks.0.attn.qkv.weight"
    torch.save({**state, name: (state[name] * 127).to(torch.int8)}, tmp_path / "b.pth")
    with pytest.raises(M2HError, match=rf"b\.pth: {name} is int8, not a weight"):
        train(replace(small, backbone=str(tmp_path / "b.pth")), tmp_path / "run", cache=frames)


def test_a_student_learns_from_its_teacher(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = save_checkpoint(build_model("m2h-tiny", channels=32, head_channels=(8, 8)), tmp_path / "t.safetensors")
    config = one_stage(small, epochs=3, teacher_weight=10.0, learning_rate=2e-3)
    train(replace(config, teacher=str(teacher)), tmp_path / "run", cache=frames, device="cpu")
    rows = read_record(tmp_path / "run" / "losses.csv")
    for task in TASKS:
        assert float(rows[-1][f"distil_{task}"]) < float(rows[0][f"distil_{task}"]), task


def test_the_distillation_loss_is_zero_where_the_outputs_agree() -> None:
    outputs = {
        "depth": torch.rand(1, 1, 2, 2),
        "semantics": torch.randn(1, 5, 2, 2),
        "normals": torch.randn(1, 3, 2, 2),
    }
    outputs["edges"] = torch.full((1, 1, 2, 2), -50.0)
    losses = distillation_losses(outputs, outputs)
    assert all(value.item() == pytest.approx(0.0, abs=1e-5) for value in losses.values())
    other = {**outputs, "semantics": -outputs["semantics"]}
    assert distillation_losses(outputs, other)["semantics"] > 0


def test_the_patch_decoder_trains_the_models_own_backbone() -> None:
    model = build_model("m2h-tiny")
    network = PatchNetwork(model)
    outputs = network(torch.randn(2, 3, 42, 28))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "depth": (2, 1, 3 * CELLS, 2 * CELLS),
        "semantics": (2, 41, 3 * CELLS, 2 * CELLS),
        "normals": (2, 3, 3 * CELLS, 2 * CELLS),
        "edges": (2, 1, 3 * CELLS, 2 * CELLS),
    }
    outputs["depth"].sum().backward()
    assert model.backbone.blocks[0].attn.qkv.weight.grad is not None


def test_a_fresh_decoder_keeps_the_deviation_of_the_tokens() -> None:
    torch.manual_seed(0)
    model = build_model("m2h-tiny")
    prepare_fresh(model, layer_scale=1.0)
    stages = [(torch.randn(2, 192, 6, 6), torch.randn(2, 192)) for _ in range(4)]
    with torch.no_grad():
        maps = model.mstr(stages)
        features = [model.msf[task](maps) for task in TASKS]
    for values in (*maps, *features):
        assert 0.1 < values.std() < 10
    assert model.backbone.blocks[3].ls1.gamma.eq(1).all()


def test_sizes_that_do_not_fit_are_named(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    with pytest.raises(M2HError, match="crop is 5, the image has 3x3 patches"):
        train(one_stage(small, epochs=1, crop=5), tmp_path / "a", cache=frames, device="cpu")
    with pytest.raises(M2HError, match="60x42 pixels are not whole patches of 14"):
        train(one_stage(small, epochs=1, crop=2, height=60), tmp_path / "b", cache=frames, device="cpu")


def test_a_loss_that_is_not_finite_stops_the_run(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    with pytest.raises(M2HError, match=r"the loss is (nan|inf) in step"):
        train(
            one_stage(small, epochs=50, learning_rate=10.0, weight_decay=10.0, consistency=1e3),
            tmp_path / "run",
            cache=frames,
        )


@pytest.mark.slow
def test_the_shipped_recipe_learns_every_task_within_minutes(frames: Path, tmp_path: Path) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "m2h-tiny.toml")
    stages = tuple(replace(stage, epochs=6, batch_size=16, height=112, width=112, crop=0) for stage in config.stages)
    data = replace(config.data, count=96, height=112, width=112)
    held_out = replace(config.validation, count=8, height=112, width=112)
    small = replace(config, stages=stages, data=data, validation=held_out, backbone="", balancing_steps=0)
    result = train(small, tmp_path / "run", cache=frames, device="cpu")
    untrained = evaluate(build_model(config.variant, **config.model), Rooms(8, held_out.seed, 112, 112))
    assert result["semantics"]["pixel_accuracy"] > untrained["semantics"]["pixel_accuracy"] + 0.2
    assert result["depth"]["abs_rel"] < 0.7 * untrained["depth"]["abs_rel"]
    assert result["normals"]["mean"] < 0.8 * untrained["normals"]["mean"]
    rows = read_record(tmp_path / "run" / "losses.csv")
    warm = [float(row["loss_edges"]) for row in rows if row["stage"] == config.stages[0].name]
    assert warm[-1] < 0.9 * warm[0]
