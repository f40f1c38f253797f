"""Test that the export check accepts correct files with any weights, and refuses every planted fault."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export import export_onnx
from export.check import CheckReport, Reference, check_against, references_of
from m2h_deploy.bundle.self_test import LEAST_LOW_TOLERANCE
from m2h_deploy.model import M2H, load_checkpoint
from m2h_deploy.parity import Gates
from m2h_deploy.runtime.preprocess import PRESETS
from tests.export.faults import FAULTS, Fault, round_to_half
from tests.golden import filler

FORMS = ("deploy", "reference")


def network(variant: str, seed: int, folder: Path) -> M2H:
    """Return the shipped m2h-tiny, or a published network with reproducible weights."""
    if variant == "m2h-tiny":
        return load_checkpoint("m2h-tiny")
    path = folder / "published.pt"
    torch.save({name: torch.from_numpy(value) for name, value in filler.weights(variant, seed).items()}, path)
    return load_checkpoint(path)


def planted(model: M2H, fault: Fault, patch: pytest.MonkeyPatch) -> M2H:
    model = copy.deepcopy(model)
    with torch.no_grad():
        fault.plant(model, patch)
    return model


def constant(proto: onnx.ModelProto, name: str, value: object) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def edit_initializer(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], object]) -> None:
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value), value.dtype), name))


def edit_value(proto: onnx.ModelProto, name: str, make: Callable[[str, str], list[onnx.NodeProto]]) -> None:
    """Replace the value `name` by nodes from `make(old, name)`, where `old` is the renamed original value."""
    index = next(i for i, node in enumerate(proto.graph.node) if name in node.output)
    node = proto.graph.node[index]
    node.output[:] = [f"{name}_before" if output == name else output for output in node.output]
    for offset, new in enumerate(make(f"{name}_before", name), start=1):
        proto.graph.node.insert(index + offset, new)


def alternating_signs(proto: onnx.ModelProto) -> None:
    change = lambda w: w * np.where(np.arange(w.shape[1]) % 2, -1, 1)[None, :, None, None]  # noqa: E731
    edit_initializer(proto, "heads.edges.upsample2.residual.weight", change)


def exchanged_rows(value: np.ndarray) -> np.ndarray:
    return value[[1, 0, *range(2, len(value))]]


def half_pixel(proto: onnx.ModelProto) -> None:
    node = next(n for n in proto.graph.node if n.op_type == "Resize" and n.name.startswith("/msf.depth/"))
    mode = next(a for a in node.attribute if a.name == "coordinate_transformation_mode")
    assert mode.s == b"align_corners"
    mode.s = b"half_pixel"


def rotated_window(proto: onnx.ModelProto) -> None:
    """Rotate the tokens of window 3 by one at the input of WMCA's second layer."""

    def nodes(old: str, new: str) -> list[onnx.NodeProto]:
        cuts = constant(proto, "cuts", np.array([3, 1, 26]))
        turn = constant(proto, "turn", np.array([195, *range(195)]))
        return [
            helper.make_node("Split", [old, cuts], ["before", "window", "after"], axis=0),
            helper.make_node("Gather", ["window", turn], ["turned"], axis=1),
            helper.make_node("Concat", ["before", "turned", "after"], [new], axis=0),
        ]

    edit_value(proto, "/wmca/exchange/layers.1/Reshape_output_0", nodes)


def scaled_depth(proto: onnx.ModelProto) -> None:
    factor = constant(proto, "factor", np.float32(1.01))
    edit_value(proto, "depth", lambda old, new: [helper.make_node("Mul", [old, factor], [new])])


def exchanged_axes(proto: onnx.ModelProto) -> None:
    order = constant(proto, "order", np.array([1, 0, 2]))
    edit_value(proto, "normals", lambda old, new: [helper.make_node("Gather", [old, order], [new], axis=1)])


EDITS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "signs": alternating_signs,
    "channels": lambda p: edit_initializer(p, "msf.normals.blocks.2.project.weight", exchanged_rows),
    "norm": lambda p: edit_initializer(p, "wmca.exchange.layers.1.norm1.norms.3.bias", np.zeros_like),
    "residual": lambda p: edit_initializer(p, "/backbone/blocks.3/fc2/MatMul_input_1", lambda w: w * 1.01),
    "corners": half_pixel,
    "window": rotated_window,
    "depth": scaled_depth,
    "axes": exchanged_axes,
}


@pytest.fixture(scope="module")
def references(tiny_model) -> list:
    return references_of(tiny_model, 112, 140, PRESETS["published"])


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused(edit, references, tiny_onnx, tmp_path):
    proto = onnx.load(tiny_onnx)
    EDITS[edit](proto)
    onnx.save(proto, tmp_path / "edited.onnx")
    report = check_against(references, tmp_path / "edited.onnx")
    assert not report.passed
    assert all(" float32" in failure and "\n" not in failure for failure in report.failures)


def test_the_report_has_the_error_of_float32_itself(references, tiny_onnx):
    report = check_against(references, tiny_onnx)
    assert report.passed
    assert {row.output for row in report.differences} == {"depth", "semantics", "normals", "edges"}
    for row in report.differences:
        assert 0 < row.difference.own_mean_error < 1e-3
        assert row.difference.mean_error < 6 * row.difference.own_mean_error + 1e-6


ACCEPTED = [
    *[("m2h_small", seed, 224, 224) for seed in range(30)],
    *[("m2h_small", seed, 256, 320) for seed in range(5)],
    *[("m2h_small", seed, 480, 640) for seed in range(5)],
    *[("m2h", seed, 224, 224) for seed in range(8)],
    ("m2h-tiny", 0, 224, 224),
    ("m2h-tiny", 0, 480, 640),
]


class Shared:
    """A cache of the last model's references, which both forms of its file and all its faults share."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._references: list[Reference] = []

    def of(self, model: M2H, key: tuple[object, ...], height: int, width: int) -> list[Reference]:
        if self._key != (*key, height, width):
            self._references = references_of(model, height, width, PRESETS["published"])
            self._key = (*key, height, width)
        return self._references


@pytest.fixture(scope="module")
def shared() -> Shared:
    return Shared()


def export_unchecked(model: M2H, path: Path, monkeypatch, *, height: int, width: int, form: str) -> Path:
    monkeypatch.setattr("export.exporter.check_export", lambda *_, **__: CheckReport(()))
    return export_onnx(model, path, height=height, width=width, form=form).path


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("variant", "seed", "height", "width"), ACCEPTED)
def test_a_correct_file_is_accepted(variant, seed, height, width, form, shared, tmp_path, monkeypatch):
    model = network(variant, seed, tmp_path)
    path = export_unchecked(model, tmp_path / "m.onnx", monkeypatch, height=height, width=width, form=form)
    report = check_against(shared.of(model, (variant, seed), height, width), path)
    assert report.failures == ()


REFUSED = [("m2h-tiny", 0), *[("m2h_small", seed) for seed in range(5)]]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize(("variant", "seed"), REFUSED)
def test_a_planted_fault_is_refused(variant, seed, fault, form, shared, tmp_path, monkeypatch):
    model = network(variant, seed, tmp_path)
    references = shared.of(model, (variant, seed), fault.height, fault.width)
    with monkeypatch.context() as patch:
        broken = planted(model, fault, patch)
        size = {"height": fault.height, "width": fault.width}
        path = export_unchecked(broken, tmp_path / "m.onnx", patch, **size, form=form)
    assert not check_against(references, path).passed


@pytest.mark.slow
@pytest.mark.parametrize("block", ["backbone.blocks.3", "msf.depth", "wmca.layers.0", "heads.edges"])
def test_a_block_rounded_to_half_is_reported_and_within_the_limits_of_fp16(block, tmp_path, monkeypatch):
    model = network("m2h_small", 0, tmp_path)
    references = references_of(model, 112, 98, PRESETS["published"])
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        round_to_half(rounded, block)
    report = check_against(references, export_onnx(rounded, tmp_path / "m.onnx", height=112, width=98).path)
    assert not report.passed
    assert all(row.difference.mean_error < LEAST_LOW_TOLERANCE for row in report.differences)
    assert all(row.difference.psnr > Gates().psnr for row in report.differences)
