"""Run the programs and the notebook of examples/ on a small bundle and rendered rooms."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import nbformat
import numpy as np
import onnx
import pytest
from nbclient import NotebookClient

from engines import build_bundle
from m2h_deploy import load_bundle
from m2h_deploy.data.rooms.render import render_room
from tests.commands import environment
from tests.engines.graphs import SIDE, small_graph
from tests.pages import REPOSITORY, shell_environment

EXAMPLES = REPOSITORY / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "first_steps.ipynb"
HEIGHT, WIDTH = 96, 128


def example(name: str, *words: object, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program that must end with `expect`."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "pictures"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), render_room(0, index, HEIGHT, WIDTH).image)
    return folder


def test_webcam_depth_reads_a_video_in_place_of_a_camera(tiny_bundle, pictures, tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for path in sorted(pictures.iterdir()):
        video.write(cv2.imread(str(path)))
    video.release()
    done = example("webcam_depth.py", tiny_bundle, "video.avi", "--output", "depth", cwd=tmp_path)
    lines = [re.fullmatch(r"frame (\d): (\d+\.\d\d) m, \d+ ms", line) for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == ["0", "1", "2"]
    near, far = load_bundle(tiny_bundle).manifest.depth_range
    assert all(near - 0.01 <= float(line[2]) <= far + 0.01 for line in lines)
    drawn = sorted((tmp_path / "depth").iterdir())
    assert [path.name for path in drawn] == ["000000.png", "000001.png", "000002.png"]
    assert cv2.imread(str(drawn[0])).shape == (HEIGHT, WIDTH, 3)
    assert "delivered=3" in done.stderr


def test_a_mistake_is_one_line(tmp_path):
    for name, words in (("webcam_depth.py", ()), ("video_to_point_cloud.py", ("pictures", "clouds"))):
        done = example(name, "nowhere", *words, cwd=tmp_path, expect=2)
        assert done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1
    done = example("verify_in_ci.py", "nowhere", "m2h-tiny", "rooms", cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1


def test_a_bundle_without_the_tasks_is_refused_and_a_picture_that_cannot_be_written_is_named(pictures, tmp_path):
    graph = small_graph()
    onnx.save(graph, tmp_path / "both.onnx")
    del graph.graph.output[0]
    onnx.save(graph, tmp_path / "labels.onnx")
    for name in ("both", "labels"):
        build_bundle(tmp_path / f"{name}.onnx", tmp_path / name)
    done = example("webcam_depth.py", "labels", pictures, cwd=tmp_path, expect=2)
    assert done.stderr == "error: labels: the engine gives no depth, but semantics\n"
    done = example("video_to_point_cloud.py", "labels", pictures, "clouds", cwd=tmp_path, expect=2)
    assert done.stderr == "error: labels: the engine does not give depth\n"
    (tmp_path / "depth" / "000000.png").mkdir(parents=True)
    done = example("webcam_depth.py", "both", pictures, "--output", "depth", cwd=tmp_path, expect=2)
    assert done.stderr.splitlines()[-1].startswith("error: depth/000000.png cannot be written")
    (tmp_path / "file").touch()
    done = example("webcam_depth.py", "both", pictures, "--output", "file", cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: ") and "'file'" in done.stderr and done.stderr.count("\n") == 1


def test_point_clouds_hold_positions_colors_and_labels(tiny_bundle, pictures, tmp_path):
    example("video_to_point_cloud.py", tiny_bundle, pictures, "clouds", "--decimation", 4, cwd=tmp_path)
    files = sorted((tmp_path / "clouds").iterdir())
    assert [path.name for path in files] == ["000000.ply", "000001.ply", "000002.ply"]
    head, _, body = files[0].read_bytes().partition(b"end_header\n")
    count = int(re.search(rb"element vertex (\d+)", head)[1])
    point = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("label", "u1")])
    points = np.frombuffer(body, point)
    assert len(points) == count == HEIGHT // 4 * WIDTH // 4
    manifest = load_bundle(tiny_bundle).manifest
    near, far = manifest.depth_range
    assert (points["xyz"][:, 2] >= near - 1e-4).all() and (points["xyz"][:, 2] <= far + 1e-4).all()
    assert points["label"].max() < len(manifest.classes.names)
    image = cv2.imread(str(pictures / "0.png"))
    assert np.array_equal(points["rgb"], image[::4, ::4, ::-1].reshape(-1, 3))
    assert head.count(b"comment class ") == len(manifest.classes.names)


def test_verification_passes_and_an_inconclusive_one_fails_the_build(tmp_path):
    onnx.save(small_graph(scale=0.3), tmp_path / "small.onnx")
    build_bundle(tmp_path / "small.onnx", tmp_path / "bundle")
    write_pictures(tmp_path / "pictures", 8)
    done = example("verify_in_ci.py", "bundle", "small.onnx", "pictures", "--junit", "parity.xml", cwd=tmp_path)
    assert done.stdout.splitlines()[-1].startswith("PASSED: all ")
    cases = list(ElementTree.parse(tmp_path / "parity.xml").getroot().iter("testcase"))
    assert len(cases) > 1 and not any(case.findall("failure") for case in cases)
    write_pictures(tmp_path / "few", 2)
    done = example("verify_in_ci.py", "bundle", "small.onnx", "few", cwd=tmp_path, expect=1)
    assert done.stdout.splitlines()[-1].startswith("FAILED: ")


def write_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:02}.png"), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


@pytest.mark.slow
def test_tune_and_deploy_packs_a_bundle_that_runs(tmp_path):
    onnx.save(small_graph(scale=0.3), tmp_path / "small.onnx")
    write_pictures(tmp_path / "pictures", 18)
    counts = ("--calibration-frames", "4", "--search-frames", "1", "--check-frames", "8", "--psnr", "1")
    command = ["bash", str(EXAMPLES / "tune_and_deploy.sh"), "small.onnx", "pictures", "robot", *counts]
    shell = shell_environment(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(tmp_path / "robot" / "best")
    shutil.unpack_archive(tmp_path / "robot" / "best.tar.gz", tmp_path / "there")
    engine = load_bundle(tmp_path / "there" / "best").manifest.engine.kind
    assert f"-py3-none-any.whl[{engine}]'" in done.stdout


def test_tune_and_deploy_without_arguments_prints_its_use(tmp_path):
    script = ["bash", str(EXAMPLES / "tune_and_deploy.sh")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "examples/tune_and_deploy.sh MODEL DATA FOLDER" in done.stderr and "set -euo" not in done.stderr


def run_notebook(folder: Path) -> list[str]:
    """Run the notebook in `folder`, and return the text and the types of all outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment(MPLBACKEND="module://matplotlib_inline.backend_inline"))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.get("text") or " ".join(output.get("data", ())) for output in outputs]


def test_the_notebook_runs(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    outputs = "\n".join(run_notebook(tmp_path))
    assert outputs.count("image/png") == 2
    assert re.search(r"^ *[\w ]+: \d+\.\d\d m$", outputs, re.MULTILINE)
    assert re.search(r"^\d+ ms per frame$", outputs, re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_makes_its_bundle(tmp_path):
    run_notebook(tmp_path)
    assert load_bundle(tmp_path / "bundle").manifest.engine.kind == "openvino"


def test_examples_are_short_and_say_how_to_run_them():
    files = [*PROGRAMS, *EXAMPLES.glob("*.sh"), EXAMPLES / "cpp" / "main.cpp", EXAMPLES / "ros2" / "camera.launch.py"]
    assert len(files) == 6
    for path in files:
        text = path.read_text()
        assert len(text.splitlines()) < 60, path.name
        assert re.search(r"(python |ros2 launch )?(examples|build)/[\w/.]+ \S", text), path.name
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert sum(len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code") < 60
    assert not any(cell.get("outputs") for cell in cells)


def test_the_page_names_every_example():
    page = (EXAMPLES / "README.md").read_text()
    named = {link.split("/")[0] for link in re.findall(r"\]\((?!\.\.)([\w/.]+)\)", page)}
    assert named == {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
