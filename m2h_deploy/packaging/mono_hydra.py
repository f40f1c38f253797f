"""Write the ONNX file and the parameters for Mono-Hydra's existing ONNX node, without a change to the node.

Facts about the node (mono_hydra_perception, m2h_onnx_node.py): it resizes with OpenCV's bilinear on 8 bits, scales to
0..1, subtracts `normalize_mean` and divides by `normalize_std`; it takes the first output of shape (1, 1, H, W) as
depth and the first other one as class scores. Mono-Hydra's launch files set neither mean nor std, so the node then uses
its defaults, ImageNet's. The file written here therefore takes images of that normalization, whatever the network was
trained with, and is correct both with the launch files and with the parameters next to it. Depth is multiplied by
`depth_scale` and then clamped to `depth_min` and `depth_max`: a bundle's depth calibration is written there, except for
its offset, which is in the graph.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.atomic import whole_folder, write_text
from m2h_deploy.numerics import judge, perturbed
from m2h_deploy.onnx_graph.edit import rename_values
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import check_interface, dims_of
from m2h_deploy.packaging.source import onnx_file_of, warn_of_full_resolution
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess
from m2h_deploy.tasks import TASKS

#: The node's default normalization.
NODE_PRESET = "imagenet"
MODEL, PARAMETERS = "m2h.onnx", "m2h_onnx.yaml"

#: Units in the last place by which the node's normalization of an image differs from ours.
_ULPS = 4


def package_mono_hydra(source: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> Path:
    """Write a new folder `out_dir` with `m2h.onnx` and `m2h_onnx.yaml`, from an exported ONNX file or its bundle.

    The results of the graph, on a rendered room and with the node's own steps, are compared with those of `source`.

    Raises:
        M2HError: The node does not support the graph, or `out_dir` exists.
        CheckFailed: The results differ.
    """
    path, bundle = onnx_file_of(Path(source), "Mono-Hydra's node runs ONNX files")
    calibration = (bundle.manifest.depth_calibration if bundle is not None else None) or DepthCalibration(scale=1.0)
    proto = read_onnx(path)
    info = GraphInfo.read(proto, path)
    check_interface(proto, info, path)
    height, width = _check_graph(proto, info, path)
    warn_of_full_resolution(info, path, "Mono-Hydra's node")
    depth_range = bundle.manifest.depth_range if bundle is not None else info.depth_range
    depth = _depth_limits(depth_range, calibration, path)
    out = Path(out_dir).resolve()
    with whole_folder(out) as temporary:
        original = proto.SerializeToString()
        renormalize(proto, info)
        _compare(original, proto.SerializeToString(), info, (height, width), path)
        add_offset(proto, calibration)
        onnx.save(proto, temporary / MODEL)
        write_text(temporary / PARAMETERS, _parameters(out / MODEL, info, (height, width), calibration.scale, depth))
    return out


def _check_graph(proto: onnx.ModelProto, info: GraphInfo, path: Path) -> tuple[int, int]:
    """Return height and width of the input. Raises M2HError if the node does not support the graph."""
    again = "export it again with m2h-deploy export"
    if info.sensor is not None:
        raise M2HError(f"{path} takes raw pixels, and Mono-Hydra's node normalizes itself: {again} without --sensor")
    outputs = tuple(value.name for value in proto.graph.output)
    if outputs != TASKS:
        raise M2HError(f"{path} gives {', '.join(outputs)}, expected {', '.join(TASKS)} in this order: {again}")
    values = (proto.graph.input[0], *proto.graph.output)
    if any(value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for value in values):
        raise M2HError(f"{path} has inputs or outputs that are not float32: {again}")
    shape = dims_of(proto.graph.input[0])
    if shape[0] != 1:
        raise M2HError(f"{path} has batch {shape[0] or 'free'}, and Mono-Hydra's node sends single images: {again}")
    return shape[2], shape[3]


def renormalize(proto: onnx.ModelProto, info: GraphInfo) -> None:
    """Make the graph take images normalized as in the node, by one Mul and one Add on its input, in place."""
    own, theirs = info.normalization, PRESETS[NODE_PRESET]
    if own == theirs:
        return
    mean, std, own_mean, own_std = (np.array(v) for v in (theirs.mean, theirs.std, own.mean, own.std))
    constants = {"normalize/factor": std / own_std, "normalize/shift": (mean - own_mean) / own_std}
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32).reshape(1, 3, 1, 1), name))
    image = proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["normalize/image" if name == image else name for name in node.input]
    factor, shift = constants
    proto.graph.node.insert(0, helper.make_node("Mul", [image, factor], ["normalize/scaled"], "normalize/Mul"))
    proto.graph.node.insert(
        1, helper.make_node("Add", ["normalize/scaled", shift], ["normalize/image"], "normalize/Add")
    )
    replace(info, normalization=theirs, lowered=None).write(proto)  # its self-test has the other normalization


def add_offset(proto: onnx.ModelProto, calibration: DepthCalibration) -> None:
    """Add the calibration's offset to the depth before the node multiplies it by the scale, in place."""
    if not calibration.offset:
        return
    rename_values(proto, {"depth": "calibrate/depth"})
    output = next(value for value in proto.graph.output if value.name == "calibrate/depth")
    output.name = "depth"
    offset = np.array(calibration.offset / calibration.scale, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(offset, "calibrate/offset"))
    proto.graph.node.append(
        helper.make_node("Add", ["calibrate/depth", "calibrate/offset"], ["depth"], "/calibrate/Add")
    )


def _depth_limits(depth_range: tuple[float, float], calibration: DepthCalibration, path: Path) -> tuple[float, float]:
    """Return the range of calibrated depth. Raises M2HError if it is empty: the node would not clamp then."""
    near, far = calibration.range_of(depth_range)
    if far <= 0:
        raise M2HError(f"{path}: the depth calibration leaves no depth above 0: calibrate again")
    return near, far


def node_input(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Return the node's preprocessing of a uint8 (H, W, 3) BGR image: float32 (1, 3, height, width)."""
    rgb = cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (width, height), interpolation=cv2.INTER_LINEAR)
    preset = PRESETS[NODE_PRESET]
    mean, std = np.array(preset.mean, np.float32), np.array(preset.std, np.float32)
    pixels = (rgb.astype(np.float32) * np.float32(1 / 255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _compare(original: bytes, packaged: bytes, info: GraphInfo, size: tuple[int, int], path: Path) -> None:
    """Raise CheckFailed if the packaged graph differs by more than the rounding of the image explains."""
    image = render_room(0, 0, 240, 320).image
    tensor = Preprocess(info.normalization, *size)(image)
    expected = _run(original, tensor, path)

    @cache
    def run_original(index: int) -> dict[str, NDArray[Any]]:
        return _run(original, perturbed(tensor, index + 1, ulps=_ULPS), path)

    found = _run(packaged, node_input(image, *size), path)
    for name in TASKS:
        if not np.isfinite(expected[name]).all():
            raise M2HError(f"{path} gives NaN or infinity in {name}: its weights are damaged: export it again")
        difference = judge(found[name], expected[name], lambda k, name=name: run_original(k)[name])  # type: ignore[misc]
        if not difference.passed:
            raise CheckFailed(f"the packaged graph's {name} {difference.reason}: please report it")


def _run(graph: bytes, tensor: NDArray[np.floating], path: Path) -> dict[str, NDArray[Any]]:
    from m2h_deploy.onnx_graph.session import cpu_session, run_session

    return run_session(cpu_session(graph, path), tensor, path)


def _parameters(model: Path, info: GraphInfo, size: tuple[int, int], scale: float, depth: tuple[float, float]) -> str:
    preset = PRESETS[NODE_PRESET]
    labels = info.label_map.name if info.label_map is not None else "the network's own classes"
    return f"""# {info.variant} for Mono-Hydra's ONNX node:
#   ros2 run mono_hydra_perception m2h_onnx_node --ros-args --params-file {PARAMETERS}
/**:
  ros__parameters:
    model_path: {json.dumps(str(model), ensure_ascii=False)} # where this machine has it
    input_width: {size[1]}
    input_height: {size[0]}
    model_expects_rgb: true
    scale_input_to_01: true
    normalize_mean: {list(preset.mean)} # the node's defaults: the graph was made for them
    normalize_std: {list(preset.std)}
    num_classes: {len(info.classes.names)} # {labels}
    semantic_encoding: mono8
    depth_output_name: depth
    semantic_output_name: semantics
    depth_scale: {float(scale)}
    depth_min: {depth[0]}
    depth_max: {depth[1]}
    output_original_size: true
"""
