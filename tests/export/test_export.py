"""Test the exported file: names, order, numbers, no shape arithmetic, and what consumers read from it."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from export import Sensor, check_export, export_onnx
from export.static_form import to_static
from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.model.layers import global_mean
from m2h_deploy.runtime.preprocess import Normalization
from tests.networks import random_network


def operators(path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_inputs_and_outputs_are_the_documented_ones(tiny_onnx):
    session = ort.InferenceSession(tiny_onnx, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("image", [1, 3, 112, 140], "tensor(float)")]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("depth", [1, 1, 112, 140]),
        ("semantics", [1, 41, 112, 140]),
        ("normals", [1, 3, 112, 140]),
        ("edges", [1, 1, 112, 140]),
    ]


def test_the_ros_node_picks_depth_and_semantics_by_shape_and_position(tiny_onnx):
    """The node takes the first output of shape (1, 1, H, W) as depth, and the first of the others as semantics."""
    session = ort.InferenceSession(tiny_onnx, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"image": np.zeros((1, 3, 112, 140), np.float32)})
    depth = next(i for i, value in enumerate(outputs) if value.shape[:2] == (1, 1))
    semantics = next(i for i in range(len(outputs)) if i != depth)
    names = [output.name for output in session.get_outputs()]
    assert (names[depth], names[semantics]) == ("depth", "semantics")


def test_no_shape_arithmetic_or_control_flow_at_static_sizes(tiny_onnx):
    assert not {"Shape", "If", "Loop", "ConstantOfShape", "Range", "NonZero"} & set(operators(tiny_onnx))


def test_position_embeddings_and_padding_are_constants(tiny_onnx):
    assert "cubic" not in {
        a.s.decode() for n in onnx.load(tiny_onnx).graph.node for a in n.attribute if a.name == "mode"
    }
    names = {tensor.name for tensor in onnx.load(tiny_onnx).graph.initializer}
    assert "backbone.pos_embed" not in names


def test_nodes_are_named_after_the_papers_blocks_without_source_files(tiny_onnx):
    proto = onnx.load(tiny_onnx)
    blocks = {node.name.split("/")[1].split(".")[0] for node in proto.graph.node}
    assert {"backbone", "mstr", "msf", "wmca", "context", "heads"} <= blocks
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)
    assert b".py" not in proto.SerializeToString()


def test_metadata_describes_the_file(tiny_onnx, tiny_model):
    metadata = {entry.key: entry.value for entry in onnx.load(tiny_onnx).metadata_props}
    assert metadata["m2h.variant"] == "m2h-tiny"
    assert metadata["m2h.tasks"] == "depth,semantics,normals,edges"
    assert len(metadata["m2h.weights_sha256"]) == 64
    assert json.loads(metadata["m2h.config"])["channels"] == tiny_model.config.channels


def test_the_static_form_computes_the_same(tiny_model):
    image = torch.randn(2, 3, 100, 117)
    with torch.inference_mode():
        reference, static = tiny_model(image), to_static(tiny_model, 100, 117)(image)
    for task, value in reference.items():
        torch.testing.assert_close(static[task], value, rtol=1e-5, atol=1e-4 * float(value.std()))


@pytest.fixture(scope="module")
def functions_onnx(tiny_model, tmp_path_factory):
    """Export windows as functions with a dynamic batch: 10 x 12 maps do not fill 7 x 7 windows."""
    path = tmp_path_factory.mktemp("functions") / "f.onnx"
    return export_onnx(tiny_model, path, height=112, width=140, windows="functions", dynamic_batch=True).path


@pytest.mark.slow
def test_windows_as_functions_give_the_same_numbers(tiny_onnx, functions_onnx):
    proto = onnx.load(functions_onnx)
    assert {(f.domain, f.name, tuple(f.attribute)) for f in proto.functions} == {
        ("m2h", "WindowPartition", ("window_size",)),
        ("m2h", "WindowReverse", ("window_size", "height", "width")),
    }
    calls = [node for node in proto.graph.node if node.domain == "m2h"]
    assert len(calls) == 2  # the deploy form partitions and reverses once, for both layers and all tasks
    assert all(a.i == 7 for node in calls for a in node.attribute if a.name == "window_size")
    image = np.random.default_rng(0).standard_normal((1, 3, 112, 140), dtype=np.float32)
    values = [
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image})
        for path in (tiny_onnx, functions_onnx)
    ]
    for standard, functions in zip(*values, strict=True):
        np.testing.assert_allclose(functions, standard, rtol=1e-3, atol=1e-4 * standard.std())


def test_a_dynamic_batch_gives_the_results_of_single_frames(functions_onnx):
    session = ort.InferenceSession(functions_onnx, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 112, 140]
    images = np.random.default_rng(1).standard_normal((3, 3, 112, 140), dtype=np.float32)
    together = session.run(None, {"image": images})
    for index in range(3):
        alone = session.run(None, {"image": images[index : index + 1]})
        for batch, single in zip(together, alone, strict=True):
            assert np.abs(batch[index] - single[0]).max() < 3e-3 * single.std()


@pytest.mark.slow
def test_dropped_tasks_leave_no_trace(tiny_model, tmp_path):
    path = export_onnx(
        tiny_model, tmp_path / "d.onnx", height=28, width=28, tasks=["semantics", "depth"], opset=18
    ).path
    proto = onnx.load(path)
    assert [output.name for output in proto.graph.output] == ["depth", "semantics"]
    assert not [t.name for t in proto.graph.initializer if t.name.startswith(("heads.edges", "heads.normals"))]
    assert proto.opset_import[0].version == 18


def test_a_file_with_wrong_numbers_fails_the_check(tiny_model, tiny_onnx, tmp_path):
    proto = onnx.load(tiny_onnx)
    tensor = next(t for t in proto.graph.initializer if t.name == "heads.edges.upsample2.residual.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.05, tensor.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    report = check_export(tiny_model, tmp_path / "wrong.onnx")
    assert not report.passed
    assert {failure.split()[0] for failure in report.failures} == {"edges"}


@pytest.mark.slow
def test_a_failed_check_leaves_no_file(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("m2h_deploy.numerics.BULK_FACTOR", -1.0)
    with pytest.raises(CheckFailed) as error:
        export_onnx(tiny_model, tmp_path / "m.onnx", height=28, width=28, tasks=["edges"])
    assert error.value.exit_code == 1
    assert not error.value.report.passed
    assert error.value.report.differences
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"height": 0},
        {"width": -224},
        {"height": 100_000},
        {"batch": 0},
        {"opset": 9},
        {"tasks": []},
        {"tasks": ["depth", "optical flow"]},
        {"windows": "round"},
        {"batch": 2, "dynamic_batch": True},
        {"normalization": Normalization((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))},
        {"classes": Classes(names=("road", "grass"), palette=((0, 0, 0), (1, 1, 1)))},
        {"tasks": ["depth"], "sensor": Sensor((64, 48))},
        {"path": "missing/folder/m.onnx"},
    ],
)
def test_invalid_options_are_refused_before_any_work(tiny_model, tmp_path, options):
    path = tmp_path / options.pop("path", "m.onnx")
    with pytest.raises(M2HError) as error:
        export_onnx(tiny_model, path, **options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_more_classes_than_fit_into_8_bit_labels_are_refused(tmp_path):
    for classes in (256, 300):
        with pytest.raises(M2HError, match=f"{classes} classes: labels have 8 bits, which hold at most 255"):
            export_onnx(random_network(num_classes=classes), tmp_path / "m.onnx", height=28, width=28)
    assert list(tmp_path.iterdir()) == []


def test_functions_of_a_network_without_windows_are_refused(tmp_path):
    from m2h_deploy.model import build_model

    with pytest.raises(M2HError, match="no windows"):
        export_onnx(build_model("m2h-tiny", cross_task="none"), tmp_path / "m.onnx", windows="functions")
    assert list(tmp_path.iterdir()) == []


def test_the_mean_of_a_large_map_is_precise(tmp_path):
    """A one-step mean over a million values has an error of 1e-4 in ONNX Runtime; 640x480 has such means."""

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return global_mean(x)

    x = torch.rand(1, 8, 1152, 1472, generator=torch.Generator().manual_seed(0)) ** 4
    path = tmp_path / "mean.onnx"
    torch.onnx.export(Mean(), (x,), path, dynamo=True, verbose=False)
    (mean,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    exact = x.double().mean(dim=(2, 3), keepdim=True).numpy()
    np.testing.assert_allclose(mean, exact, rtol=1e-6)
