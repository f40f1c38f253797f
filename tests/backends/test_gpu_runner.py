"""Test the runner of plans on doubles of CUDA and TensorRT: its order of work and its memory."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from m2h_deploy import Runtime, Stream
from m2h_deploy.backends import BackendOptions, profile_engine
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.files.cache import read_checked
from tests.backends import cuda_double
from tests.backends import tensorrt_double as double
from tests.backends.gpu_machine import Machine, check, expected, image
from tests.backends.small_network import SIDE
from tests.commands import refused
from tests.stream.sources import frames, picture

pytest.importorskip("cuda.core")


def test_each_frame_gives_its_own_outputs(any_machine):
    backend = any_machine.open()
    for seed in range(5):
        check(backend.run(image(seed)), image(seed))
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    for seed in range(5):
        tensor[:] = image(seed)
        assert backend.run(tensor, out)["depth"] is out["depth"]
        check(out, image(seed))


@pytest.mark.parametrize("way", ["call", "batch", "submit", "queue", "latest"])
def test_every_way_through_the_runtime_gives_each_frame_its_own_prediction(any_machine, way):
    runtime = Runtime.load(any_machine.bundle())
    pictures = [picture(40 * index + 10, SIDE) for index in range(6)]
    if way == "call":
        found = [runtime(one) for one in pictures]
    elif way == "batch":
        found = runtime.batch(pictures, at_once=4)
    elif way == "submit":
        found = [future.result() for future in [runtime.submit(one) for one in pictures]]
    else:
        stream = Stream(runtime, frames(6, side=SIDE), policy=way)
        results = list(stream)
        assert stream.health.in_work == 0
        pictures, found = [picture(one.id, SIDE) for one in results], [one.prediction for one in results]
    for one, prediction in zip(pictures, found, strict=True):
        depth = expected(runtime.preprocess(one, np.empty((1, 3, SIDE, SIDE), np.float32)))["depth"]
        np.testing.assert_allclose(prediction.depth, depth[0, 0], rtol=1e-5)


def test_batches_of_different_sizes_alternate(any_machine):
    backend = any_machine.open()
    for seed, batch in enumerate([1, 4, 1, 2, 4, 3, 1, 2]):
        check(backend.run(image(seed, batch)), image(seed, batch))
    assert "takes batches of 1 to 4, got 5" in refused(backend.run, image(0, 5))
    check(backend.run(image(1)), image(1))


def test_images_of_another_type_or_layout_are_converted(any_machine):
    backend = any_machine.open()
    check(backend.run(image(0).astype(np.float64)), image(0))
    check(backend.run(image(1).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)), image(1))
    assert "takes images (N, 3, 16, 16), got an array of (1, 3, 8, 8)" in refused(
        backend.run, np.zeros((1, 3, 8, 8), np.float32)
    )


def test_outputs_in_half_precision_are_converted(any_machine):
    backend = any_machine.open(any_machine.bundle(half=True))
    out = backend.new_outputs()
    assert out["depth"].dtype == np.float32
    for seed in range(3):
        check(backend.run(image(seed), out), image(seed), half=True)


def test_frames_in_work_overlap_and_keep_their_outputs_apart(any_machine):
    backend = any_machine.open(any_machine.bundle(half=True))
    assert backend.in_work == 2
    slots = [(backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()) for _ in range(3)]
    work: list[tuple[int, dict[str, np.ndarray], object]] = []
    for seed in range(9):
        tensor, out = slots[seed % 3]
        tensor[:] = image(seed)
        work.append((seed, out, backend.begin(tensor, out)))
        if len(work) == 2:
            number, outputs, pending = work.pop(0)
            pending.wait_computed()
            pending.finish()
            check(outputs, image(number), half=True)
    number, outputs, pending = work.pop()
    check(backend.run(image(99)), image(99), half=True)
    pending.finish()
    check(outputs, image(number), half=True)


def test_a_frame_that_comes_again_in_the_same_arrays_is_one_cuda_graph(any_machine):
    backend = any_machine.open()
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    for seed in range(4):
        tensor[:] = image(seed)
        check(backend.run(tensor, out), image(seed))
    log = any_machine.gpu.log
    log.clear()
    tensor[:] = image(7)
    check(backend.run(tensor, out), image(7))
    assert log == ["graph"]


def test_arrays_of_the_caller_are_copied_without_a_graph_of_the_copies(any_machine):
    backend = any_machine.open()
    tensor, out = np.empty((1, 3, SIDE, SIDE), np.float32), expected(image(0))
    for seed in range(4):
        tensor[:] = image(seed)
        check(backend.run(tensor, out), image(seed))


def test_an_integrated_gpu_reads_and_writes_the_hosts_arrays(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, "tensorrt", integrated=True)
    backend = machine.open()
    copies: list[object] = []
    monkeypatch.setattr(type(backend._cuda), "copy", lambda self, copied, stream: copies.extend(copied))
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    for seed in range(3):
        tensor[:] = image(seed)
        check(backend.run(tensor, out), image(seed))
        backend.begin(tensor, out).finish()
        check(out, image(seed))
    assert copies == []
    assert machine.gpu.device_memory == {}


def test_page_locked_memory_lives_as_long_as_a_view_of_it(tensorrt):
    backend = tensorrt.open()
    before = len(tensorrt.gpu.page_locked)
    view = backend.new_outputs()["depth"][0, :, 3:5]
    backend.close()
    del backend
    gc.collect()
    assert len(tensorrt.gpu.page_locked) == before + 1
    view[:] = 1
    del view
    gc.collect()
    assert len(tensorrt.gpu.page_locked) == before


def test_closing_frees_all_memory_of_the_gpu_even_with_a_frame_in_work(any_machine):
    """At once: if it waited for Python's garbage collector, the next engine might find no memory."""
    backend = any_machine.open()
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    tensor[:] = image(3)
    gc.collect()
    gc.disable()
    try:
        pending = backend.begin(tensor, out)
        backend.run(image(1, 4))
        backend.close()
        backend.close()
        check(pending.finish(), image(3))
        del pending, tensor, out
        assert any_machine.gpu.device_memory == {}
        assert any_machine.gpu.page_locked == {}
    finally:
        gc.enable()
    assert "the engine is closed" in refused(backend.run, image(0))


def test_arrays_are_allocated_in_any_thread(any_machine):
    runtime, made = Runtime.load(any_machine.bundle()), []
    thread = threading.Thread(target=lambda: made.append(list(Stream(runtime, frames(3, side=SIDE)))))
    thread.start()
    thread.join()
    assert len(made[0]) == 3


def test_more_frames_than_the_engine_works_on_wait_for_each_other(any_machine):
    backend = any_machine.open(any_machine.bundle(half=True))
    work = []
    for seed in range(5):
        tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
        tensor[:] = image(seed)
        work.append((seed, out, backend.begin(tensor, out)))
    for seed, out, pending in work:
        pending.finish()
        check(out, image(seed), half=True)


def test_any_thread_may_run_the_engine(any_machine):
    backend, results = any_machine.open(), []
    for seed in range(3):
        thread = threading.Thread(
            target=lambda seed=seed: results.append((seed, backend.run(image(seed))["depth"].copy()))
        )
        thread.start()
        thread.join()
    assert len(results) == 3
    for seed, depth in results:
        np.testing.assert_array_equal(depth, expected(image(seed))["depth"])


def test_compiled_kernels_of_every_batch_are_kept_for_the_next_start(rtx, tmp_path):
    bundle = rtx.bundle()
    backend = rtx.open(bundle)
    backend.run(image(0))
    backend.run(image(0, 3))
    (file,) = (tmp_path / "cache").rglob("*.cache")
    assert read_checked(file) == b"special1,special3"
    backend._plan.kernels.kernels.add("compiled later")
    backend.close()
    assert b"compiled later" in read_checked(file)
    again = rtx.open(bundle)
    assert again._plan.kernels.kernels == {"special1", "special3", "compiled later"}


def test_layers_are_reported_by_the_nodes_of_the_graph(machine):
    runs = profile_engine(load_bundle(machine.bundle()), BackendOptions(), 3)
    assert [[(layer.name, layer.milliseconds) for layer in run] for run in runs] == [[("/model/depth/Conv", 1.0)]] * 3


def test_the_gpus_own_time_is_that_of_the_graph_without_copies(machine):
    backend = machine.open()
    assert backend.gpu_milliseconds(4) == [1.5] * 4
    assert machine.gpu.log[-4:] == ["graph"] * 4


@pytest.mark.parametrize("flavor", ["tensorrt", "tensorrt-rtx"])
def test_the_double_has_no_member_that_tensorrt_lacks(flavor):
    real = pytest.importorskip("tensorrt_rtx")
    doubles = {"Runtime": double.Runtime, "ICudaEngine": double.Engine, "IExecutionContext": double.Context}
    if flavor == "tensorrt-rtx":
        doubles = {
            "Runtime": double.RtxRuntime,
            "ICudaEngine": double.RtxEngine,
            "IExecutionContext": double.RtxContext,
        }
        doubles |= {"IRuntimeConfig": double.RuntimeConfig, "IRuntimeCache": double.RuntimeCache}
    for name, kind in doubles.items():
        missing = {member for member in vars(kind) if not member.startswith("_")} - set(dir(getattr(real, name)))
        assert not missing - {"cache"}, name


def test_the_double_has_no_member_that_cuda_core_lacks():
    import cuda.core
    from cuda.core.graph import Graph, GraphBuilder

    names = ("Buffer", "Device", "DeviceMemoryResource", "LegacyPinnedMemoryResource", "Stream", "Event")
    pairs = [(getattr(cuda_double, name), getattr(cuda.core, name)) for name in names]
    helpers = {"enqueue", "run_to", "position", "stream"}
    for kind, real in [*pairs, (cuda_double.Graph, Graph), (cuda_double.GraphBuilder, GraphBuilder)]:
        missing = {member for member in vars(kind) if not member.startswith("_")} - set(dir(real))
        assert not missing - helpers, kind.__name__
