"""Small graphs with the names and outputs of the real ones, whose conversion takes a second."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import infer_shapes
from export.label_map import reduce_semantics
from m2h_deploy.bundle.manifest import Classes, LabelMap
from m2h_deploy.choices import LabelResolution
from m2h_deploy.data.classes import default_classes
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.runtime.preprocess import PRESETS

SIDE = 16


def _small_nodes(*, functions: bool) -> list[onnx.NodeProto]:
    return [
        _node("Conv", ["image", "stem"], "a", "/backbone/patch_embed/proj/Conv", pads=[1, 1, 1, 1]),
        _node("Relu", ["a"], "b", "/backbone/Relu"),
        _node("Conv", ["b", "middle"], "c", "/msf.depth/resize/Conv", pads=[1, 1, 1, 1]),
        _node("Transpose", ["c"], "d", "/wmca/Transpose", perm=[0, 2, 3, 1]),
        _node("LayerNormalization", ["d", "gain", "bias"], "e", "/wmca/norm/LayerNormalization", axis=-1),
        _node("MatMul", ["e", "linear"], "f", "/context/ffn/MatMul"),
        _node("Transpose", ["f"], "ft", "/wmca/attention/Transpose", perm=[0, 1, 3, 2]),
        _node("MatMul", ["f", "ft"], "scores", "/wmca/attention/MatMul"),
        _node("Softmax", ["scores"], "shares", "/wmca/attention/Softmax", axis=-1),
        _node("MatMul", ["shares", "f"], "mixed", "/wmca/attention/MatMul_1"),
        _node("Add", ["mixed", "e"], "sum", "/wmca/Add"),
        _node("Transpose", ["sum"], "g", "/wmca/Transpose_1", perm=[0, 3, 1, 2]),
        _node("Swap", ["g"], "h", "/wmca/Swap", domain="m2h") if functions else _node("Relu", ["g"], "h", "/wmca/Relu"),
        _node("Conv", ["h", "depth"], "i", "/heads.depth/final/Conv"),
        _node("Relu", ["i"], "depth_out", "/heads.depth/Relu"),
        _node("Conv", ["h", "semantics"], "semantics_out", "/heads.semantics/final/Conv"),
    ]


def small_graph(
    *, functions: bool = False, batch: int | str = 1, scale: float = 0.1, channels: int = 16, classes: int = 4
) -> onnx.ModelProto:
    """Make a graph from image (N, 3, 16, 16) to depth and semantics: Conv, norm, Linear, attention core, two heads.

    With `functions`, a map passes through m2h::Swap, a function of plain operators. `scale` multiplies the weights;
    `channels` is the width of all layers, `classes` the number of classes. The metadata is that of an exported file.
    """
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "stem": rng.normal(0, scale, (channels, 3, 3, 3)),
        "middle": rng.normal(0, scale, (channels, channels, 3, 3)),
        "linear": rng.normal(0, scale, (channels, channels)),
        "gain": np.ones(channels),
        "bias": np.zeros(channels),
        "depth": rng.normal(0, scale, (1, channels, 1, 1)),
        "semantics": rng.normal(0, scale, (classes, channels, 1, 1)),
    }
    nodes = _small_nodes(functions=functions)
    nodes[-2].output[0], nodes[-1].output[0] = "depth", "semantics"
    initializers = [numpy_helper.from_array(value.astype(np.float32), f"w.{name}") for name, value in weights.items()]
    for node in nodes:
        node.input[:] = [f"w.{name}" if name in weights else name for name in node.input]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("depth", TensorProto.FLOAT, [batch, 1, SIDE, SIDE]),
            helper.make_tensor_value_info("semantics", TensorProto.FLOAT, [batch, classes, SIDE, SIDE]),
        ],
        initializers,
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid("m2h", 1)] if functions else [])]
    proto = helper.make_model(graph, opset_imports=opsets, functions=[_swap()] if functions else [])
    proto.ir_version = 10
    info = GraphInfo(
        variant="small",
        config={"min_depth": 1e-3, "max_depth": 10.0, "num_classes": classes},
        weights_sha256="0" * 64,
        tasks=("depth", "semantics"),
        normalization=PRESETS["published"],
        classes=default_classes(classes),
        form="deploy",
        windows="standard",
    )
    info.write(proto)
    onnx.checker.check_model(proto)
    return onnx.shape_inference.infer_shapes(proto)


def with_label_map(
    proto: onnx.ModelProto, classes: Classes, label_map: LabelMap, resolution: LabelResolution = "network"
) -> onnx.ModelProto:
    """Return a graph of an export with a label map, as `export_onnx` makes it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    info = GraphInfo.read(result, "the graph")
    reduce_semantics(result, label_map)
    replace(info, classes=classes, label_map=label_map, label_resolution=resolution).write(result)
    return infer_shapes(result)


def plant_overflow(proto: onnx.ModelProto, scale: float = 2.0**17) -> onnx.ModelProto:
    """Scale one channel of an exported network's first attention values, and undo it in the next linear layer.

    The results are the same, and FP16 overflows between the two.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    nodes = {node.name: node for node in result.graph.node}
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    qkv, bias, proj = (f"/backbone/blocks.0/{name}" for name in ("qkv/MatMul", "qkv/Add", "proj/MatMul"))
    channel = 2 * weights[nodes[qkv].input[1]].dims[1] // 3  # the first of the values, after queries and keys
    for name, place, factor in ((qkv, np.s_[:, channel], scale), (bias, channel, scale), (proj, 0, 1 / scale)):
        tensor = weights[nodes[name].input[1]]
        values = numpy_helper.to_array(tensor).copy()
        values[place] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


def set_metadata(proto: onnx.ModelProto, key: str, value: str | None) -> None:
    """Change or remove one entry of the metadata, as another tool might."""
    kept = [entry for entry in proto.metadata_props if entry.key != key]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if value is not None:
        proto.metadata_props.add(key=key, value=value)


def _node(operator: str, inputs: list[str], output: str, name: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=name, **attributes)


def _swap() -> onnx.FunctionProto:
    body = [
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    return helper.make_function("m2h", "Swap", ["x"], ["z"], body, [helper.make_opsetid("", 20)])


def frames(count: int, height: int = SIDE, width: int = SIDE, seed: int = 0) -> list[np.ndarray]:
    """Return random frames, float32 (1, 3, height, width)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, 3, height, width)).astype(np.float32) for _ in range(count)]


def quantize_elsewhere(source: Path, target: Path, image: np.ndarray) -> None:
    """Quantize `source` as another tool does: with Q/DQ around convolutions and products, by ONNX Runtime.

    Runs in a separate process, because importing ModelOpt replaces parts of ONNX Runtime's quantization.
    """
    image_file = source.with_suffix(".npy")
    np.save(image_file, image)
    command = [sys.executable, "-c", _QUANTIZE, str(source), str(target), str(image_file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_QUANTIZE = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

source, target, image = sys.argv[1:]

class Frames(CalibrationDataReader):
    def __init__(self):
        self.frames = iter([{"image": np.load(image)}])

    def get_next(self):
        return next(self.frames, None)

options = {"activation_type": QuantType.QInt8, "op_types_to_quantize": ["Conv", "MatMul"]}
quantize_static(source, target, Frames(), quant_format=QuantFormat.QDQ, **options)
"""


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value of a graph."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
