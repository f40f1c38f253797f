"""Measure how far the tensors of a float32 network are from the limits of FP16 and FP8 (E4M3)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from engines.precision.calibration import check_frame_size
from engines.precision.islands import FP16_MAX, FP16_NORMAL
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.edit import copy_of, replace_nodes
from m2h_deploy.onnx_graph.session import cpu_session, run_session

_log = logging.getLogger("m2h_deploy.engines.headroom")

#: Largest and smallest normal number of E4M3, the FP8 type of weights and activations.
E4M3_MAX = 448.0
E4M3_NORMAL = 2.0**-6

#: Distance from E4M3's smallest normal number to its largest, in bits: 14.8.
E4M3_RANGE_BITS = math.log2(E4M3_MAX / E4M3_NORMAL)

#: Operators whose result has the values of their first input in another shape or order.
MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

_PREFIX = "headroom/"
_PARTS = ("largest", "sum", "smallest", "fp16_subnormal", "e4m3_subnormal")


@dataclass(frozen=True)
class Range:
    """Magnitudes of a tensor's values over all frames. Distances are in bits: powers of two."""

    largest: float
    smallest: float | None
    """Smallest magnitude that is not zero; None if all values are zero."""
    fp16_subnormal: float
    """Share of the values that are not zero and below FP16's smallest normal number, where it has fewer bits."""
    e4m3_subnormal: float
    """The same for E4M3 with a scale that maps the largest magnitude (of a frame) to `E4M3_MAX`."""

    @property
    def overflow_bits(self) -> float | None:
        """Distance from the largest magnitude up to FP16's largest number; negative if FP16 overflows."""
        return math.log2(FP16_MAX / self.largest) if self.largest else None

    @property
    def underflow_bits(self) -> float | None:
        """Distance from the smallest magnitude down to FP16's smallest normal number; negative if it is below."""
        return math.log2(self.smallest / FP16_NORMAL) if self.smallest else None

    @property
    def dynamic_range_bits(self) -> float | None:
        """Distance from the smallest magnitude to the largest.

        FP8 has a scale for each tensor, which maps the largest magnitude to E4M3's. Then only this distance counts:
        E4M3 has `E4M3_RANGE_BITS` from its smallest normal number to its largest.
        """
        return math.log2(self.largest / self.smallest) if self.smallest else None


def activation_ranges(proto: onnx.ModelProto, frames: Sequence[NDArray[np.float32]]) -> dict[str, Range]:
    """Measure the input and every float result of a node of `proto`, a graph without functions, on `frames`.

    Values are reduced inside the graph, in one run for each frame: no tensor is fetched.

    Raises:
        M2HError: A tensor contains NaN or infinity, or a frame does not have the size of the graph's input.
    """
    names, sources = _float_tensors(proto)
    session = cpu_session(_with_reductions(proto, names), "the graph to measure", in_order=True)
    side = session.get_inputs()[0].shape[0]
    batch = side if isinstance(side, int) else 1
    wanted = [f"{_PREFIX}{part}/{index}" for part in _PARTS for index in range(len(names))]
    largest, smallest, shares = np.zeros(len(names)), np.full(len(names), np.inf), np.zeros((2, len(names)))
    for done, frame in enumerate(frames, start=1):
        _log.info("measuring on frame %d of %d", done, len(frames))
        check_frame_size(session, frame)
        values = run_session(session, np.repeat(frame, batch, axis=0), "the graph to measure", wanted)
        figures = np.array(list(values.values()), np.float64).reshape(len(_PARTS), len(names))
        most, total, least, *subnormal = figures
        _check_finite(proto, names, most, total)
        largest, smallest = np.maximum(largest, most), np.minimum(smallest, least)
        shares += np.array(subnormal) / len(frames)
    ranges = {
        name: Range(float(most), float(least) if most else None, *map(float, share))
        for name, most, least, share in zip(names, largest, smallest, shares.T, strict=True)
    }
    return ranges | {name: ranges[source] for name, source in sources.items()}


def weight_ranges(proto: onnx.ModelProto) -> dict[str, Range]:
    """Return the range of every float32 initializer of `proto`. Raises M2HError if one contains NaN or infinity."""
    ranges = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        magnitudes = np.abs(numpy_helper.to_array(tensor))
        if not np.isfinite(magnitudes).all():
            raise M2HError(f"the weight {tensor.name} contains NaN or infinity: export the network again")
        nonzero = magnitudes[magnitudes > 0]
        if nonzero.size:
            largest = float(nonzero.max())
            limits = (FP16_NORMAL, largest / 2**E4M3_RANGE_BITS)
            shares = (np.count_nonzero(nonzero < limit) / magnitudes.size for limit in limits)
            ranges[tensor.name] = Range(largest, float(nonzero.min()), *shares)
        else:
            ranges[tensor.name] = Range(0.0, None, 0.0, 0.0)
    return ranges


def _float_tensors(proto: onnx.ModelProto) -> tuple[list[str], dict[str, str]]:
    """Return the float32 tensors to measure, and for each result of an operator of `MOVES` the tensor it comes from."""
    graph = shape_inference.infer_shapes(proto).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    names = [value.name for value in graph.input if kinds[value.name] == TensorProto.FLOAT]
    sources: dict[str, str] = {}
    known = set(names)
    for node in graph.node:
        for name in node.output:
            if kinds.get(name) != TensorProto.FLOAT:
                continue
            if node.op_type in MOVES and node.input[0] in known:
                sources[name] = sources.get(node.input[0], node.input[0])
            else:
                names.append(name)
            known.add(name)
    return names, sources


def _with_reductions(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of `proto` whose outputs are the `_PARTS` of every tensor of `names`, each one number.

    The nodes that reduce a tensor follow the node that makes it: so it can be freed as early as without them.
    """
    result = copy_of(proto)
    constants = {"zero": 0.0, "infinity": math.inf, "fp16_normal": FP16_NORMAL, "e4m3_span": 2.0**-E4M3_RANGE_BITS}
    result.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), f"{_PREFIX}{name}") for name, value in constants.items()
    )
    places = {name: index for index, name in enumerate(names)}
    made = [[value.name for value in proto.graph.input], *([*node.output] for node in proto.graph.node)]
    nodes: list[onnx.NodeProto] = []
    for node, outputs in zip([None, *proto.graph.node], made, strict=True):
        nodes += [] if node is None else [node]
        nodes += [step for name in outputs if name in places for step in _reduce(name, places[name])]
    replace_nodes(result, nodes)
    del result.graph.output[:]
    # Types and shapes are left to ONNX Runtime's own inference.
    result.graph.output.extend(
        onnx.ValueInfoProto(name=f"{_PREFIX}{part}/{index}") for part in _PARTS for index in range(len(names))
    )
    return result


def _reduce(tensor: str, index: int) -> list[onnx.NodeProto]:
    """Return the nodes that compute the `_PARTS` of one tensor."""
    steps: list[tuple[str, list[str], str]] = [
        ("Abs", [], "magnitude"),
        ("ReduceMax", ["magnitude"], "largest"),
        ("ReduceSum", ["magnitude"], "sum"),
        ("Equal", ["magnitude", "zero"], "is_zero"),
        ("Where", ["is_zero", "infinity", "magnitude"], "nonzero"),
        ("ReduceMin", ["nonzero"], "smallest"),
        ("Less", ["nonzero", "fp16_normal"], "below_fp16"),
        ("Cast", ["below_fp16"], "counted_fp16"),
        ("ReduceMean", ["counted_fp16"], "fp16_subnormal"),
        ("Mul", ["largest", "e4m3_span"], "e4m3_normal"),
        ("Less", ["nonzero", "e4m3_normal"], "below_e4m3"),
        ("Cast", ["below_e4m3"], "counted_e4m3"),
        ("ReduceMean", ["counted_e4m3"], "e4m3_subnormal"),
    ]
    own = {output for _, _, output in steps}
    nodes = []
    for operator, inputs, output in steps:
        names = [f"{_PREFIX}{name}/{index}" if name in own else f"{_PREFIX}{name}" for name in inputs]
        node = helper.make_node(operator, names or [tensor], [f"{_PREFIX}{output}/{index}"])
        if operator == "Cast":
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        elif operator.startswith("Reduce"):
            node.attribute.append(helper.make_attribute("keepdims", 0))
        nodes.append(node)
    return nodes


def _check_finite(
    proto: onnx.ModelProto, names: Sequence[str], largest: NDArray[np.float64], total: NDArray[np.float64]
) -> None:
    """Raise M2HError that names the first tensor, in graph order, with NaN or infinity.

    A maximum may ignore NaN; a sum does not.
    """
    for name, most, added in zip(names, largest, total, strict=True):
        if np.isfinite(most) and not np.isnan(added):
            continue
        made = {output: node.name for node in proto.graph.node for output in node.output}
        where = f" (of node {made[name]})" if name in made else ""
        what = "NaN" if np.isnan(added) else "infinity"
        raise M2HError(
            f"the tensor {name}{where} contains {what} in float32 already, so no lower precision can be right: "
            "check the weights and export the network again"
        )
