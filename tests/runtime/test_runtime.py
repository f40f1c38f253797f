"""Test that the runtime equals the reference at the image's own size, and refuses invalid images."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import torch

from m2h_deploy import CheckFailed, M2HError, Runtime
from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.runtime.postprocess import Postprocess
from m2h_deploy.runtime.preprocess import PRESETS, Normalization, Preprocess
from tests.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def runtime(tiny_bundle):
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def room():
    return render_room(3, 0, height=120, width=160).image


def test_prediction_has_the_images_size_types_and_ranges(runtime, room):
    prediction = runtime(room)
    assert (prediction.depth.shape, prediction.depth.dtype) == ((120, 160), np.float32)
    assert (prediction.semantics.shape, prediction.semantics.dtype) == ((120, 160), np.uint8)
    assert (prediction.normals.shape, prediction.normals.dtype) == ((120, 160, 3), np.float32)
    assert (prediction.edges.shape, prediction.edges.dtype) == ((120, 160), np.float32)
    assert prediction.depth.min() >= np.float32(1e-3)
    assert prediction.depth.max() <= 10
    assert prediction.semantics.max() <= 40
    np.testing.assert_allclose(np.linalg.norm(prediction.normals, axis=2), 1, atol=1e-5)
    assert 0 <= prediction.edges.min() <= prediction.edges.max() <= 1
    assert set(prediction.timings) == {"preprocess", "inference", "postprocess"}


def test_engine_outputs_equal_the_reference(runtime, tiny_model, room):
    tensor = runtime.preprocess(room)
    with torch.inference_mode():
        reference = tiny_model(torch.from_numpy(tensor.copy()))
    outputs = runtime.backend.run(tensor)
    for task, expected in reference.items():
        error = np.abs(outputs[task] - expected.numpy()) / float(expected.std())
        assert error.mean() < 1e-4, task
        assert error.max() < 3e-3, task


def test_predictions_belong_to_the_caller(runtime, room):
    first = runtime(room)
    depth = first.depth.copy()
    runtime(255 - room)
    np.testing.assert_array_equal(first.depth, depth)


def test_preprocess_is_within_a_gray_level_of_the_published_node():
    """The node resizes in float with half-pixel centers (torch, align_corners=False) and normalizes."""
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    preset = PRESETS["published"]
    rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(rgb, (56, 84), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (preset.mean, preset.std))
    ours = torch.from_numpy(Preprocess(preset, 56, 84)(image)) * std + mean
    assert (ours - resized).abs().max() < 1 / 255


def test_color_order_is_honored(room):
    preset = PRESETS["imagenet"]
    bgr = Preprocess(preset, 60, 80)(room).copy()
    rgb = Preprocess(preset, 60, 80, color="RGB")(room[:, :, ::-1])
    np.testing.assert_array_equal(rgb, bgr)


def test_postprocess_decides_labels_like_argmax():
    logits = np.random.default_rng(0).standard_normal((41, 30, 40)).astype(np.float32)
    prediction = Postprocess((0.001, 10))({"semantics": logits}, 30, 40)
    np.testing.assert_array_equal(prediction.semantics, logits.argmax(0))
    assert prediction.depth is None


def test_postprocess_clamps_depth_and_handles_opposite_normals():
    outputs = {
        "depth": np.array([[[-1.0, 50.0], [2.0, 3.0]]], np.float32),
        "normals": np.zeros((3, 2, 2), np.float32),
        "edges": np.array([[[-1e9, 1e9], [0.0, 0.0]]], np.float32),
    }
    prediction = Postprocess((0.001, 10))(outputs, 2, 2)
    np.testing.assert_allclose(prediction.depth, [[0.001, 10], [2, 3]])
    assert np.isfinite(prediction.normals).all()
    np.testing.assert_allclose(prediction.edges, [[0, 1], [0.5, 0.5]], atol=1e-6)


def test_gray_and_alpha_are_converted(runtime, room):
    gray = cv2.cvtColor(room, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(runtime(gray).depth, runtime(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)).depth)
    np.testing.assert_array_equal(runtime(gray[:, :, None]).depth, runtime(gray).depth)
    alpha = np.dstack([room, np.full(room.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(runtime(alpha).depth, runtime(room).depth)


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, task), getattr(b, task)) for task in ("depth", "semantics", "normals", "edges")
    )


@pytest.mark.parametrize("resolution", ["image", "network"])
def test_results_are_written_into_the_callers_arrays(runtime, room, resolution):
    size = room.shape[:2] if resolution == "image" else ()
    out = runtime.new_prediction(*size)
    expected = runtime(room, resolution=resolution)
    given = runtime(room, out=out, resolution=resolution)
    assert given.depth is out.depth
    assert given.timings.keys() == expected.timings.keys()
    assert same(given, expected)


def test_results_of_the_images_size_are_resized_from_the_networks(runtime, room):
    native = runtime(room, resolution="network")
    assert native.depth.shape == (112, 140)
    resized = cv2.resize(native.semantics, (160, 120), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(runtime(room).semantics, resized)
    np.testing.assert_allclose(np.linalg.norm(native.normals, axis=2), 1, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused(runtime, room):
    with pytest.raises(M2HError, match=r"out\.depth is float32 \(112, 140\): expected contiguous float32 \(120, 160\)"):
        runtime(room, out=runtime.new_prediction())
    out = runtime.new_prediction(120, 160)
    with pytest.raises(M2HError, match=r"out\.edges is missing"):
        runtime(room, out=dataclasses.replace(out, edges=None))
    with pytest.raises(M2HError, match=r"out\.depth"):
        runtime(room, out=dataclasses.replace(out, depth=np.empty((120, 320), np.float32)[:, ::2]))
    with pytest.raises(M2HError, match="choose one of image, network"):
        runtime(room, resolution="full")


def test_a_batch_gives_what_single_frames_give(runtime, room):
    images = [room, 255 - room, room[:64, :64], cv2.cvtColor(room, cv2.COLOR_BGR2GRAY)]
    together = runtime.batch(images)
    assert [prediction.depth.shape for prediction in together] == [image.shape[:2] for image in images]
    assert all(same(one, runtime(image)) for one, image in zip(together, images, strict=True))
    assert runtime.batch([]) == []
    assert {prediction.depth.shape for prediction in runtime.batch(images, resolution="network")} == {(112, 140)}


class Mean(FakeEngine):
    """A frame's depth is the mean of its input, at any index of the batch."""

    def __init__(self, bundle, batch):
        super().__init__(bundle)
        self.batch, self.sizes = batch, []

    def run(self, image, out=None):
        assert self.batch in (None, len(image))
        self.sizes.append(len(image))
        outputs = self.new_outputs(len(image))
        outputs["depth"][:] = image.mean(axis=(1, 2, 3))[:, None, None, None] + 5
        return outputs


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 5), (2, [2, 2, 2]), (4, [4, 4]), (None, [5])])
def test_a_batch_is_split_to_the_engines_batch_size(tiny_bundle, batch, sizes):
    bundle = load_bundle(tiny_bundle)
    spec = bundle.manifest.input.model_copy(update={"batch": batch})
    bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"input": spec}))
    engine = Mean(bundle, batch)
    images = [np.full((32, 32, 3), 20 * index, np.uint8) for index in range(5)]
    with Runtime(bundle, engine) as runtime:
        depths = [float(prediction.depth[0, 0]) for prediction in runtime.batch(images)]
        assert engine.sizes == sizes
        singles = [float(runtime(image).depth[0, 0]) for image in images]
        np.testing.assert_allclose(depths, singles, rtol=1e-6)
        assert len(set(depths)) == 5
        if batch is None:
            engine.sizes.clear()
            runtime.batch(images, at_once=2)
            assert engine.sizes == [2, 2, 1]


def test_submitted_frames_are_answered_in_order(runtime, room):
    order: list[int] = []
    images = [np.roll(room, 10 * index, axis=1) for index in range(4)]
    futures = [runtime.submit(image) for image in images]
    for future in futures:
        future.add_done_callback(lambda done: order.append(done.frame_id))
    assert all(same(future.result(60), runtime(image)) for future, image in zip(futures, images, strict=True))
    first = futures[0].frame_id
    assert [future.frame_id for future in futures] == list(range(first, first + 4))
    assert order == sorted(order)
    assert runtime.submit(room, resolution="network").result(60).depth.shape == (112, 140)
    with pytest.raises(M2HError, match="expected an array"):
        runtime.submit(None).result(60)


class Slow(FakeEngine):
    def __init__(self, bundle):
        super().__init__(bundle)
        self.entered, self.leave = threading.Semaphore(0), threading.Event()

    def run(self, image, out=None):
        self.entered.release()
        self.leave.wait()
        return super().run(image, out)


def test_closing_finishes_the_frame_in_work_and_cancels_the_others(tiny_bundle, room):
    bundle = load_bundle(tiny_bundle)
    engine = Slow(bundle)
    runtime = Runtime(bundle, engine)
    futures = [runtime.submit(room) for _ in range(20)]
    engine.entered.acquire()
    assert futures[5].cancel()
    threading.Timer(0.1, engine.leave.set).start()
    runtime.close()
    runtime.close()
    assert all(future.done() for future in futures)
    assert engine.closed
    assert all(future.cancelled() for future in futures[1:])
    with pytest.raises(M2HError, match="closed"):
        runtime.submit(room)
    with pytest.raises(M2HError, match="closed"):
        runtime(room)


def test_closing_does_not_wait_for_a_frame_that_is_stuck(tiny_bundle, room):
    bundle = load_bundle(tiny_bundle)
    engine = Slow(bundle)
    runtime = Runtime(bundle, engine)
    futures = [runtime.submit(room) for _ in range(3)]
    engine.entered.acquire()
    runtime.close()
    assert isinstance(futures[0].exception(0), M2HError)
    assert futures[1].cancelled()
    assert futures[2].cancelled()
    engine.leave.set()


def test_threads_may_share_a_runtime(runtime, room):
    images = [np.roll(room, 16 * index, axis=1) for index in range(4)]
    expected = [runtime(image) for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(2):
            if not same(runtime(images[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_engine_that_fails_its_self_test_is_closed(tiny_bundle, monkeypatch):
    bundle = load_bundle(tiny_bundle)
    engine = FakeEngine(bundle)
    monkeypatch.setattr("m2h_deploy.runtime.runtime.open_backend", lambda *_: engine)
    with pytest.raises(CheckFailed):
        Runtime.load(tiny_bundle)
    assert engine.closed


def test_a_call_of_a_closed_engine_reports_that_it_is_closed(tiny_bundle, room):
    runtime = Runtime.load(tiny_bundle, threads=1)
    backend, tensor = runtime.backend, runtime.preprocess(room)
    runtime.close()
    with pytest.raises(M2HError, match="closed"):
        backend.run(tensor)
    with pytest.raises(M2HError, match="closed"):
        runtime(room)
    backend.close()


@pytest.mark.parametrize("shape", [(1, 3, 56, 70), (2, 3, 112, 140), (3, 112, 140), (0, 3, 112, 140)])
def test_an_engine_refuses_another_input(runtime, shape):
    with pytest.raises(M2HError, match=r"takes images \(1, 3, 112, 140\), got an array of"):
        runtime.backend.run(np.zeros(shape, np.float32))


def test_an_engine_writes_into_the_given_arrays(runtime, room):
    tensor = runtime.preprocess(room).copy()
    expected = {name: value.copy() for name, value in runtime.backend.run(tensor).items()}
    first, second = runtime.backend.new_outputs(), runtime.backend.new_outputs()
    for out in (first, second, first):
        given = runtime.backend.run(tensor, out=out)
        assert all(given[name] is out[name] for name in out)
        assert all(np.array_equal(out[name], expected[name]) for name in out)
    with pytest.raises(M2HError, match="out lacks edges"):
        runtime.backend.run(tensor, out={name: first[name] for name in ("depth", "semantics", "normals")})
    with pytest.raises(M2HError, match="expected contiguous float32"):
        runtime.backend.run(tensor, out={name: value[:, ::-1] for name, value in first.items()})


def test_the_manifests_scale_is_used(room):
    preset = PRESETS["imagenet"]
    bytes_in = Normalization(tuple(255 * m for m in preset.mean), tuple(255 * s for s in preset.std), scale=1.0)
    expected = Preprocess(preset, 60, 80)(room)
    np.testing.assert_allclose(Preprocess(bytes_in, 60, 80)(room), expected, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint16),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32, 2), np.uint8),
        np.zeros((4, 32, 32, 3), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
        None,
    ],
)
def test_an_invalid_image_gives_a_one_line_error(runtime, image):
    with pytest.raises(M2HError) as error:
        runtime(image)
    assert "\n" not in str(error.value)


def test_loading_and_running_a_bundle_imports_no_torch(tiny_bundle):
    program = (
        "import sys, numpy; from m2h_deploy import Runtime; runtime = Runtime.load(sys.argv[1]); "
        "runtime(numpy.zeros((64, 64, 3), numpy.uint8)); "
        "assert not {'torch', 'onnx', 'matplotlib', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny_bundle)], check=True)
