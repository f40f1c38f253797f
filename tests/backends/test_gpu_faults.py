"""Test what the runner of plans does when CUDA or TensorRT fails, on doubles of both."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tests.backends.cuda_double import GpuArray
from tests.backends.gpu_machine import check, image
from tests.backends.small_network import SIDE
from tests.commands import refused

pytest.importorskip("cuda.core")


def test_a_full_gpu_is_named_and_the_engine_goes_on_with_the_batch_it_had(tensorrt):
    backend = tensorrt.open()
    check(backend.run(image(0)), image(0))
    tensorrt.gpu.memory_left = 0
    assert "memory on GPU 0: CUDA_ERROR_OUT_OF_MEMORY" in refused(backend.run, image(0, 4))
    check(backend.run(image(1)), image(1))
    tensorrt.gpu.memory_left = 1 << 40
    check(backend.run(image(2, 4)), image(2, 4))


def test_a_context_that_tensorrt_does_not_make_is_reported_with_its_reason(machine):
    machine.trt.no_context = True
    backend = machine.open()
    said = refused(backend.run, image(0))
    assert "made no execution context (Requested amount of GPU memory could not be allocated)" in said
    assert "closed" not in said


def test_an_address_that_tensorrt_refuses_is_reported_with_its_reason(machine):
    machine.trt.refuses_address = True
    assert "refuses the memory of image: image has an address that is refused" in refused(machine.open().run, image(0))


def test_a_run_that_fails_is_reported_with_tensorrts_reason_and_the_next_one_works(machine):
    backend = machine.open(extra={"cuda_graph": False})
    check(backend.run(image(0)), image(0))
    machine.trt.execution = "CUDA error 700 launching a kernel"
    assert "could not run the plan: CUDA error 700 launching a kernel" in refused(backend.run, image(1))
    machine.trt.execution = ""
    check(backend.run(image(2)), image(2))


def test_a_plan_that_cannot_be_captured_runs_without_a_graph_and_warns_once(tensorrt, caplog):
    tensorrt.trt.captures_badly = True
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
    rtx.trt.not_capturable = True
    backend = rtx.open()
    for seed in range(4):
        check(backend.run(image(seed)), image(seed))
    assert rtx.trt.calls.count("context WHOLE_GRAPH_CAPTURE") == 1
    check(backend.run(image(0, 2)), image(0, 2))
    assert rtx.trt.calls[-1] == "context WHOLE_GRAPH_CAPTURE"


def test_every_context_of_such_a_plan_gets_its_own_graphs(rtx):
    rtx.trt.not_capturable = True
    backend = rtx.open()
    backend.run_on_device(GpuArray(rtx.gpu, image(0)))
    tensor, out = backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs()
    for seed in range(8):
        tensor[:] = image(seed)
        backend.begin(tensor, out).finish()
        check(out, image(seed))
    assert rtx.trt.calls.count("context DISABLED") == rtx.trt.calls.count("context WHOLE_GRAPH_CAPTURE") == 2


def test_an_error_of_one_engine_is_not_the_reason_of_another(tensorrt):
    first, second = tensorrt.open(extra={"cuda_graph": False}), tensorrt.open(extra={"cuda_graph": False})
    tensorrt.trt.execution = "CUDA error 700"
    assert "CUDA error 700" in refused(first.run, image(0))
    tensorrt.trt.execution = ""
    tensorrt.open()
    check(second.run(image(1)), image(1))


def test_a_frame_in_work_when_the_gpu_failed_does_not_keep_the_engine_open(tensorrt, caplog, monkeypatch):
    backend = tensorrt.open()
    pending = backend.begin(backend.new_array((1, 3, SIDE, SIDE), np.float32), backend.new_outputs())

    def fail(self) -> None:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(type(pending._done), "sync", fail)
    backend.close()
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in caplog.text
    assert "the engine is closed" in refused(backend.run, image(0))


def test_without_graphs_every_kernel_is_launched(machine):
    backend = machine.open(extra={"cuda_graph": False})
    for seed in range(4):
        check(backend.run(image(seed)), image(seed))
    assert set(machine.gpu.log) == {"enqueued"}


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
    rtx.trt.invalid = 2
    assert "cannot run here: it was built for other GPUs" in refused(rtx.open)
    rtx.trt.invalid = 4
    assert "the file is damaged or not a plan" in refused(rtx.open)


def test_a_tensorrt_that_does_not_start_is_not_used(machine):
    machine.trt.no_start = "CUDA initialization failure with error: 35"
    said = refused(machine.open)
    assert "does not start: CUDA initialization failure with error: 35" in said
