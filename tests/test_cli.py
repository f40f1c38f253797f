"""The commands as a user types them: results on stdout, one line for a mistake, the documented exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from m2h_deploy.data.rooms import render_room


def m2h(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import cli; cli.main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def mistake(*arguments: object) -> str:
    """The one line that a mistake gives; exit code 2 and no traceback."""
    result = m2h(*arguments)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return lines[0]


def test_export_build_run_in_a_row(tiny_checkpoint, tmp_path):
    exported = m2h("export", tiny_checkpoint, "-o", tmp_path / "m.onnx", "--height", 56, "--width", 70, "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["passed"]
    built = m2h("build", tmp_path / "m.onnx", "-o", tmp_path / "bundle", "--threads", 1)
    assert built.returncode == 0, built.stderr
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(2):
        cv2.imwrite(str(pictures / f"room{index}.png"), render_room(1, index, height=96, width=128).image)
    ran = m2h("run", tmp_path / "bundle", pictures, "-o", tmp_path / "out", "--npz", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["frames"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"room{index}{suffix}" for index in range(2) for suffix in (".npz", "_depth.png", "_labels.png", "_overlay.png")
    ]
    arrays = np.load(tmp_path / "out" / "room0.npz")
    depth = cv2.imread(str(tmp_path / "out" / "room0_depth.png"), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16
    np.testing.assert_allclose(depth / 1000, arrays["depth"], atol=6e-4)
    labels = cv2.imread(str(tmp_path / "out" / "room0_labels.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, arrays["semantics"])


def test_run_takes_a_video(tiny_bundle, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for index in range(3):
        writer.write(render_room(1, index, height=96, width=128).image)
    writer.release()
    ran = m2h("run", tiny_bundle, tmp_path / "v.avi", "-o", tmp_path / "out", "--limit", 2, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["frames"] == 2
    assert (tmp_path / "out" / "v_000001_overlay.png").is_file()


def test_run_reports_a_broken_picture_and_finishes_the_others(tiny_bundle, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(pictures / "deep.png"), np.zeros((64, 64, 3), np.uint16))
    cv2.imwrite(str(pictures / "depth.png"), np.zeros((64, 64), np.uint16))
    cv2.imwrite(str(pictures / "good.png"), np.zeros((64, 64, 3), np.uint8))
    ran = m2h("run", tiny_bundle, pictures, "-o", tmp_path / "out", "--json")
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["failed"] == 2
    assert "broken.png is not a readable image" in ran.stderr
    assert "depth.png is a 16-bit depth map, not a picture: skipped" in ran.stderr
    assert (tmp_path / "out" / "good_overlay.png").is_file()


def test_inspect_and_doctor_speak_json(tiny_bundle, tiny_onnx):
    bundle = json.loads(m2h("inspect", tiny_bundle, "--json").stdout)
    assert bundle["manifest"]["model"]["variant"] == "m2h-tiny"
    graph = json.loads(m2h("inspect", tiny_onnx, "--json").stdout)
    assert graph["outputs"]["depth"] == [1, 1, 112, 140]
    assert graph["parameters"] > 4_000_000
    doctor = json.loads(m2h("doctor", "--json").stdout)
    assert {engine["kind"] for engine in doctor["engines"]} >= {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"}
    missing = next(engine for engine in doctor["engines"] if engine["kind"] == "tensorrt")
    assert missing["version"] is None or missing["details"]


def test_human_output_has_every_engine_and_field(tiny_onnx):
    assert "tensorrt-rtx" in m2h("doctor").stdout
    assert "opset" in m2h("inspect", tiny_onnx).stdout


def test_mistakes_with_checkpoints(tmp_path):
    assert "no checkpoint at" in mistake("export", tmp_path / "none.pt", "-o", tmp_path / "m.onnx")
    (tmp_path / "text.pt").write_text("hello")
    assert "is not a checkpoint" in mistake("export", tmp_path / "text.pt", "-o", tmp_path / "m.onnx")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    assert "conv.weight" in mistake("export", tmp_path / "other.pt", "-o", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("size", ["0", "-3", "99999"])
def test_mistakes_with_sizes(tiny_checkpoint, tmp_path, size):
    assert "height" in mistake("export", tiny_checkpoint, "-o", tmp_path / "m.onnx", "--height", size)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_with_graphs_and_bundles(tmp_path):
    assert "no ONNX file" in mistake("build", tmp_path / "none.onnx", "-o", tmp_path / "b")
    (tmp_path / "text.onnx").write_text("hello")
    assert "is not an ONNX file" in mistake("build", tmp_path / "text.onnx", "-o", tmp_path / "b")
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 64, 3), np.uint8))
    assert "is not a bundle" in mistake("run", tmp_path / "b", tmp_path / "black.png")
    assert not (tmp_path / "b").exists()


def test_mistakes_with_sources(tiny_bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no images" in mistake("run", tiny_bundle, tmp_path / "empty", "-o", tmp_path / "out")
    assert "no image, folder, video or camera" in mistake("run", tiny_bundle, "nowhere", "-o", tmp_path / "out")
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    assert "too small" in mistake("run", tiny_bundle, tmp_path / "dot.png", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cv2.imwrite(str(tmp_path / "room.png"), np.zeros((64, 64, 3), np.uint8))
    assert "is the source itself" in mistake("run", tiny_bundle, tmp_path, "-o", tmp_path)


def test_trtexec_wants_the_graph_that_is_compiled(tiny_onnx, tmp_path):
    message = mistake("build", tiny_onnx, "-o", tmp_path / "b", "--precision", "fp16", "--trtexec")
    assert "--graph" in message
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_files(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write to" in mistake("rooms", tmp_path / "file", "--frames", 1)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_without_torch_is_told_what_to_install(tmp_path):
    hide = "import sys; sys.modules['torch'] = None; import cli; cli.main()"
    command = [sys.executable, "-c", hide, "export", "m.pt", "-o", str(tmp_path / "m.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip().endswith("error: this command needs torch: pip install 'm2h-deploy[export]'")
