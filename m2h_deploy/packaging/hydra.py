"""Write the ONNX file and the configuration for MIT-SPARK's semantic_inference, which gives Hydra its labels.

Facts about its node (github.com/MIT-SPARK/semantic_inference, closed_set_node): it takes a model of one float32 input
of 3 channels and one output of integer labels, compiles it with TensorRT, and resizes 8-bit images with OpenCV's
bilinear (`ColorConverter::fillImage`). ROS hands it RGB images, and `rgb_order: true`, its default, reverses the
channels, so that the configuration sets it to false. Labels are resized to the image by nearest neighbor, and replaced
by the index of the group that contains them (`ImageRecolor`). The color file has the columns name, red, green, blue,
alpha, id, separated by commas without quotes; Hydra reads the same file back from colors to labels, so that colors must
differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.atomic import whole_folder, write_text
from m2h_deploy.numerics import judge_labels, perturbed
from m2h_deploy.onnx_graph.edit import keep_outputs
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.onnx_graph.functions import inline_functions
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import check_interface, dims_of
from m2h_deploy.packaging.source import onnx_file_of, warn_of_full_resolution
from m2h_deploy.runtime.preprocess import Normalization, Preprocess

MODEL, CONFIG, GROUPING = "m2h.onnx", "m2h.yaml", "m2h_grouping.yaml"
COLORS, LABEL_SPACE, README = "m2h_colors.csv", "m2h_label_space.yaml", "README.md"

#: What Hydra's own label spaces do not take for objects, what they look for places on, and what moves.
_NO_OBJECTS = (
    *("unknown", "void", "wall", "floor", "floor mat", "ceiling", "door", "window", "stairs", "structure", "column"),
    *("counter", "railing", "misc", "otherstructure", "person", "human", "dynamic-nonhuman"),
)
_SURFACES = ("floor", "floor mat", "stairs")
_DYNAMIC = ("person", "human", "dynamic-nonhuman")
_INVALID = ("unknown", "void")


def package_hydra(source: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> Path:
    """Write a new folder `out_dir` for semantic_inference and Hydra, from an exported ONNX file.

    The labels of the packaged graph on a rendered room, by the node's own steps, are compared with those of `source`.

    Raises:
        M2HError: TensorRT or the node does not support the graph, two classes have one color, or `out_dir` exists.
        CheckFailed: The labels differ.
    """
    path, _ = onnx_file_of(Path(source), "semantic_inference compiles ONNX files")
    proto, _ = inline_functions(read_onnx(path))
    info = GraphInfo.read(proto, path)
    check_interface(proto, info, path)
    size = _check_graph(proto, info, path)
    _check_colors(info.classes, path)
    warn_of_full_resolution(info, path, "semantic_inference")
    out = Path(out_dir).resolve()
    with whole_folder(out) as temporary:
        original = proto.SerializeToString()
        end_in_labels(proto)
        _compare(original, proto.SerializeToString(), info, size, path)
        onnx.save(proto, temporary / MODEL)
        write_text(temporary / CONFIG, _config(info.normalization))
        write_text(temporary / GROUPING, _grouping(info))
        write_text(temporary / COLORS, _colors(info.classes))
        write_text(temporary / LABEL_SPACE, _label_space(info.classes))
        write_text(temporary / README, _readme(out, info))
    return out


def end_in_labels(proto: onnx.ModelProto) -> None:
    """Replace the outputs of a plain graph by one, `labels` (1, H, W) int32, in place."""
    keep_outputs(proto, ["semantics"])
    _, _, height, width = dims_of(proto.graph.output[0])
    del proto.graph.output[:]
    part = "/labels"
    proto.graph.node.extend(
        (
            helper.make_node("ArgMax", ["semantics"], [f"{part}/index"], f"{part}/ArgMax", axis=1, keepdims=0),
            helper.make_node("Cast", [f"{part}/index"], ["labels"], f"{part}/Cast", to=TensorProto.INT32),
        )
    )
    proto.graph.output.append(helper.make_tensor_value_info("labels", TensorProto.INT32, [1, height, width]))


def node_input(image: NDArray[np.uint8], normalization: Normalization, height: int, width: int) -> NDArray[np.float32]:
    """Return the node's preprocessing of a uint8 (H, W, 3) BGR image: float32 (1, 3, height, width)."""
    rgb = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (width, height))
    mean, std = (np.array(values, np.float32) for values in (normalization.mean, normalization.std))
    pixels = (rgb / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def _check_graph(proto: onnx.ModelProto, info: GraphInfo, path: Path) -> tuple[int, int]:
    """Return height and width of the input. Raises M2HError if the node does not support the graph."""
    again = "export it again with m2h-deploy export"
    if info.sensor is not None:
        raise M2HError(f"{path} takes raw pixels, and semantic_inference normalizes itself: {again} without --sensor")
    if "semantics" not in [value.name for value in proto.graph.output]:
        raise M2HError(f"{path} has no output semantics: {again} with it")
    foreign = sorted({node.domain for node in proto.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise M2HError(
            f"{path} has operators of {', '.join(foreign)}, which TensorRT does not read: give the file that "
            "m2h-deploy export wrote, not a bundle"
        )
    value = proto.graph.input[0]
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise M2HError(f"{path} takes an input that is not float32: {again}, or build it with --io fp32")
    batch, _, height, width = dims_of(value)
    if batch != 1:
        raise M2HError(f"{path} has batch {batch or 'free'}, and semantic_inference sends single images: {again}")
    return height, width


def _check_colors(classes: Classes, path: Path) -> None:
    owners: dict[tuple[int, int, int], str] = {}
    for name, color in zip(classes.names, classes.palette, strict=True):
        if color in owners:
            raise M2HError(
                f"{path}: classes '{owners[color]}' and '{name}' have the same color {list(color)}, and Hydra tells "
                "labels by color: give each its own"
            )
        owners[color] = name


def _compare(original: bytes, packaged: bytes, info: GraphInfo, size: tuple[int, int], path: Path) -> None:
    """Raise CheckFailed if the packaged graph differs by more than the rounding of the image explains."""
    from m2h_deploy.onnx_graph.session import cpu_session, run_session

    image = render_room(0, 0, 240, 320).image
    tensor = Preprocess(info.normalization, *size)(image)
    session = cpu_session(original, path)

    def labels(index: int) -> NDArray[Any]:
        outputs = run_session(session, perturbed(tensor, index, ulps=4), path, ["semantics"])
        return np.asarray(outputs["semantics"].argmax(axis=1))

    found = run_session(cpu_session(packaged, path), node_input(image, info.normalization, *size), path)["labels"]
    difference = judge_labels(found, labels(0), lambda index: labels(index + 1))
    if not difference.passed:
        raise CheckFailed(f"the packaged graph's labels differ {difference.reason}: please report it")


def _config(normalization: Normalization) -> str:
    return f"""# Model configuration of semantic_inference
segmenter:
  model:
    color:
      mean: {list(normalization.mean)}
      stddev: {list(normalization.std)}
      map_to_unit_range: true
      normalize: true
      rgb_order: false # true reverses the channels, and the node's images are RGB already
"""


def _grouping(info: GraphInfo) -> str:
    groups = "".join(f"  - {{name: {_text(name)}, labels: [{i}]}}\n" for i, name in enumerate(info.classes.names))
    name = info.label_map.name if info.label_map is not None else info.variant
    head = "# Label grouping of semantic_inference: the graph gives these labels itself"
    return f"{head}\nname: {_text(name)}\ngroups:\n{groups}"


def _colors(classes: Classes) -> str:
    rows = [
        f"{name.replace(',', ' ')},{red},{green},{blue},255,{index}"
        for index, (name, (red, green, blue)) in enumerate(zip(classes.names, classes.palette, strict=True))
    ]
    return "\n".join(["name,red,green,blue,alpha,id", *rows]) + "\n"


def _label_space(classes: Classes) -> str:
    def ids(names: Iterable[str], *, absent: bool = False) -> list[int]:
        known = set(names)
        return [index for index, name in enumerate(classes.names) if (name.lower() in known) != absent]

    names = "".join(f"  - {{label: {index}, name: {_text(name)}}}\n" for index, name in enumerate(classes.names))
    return f"""# Label space of Hydra. The kinds of the labels are chosen by name: check them for your use.
total_semantic_labels: {len(classes.names)}
dynamic_labels: {ids(_DYNAMIC)}
invalid_labels: {ids(_INVALID)}
object_labels: {ids(_NO_OBJECTS, absent=True)}
surface_places_labels: {ids(_SURFACES)}
label_names:
{names}"""


def _text(name: str) -> str:
    """Return a name in double quotes, as in JSON and YAML: a plain `no` or `on` would be a truth value."""
    return json.dumps(name, ensure_ascii=False)


def _readme(out: Path, info: GraphInfo) -> str:
    return f"""# {info.variant} for semantic_inference and Hydra

TensorRT compiles `{MODEL}` when the node starts for the first time, and the node keeps the result beside it as
`m2h.trt`: delete that file when `{MODEL}` changes. With the paths of the machine that runs it:

    ros2 run semantic_inference_ros closed_set_node \\
      --config-utilities-file {out}/{CONFIG} \\
      --config-utilities-file {out}/{GROUPING}@output/recolor \\
      --config-utilities-yaml '{{segmenter: {{model: {{model_file: {out}/{MODEL}}}}}}}' \\
      --config-utilities-yaml '{{output: {{recolor: {{colormap_path: {out}/{COLORS}}}}}}}' \\
      --ros-args -r color/image_raw:=YOUR_TOPIC

Or with its launch file, after copying `{GROUPING}` to config/label_groupings/ of semantic_inference_ros:

    ros2 launch semantic_inference_ros closed_set.launch.yaml model_name:={out}/{MODEL.removesuffix(".onnx")} \\
      model_config:={out}/{CONFIG} labelspace_name:={GROUPING.removesuffix(".yaml")} colormap_path:={out}/{COLORS}

`{LABEL_SPACE}` is the label space for Hydra, and `{COLORS}` its color map.
"""
