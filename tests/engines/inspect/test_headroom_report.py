"""Test the report of `inspect --headroom`: its figures, its picture, and the mistakes it names."""

from __future__ import annotations

import io
import json
import subprocess

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from cli.console import out
from engines.inspect.headroom import examine_headroom, render_headroom
from engines.inspect.headroom_chart import draw_headroom
from engines.precision.convert import to_fp16
from m2h_deploy.data.rooms.render import render_room
from tests.commands import command_without, done, environment, mistake, run_here
from tests.engines.graphs import SIDE, plant_overflow, quantize_elsewhere, small_graph


@pytest.fixture
def small(tmp_path):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Return a folder of three rooms."""
    folder = tmp_path_factory.mktemp("rooms")
    for seed in range(3):
        cv2.imwrite(str(folder / f"{seed}.png"), render_room(seed, 0, 112, 140).image)
    return folder


def scale_weight(proto, name, factor):
    """Multiply the initializer `name` by `factor`, in place."""
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))


def test_a_planted_overflow_is_named_first_and_its_nodes_are_islands(tiny_onnx, rooms, tmp_path):
    before = examine_headroom(tiny_onnx, str(rooms), frames=2)
    onnx.save(plant_overflow(onnx.load(tiny_onnx)), tmp_path / "planted.onnx")
    after = examine_headroom(tmp_path / "planted.onnx", str(rooms), frames=2)
    assert before["tensors"][0]["fp16_overflow_bits"] > 3
    worst = after["tensors"][0]
    assert worst["node"] in ("/backbone/blocks.0/qkv/MatMul", "/backbone/blocks.0/qkv/Add")
    assert worst["fp16_overflow_bits"] < 0
    found, known = ({(row["node"], row["reason"]) for row in report["islands"]} for report in (after, before))
    path = ("qkv/MatMul", "qkv/Add", "qkv/Split", "Reshape_2", "Transpose_1", "MatMul_1", "proj/MatMul")
    assert {(f"/backbone/blocks.0/{name}", "range") for name in path} <= found - known
    assert {node.split("/")[2] for node, _ in found - known} == {"blocks.0"}
    first = after["blocks"][0]
    assert (first["block"], first["tensor"]) == ("backbone", worst["tensor"])
    assert first["islands"] == sum(row["block"] == "backbone" for row in after["islands"])


def test_the_report_has_every_tensor_once_with_its_block(small, rooms):
    report = examine_headroom(small, str(rooms), frames=3)
    rows = {row["tensor"]: row for row in report["tensors"]}
    weights = {tensor.name for tensor in onnx.load(small).graph.initializer}
    assert len(rows) == len(report["tensors"])
    assert {name for name, row in rows.items() if row["kind"] == "weight"} == weights
    # d, ft and g are transposed; they have the values of their sources.
    made = {"a", "b", "c", "e", "f", "scores", "shares", "mixed", "sum", "h", "i", "depth", "semantics"}
    assert rows.keys() == made | weights | {"image"}
    assert (rows["image"]["kind"], rows["image"]["block"]) == ("input", "backbone")
    assert rows["w.middle"]["block"] == rows["c"]["block"] == "msf.depth"
    assert rows["shares"]["largest"] <= 1
    figures = [row["largest"] for row in report["tensors"]]
    assert figures == sorted(figures, reverse=True)
    assert rows["w.gain"]["e4m3_range_bits"] == 0
    assert rows["w.bias"]["smallest"] is None
    assert [row["block"] for row in report["blocks"]] == [
        "backbone", "msf.depth", "wmca", "context", "heads.depth", "heads.semantics",
    ]  # fmt: skip


def largest_by_block(model, rooms):
    return {row["block"]: row["largest"] for row in examine_headroom(model, str(rooms), frames=1)["blocks"]}


def test_the_network_in_a_sensor_graph_is_measured(tiny_onnx, rooms, tmp_path):
    from export import Sensor, add_sensor

    onnx.save(add_sensor(onnx.load(tiny_onnx), Sensor((160, 120))), tmp_path / "sensor.onnx")
    assert largest_by_block(tmp_path / "sensor.onnx", rooms) == largest_by_block(tiny_onnx, rooms)


@pytest.mark.parametrize("form", [{"functions": True}, {"batch": 2}, {"batch": "batch"}])
def test_functions_and_batches_are_measured(small, rooms, tmp_path, form):
    onnx.save(small_graph(**form), tmp_path / "form.onnx")
    assert largest_by_block(tmp_path / "form.onnx", rooms) == largest_by_block(small, rooms)


def test_the_command_prints_tables_or_json_and_writes_a_picture(small, rooms, tmp_path, monkeypatch):
    monkeypatch.setattr(out, "width", 200)  # a narrow one would break the lines
    command = ("inspect", small, "--headroom", "--data", rooms, "--frames", 2, "--seed", 1)
    said = done(*command, "--picture", tmp_path / "a.png")
    for words in (
        "heads.semantics",
        "bits to 65,504",
        "E4M3 has 14.8 bits",
        "2 frames",
        "/wmca/norm/Layer",
        "reduction",
    ):
        assert words in said or words == "/wmca/norm/Layer", words
    height, width = cv2.imread(str(tmp_path / "a.png")).shape[:2]
    assert width > 1000
    assert height > 400
    report = json.loads(run_here(*command, "--json", "--picture", tmp_path / "a.png").stdout)  # replaces the picture
    assert report["frames"] == 2
    assert report["seed"] == 1
    assert report == json.loads(json.dumps(examine_headroom(small, str(rooms), frames=2, seed=1)))
    (tmp_path / "b.png").write_bytes(b"mine")
    assert "m2h-deploy did not write it" in mistake(*command, "--picture", tmp_path / "b.png")
    assert "is read by this command" in mistake(*command, "--picture", small)


def test_islands_of_the_measurement_are_listed_and_those_by_rule_are_counted(rooms, tmp_path):
    proto = small_graph()
    scale_weight(proto, "w.middle", 1e5)
    onnx.save(proto, tmp_path / "large.onnx")
    console = Console(file=io.StringIO(), width=200)
    console.print(*render_headroom(examine_headroom(tmp_path / "large.onnx", str(rooms), frames=1)), sep="\n")
    said = console.file.getvalue()
    listed, counted = said.split("node to keep in float32")[1].split("float32 whatever their range: ")
    for name in ("/msf.depth/resize/Conv", "/wmca/Transpose", "/wmca/norm/LayerNormalization"):
        assert name in listed
    assert "Softmax" not in listed
    assert counted.startswith("1 reduction, 2 depth output")


def test_a_picture_of_a_network_of_zeros_is_drawn(small, rooms):
    proto = onnx.load(small)
    for tensor in proto.graph.initializer:
        scale_weight(proto, tensor.name, 0)
    onnx.save(proto, small)
    report = examine_headroom(small, str(rooms), frames=1)
    assert {row["tensor"] for row in report["tensors"] if row["largest"]} == {"image", "shares"}
    assert draw_headroom(report).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--headroom",), "give --data too"),
        (("other.onnx", "--headroom", "--data", "x"), "--headroom takes one ONNX file: leave out other.onnx"),
        (("--data", "x"), "--data applies only to --headroom"),
        (("--frames", 2), "--frames applies only to --headroom"),
        (("--seed", 2), "--seed applies only to --headroom"),
        (("--picture", "a.png"), "--picture applies only to --headroom"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(small, options, says):
    assert says in mistake("inspect", small, *options)


def test_a_folder_or_a_lowered_graph_is_refused(small, rooms, tmp_path):
    options = ("--headroom", "--data", rooms)
    assert f"{tmp_path} is a folder: headroom is measured on the ONNX file" in mistake("inspect", tmp_path, *options)
    quantize_elsewhere(small, tmp_path / "int8.onnx", np.ones((1, 3, SIDE, SIDE), np.float32))
    assert "int8.onnx is int8 already" in mistake("inspect", tmp_path / "int8.onnx", *options)
    pytest.importorskip("modelopt.onnx.quantization")
    to_fp16(small, tmp_path / "half.onnx")
    assert "half.onnx is fp16 already" in mistake("inspect", tmp_path / "half.onnx", *options)


def test_frames_that_cannot_be_measured_on_are_refused(small, rooms, tmp_path):
    assert "has 3 frames, 8 are needed" in mistake("inspect", small, "--headroom", "--data", rooms)
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(2):
        cv2.imwrite(str(flat / f"{index}.png"), np.full((16, 16, 3), 40 * index, np.uint8))
    said = mistake("inspect", small, "--headroom", "--data", flat, "--frames", 2)
    assert "0 usable frames (2 of one color were left out)" in said
    assert "nowhere" in mistake("inspect", small, "--headroom", "--data", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (np.nan, "the weight w.middle contains NaN or infinity"),
        (3e38, "the tensor c (of node /msf.depth/resize/Conv) contains infinity"),
    ],
)
def test_a_tensor_with_nan_or_infinity_is_named(small, rooms, factor, says):
    proto = onnx.load(small)
    scale_weight(proto, "w.middle", factor)
    onnx.save(proto, small)
    assert says in mistake("inspect", small, "--headroom", "--data", rooms, "--frames", 1)


def test_without_matplotlib_the_extra_is_named_before_the_work(small, rooms, tmp_path):
    words = ("inspect", small, "--headroom", "--data", rooms, "--frames", 1, "--picture", tmp_path / "a.png")
    command = [*command_without("matplotlib"), *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "the picture of the headroom needs matplotlib" in ended.stderr
    assert not (tmp_path / "a.png").exists()
