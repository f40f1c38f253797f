"""Test that a pool of workers gives the results of one process, also when workers die."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.cluster import Cluster, RayExecutor, predict_folder
from m2h_deploy.cluster.jobs import FrameWorker, Job, Row, run_job
from m2h_deploy.cluster.session import on_demand
from m2h_deploy.cluster.state import MOST_TRIES, State
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import read_image
from m2h_deploy.files.provenance import mark_png
from m2h_deploy.parity import to_json, verify
from m2h_deploy.sinks.files import write_prediction
from m2h_deploy.sources.source import folder_images
from tests.cluster.processes import add_picture, kill, workers_of

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.usefixtures("local_ray")
TWO = Cluster(workers=2)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_files_equal_those_of_one_process_and_only_new_frames_are_redone(tiny_bundle, pictures, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    alone.mkdir()
    (pictures / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(pictures / "depth.png"), np.zeros((48, 64), np.uint16))
    told, seen = [], []
    job = predict_folder(
        tiny_bundle, pictures, out, cluster=TWO,
        complain=lambda kind, text: told.append((kind, text)), progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    assert (job.frames, job.reused, len(job.skipped), len(job.failed)) == (11, 0, 1, 1)
    assert sorted(kind for kind, _ in told) == ["failed", "skipped"]
    assert "broken.png: image cannot be decoded" in job.failed[0]
    assert seen[0] == (0, 13) and seen[-1] == (13, 13)
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        for name, file in folder_images(pictures):
            if name.startswith("room"):
                image = read_image(file)
                write_prediction(alone, name, image, runtime(image), runtime.manifest.classes)
    assert contents(out) == contents(alone)

    (pictures / "broken.png").unlink()
    (pictures / "depth.png").unlink()
    add_picture(pictures, 11)  # new
    shutil.copy(pictures / "room03.png", pictures / "room02.png")  # another content
    (out / "room05_labels.png").unlink()  # a removed result
    (out / "room06_depth.png").write_bytes(b"")  # a changed result
    again = predict_folder(tiny_bundle, pictures, out, cluster=TWO)
    assert (again.frames, again.reused) == (12, 8)
    assert contents(out)["room02_depth.png"] == contents(out)["room03_depth.png"]
    nothing = predict_folder(tiny_bundle, pictures, out, cluster=TWO)
    assert (nothing.frames, nothing.reused, nothing.workers) == (12, 12, 0)


@pytest.mark.slow
def test_parquet_holds_each_frame_once_with_the_content_of_the_files(tiny_bundle, pictures, tmp_path):
    import pyarrow.parquet

    table, out = tmp_path / "table", tmp_path / "out"
    predict_folder(tiny_bundle, pictures, table, cluster=TWO, parquet=True, npz=True, limit=10)
    shutil.copy(pictures / "room03.png", pictures / "room02.png")
    job = predict_folder(tiny_bundle, pictures, table, cluster=TWO, parquet=True, npz=True)
    assert (job.frames, job.reused) == (11, 9)
    predict_folder(tiny_bundle, pictures, out, cluster=TWO)
    rows = sorted(pyarrow.parquet.read_table(table).to_pylist(), key=lambda row: row["name"])
    assert [row["name"] for row in rows] == [f"room{index:02d}" for index in range(11)]
    for row in rows:
        assert row["file"] == str(pictures / f"{row['name']}.png")
        assert (row["height"], row["width"]) == (48, 64)
        assert mark_png(row["depth"]) == (out / f"{row['name']}_depth.png").read_bytes()
        assert mark_png(row["labels"]) == (out / f"{row['name']}_labels.png").read_bytes()
        assert row["npz"][:2] == b"PK"
    assert predict_folder(tiny_bundle, pictures, table, cluster=TWO, parquet=True, npz=True).reused == 11


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tiny_bundle, pictures, tmp_path):
    killed = []

    def kill_one(done: int, total: int) -> None:
        if done and not killed:
            killed.append(workers_of(os.getpid())[0])
            kill(killed[0])

    for index in range(11, 40):
        shutil.copy(pictures / "room00.png", pictures / f"room{index:02d}.png")
    job = predict_folder(tiny_bundle, pictures, tmp_path / "out", cluster=TWO, progress=kill_one)
    assert killed
    assert (job.frames, job.failed) == (40, ())
    assert len(list((tmp_path / "out").glob("*_depth.png"))) == 40


def assert_same(value, expected):
    """Equal to 1e-9. Commands are bitwise identical; in this process libraries of other tests change the last bits."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_same(value[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    else:
        assert value == expected


def one_process(bundle, reference, data, pictures=0):
    """Run `verify` in a separate process, as workers do."""
    code = (
        "import pickle, sys; from m2h_deploy.parity import LocalExecutor, to_json, verify\n"
        "result = verify(*sys.argv[1:4], executor=LocalExecutor(threads=1), pictures=int(sys.argv[4]))\n"
        "worst = [(frame.task, frame.name, frame.difference, frame.pictures) for frame in result.worst]\n"
        "pickle.dump((to_json(result), worst), sys.stdout.buffer)"
    )
    words = [str(word) for word in (bundle, reference, data, pictures)]
    return pickle.loads(subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True).stdout)


def verify_on_ray(bundle, reference, data, work, **options):
    executor = RayExecutor(TWO, work)
    return verify(bundle, reference, data, executor=executor, **options), executor.job


def test_figures_equal_those_of_one_process_and_only_a_new_frame_is_run(tiny_bundle, tiny_onnx, tmp_path):
    data = write_multitask_folder(tmp_path / "rooms", Rooms(10, height=48, width=64))
    listing = data / "gt_sets" / "val.txt"
    names = listing.read_text().split()
    listing.write_text("\n".join(names[1:]))
    bundle, work = shutil.copytree(tiny_bundle, tmp_path / "bundle"), tmp_path / "work"
    alone, _ = one_process(bundle, tiny_onnx, data)
    result, job = verify_on_ray(bundle, tiny_onnx, data, work, record=True)
    assert (job.frames, job.reused) == (9, 0)
    assert_same(to_json(result), alone)
    assert_same(json.loads((bundle / "manifest.json").read_text())["parity"], alone)

    listing.write_text("\n".join(names))  # the new frame comes first, so every index moves
    alone, worst_alone = one_process(bundle, tiny_onnx, data, pictures=1)
    result, job = verify_on_ray(bundle, tiny_onnx, data, work, pictures=1)
    assert (job.frames, job.reused) == (10, 9)
    assert_same(to_json(result), alone)
    worst = [(frame.task, frame.name, frame.difference, frame.pictures) for frame in result.worst]
    assert_same(worst, worst_alone)

    sorted((work / "frames").glob("*/*.npz"))[0].write_bytes(b"PK cut short")
    with pytest.raises(M2HError, match=r"\.npz is damaged: remove it and run again"):
        verify_on_ray(bundle, tiny_onnx, data, work, record=True)


@pytest.mark.slow
def test_a_failure_in_a_worker_gives_a_one_line_error(tiny_bundle, tiny_onnx, tmp_path):
    data = write_multitask_folder(tmp_path / "rooms", Rooms(2, height=32, width=40))
    with pytest.raises(M2HError, match="give the checkpoint the bundle was built from"):
        verify_on_ray(tiny_bundle, "m2h-tiny", data, tmp_path / "work")
    sorted((data / "depth").iterdir())[1].unlink()
    with pytest.raises(M2HError, match="1 of 2 frames could not be measured"):
        verify_on_ray(tiny_bundle, tiny_onnx, data, tmp_path / "work")


class Deadly(FrameWorker):
    """A worker that dies on one frame and raises an unexpected error on another."""

    def open(self):
        pass

    def work(self, row):
        if row.name == "deadly":
            os._exit(1)
        if row.name == "odd":
            raise ZeroDivisionError("by zero\nindeed")
        return "done", "", row.name.encode()


@pytest.mark.slow
def test_a_frame_that_kills_its_workers_is_skipped_and_named(tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    rows = [Row(name, f"key-{name}", "") for name in ("a", "b", "odd", "deadly", "c")]
    kept = {}
    with on_demand(TWO) as connect:
        state = State.begin(tmp_path / "work")
        job = run_job(connect, Job(Deadly, (state,), rows, task_frames=2), keep=kept.__setitem__)
    assert sorted(job.failed) == [
        f"deadly: {MOST_TRIES} workers died on it; not tried again in this job",
        "odd: ZeroDivisionError: by zero",
    ]
    assert kept == {"key-a": b"a", "key-b": b"b", "key-c": b"c"}


@pytest.mark.slow
def test_the_callers_output_is_shown_and_rays_is_not(tiny_bundle, pictures, tmp_path):
    code = (
        "import os, sys; from tests.cluster.processes import kill, workers_of\n"
        "from m2h_deploy.cluster import Cluster, predict_folder\n"
        "def progress(done, total):\n"
        "    if done == 8: kill(workers_of(os.getpid())[0])\n"
        "    print('done', done)\n"
        "predict_folder(*sys.argv[1:], cluster=Cluster(workers=2), progress=progress)\n"
    )
    arguments = [sys.executable, "-c", code, tiny_bundle, pictures, tmp_path / "out"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert set(result.stdout.splitlines()) == {f"done {done}" for done in range(12)}
    assert result.stderr == ""


def test_a_pool_that_leaves_ray_no_cpu_is_refused():
    with (
        pytest.raises(M2HError, match=r"9 workers of 1 threads need 10 CPUs, .*give fewer"),
        on_demand(Cluster(workers=9)) as connect,
    ):
        connect()
    with pytest.raises(M2HError, match="the cluster has 0"), on_demand(Cluster(workers=1, gpus=1)) as connect:
        connect()
