"""Test the measured ranges of tensors on graphs with known magnitudes, and what FP16 makes of them."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.precision.calibration import select_frames
from engines.precision.compare import CpuReference
from engines.precision.headroom import E4M3_RANGE_BITS, Range, activation_ranges, weight_ranges
from engines.precision.islands import find_islands, islands_and_risks
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess
from tests.commands import environment, refused
from tests.engines.graphs import plant_overflow

#: Input of the hand-made graphs. Shares of its 64 values are exact in float32.
SHAPE = (1, 4, 4, 4)


def graph_of(*nodes: onnx.NodeProto, weights: dict[str, float | np.ndarray] | None = None) -> onnx.ModelProto:
    """Make a graph of `image` whose output is that of the last node; only its input has a type."""
    values = {name: np.asarray(value, np.float32) for name, value in (weights or {}).items()}
    graph = helper.make_graph(
        nodes,
        "known",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(operator: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=f"/backbone/{output}/{operator}", **attributes)


def frame_of(*values: float) -> np.ndarray:
    """Return a frame of zeros that starts with `values`."""
    frame = np.zeros(SHAPE, np.float32)
    frame.flat[: len(values)] = values
    return frame


def test_ranges_are_exact_over_all_frames():
    proto = graph_of(
        node("Mul", "image factor", "scaled"),
        node("Transpose", "scaled", "moved", perm=[0, 2, 3, 1]),
        node("Relu", "moved", "positive"),
        weights={"factor": -4096.0},
    )
    ranges = activation_ranges(proto, [frame_of(8.0, 2.0**-3, -(2.0**-30)), frame_of(1.0, -(2.0**-2))])
    # Only the first frame has values below FP16's normal numbers, and 14.8 bits below its own largest value.
    scaled = Range(2.0**15, 2.0**-18, 1 / 128, 1 / 128)
    assert ranges == {
        "image": Range(8.0, 2.0**-30, 1 / 128, 1 / 128),
        "scaled": scaled,
        "moved": scaled,
        "positive": Range(2.0**10, 2.0**-18, 1 / 128, 0.0),
    }


def test_distances_are_in_powers_of_two():
    values = Range(65504 / 8, 2.0**-16, 0.5, 0.5)
    assert values.overflow_bits == pytest.approx(3)
    assert values.underflow_bits == -2
    assert values.dynamic_range_bits == pytest.approx(math.log2(65504 / 8) + 16)
    assert pytest.approx(math.log2(448 * 64)) == E4M3_RANGE_BITS


def test_a_tensor_of_zeros_has_no_smallest_magnitude():
    proto = graph_of(node("Mul", "image nothing", "zeros"), weights={"nothing": np.zeros(4)})
    zeros = activation_ranges(proto, [frame_of(1.0)])["zeros"]
    assert zeros == Range(0.0, None, 0.0, 0.0) == weight_ranges(proto)["nothing"]
    assert zeros.overflow_bits is zeros.underflow_bits is zeros.dynamic_range_bits is None


def test_weights_have_ranges_of_their_own():
    proto = graph_of(node("Mul", "image w", "x"), weights={"w": np.array([-(2.0**9), 0.0, 2.0**-15, 2.0**-5])})
    assert weight_ranges(proto) == {"w": Range(2.0**9, 2.0**-15, 1 / 4, 1 / 4)}


def test_the_first_tensor_with_nan_or_infinity_is_named():
    roots = graph_of(node("Sqrt", "image", "roots"), node("Relu", "roots", "late"))
    said = refused(activation_ranges, roots, [frame_of(1.0), frame_of(-1.0)])
    assert "the tensor roots (of node /backbone/roots/Sqrt) contains NaN" in said
    inverse = graph_of(node("Reciprocal", "image", "inverse"), node("Relu", "inverse", "late"))
    assert "the tensor inverse (of node /backbone/inverse/Reciprocal) contains infinity" in refused(
        activation_ranges, inverse, [frame_of(1.0)]
    )
    weight = graph_of(node("Mul", "image w", "x"), weights={"w": np.array([1.0, np.nan])})
    assert "the weight w contains NaN or infinity" in refused(weight_ranges, weight)


def test_a_frame_of_another_size_is_refused():
    proto = graph_of(node("Relu", "image", "x"))
    assert "the graph takes 4 x 4" in refused(activation_ranges, proto, [np.ones((1, 4, 2, 4), np.float32)])


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "terms", "power"),
    [
        ("AveragePool", "image", {"kernel_shape": [4, 4]}, 16, 1),
        ("GlobalAveragePool", "image", {}, 16, 1),
        ("ReduceMean", "image axes", {}, 16, 1),
        ("ReduceL2", "image axes", {}, 16, 2),
        ("InstanceNormalization", "image w w", {}, 16, 2),
        ("LayerNormalization", "image v", {"axis": 2}, 16, 2),
    ],
)
def test_a_reduction_whose_sum_overflows_is_an_island(operator, inputs, attributes, terms, power):
    """Each of the values, or of their squares, fits into FP16, and so does the result."""
    proto = graph_of(node(operator, inputs, "x", **attributes), weights={"w": np.ones(4), "v": np.ones((4, 4))})
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    limit = (65504 / terms) ** (1 / power)
    for largest, overflows in ((0.99 * limit, False), (1.01 * limit, True)):
        reasons = {island.reason for island in find_islands(proto, {"image": largest, "x": 1.0})}
        assert ("sum" in reasons) is overflows


def test_a_tensor_without_values_that_are_normal_in_fp16_is_an_island():
    proto = graph_of(node("Mul", "image tiny", "small"), node("Relu", "small", "end"), weights={"tiny": 2.0**-15})
    ranges = activation_ranges(proto, [frame_of(1.0)])
    islands, _ = islands_and_risks(proto, {name: values.largest for name, values in ranges.items()})
    assert [(island.node, island.reason) for island in islands] == [
        ("/backbone/small/Mul", "range"),
        ("/backbone/end/Relu", "range"),
    ]


_MEASURE = """
import resource, sys
import numpy as np, onnx
from engines.precision.headroom import activation_ranges
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
frame = np.ones((1, 4, 512, 512), np.float32)
proto = onnx.load(sys.argv[1])
before = used()
activation_ranges(proto, [frame, frame])
print(used() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB only on Linux")
def test_the_memory_does_not_grow_with_the_number_of_tensors(tmp_path):
    """All 100 tensors together have 400 MiB."""
    names = ["image", *(f"x{index}" for index in range(100))]
    proto = graph_of(*(node("Sigmoid", source, result) for source, result in pairwise(names)))
    for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 512
    onnx.save(proto, tmp_path / "deep.onnx")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "deep.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150


@pytest.fixture(scope="module")
def rooms():
    """Return rooms as inputs of `tiny_onnx`: two for calibration and two for the check."""
    preprocess = Preprocess(PRESETS["published"], 112, 140)
    return select_frames([preprocess(render_room(seed, 0, 112, 140).image).copy() for seed in range(4)], count=2)


@pytest.mark.slow
def test_a_planted_overflow_costs_nothing_where_ranges_are_measured(tiny_onnx, rooms, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization")
    from engines.precision.convert import to_fp16

    proto = plant_overflow(onnx.load(tiny_onnx))
    planted = tmp_path / "planted.onnx"
    onnx.save(proto, planted)
    reference = CpuReference(onnx.load(tiny_onnx), rooms.held_out)
    assert min(reference.psnr(proto).values()) > 130, "the float32 network is the same"
    measured = to_fp16(planted, tmp_path / "measured.onnx", frames=rooms)
    kept = {island.node for island in measured.islands if island.reason == "range"}
    assert {"/backbone/blocks.0/qkv/MatMul", "/backbone/blocks.0/proj/MatMul"} <= kept
    assert min(measured.psnr.values()) > 50, measured.psnr
    to_fp16(planted, tmp_path / "blind.onnx")
    assert max(reference.psnr(onnx.load(tmp_path / "blind.onnx")).values()) < 50
