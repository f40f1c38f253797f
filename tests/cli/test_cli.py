"""Test the commands as a user types them: results on stdout, one-line errors, the documented exit codes."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import install_extra, missing_extra
from tests.commands import COMMAND, command_without, done, environment, m2h_text, mistake, run_here


def test_export_build_run_in_a_row(tiny_checkpoint, tmp_path):
    exported = m2h_text("export", tiny_checkpoint, "-o", tmp_path / "m.onnx", "--height", 56, "--width", 70, "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["passed"]
    built = m2h_text("build", tmp_path / "m.onnx", "-o", tmp_path / "bundle", "--threads", 1)
    assert built.returncode == 0, built.stderr
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(2):
        cv2.imwrite(str(pictures / f"room{index}.png"), render_room(1, index, height=96, width=128).image)
    ran = m2h_text("run", tmp_path / "bundle", pictures, "-o", tmp_path / "out", "--npz", "--json")
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
    ran = m2h_text("run", tiny_bundle, tmp_path / "v.avi", "-o", tmp_path / "out", "--limit", 2, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["frames"] == 2
    assert (tmp_path / "out" / "v_000001_overlay.png").is_file()


def test_run_writes_a_video_and_a_recording(tiny_bundle, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, (height, width) in enumerate([(96, 128), (128, 96)]):
        cv2.imwrite(str(pictures / f"{index}.png"), render_room(1, index, height=height, width=width).image)
    rerun = importlib.util.find_spec("rerun") is not None
    extra = ["--rerun", tmp_path / "r.rrd", "--fov", 70] if rerun else []
    files = ("--no-files", "--video", tmp_path / "v.mp4", *extra)
    ran = m2h_text("run", tiny_bundle, pictures, *files, "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["video"] == str(tmp_path / "v.mp4")
    video = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    shapes = [video.read()[1].shape for _ in range(2)]
    assert shapes[0] == shapes[1]
    assert not video.read()[0]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pictures", "v.mp4"} | ({"r.rrd"} if rerun else set())


def test_mistakes_with_the_outputs_of_run(tiny_bundle, tmp_path):
    cv2.imwrite(str(tmp_path / "room.png"), np.zeros((64, 64, 3), np.uint8))
    run = ("run", tiny_bundle, tmp_path / "room.png", "--no-files")
    assert "give a name that ends in .mp4" in mistake(*run, "--video", tmp_path / "v.avi")
    assert "there is no folder" in mistake(*run, "--video", tmp_path / "none" / "v.mp4")
    assert "give one of them too" in mistake(*run, "--fov", 60)
    assert "fx,fy,cx,cy" in mistake(*run, "--rerun", tmp_path / "r.rrd", "--intrinsics", "1,2,3")
    assert "not both" in mistake(*run, "--rerun", tmp_path / "r.rrd", "--intrinsics", "1,2,3,4", "--fov", 60)
    assert [path.name for path in tmp_path.iterdir()] == ["room.png"]


def test_the_error_of_show_names_the_package_with_windows(tiny_bundle, tmp_path):
    from m2h_deploy.sinks.screen import has_windows

    if has_windows():
        pytest.skip("this OpenCV has windows")
    cv2.imwrite(str(tmp_path / "room.png"), np.zeros((64, 64, 3), np.uint8))
    assert "pip install opencv-python;" in mistake("run", tiny_bundle, tmp_path / "room.png", "--no-files", "--show")


def test_results_are_not_written_into_a_bundle(tiny_bundle, tmp_path):
    cv2.imwrite(str(tmp_path / "room.png"), np.zeros((64, 64, 3), np.uint8))
    before = sorted(tiny_bundle.iterdir())
    for options in (["-o", tiny_bundle], ["-o", tiny_bundle / "out"], ["--no-files", "--video", tiny_bundle / "v.mp4"]):
        assert "lies in the bundle" in mistake("run", tiny_bundle, tmp_path / "room.png", *options)
    data = ["--reference", "m2h-tiny", "--data", tmp_path]
    assert "lies in the bundle" in mistake("verify", tiny_bundle, *data, "--html", tiny_bundle / "p.html")
    assert "lies in the bundle" in mistake("bench", tiny_bundle, "--csv", tiny_bundle / "b.csv")
    assert sorted(tiny_bundle.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_and_keeps_what_it_wrote(tiny_bundle, tmp_path, number):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(3000):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    command = [
        "run",
        tiny_bundle,
        tmp_path / "v.avi",
        "-o",
        tmp_path / "out",
        "--video",
        tmp_path / "out.mp4",
        "--json",
    ]
    program = subprocess.Popen(
        [*COMMAND, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(tmp_path.glob("out/*_overlay.png"))) < 2:  # then the first frame is timed
        assert program.poll() is None
        time.sleep(0.02)
    program.send_signal(number)
    said, errors = program.communicate(timeout=60)
    assert program.returncode != 0
    assert "Traceback" not in errors
    summary = json.loads(said)
    assert summary["interrupted"]
    assert 0 < summary["frames"] < 3000
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) >= summary["frames"]
    assert {path.name for path in tmp_path.iterdir()} == {"v.avi", "out", "out.mp4"}
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).read()[0]


def test_a_picture_is_rotated_by_its_exif_orientation(tmp_path):
    """EXIF orientation 6: the picture must be rotated clockwise."""
    from m2h_deploy.sources.source import open_source

    image = render_room(0, 0, height=48, width=64).image
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "upright.jpg").write_bytes(encoded[:2] + segment + encoded[2:])
    turned = next(open_source(str(tmp_path)).read()).image
    assert turned.shape == (64, 48, 3)
    assert np.abs(turned.astype(int) - np.rot90(image, -1)).mean() < 10


def test_piped_tables_are_not_truncated(tiny_onnx):
    """A table in a file must not be cut at 80 columns."""
    long = "x" * 300
    program = f"from cli.console import out, print_values; print_values({{'name': '{long}'}})"
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
    assert long in said
    assert not any("…" in line for line in m2h_text("inspect", tiny_onnx).stdout.splitlines())


def test_run_reports_a_broken_picture_and_finishes_the_others(tiny_bundle, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(pictures / "deep.png"), np.zeros((64, 64, 3), np.uint16))
    cv2.imwrite(str(pictures / "depth.png"), np.zeros((64, 64), np.uint16))
    cv2.imwrite(str(pictures / "good.png"), np.zeros((64, 64, 3), np.uint8))
    ran = m2h_text("run", tiny_bundle, pictures, "-o", tmp_path / "out", "--json")
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["failed"] == 2
    assert "broken.png: image cannot be decoded" in ran.stderr
    assert "depth.png is a 16-bit depth map, not a picture: skipped" in ran.stderr
    assert (tmp_path / "out" / "good_overlay.png").is_file()


def test_inspect_and_doctor_print_json(tiny_bundle, tiny_onnx):
    bundle = json.loads(done("inspect", tiny_bundle, "--json"))
    assert bundle["manifest"]["model"]["variant"] == "m2h-tiny"
    graph = json.loads(done("inspect", tiny_onnx, "--json"))
    assert graph["outputs"]["depth"] == [1, 1, 112, 140]
    assert graph["parameters"] > 4_000_000
    doctor = json.loads(done("doctor", "--json"))
    assert {engine["kind"] for engine in doctor["engines"]} >= {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"}
    missing = next(engine for engine in doctor["engines"] if engine["kind"] == "tensorrt")
    assert missing["version"] is None or missing["details"]


def test_human_output_has_every_engine_and_field(tiny_onnx):
    assert "tensorrt-rtx" in done("doctor")
    assert "opset" in done("inspect", tiny_onnx)


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


def test_build_reports_the_engine_after_validating_the_options(tiny_onnx, tmp_path):
    for options in (["--engine", "tensorflow"], ["--precision", "fp8"], ["--hint", "bf16"]):
        result = m2h_text("build", tiny_onnx, "-o", tmp_path / "b", *options)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ") and "building" not in result.stderr
    built = m2h_text("build", tiny_onnx, "-o", tmp_path / "b")
    assert built.returncode == 0 and built.stderr.startswith("building onnxruntime in fp32\n")


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


def test_trtexec_requires_the_graph_that_is_compiled(tiny_onnx, tmp_path):
    message = mistake("build", tiny_onnx, "-o", tmp_path / "b", "--precision", "fp16", "--trtexec")
    assert "--graph" in message
    assert "choose --engine tensorrt" in mistake("build", tiny_onnx, "-o", tmp_path / "b", "--trtexec")
    assert list(tmp_path.iterdir()) == []


def test_trtexec_is_printed_where_tensorrt_is_missing_and_nothing_is_built(tiny_onnx, tmp_path):
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    options = ("--engine", "tensorrt", "--trtexec", "--workspace", 512)
    printed = m2h_text("build", tiny_onnx, "-o", tmp_path / "b", *options)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.strip() == (
        "trtexec --onnx=tiny.onnx --saveEngine=model.plan --stronglyTyped --noTF32 --skipInference "
        "--profilingVerbosity=detailed --memPoolSize=workspace:512M"
    )
    assert "no bundle was built: the engine needs TensorRT, which is not installed" in printed.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_tensorrt_rtx_builds_a_portable_plan(tiny_onnx, tmp_path):
    said = mistake("build", tiny_onnx, "-o", tmp_path / "b", "--engine", "tensorrt", "--target", "portable")
    assert "tensorrt has no portable plans" in said


def test_run_accepts_a_device_except_with_ray(tiny_bundle, tmp_path):
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 64, 3), np.uint8))
    common = ("run", tiny_bundle, tmp_path / "black.png", "-o", tmp_path / "out", "--device", "npu")
    assert "unknown provider 'npu': choose one of cpu, cuda" in mistake(*common)
    assert "leave it out with --ray" in mistake(*common, "--ray", "local")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot write to" in mistake("rooms", tmp_path / "file", "--frames", 1)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "export"), ("onnxscript", "export"), ("onnxruntime", "onnxruntime")]
)
def test_export_names_the_extra_of_what_is_missing(module, extra, tmp_path):
    command = [*command_without(module), "export", "m2h-tiny", "-o", str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"error: {missing_extra(module, extra)}")


def test_a_device_without_onnx_inspects_its_bundle(tiny_bundle):
    command = [*command_without("onnx"), "inspect", str(tiny_bundle)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "m2h-tiny" in said
    assert "onnxruntime" in said
    report = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert report["manifest"]["model"]["variant"] == "m2h-tiny"
    assert install_extra("build") in report["engine"]["note"]


def test_verify_checks_its_output_paths_first(tiny_bundle, tmp_path):
    """The paths are checked before the reference, which does not exist, is opened."""
    common = ("verify", tiny_bundle, "--reference", "none.pt", "--data", tmp_path)
    for option in ("--junit", "--html"):
        assert "there is no folder" in mistake(*common, option, tmp_path / "none" / "file")
        assert "it is a folder" in mistake(*common, option, tmp_path)


def test_run_filters_a_sequence_by_its_poses(tiny_bundle, tmp_path):
    walk, raw, smooth = tmp_path / "walk", tmp_path / "raw", tmp_path / "smooth"
    done("rooms", walk, "--sequence", "--frames", 4, "--height", 112, "--width", 140, "--seed", 5)
    done("run", tiny_bundle, walk, "-o", raw)
    values = json.loads(run_here("run", tiny_bundle, walk, "-o", smooth, "--filter", "--json").stdout)
    assert values["filter_ms"] > 0
    assert values["unfiltered"] == 0
    names = sorted(path.name for path in raw.glob("*_depth.png"))
    assert names == sorted(path.name for path in smooth.glob("*_depth.png")) and len(names) == 4
    same = [(raw / name).read_bytes() == (smooth / name).read_bytes() for name in names]
    assert same[0] and not any(same[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--poses", "no.txt"], "are for --filter"),
        (["--intrinsics", "1,1,1,1"], "give one of them too"),
        (["--filter", "--ray", "local"], "without --ray"),
        (["--filter"], "the name is not a time stamp"),
    ],
)
def test_mistakes_with_the_filter_of_run(tiny_bundle, tmp_path, options, words):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64, 3), np.uint8))
    assert words in mistake("run", tiny_bundle, tmp_path, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_filter_needs_poses(tiny_bundle, tmp_path):
    cv2.imwrite(str(tmp_path / "1.5.png"), np.zeros((48, 64, 3), np.uint8))
    command = ("run", tiny_bundle, tmp_path, "-o", tmp_path / "out", "--filter", "--intrinsics", "50,50,31.5,23.5")
    assert "none of the 1 frames has a pose: give a trajectory with --poses FILE" in mistake(*command)
    assert not (tmp_path / "out").exists()
