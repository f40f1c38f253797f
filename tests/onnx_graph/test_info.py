"""Test reading and writing the metadata of an ONNX file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.info import GraphInfo, SensorGraphInfo, is_sensor_graph, metadata_of
from m2h_deploy.runtime.preprocess import PRESETS
from tests.engines.graphs import set_metadata, small_graph


def test_metadata_round_trips():
    proto = small_graph()
    sensor = SensorGraphInfo("nv12", (64, 48), (16, 16), "uint16")
    info = replace(GraphInfo.read(proto, "m.onnx"), sensor=sensor, precision="fp16", version="0.1", torch="2.0")
    info.write(proto)
    assert GraphInfo.read(proto, "m.onnx") == info
    assert is_sensor_graph(proto)


def test_entries_of_other_tools_are_kept_and_outdated_ones_removed():
    proto = small_graph()
    set_metadata(proto, "author", "somebody")
    before = metadata_of(proto)
    info = GraphInfo.read(proto, "m.onnx")
    replace(info, precision="int8", normalization=PRESETS["imagenet"]).write(proto)
    assert metadata_of(proto)["m2h.precision"] == "int8"
    info.write(proto)
    assert metadata_of(proto) == before


def sensor(**changes: object) -> str:
    """Return the entry of a sensor graph with changed values."""
    return json.dumps({"format": "uint8", "camera": [64, 48], "network": [16, 16], "depth": "float32"} | changes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("m2h.tasks", None, "its metadata lacks 'm2h.tasks'"),
        ("m2h.classes", "{}", "m2h.classes: names: Field required"),
        ("m2h.normalization", "[1]", "not a normalization"),
        ("m2h.lowered", "{}", "lower it again"),
        ("m2h.form", "fast", "m2h.form is 'fast', expected reference or deploy): export it again"),
        ("m2h.windows", "tiles", "m2h.windows is 'tiles', expected standard or functions"),
        ("m2h.tasks", "depth,flow", "m2h.tasks is 'flow', expected depth or semantics or normals or edges"),
        ("m2h.tasks", "", "m2h.tasks is '', expected depth"),
        ("m2h.precision", "int4", "m2h.precision is 'int4', expected fp32 or fp16 or int8"),
        ("m2h.sensor", sensor(format="rgb16"), "the format in m2h.sensor is 'rgb16', expected uint8 or nv12"),
        ("m2h.sensor", sensor(format=["nv12"]), "the format in m2h.sensor is '['nv12']', expected uint8 or nv12"),
        ("m2h.sensor", sensor(depth="float64"), "the depth in m2h.sensor is 'float64', expected float32 or uint16"),
        ("m2h.sensor", sensor(network=[99999, 16]), "m2h.sensor has no sizes of 1 to 16384 pixels"),
        ("m2h.sensor", sensor(camera=7), "metadata is damaged"),
    ],
)
def test_a_damaged_entry_is_named(key, value, said):
    proto = small_graph()
    set_metadata(proto, key, value)
    with pytest.raises(M2HError, match=r"^m\.onnx") as caught:
        GraphInfo.read(proto, "m.onnx")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
