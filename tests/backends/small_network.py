"""A network of 1x1 convolutions as a bundle, small enough to be run hundreds of times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from m2h_deploy.bundle.folder import write_manifest
from m2h_deploy.bundle.manifest import Classes, EngineInfo, InputSpec, Manifest, ModelInfo, OutputSpec
from m2h_deploy.files.digests import file_sha256

SIDE = 16
CHANNELS = {"depth": 1, "semantics": 41, "normals": 3, "edges": 1}
VERSIONS = {"onnxruntime": "1.19.0", "tensorrt": "10.16.1.11", "tensorrt-rtx": "1.7.1.116"}


def small_onnx(batch: int | None = None, *, half: bool = False) -> bytes:
    """Return the network; `half` gives it float16 outputs. None is a free batch."""
    rng, first = np.random.default_rng(0), batch or "N"
    nodes, weights, outputs = [], [], []
    for name, channels in CHANNELS.items():
        kernel = rng.standard_normal((channels, 3, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{name}.weight"))
        weights.append(numpy_helper.from_array(np.full(channels, 5, np.float32), f"{name}.bias"))
        inputs = ["image", f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.32" if half else name]))
        if half:
            nodes.append(helper.make_node("Cast", [f"{name}.32"], [name], to=TensorProto.FLOAT16))
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        outputs.append(helper.make_tensor_value_info(name, kind, [first, channels, SIDE, SIDE]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [first, 3, SIDE, SIDE])
    graph = helper.make_graph(nodes, "small", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def small_bundle(out: Path, kind: str, batch: int | None = None, *, half: bool = False, **options: Any) -> Path:
    """Make a bundle of the network for an engine kind, without a self-test."""
    out.mkdir()
    file = "model.plan" if kind.startswith("tensorrt") else "model.onnx"
    (out / file).write_bytes(small_onnx(batch, half=half))
    onnx.checker.check_model(onnx.load(out / file))
    digest = file_sha256(out / file)
    outputs = tuple(
        OutputSpec(
            name=name,  # type: ignore[arg-type]
            meaning=name,
            unit="1",
            dtype="float16" if half else "float32",
            shape=(batch, channels, SIDE, SIDE),
        )
        for name, channels in CHANNELS.items()
    )
    model = {"variant": "small", "weights_sha256": digest, "onnx_sha256": digest, "config": {}, "opset": 17}
    manifest = Manifest(
        created_by="tests",
        model=ModelInfo(**model, form="reference", windows="ops"),
        input=InputSpec(name="image", batch=batch, height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3),
        outputs=outputs,
        depth_range=(0.001, 10.0),
        classes=Classes(
            names=tuple(f"class {index}" for index in range(CHANNELS["semantics"])),
            palette=tuple((index, index, index) for index in range(CHANNELS["semantics"])),
        ),
        engine=EngineInfo(kind=kind, version=VERSIONS[kind], precision="fp32", file=file, options=options),
        files={file: digest},
    )
    write_manifest(out, manifest)
    return out
