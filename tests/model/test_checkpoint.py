"""Test that checkpoints are read strictly and safely, and that errors name what does not fit."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m2h_deploy.errors import M2HError
from m2h_deploy.model import build_model, load_checkpoint, save_checkpoint
from m2h_deploy.model.checkpoint import weights_digest
from m2h_deploy.model.config import VARIANTS, ModelConfig
from tests.golden import filler
from tests.networks import random_network


def test_safetensors_round_trip_keeps_configuration_and_values(tiny_model, tmp_path):
    path = save_checkpoint(tiny_model, tmp_path / "tiny.safetensors")
    loaded = load_checkpoint(path)
    assert loaded.config == tiny_model.config
    assert weights_digest(loaded) == weights_digest(tiny_model)
    assert list(tmp_path.iterdir()) == [path]


def test_half_precision_file_loads_as_float32(tiny_model, tmp_path):
    path = save_checkpoint(tiny_model, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_checkpoint(path)
    assert path.stat().st_size < 2.2 * sum(p.numel() for p in tiny_model.parameters())
    assert all(p.dtype == torch.float32 for p in loaded.parameters())


def test_a_half_precision_file_keeps_variances_that_half_precision_cannot_hold(tmp_path):
    model = random_network()
    model.heads["depth"].aspp.branches[0].norm.running_var.fill_(1e6)
    path = save_checkpoint(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert float(load_checkpoint(path).heads["depth"].aspp.branches[0].norm.running_var.max()) == 1e6


@pytest.mark.parametrize("prefix", ["", "module."])
def test_variant_and_classes_are_read_from_a_published_state_dict(tmp_path, prefix):
    weights = {prefix + name: torch.from_numpy(value) for name, value in filler.weights("m2h_small").items()}
    last = f"{prefix}mlt_head.seg_out.final_conv."
    weights[f"{last}weight"] = weights[f"{last}weight"][:19].clone()
    weights[f"{last}bias"] = weights[f"{last}bias"][:19].clone()
    torch.save(weights, tmp_path / "c.pt")
    config = load_checkpoint(tmp_path / "c.pt").config
    assert (config.variant, config.num_classes, config.channels) == ("m2h-small", 19, 96)


def _refused(path) -> str:
    with pytest.raises(M2HError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return str(error.value)


def test_missing_file(tmp_path):
    assert "no checkpoint at" in _refused(tmp_path / "nothing.pt")


def test_text_file(tmp_path):
    (tmp_path / "notes.pt").write_text("these are my notes\n" * 50)
    assert "not a checkpoint" in _refused(tmp_path / "notes.pt")


def test_empty_file(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "empty.pt" in _refused(tmp_path / "empty.pt")


def test_checkpoint_of_another_network_names_its_tensors(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 4)).state_dict(), tmp_path / "other.pt")
    message = _refused(tmp_path / "other.pt")
    assert "backbone.pos_embed" in message
    assert "0.weight" in message


def test_missing_unexpected_and_misshapen_tensors_are_named(tiny_model, tmp_path):
    state = dict(tiny_model.state_dict())
    del state["heads.edges.final.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["heads.normals.final.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "c.pt")
    message = _refused(tmp_path / "c.pt")
    for part in ("missing heads.edges.final.bias", "unexpected extra.weight", "heads.normals.final.bias (7,) instead"):
        assert part in message


KINDS = {
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "a sparse coo tensor": lambda tensor: tensor.to_sparse(),
    "a sparse csr tensor": lambda tensor: tensor.to_sparse_csr(),
    "a tensor without data": lambda tensor: tensor.to("meta"),
    "quantized (qint8)": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "int8": lambda tensor: (tensor * 127).round().to(torch.int8),
    "int64": lambda tensor: tensor.round().to(torch.int64),
    "bool": lambda tensor: tensor > 0,
}


@pytest.mark.filterwarnings("ignore")  # about sparse and quantized tensors
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_not_a_weight_is_named(tiny_model, tmp_path, kind):
    name = _matrix(tiny_model)
    state = dict(tiny_model.state_dict())
    torch.save({**state, name: KINDS[kind](state[name])}, tmp_path / "c.pt")
    message = _refused(tmp_path / "c.pt")
    assert f"c.pt: {name} is {kind}" in message
    assert "not a weight" in message


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8", "int64", "bool"])
def test_a_safetensors_tensor_that_is_not_a_weight_is_named(tiny_model, tmp_path, kind):
    name = _matrix(tiny_model)
    state = dict(tiny_model.state_dict())
    save_file({**state, name: KINDS[kind](state[name])}, tmp_path / "c.safetensors")
    assert f"{name} is {kind}" in _refused(tmp_path / "c.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_point_types_are_read(tiny_model, tmp_path, dtype):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tiny_model.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "c.pt")
    save_file(state, tmp_path / "c.safetensors")
    for file in ("c.pt", "c.safetensors"):
        loaded = load_checkpoint(tmp_path / file).state_dict()
        for name, value in state.items():
            assert torch.equal(loaded[name], value.float() if value.is_floating_point() else value)


def test_a_weight_that_float32_cannot_hold_is_refused(tiny_model, tmp_path):
    state = {name: t.double() if t.is_floating_point() else t for name, t in tiny_model.state_dict().items()}
    state["heads.edges.final.bias"] = torch.full_like(state["heads.edges.final.bias"], 1e300)
    torch.save(state, tmp_path / "c.pt")
    assert "heads.edges.final.bias holds NaN or infinity" in _refused(tmp_path / "c.pt")


def _matrix(model) -> str:
    return next(name for name, tensor in model.state_dict().items() if tensor.dim() == 2)


def _garbage(kind: str) -> bytes:
    noise = torch.randint(256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, a=np.zeros(3))
    elif kind == "npy":
        np.save(buffer, np.zeros(3))
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("notes.txt", "no tensors")
    else:
        beginnings = {"pickle": b"\x80\x02", "gzip": b"\x1f\x8b", "png": b"\x89PNG\r\n", "web page": b"<!DOCTYPE html>"}
        buffer.write(beginnings.get(kind, b"") + (bytes(5000) if kind == "zeros" else noise))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["noise", "zeros", "npz", "npy", "zip", "pickle", "gzip", "png", "web page"])
def test_garbage_is_refused_and_not_executed(tmp_path, kind):
    (tmp_path / "c.pt").write_bytes(_garbage(kind))
    message = _refused(tmp_path / "c.pt")
    assert "not a checkpoint" in message
    assert "code" not in message


def test_a_pickle_without_tensors_is_not_a_checkpoint(tmp_path):
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "not a checkpoint" in _refused(tmp_path / "c.pt")


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_other_files_in_place_of_a_checkpoint_are_named(tmp_path):
    (tmp_path / "c.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "run git lfs pull" in _refused(tmp_path / "c.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "c.pt")
    assert "is a TorchScript program" in _refused(tmp_path / "c.pt")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "c.pt")
    assert "(torch.nn.modules.linear.Linear), would run code" in _refused(tmp_path / "c.pt")
    torch.save({"model": {}, "args": argparse.Namespace()}, tmp_path / "c.pt")
    assert "(argparse.Namespace), would run code" in _refused(tmp_path / "c.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_of_the_old_format_is_damaged(tiny_model, tmp_path, share):
    torch.save(tiny_model.state_dict(), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(content[: int(len(content) * share)])
    assert "damaged or truncated" in _refused(tmp_path / "c.pt")


def test_a_damaged_description_names_the_file(tiny_model, tmp_path):
    for text in ("{", "[]", "[" * 5000, '{"variant": 3}'):
        save_file(dict(tiny_model.state_dict()), tmp_path / "c.safetensors", metadata={"m2h_config": text})
        message = _refused(tmp_path / "c.safetensors")
        assert f"{tmp_path / 'c.safetensors'}: its metadata m2h_config is damaged" in message


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_file(tiny_model, tmp_path, suffix):
    path = tmp_path / f"c.{suffix}"
    if suffix == "pt":
        torch.save(tiny_model.state_dict(), path)
    else:
        save_checkpoint(tiny_model, path)
    content = path.read_bytes()
    for share in (0.01, 0.5, 0.999):
        path.write_bytes(content[: int(len(content) * share)])
        assert path.name in _refused(path)


class _Bomb:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_not_opened(tmp_path, capsys, legacy):
    if legacy:
        (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"a": _Bomb()}))
    else:
        torch.save({"a": _Bomb()}, tmp_path / "bomb.pt")
    assert "would run code" in _refused(tmp_path / "bomb.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_name_without_shipped_weights_is_a_missing_file():
    assert "no checkpoint at m2h" in _refused("m2h")


def test_fresh_networks_differ_in_digest():
    torch.manual_seed(0)
    assert weights_digest(build_model("m2h-tiny")) != weights_digest(build_model("m2h-tiny"))


def test_non_finite_weights_are_refused(tiny_model, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    tensors["heads.edges.final.bias"][0] = float("nan")
    tensors["heads.depth.final.bias"][0] = float("inf")
    torch.save(tensors, tmp_path / "c.pt")
    message = _refused(tmp_path / "c.pt")
    assert "heads.depth.final.bias and 1 others holds NaN or infinity" in message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("channels", "32", "channels is '32', expected int"),
        ("channels", 33, "cannot be split"),
        ("channels", -4, "channels is -4"),
        ("channels", 1 << 40, "expected 0 to 65536"),
        ("separable", 1, "separable is 1, expected bool"),
        ("head_channels", [48], "head_channels is (48,), expected 2 values"),
        ("head_channels", [0, 32], "head_channels=(0, 32)"),
        ("num_classes", True, "num_classes is True"),
        ("num_classes", 0, "num_classes=0"),
        ("min_depth", float("nan"), "min_depth is nan"),
        ("max_depth", 0.0, "is empty"),
        ("context", "other", "choose one of"),
        ("variant", 3, "variant is 3"),
        ("backbone", None, "not the description"),
        ("backbone", {"embed_dim": 3}, "not the description"),
        ("surprise", 1, "surprise"),
    ],
)
def test_an_invalid_network_description_is_refused(tiny_model, field, value, words):
    with pytest.raises(M2HError) as error:
        ModelConfig.from_dict(tiny_model.config.to_dict() | {field: value})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("heads", 5, "cannot be split over 5"),
        ("stages", [4, 2, 1, 0], "increasing"),
        ("stages", [1, 2, 4, 6], "of 6"),
        ("patch_size", 0, "at least 1"),
    ],
)
def test_an_invalid_backbone_is_refused(tiny_model, field, value, words):
    values = tiny_model.config.to_dict()
    with pytest.raises(M2HError, match=words):
        ModelConfig.from_dict(values | {"backbone": values["backbone"] | {field: value}})


def test_every_preset_round_trips_through_its_description():
    for config in VARIANTS.values():
        assert ModelConfig.from_dict(config.to_dict()) == config


def test_an_onnx_file_is_recognized(tiny_onnx):
    with pytest.raises(M2HError, match=r"tiny\.onnx is an ONNX file: give the checkpoint"):
        load_checkpoint(tiny_onnx)


def test_the_error_for_a_git_lfs_pointer_explains_how_to_get_the_file(tmp_path):
    """A clone of the published repository contains such a pointer if Git LFS is not installed."""
    pointer = tmp_path / "m2h_indoor.pt"
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 326476753\n")
    with pytest.raises(M2HError, match=r"m2h_indoor\.pt is a pointer of Git LFS.*run git lfs pull"):
        load_checkpoint(pointer)
