"""The sensor graph: raw pixels in; labels, meters, unit normals and probabilities out.

`add_sensor` puts preprocess and postprocess around an exported network as standard ONNX operators, so that a program in
any language needs no image code. The numbers are those of `m2h_deploy.runtime.preprocess` and
`m2h_deploy.runtime.postprocess`: OpenCV resizes 8-bit images in fixed point (11-bit weights, two shifts that discard
bits), and so does this graph, in float32 on integers below 2^24, which every engine computes exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import graph
from m2h_deploy.choices import DepthFormat, SensorFormat, check_choice
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.edit import copy_of, rename_values, replace_nodes
from m2h_deploy.onnx_graph.info import GraphInfo, SensorGraphInfo
from m2h_deploy.runtime.preprocess import MIN_SIDE, Normalization
from m2h_deploy.tasks import RESULTS, TABLE

MAX_CAMERA_SIDE = 8192

#: cv2.COLOR_YUV2BGR_NV12: ITU-R BT.601, 16 to 235, in 20-bit fixed point.
_YUV = {"y": 1220542, "ub": 2116026, "ug": -409993, "vg": -852492, "vr": 1673527}


@dataclass(frozen=True)
class Sensor:
    """A camera's image format, and the outputs of its sensor graph."""

    camera: tuple[int, int]
    """Width and height of the camera's image."""
    format: SensorFormat = "uint8"
    """uint8: (N, H, W, 3) BGR. nv12: (N, 3/2 H, W), the plane of Y above the plane of interleaved U and V."""
    outputs: tuple[str, ...] = tuple(RESULTS)
    depth: DepthFormat = "float32"
    """float32: meters. uint16: millimeters, at most 65.535 m; TensorRT has no such type."""

    def __post_init__(self) -> None:
        width, height = self.camera
        check_choice("sensor", self.format, SensorFormat)
        if not all(MIN_SIDE <= side <= MAX_CAMERA_SIDE for side in self.camera):
            raise M2HError(f"camera size {width}x{height}: both sides must be {MIN_SIDE} to {MAX_CAMERA_SIDE} pixels")
        if self.format == "nv12" and (width % 2 or height % 2):
            raise M2HError(f"camera size {width}x{height}: NV12 needs even sides")
        unknown = [name for name in self.outputs if name not in RESULTS]
        if unknown or not self.outputs:
            raise M2HError(f"outputs {', '.join(unknown) or 'none'}: choose from {', '.join(RESULTS)}")
        check_choice("depth format", self.depth, DepthFormat)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Network outputs that the sensor graph needs."""
        return tuple(RESULTS[name] for name in RESULTS if name in self.outputs)


def add_sensor(proto: onnx.ModelProto, sensor: Sensor) -> onnx.ModelProto:
    """Add preprocess and postprocess to a graph of `export_onnx`; `proto` is not modified.

    The input is still called `image`: uint8, as `sensor.format` says. Outputs have the camera's H x W and come in the
    order of RESULTS: `depth` (N, H, W) float32 meters or uint16 millimeters, clamped to the model's range; `labels` (N,
    H, W) uint8; `normals` (N, H, W, 3) float32 unit vectors; `edges` (N, H, W) float32 probability.

    Raises:
        M2HError: The graph lacks a requested output, or has too many classes for uint8.
    """
    result = copy_of(proto)
    info = GraphInfo.read(proto, "the graph")
    shapes = graph.static_shapes(proto)
    missing = [name for name in sensor.outputs if RESULTS[name] not in shapes]
    if missing:
        raise M2HError(f"the graph has no {', '.join(missing)}: export it with all tasks")
    if "labels" in sensor.outputs and shapes["semantics"][1] > 256:
        raise M2HError(f"{shapes['semantics'][1]} classes do not fit uint8 labels: leave labels out")
    _rename_border(result)
    batch, _, height, width = shapes["image"]
    before = _Nodes("preprocess", batch)
    _preprocess(before, sensor, (height, width), info.normalization)
    after = _Nodes("postprocess", batch)
    outputs = _postprocess(after, sensor, (height, width), info)
    replace_nodes(result, [*before.nodes, *result.graph.node, *after.nodes])
    del result.graph.input[:], result.graph.output[:]
    result.graph.initializer.extend((*before.constants, *after.constants))
    free = "batch" if batch == 0 else batch
    result.graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, [free, *_raw_shape(sensor)]))
    result.graph.output.extend(
        helper.make_tensor_value_info(name, kind, [free, *shape]) for name, kind, shape in outputs
    )
    own = SensorGraphInfo(sensor.format, sensor.camera, (width, height), sensor.depth)
    replace(info, sensor=own).write(result)
    return graph.infer_shapes(result)


def _raw_shape(sensor: Sensor) -> tuple[int, ...]:
    width, height = sensor.camera
    return (height, width, 3) if sensor.format == "uint8" else (height * 3 // 2, width)


def _rename_border(proto: onnx.ModelProto) -> None:
    """Rename the network's inputs and outputs, which become inner values: `network/image`, `network/depth`."""
    border = (*proto.graph.input, *proto.graph.output)
    rename_values(proto, {value.name: f"network/{value.name}" for value in border})
    proto.graph.value_info.extend((*proto.graph.input, *proto.graph.output))


class _Nodes:
    """Nodes and constants of one part of the graph, named `/part/step/Operator`."""

    def __init__(self, part: str, batch: int) -> None:
        self.part = part
        self.batch = batch
        """0: dynamic."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._step = "input"
        self._taken: set[str] = set()

    def step(self, name: str) -> None:
        """Start a step; later nodes are named after it."""
        self._step = name

    def add(self, operator: str, *inputs: str | NDArray, output: str | None = None, **attributes: Any) -> str:
        """Append one node and return the name of its output; arrays become constants."""
        name = self._unique(f"/{self.part}/{self._step}/{operator}")
        names = [
            entry if isinstance(entry, str) else self.constant(f"{name}_input_{place}", entry)
            for place, entry in enumerate(inputs)
        ]
        output = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(operator, names, [output], name, **attributes))
        return output

    def constant(self, name: str, value: NDArray) -> str:
        """Append a constant and return its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _unique(self, name: str) -> str:
        number, unique = 0, name
        while unique in self._taken:
            number += 1
            unique = f"{name}_{number}"
        self._taken.add(unique)
        return unique

    def scaled(self, value: str, factor: float | NDArray) -> str:
        """Append value * factor."""
        return self.add("Mul", value, _floats(factor))

    def floor_of(self, value: str, factor: float) -> str:
        """Append floor(value * factor); `factor` is a power of two, so that the product is not rounded."""
        return self.add("Floor", self.scaled(value, factor))

    def take(self, value: str, indices: Sequence[int] | NDArray, axis: int) -> str:
        """Append a Gather of `indices` along `axis`."""
        return self.add("Gather", value, np.asarray(indices, np.int64), axis=axis)

    def resize(self, value: str, channels: int, size: tuple[int, int]) -> str:
        """Resize bilinearly with half-pixel centers to (height, width), as cv2.resize does on float32."""
        sizes: str | NDArray = np.array([self.batch, channels, *size], np.int64)
        if self.batch == 0:
            count = self.add("Shape", value, start=0, end=1)
            sizes = self.add("Concat", count, np.array([channels, *size], np.int64), axis=0)
        mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.add("Resize", value, "", "", sizes, **mode)


def _floats(value: float | NDArray) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


def _preprocess(nodes: _Nodes, sensor: Sensor, network: tuple[int, int], normalization: Normalization) -> None:
    """Convert uint8 pixels to the network's normalized RGB planes."""
    # TensorRT supports uint8 only for inputs, and only a cast may read them.
    pixels = _cast(nodes, "image")
    if sensor.format == "nv12":
        pixels = _nv12_to_bgr(nodes, pixels, sensor.camera)
    width, height = sensor.camera
    if (height, width) != network:
        pixels = _resize_pixels(nodes, pixels, (height, width), network)
    nodes.step("normalize")
    # Plane c of the network is RGB channel c; the pixels are BGR.
    mean, std = np.array(normalization.mean[::-1]), np.array(normalization.std[::-1])
    scaled = nodes.scaled(pixels, np.tile(1 / (255 * std), network[1]).reshape(1, 1, network[1], 3))
    shifted = nodes.add("Sub", scaled, _floats(np.tile(mean / std, network[1]).reshape(1, 1, network[1], 3)))
    planes = nodes.add("Transpose", shifted, perm=[0, 3, 1, 2])
    nodes.add("Gather", planes, np.array([2, 1, 0]), output="network/image", axis=1)


def _cast(nodes: _Nodes, value: str, kind: int = TensorProto.FLOAT, output: str | None = None) -> str:
    return nodes.add("Cast", value, output=output, to=kind)


def resize_table(source: int, target: int, *, vertical: bool) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return neighbors and weights of a one-dimensional bilinear resize from `source` to `target` pixels.

    For each target pixel these are both neighbors among the source pixels, and their weights in 2048ths, as in OpenCV.
    OpenCV drops the weight of a neighbor outside the image along rows, and repeats the border along columns: the sum is
    the same except for bits that its shifts discard.
    """
    scale = 1.0 / (target / source)
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    if not vertical:
        share = np.where((first < 0) | (first >= source - 1), np.float32(0), share)
        first = first.clip(0, source - 1)
    weights = (np.rint((np.float32(1) - share) * np.float32(2048)), np.rint(share * np.float32(2048)))
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), *weights


def _resize_pixels(nodes: _Nodes, pixels: str, camera: tuple[int, int], network: tuple[int, int]) -> str:
    """Resize uint8 pixels bit-exactly as cv2.resize: rows first in 16ths of 2048ths, then columns in quarters."""
    nodes.step("resize")
    top, bottom, upper, lower = resize_table(camera[0], network[0], vertical=True)
    left, right, near, far = resize_table(camera[1], network[1], vertical=False)
    rows = np.unique(np.concatenate((top, bottom)))
    if len(rows) <= camera[0] * 3 // 4:  # with more rows, copying them costs as much as processing all of them
        pixels = nodes.take(pixels, rows, 1)
    else:
        rows = np.arange(camera[0])
    # Weights are repeated for the three channels: engines multiply whole rows faster than triples.
    weighted = [
        nodes.scaled(nodes.take(pixels, place, 2), np.repeat(weight, 3).reshape(1, 1, network[1], 3))
        for place, weight in ((left, near), (right, far))
    ]
    value = nodes.floor_of(nodes.add("Add", *weighted), 1 / 16)
    # A product with a weight needs 26 bits and float32 has 24: the high and low bytes are multiplied separately.
    high = nodes.floor_of(value, 1 / 256)
    low = nodes.add("Sub", value, nodes.scaled(high, 256))
    quarters = []
    for place, weight in ((top, upper), (bottom, lower)):
        row, factor = np.searchsorted(rows, place), weight.reshape(1, network[0], 1, 1)
        carry = nodes.add("Floor", nodes.scaled(nodes.take(low, row, 1), factor / 256))
        total = nodes.add("Add", nodes.scaled(nodes.take(high, row, 1), factor), carry)
        quarters.append(nodes.floor_of(total, 1 / 256))
    rounded = nodes.floor_of(nodes.add("Add", nodes.add("Add", *quarters), _floats(2)), 1 / 4)
    return nodes.add("Min", rounded, _floats(255))


def _nv12_to_bgr(nodes: _Nodes, raw: str, camera: tuple[int, int]) -> str:
    """Convert NV12 in float32 to (N, H, W, 3); each chroma pair covers 2 x 2 pixels, as in cv2.cvtColor."""
    nodes.step("nv12")
    width, height = camera
    plane = nodes.add("Slice", raw, np.array([0]), np.array([height]), np.array([1]))
    luma = nodes.add("Max", nodes.add("Sub", plane, _floats(16)), _floats(0))
    chroma = nodes.add("Slice", raw, np.array([height]), np.array([height * 3 // 2]), np.array([1]))
    chroma = nodes.add("Sub", chroma, _floats(128))
    pairs = np.arange(width) // 2 * 2
    u, v = nodes.take(chroma, pairs, 2), nodes.take(chroma, pairs + 1, 2)
    # A product needs 29 bits and float32 has 24: the factors' upper and lower 12 bits are multiplied separately.
    upper = nodes.scaled(luma, _YUV["y"] // 4096)
    lower = nodes.add("Add", nodes.scaled(luma, _YUV["y"] % 4096), _floats(2**19))
    channels = []
    for factors in ((_YUV["ub"], 0), (_YUV["ug"], _YUV["vg"]), (0, _YUV["vr"])):
        high, low = (
            nodes.take(_weighted(nodes, (u, v), part), np.arange(height) // 2, 1)
            for part in ([f // 4096 for f in factors], [f % 4096 for f in factors])
        )
        carry = nodes.floor_of(nodes.add("Add", lower, low), 1 / 4096)
        value = nodes.floor_of(nodes.add("Add", nodes.add("Add", upper, high), carry), 1 / 256)
        channels.append(nodes.add("Unsqueeze", value, np.array([3])))
    return nodes.add("Clip", nodes.add("Concat", *channels, axis=3), _floats(0), _floats(255))


def _weighted(nodes: _Nodes, values: Sequence[str], factors: Sequence[int]) -> str:
    terms = [nodes.scaled(value, factor) for value, factor in zip(values, factors, strict=True) if factor]
    return terms[0] if len(terms) == 1 else nodes.add("Add", *terms)


def _postprocess(
    nodes: _Nodes, sensor: Sensor, network: tuple[int, int], info: GraphInfo
) -> list[tuple[str, int, tuple[int, ...]]]:
    """Append the postprocess; return name, type and shape (without the batch) of each output of the sensor graph."""
    width, height = sensor.camera
    size = (height, width)
    maps = _resized_maps(nodes, sensor, size, network)
    outputs: list[tuple[str, int, tuple[int, ...]]] = []
    if "depth" in sensor.outputs:
        outputs.append(("depth", _depth(nodes, maps["depth"], sensor, info.depth_range), size))
    if "labels" in sensor.outputs:
        full = info.label_resolution == "full" and size != network
        _labels(nodes, size, size if full else network, len(info.classes.names) if full else None)
        outputs.append(("labels", TensorProto.UINT8, size))
    if "normals" in sensor.outputs:
        _normals(nodes, maps["normals"])
        outputs.append(("normals", TensorProto.FLOAT, (*size, 3)))
    if "edges" in sensor.outputs:
        nodes.step("edges")
        nodes.add("Squeeze", maps["edges"], np.array([1]), output="edges")
        outputs.append(("edges", TensorProto.FLOAT, size))
    return outputs


def _resized_maps(nodes: _Nodes, sensor: Sensor, size: tuple[int, int], network: tuple[int, int]) -> dict[str, str]:
    """Return depth, normals and the edges' probability at the camera's size.

    All channels share one resize: the weights at a position are the same for each, and OpenVINO takes nearly as long
    for one channel as for five. They are separated by Gather, which copies; OpenVINO turns slices into a split, which
    is slower.
    """
    maps: dict[str, str] = {name: f"network/{name}" for name in ("depth", "normals", "edges") if name in sensor.outputs}
    if "edges" in maps:
        nodes.step("edges")
        maps["edges"] = nodes.add("Sigmoid", maps["edges"])
    if size == network or not maps:
        return maps
    nodes.step("resize")
    channels = {name: TABLE[name].channels or 1 for name in maps}
    together = nodes.add("Concat", *maps.values(), axis=1) if len(maps) > 1 else next(iter(maps.values()))
    resized = nodes.resize(together, sum(channels.values()), size)
    if len(maps) == 1:
        return dict.fromkeys(maps, resized)
    first = 0
    for name, count in channels.items():
        maps[name] = nodes.take(resized, np.arange(first, first + count), 1)
        first += count
    return maps


def _depth(nodes: _Nodes, depth: str, sensor: Sensor, depth_range: tuple[float, float]) -> int:
    nodes.step("depth")
    low, high = (_floats(limit) for limit in depth_range)
    flat = nodes.add("Squeeze", depth, np.array([1]))
    if sensor.depth == "float32":
        nodes.add("Clip", flat, low, high, output="depth")
        return int(TensorProto.FLOAT)
    clamped = nodes.add("Clip", flat, low, high)
    millimeters = nodes.add("Min", nodes.add("Round", nodes.scaled(clamped, 1000)), _floats(65535))
    _cast(nodes, millimeters, TensorProto.UINT16, "depth")
    return int(TensorProto.UINT16)


def _labels(nodes: _Nodes, size: tuple[int, int], computed: tuple[int, int], resized: int | None) -> None:
    """Take the argmax at the size `computed`, then repeat labels by the indices of cv2.resize with INTER_NEAREST.

    `resized` is the number of classes if the logits are first resized to `computed`.
    """
    nodes.step("labels")
    logits = "network/semantics" if resized is None else nodes.resize("network/semantics", resized, computed)
    # Both ONNX Runtime and OpenVINO compute ArgMax faster along the last axis, transposition included.
    scores = nodes.add("Transpose", logits, perm=[0, 2, 3, 1])
    best = _cast(nodes, nodes.add("ArgMax", scores, axis=3, keepdims=0))
    if size != computed:
        columns = cv2.resize(_line(computed[1])[None], (size[1], 1), interpolation=cv2.INTER_NEAREST)[0]
        rows = cv2.resize(_line(computed[0])[:, None], (1, size[0]), interpolation=cv2.INTER_NEAREST)[:, 0]
        best = nodes.take(nodes.take(best, columns, 2), rows, 1)
    _cast(nodes, best, TensorProto.UINT8, "labels")


def _line(length: int) -> NDArray[np.float32]:
    return np.arange(length, dtype=np.float32)


def _normals(nodes: _Nodes, normals: str) -> None:
    nodes.step("normals")
    squares = nodes.add("ReduceSum", nodes.add("Pow", normals, _floats(2)), np.array([1]), keepdims=1)
    # Opposite normals can cancel out between two pixels; a zero vector stays zero.
    length = nodes.add("Max", nodes.add("Sqrt", squares), _floats(1e-12))
    nodes.add("Transpose", nodes.add("Div", normals, length), output="normals", perm=[0, 2, 3, 1])
