"""Test the runner of plans on doubles of CUDA and TensorRT: its order of work, its memory, and its faults."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest

from m2h_deploy import Runtime, Stream
from m2h_deploy.backends import BackendOptions, open_backend, profile_engine, tensorrt_api, tensorrt_log
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.files.cache import read_checked
from tests.backends.cuda_double import Gpu, GpuArray, install, read
from tests.backends.small_network import CHANNELS, SIDE, small_bundle, small_onnx
from tests.backends.tensorrt_double import Faults, make_tensorrt
from tests.commands import refused
from tests.stream.sources import frames, picture

pytest.importorskip("cuda.core")

KINDS = ("tensorrt", "tensorrt-rtx")


class Machine:
    """A machine with GPUs, TensorRT, and a bundle for it."""

    def __init__(self, monkeypatch, tiny_bundle, folder, kind: str, *, integrated: bool = False) -> None:
        self.gpu, self.faults, self.kind = Gpu(integrated=integrated), Faults(), kind
        self.trt = make_tensorrt(self.gpu, self.faults, rtx=kind == "tensorrt-rtx")
        self._tiny, self._folder = tiny_bundle, folder
        install(monkeypatch, self.gpu)
        monkeypatch.setattr(tensorrt_api, "_modules", {kind: self.trt})
        monkeypatch.setattr(tensorrt_log, "_loggers", {})
        monkeypatch.setattr("m2h_deploy.backends.tensorrt_plan.missing_gpu", lambda index=0: None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def bundle(self, batch: int | None = None, *, half: bool = False, **options: object):
        path = self._folder / f"bundle{len(list(self._folder.iterdir()))}"
        return small_bundle(self._tiny, path, self.kind, batch, half=half, **options)

    def open(self, bundle=None, **options: object):
        return open_backend(load_bundle(bundle or self.bundle()), BackendOptions(**options))


@pytest.fixture(params=KINDS)
def machine(request, monkeypatch, tiny_bundle, tmp_path) -> Machine:
    return Machine(monkeypatch, tiny_bundle, tmp_path, request.param)


@pytest.fixture(params=[*KINDS, "jetson"])
def any_machine(request, monkeypatch, tiny_bundle, tmp_path) -> Machine:
    kind = "tensorrt" if request.param == "jetson" else request.param
    return Machine(monkeypatch, tiny_bundle, tmp_path, kind, integrated=request.param == "jetson")


@pytest.fixture
def tensorrt(monkeypatch, tiny_bundle, tmp_path) -> Machine:
    return Machine(monkeypatch, tiny_bundle, tmp_path, "tensorrt")


@pytest.fixture
def rtx(monkeypatch, tiny_bundle, tmp_path) -> Machine:
    return Machine(monkeypatch, tiny_bundle, tmp_path, "tensorrt-rtx")


def image(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 3, SIDE, SIDE), np.float32)


def expected(images: np.ndarray, *, half: bool = False) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(small_onnx(half=half), providers=["CPUExecutionProvider"])
    return dict(zip(CHANNELS, session.run(None, {"image": images}), strict=True))


def check(outputs, images: np.ndarray, **options: bool) -> None:
    for name, value in expected(images, **options).items():
        np.testing.assert_array_equal(outputs[name], value, err_msg=name)


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


def test_an_integrated_gpu_reads_and_writes_the_hosts_arrays(monkeypatch, tiny_bundle, tmp_path):
    machine = Machine(monkeypatch, tiny_bundle, tmp_path, "tensorrt", integrated=True)
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
    backend = any_machine.open()
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    tensor[:] = image(3)
    pending = backend.begin(tensor, out)
    backend.run(image(1, 4))
    backend.close()
    backend.close()
    check(pending.finish(), image(3))
    del pending, tensor, out
    gc.collect()
    assert any_machine.gpu.device_memory == {}
    assert any_machine.gpu.page_locked == {}
    assert "the engine is closed" in refused(backend.run, image(0))


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


def test_a_full_gpu_is_named_and_the_engine_goes_on_with_the_batch_it_had(tensorrt):
    backend = tensorrt.open()
    check(backend.run(image(0)), image(0))
    tensorrt.gpu.memory_left = 0
    assert "memory on GPU 0: CUDA_ERROR_OUT_OF_MEMORY" in refused(backend.run, image(0, 4))
    check(backend.run(image(1)), image(1))
    tensorrt.gpu.memory_left = 1 << 40
    check(backend.run(image(2, 4)), image(2, 4))


def test_a_context_that_tensorrt_does_not_make_is_reported_with_its_reason(machine):
    machine.faults.no_context = True
    backend = machine.open()
    said = refused(backend.run, image(0))
    assert "made no execution context (Requested amount of GPU memory could not be allocated)" in said
    assert "closed" not in said


def test_an_address_that_tensorrt_refuses_is_reported_with_its_reason(machine):
    machine.faults.refuses_address = True
    assert "refuses the memory of image: image has an address that is refused" in refused(machine.open().run, image(0))


def test_a_run_that_fails_is_reported_with_tensorrts_reason_and_the_next_one_works(machine):
    backend = machine.open(extra={"cuda_graph": False})
    check(backend.run(image(0)), image(0))
    machine.faults.execution = "CUDA error 700 launching a kernel"
    assert "could not run the plan: CUDA error 700 launching a kernel" in refused(backend.run, image(1))
    machine.faults.execution = ""
    check(backend.run(image(2)), image(2))


def test_a_plan_that_cannot_be_captured_runs_without_a_graph_and_warns_once(tensorrt, caplog):
    tensorrt.faults.captures_badly = True
    backend = tensorrt.open()
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            tensor[:] = image(seed)
            check(backend.run(tensor, out), image(seed))
            backend.begin(tensor, out).finish()
    assert len(caplog.records) == 1
    said = caplog.text
    assert "runs without a CUDA graph" in said
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in said
    assert "a kernel cannot be captured" in said


def test_a_plan_that_tensorrt_rtx_cannot_have_captured_gets_its_own_graphs(rtx):
    rtx.faults.not_capturable = True
    backend = rtx.open()
    for seed in range(4):
        check(backend.run(image(seed)), image(seed))
    assert rtx.trt.calls.count("context WHOLE_GRAPH_CAPTURE") == 1
    check(backend.run(image(0, 2)), image(0, 2))
    assert rtx.trt.calls[-1] == "context WHOLE_GRAPH_CAPTURE"


def test_without_graphs_every_kernel_is_launched(machine):
    backend = machine.open(extra={"cuda_graph": False})
    for seed in range(4):
        check(backend.run(image(seed)), image(seed))
    assert set(machine.gpu.log) == {"enqueued"}


class TestOnDevice:
    """Images that are on the GPU already."""

    def run(self, machine: Machine, array: Callable[[Gpu], GpuArray]) -> dict[str, np.ndarray]:
        machine.open()  # makes a device current
        backend = machine.open()
        outputs = backend.run_on_device(array(machine.gpu))
        outputs.event.sync()
        return {name: read(one.address, one.shape, one.dtype) for name, one in outputs.arrays.items()}

    def test_the_producers_work_comes_first_and_the_image_is_read_in_place(self, machine):
        arrays: list[GpuArray] = []

        def make(gpu: Gpu) -> GpuArray:
            arrays.append(GpuArray(gpu, image(3)))
            return arrays[0]

        check(self.run(machine, make), image(3))

    def test_an_image_at_an_address_that_tensorrt_does_not_take_is_copied(self, machine):
        arrays = []

        def make(gpu: Gpu) -> GpuArray:
            arrays.append(GpuArray(gpu, image(4), offset=4))
            return arrays[0]

        check(self.run(machine, make), image(4))

    def test_outputs_name_their_stream_for_libraries_that_wait_for_it(self, tensorrt):
        backend = tensorrt.open()
        depth = backend.run_on_device(GpuArray(tensorrt.gpu, image(0))).arrays["depth"]
        interface = depth.__cuda_array_interface__
        assert interface["version"] == 3
        assert interface["stream"] == backend.stream_handle
        assert interface["shape"] == (1, 1, SIDE, SIDE)
        assert interface["typestr"] == "<f4"

    def test_arrays_that_do_not_fit_are_refused(self, tensorrt):
        backend, gpu = tensorrt.open(), tensorrt.gpu
        assert "takes an array in GPU memory" in refused(backend.run_on_device, image(0))
        assert "takes an array in the memory of GPU 0" in refused(
            backend.run_on_device, GpuArray(gpu, image(0), device=1)
        )
        halves = GpuArray(gpu, image(0).astype(np.float16))
        assert "contiguous float32, got float16" in refused(backend.run_on_device, halves)
        turned = GpuArray(gpu, image(0))
        turned.strides = (768, 1, 48, 3)
        assert "contiguous float32" in refused(backend.run_on_device, turned)
        assert "got an array of (1, 1, 16, 16)" in refused(backend.run_on_device, GpuArray(gpu, image(0)[:, :1]))


def test_an_array_interface_without_a_stream_is_refused():
    """Version 2, which PyTorch's tensors have: its reader cannot wait for the writer."""
    from cuda.core.utils import StridedMemoryView

    class Version2:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (1,), "typestr": "<f4", "data": (256, False), "strides": None, "version": 2,
        }  # fmt: skip

    with pytest.raises(BufferError, match="v3"):
        StridedMemoryView.from_any_interface(Version2(), stream_ptr=0)


def test_code_in_a_plan_runs_only_if_the_caller_allows_it(machine):
    bundle = machine.bundle(version_compatible=True)
    said = refused(machine.open, bundle)
    assert "--allow-engine-code" in said
    assert "allow_engine_code=True" in said
    assert not any(call.startswith("deserialize") for call in machine.trt.calls)
    check(machine.open(bundle, allow_engine_code=True).run(image(0)), image(0))
    assert "deserialize with code True" in machine.trt.calls
    machine.open(allow_engine_code=True)
    assert machine.trt.calls.count("deserialize with code False") == 1


def test_a_plan_is_checked_on_the_gpu_that_is_asked_for(rtx):
    rtx.open(device="cuda:1")
    assert "validity on 1" in rtx.trt.calls
    assert "validity on -1" not in rtx.trt.calls
    rtx.faults.invalid = 2
    assert "cannot run here: it was built for other GPUs" in refused(rtx.open)
    rtx.faults.invalid = 4
    assert "the file is damaged or not a plan" in refused(rtx.open)


def test_a_tensorrt_that_does_not_start_is_not_used(machine):
    machine.faults.runtime = "CUDA initialization failure with error: 35"
    said = refused(machine.open)
    assert "does not start: CUDA initialization failure with error: 35" in said


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


@pytest.mark.parametrize("rtx", [False, True])
def test_the_double_has_no_member_that_tensorrt_lacks(rtx):
    real = pytest.importorskip("tensorrt_rtx")
    for name, double in make_tensorrt(Gpu(), Faults(), rtx=rtx).members.items():
        made_here = {"contexts", "session", "kernels", "cache", "addresses"}
        missing = {member for member in vars(double) if not member.startswith("_")} - set(dir(getattr(real, name)))
        assert not missing - made_here, name


def test_the_double_has_no_member_that_cuda_core_lacks(monkeypatch):
    import cuda.core
    from cuda.core.graph import Graph, GraphBuilder

    from tests.backends import cuda_double

    real = {name: getattr(cuda.core, name) for name in ("Buffer", "Device", "LegacyPinnedMemoryResource")}
    install(monkeypatch, Gpu())
    doubles = {name: (getattr(cuda.core, name), kind) for name, kind in real.items()}
    doubles |= {name: (getattr(cuda_double, name), getattr(cuda.core, name)) for name in ("Stream", "Event")}
    doubles |= {"Graph": (cuda_double.Graph, Graph), "GraphBuilder": (cuda_double.GraphBuilder, GraphBuilder)}
    helpers = {"enqueue", "run_to", "position", "stream"}
    for name, (double, kind) in doubles.items():
        missing = {member for member in vars(double) if not member.startswith("_")} - set(dir(kind))
        assert not missing - helpers, name
