"""Test engines where they run: on GPUs with `make test-gpu`; the one for CPUs runs with the slow tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engines import OnnxRuntimeOptions, TensorRtOptions, build_bundle
from engines.targets import runs_rtx
from export import Sensor, add_sensor
from m2h_deploy import Runtime, Stream
from m2h_deploy.backends import KINDS, BackendOptions, open_backend, profile_engine
from m2h_deploy.backends.driver import capability_here
from m2h_deploy.blocks import block_of
from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.errors import M2HError
from tests.commands import refused
from tests.networks import random_network
from tests.stream.sources import frames, picture

GPU = pytest.mark.gpu
ENGINES = [
    pytest.param("onnxruntime", "fp32", None, id="onnxruntime-cpu", marks=pytest.mark.slow),
    pytest.param("onnxruntime", "fp32", OnnxRuntimeOptions(provider="cuda"), id="onnxruntime-cuda", marks=GPU),
    *(
        pytest.param(kind, precision, None, id=f"{kind}-{precision}", marks=GPU)
        for kind in ("tensorrt", "tensorrt-rtx")
        for precision in ("fp32", "fp16")
    ),
]
PLANS = [param for param in ENGINES if param.values[0].startswith("tensorrt")]

#: Largest error, mean over the pixels, in standard deviations of the output.
TOLERANCE = {"fp32": 1e-3, "fp16": 3e-2}


def installed(make, *arguments, **options):
    """Return what `make` makes; skip the test where the machine lacks the engine, or the GPU is not one of its."""
    if options.get("engine") == "tensorrt-rtx" and not runs_rtx(capability_here()):
        pytest.skip(f"TensorRT-RTX does not run on compute capability {capability_here()}")
    try:
        return make(*arguments, **options)
    except M2HError as error:
        if any(words in str(error) for words in ("not installed", "lacks the provider", "does not run on compute")):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def dynamic_onnx(tmp_path_factory) -> Path:
    """Export m2h-tiny with a free batch."""
    from export import export_onnx

    path = tmp_path_factory.mktemp("dynamic") / "model.onnx"
    return export_onnx(random_network(), path, height=112, width=140, dynamic_batch=True).path


@pytest.fixture(scope="module")
def gpu_engine(request, dynamic_onnx, tmp_path_factory) -> Bundle:
    """Build a bundle of an engine kind, whose self-test is passed here."""
    kind, precision, options = request.param
    folder = tmp_path_factory.mktemp("bundle")
    bundle = installed(build_bundle, dynamic_onnx, folder / "b", engine=kind, precision=precision, options=options)
    assert bundle.manifest.self_test.measured, "the self-test ran"
    return bundle


@pytest.fixture(scope="module")
def reference(dynamic_onnx, tmp_path_factory):
    """Return the network on ONNX Runtime's CPU."""
    bundle = build_bundle(dynamic_onnx, tmp_path_factory.mktemp("reference") / "b")
    return open_backend(bundle, BackendOptions())


def image(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 112, 140), np.float32)


def check(outputs, reference, images: np.ndarray, precision: str) -> None:
    for name, expected in reference.run(images).items():
        error = np.abs(outputs[name] - expected).mean() / expected.std()
        assert error < TOLERANCE[precision], name


def each(params):
    return pytest.mark.parametrize(
        "gpu_engine", [pytest.param(param.values, id=param.id, marks=param.marks) for param in params], indirect=True
    )


@each(ENGINES)
class TestEveryEngine:
    def test_every_frame_and_batch_gives_its_own_outputs(self, gpu_engine, reference):
        backend = open_backend(gpu_engine, BackendOptions())
        precision = gpu_engine.manifest.engine.precision
        for seed, batch in enumerate([1, 1, 1, 3, 1, 4, 2]):
            check(backend.run(image(seed, batch)), reference, image(seed, batch), precision)
        backend.close()

    def test_the_arrays_of_the_engine_are_read_and_written_in_place(self, gpu_engine, reference):
        backend = open_backend(gpu_engine, BackendOptions())
        tensor, out = backend.new_array((1, 3, 112, 140), np.float32), backend.new_outputs()
        for seed in range(4):
            tensor[:] = image(seed)
            backend.run(tensor, out)
            check(out, reference, image(seed), gpu_engine.manifest.engine.precision)
        backend.close()

    def test_frames_in_work_keep_their_outputs_apart(self, gpu_engine, reference):
        backend = open_backend(gpu_engine, BackendOptions())
        slots = [(backend.new_array((1, 3, 112, 140), np.float32), backend.new_outputs()) for _ in range(2)]
        work = []
        for seed in range(6):
            tensor, out = slots[seed % 2]
            if len(work) == 2:
                number, outputs, pending = work.pop(0)
                pending.wait_computed()
                pending.finish()
                check(outputs, reference, image(number), gpu_engine.manifest.engine.precision)
            tensor[:] = image(seed)
            work.append((seed, out, backend.begin(tensor, out)))
        for _, _, pending in work:
            pending.finish()
        backend.close()

    @pytest.mark.parametrize("policy", ["queue", "latest"])
    def test_a_stream_gives_what_a_call_gives(self, gpu_engine, policy):
        with Runtime.load(gpu_engine.path) as runtime:
            results = list(Stream(runtime, frames(8, side=64), policy=policy))
            assert results
            for one in results:
                called = runtime(picture(one.id, 64))
                np.testing.assert_allclose(one.prediction.depth, called.depth, rtol=1e-3)

    def test_every_block_has_a_time(self, gpu_engine):
        (run, *_) = profile_engine(gpu_engine, BackendOptions(), 3)
        assert {"backbone", "wmca", "heads"} <= {block_of(layer.name).split(".")[0] for layer in run}
        assert all(layer.milliseconds >= 0 for layer in run)

    def test_a_batch_beyond_the_plans_is_refused_and_the_engine_goes_on(self, gpu_engine, reference):
        if not KINDS[gpu_engine.manifest.engine.kind].needs_gpu:
            pytest.skip("only plans have a largest batch")
        backend = open_backend(gpu_engine, BackendOptions())
        assert "takes batches of 1 to 4, got 5" in refused(backend.run, image(0, 5))
        check(backend.run(image(1)), reference, image(1), gpu_engine.manifest.engine.precision)


@each(PLANS)
class TestPlans:
    def test_with_and_without_a_cuda_graph(self, gpu_engine):
        for seed in range(3):
            results = []
            for graph in (True, False):
                backend = open_backend(gpu_engine, BackendOptions(extra={"cuda_graph": graph}))
                tensor, out = backend.new_array((1, 3, 112, 140), np.float32), backend.new_outputs()
                for _ in range(4):
                    tensor[:] = image(seed)
                    backend.run(tensor, out)
                results.append(out)
                backend.close()
            for name, value in results[0].items():
                np.testing.assert_array_equal(value, results[1][name], err_msg=name)

    def test_a_tensor_of_pytorch_is_read_on_the_gpu_after_it_was_written(self, gpu_engine, reference):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this PyTorch is not installed for CUDA")
        backend = open_backend(gpu_engine, BackendOptions())
        for seed in range(4):
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                busy = torch.rand(4096, 4096, device="cuda")
                for _ in range(20):
                    busy = busy @ busy / 4096  # the image is written late
                tensor = torch.from_numpy(image(seed)).cuda(non_blocking=True)
                outputs = backend.run_on_device(tensor)
            outputs.event.sync()
            found = {name: torch.as_tensor(one, device="cuda").cpu().numpy() for name, one in outputs.arrays.items()}
            check(found, reference, image(seed), gpu_engine.manifest.engine.precision)
        backend.close()

    def test_the_gpu_measures_its_own_time(self, gpu_engine):
        backend = open_backend(gpu_engine, BackendOptions())
        assert all(value > 0 for value in backend.gpu_milliseconds(5))
        backend.close()

    def test_compiled_kernels_are_kept(self, gpu_engine, tmp_path, monkeypatch):
        if gpu_engine.manifest.engine.kind != "tensorrt-rtx":
            pytest.skip("TensorRT's plans hold their kernels")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for _ in range(2):
            backend = open_backend(gpu_engine, BackendOptions())
            backend.run(image(0))
            backend.close()
        assert list(tmp_path.rglob("*.cache"))


@GPU
def test_a_version_compatible_plan_runs_if_its_code_is_allowed(dynamic_onnx, reference, tmp_path):
    options = TensorRtOptions(version_compatible=True)
    bundle = installed(build_bundle, dynamic_onnx, tmp_path / "b", engine="tensorrt", options=options)
    assert "--allow-engine-code" in refused(open_backend, load_bundle(bundle.path), BackendOptions())
    backend = open_backend(bundle, BackendOptions(allow_engine_code=True))
    check(backend.run(image(0)), reference, image(0), "fp32")


@GPU
@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_a_raw_pixel_graph_gives_what_a_plain_one_gives(tiny_onnx, tmp_path, kind):
    onnx.save(add_sensor(onnx.load(tiny_onnx), Sensor((140, 112))), tmp_path / "sensor.onnx")
    bundle = installed(build_bundle, tmp_path / "sensor.onnx", tmp_path / "b", engine=kind)
    plain = build_bundle(tiny_onnx, tmp_path / "plain")
    scene = np.random.default_rng(0).integers(0, 256, (112, 140, 3), np.uint8)
    with Runtime.load(bundle.path) as raw, Runtime.load(plain.path) as runtime:
        for _ in range(3):
            found, expected = raw(scene), runtime(scene)
            assert (found.semantics == expected.semantics).mean() > 0.99
            np.testing.assert_allclose(found.depth, expected.depth, rtol=1e-2)


@GPU
@pytest.mark.parametrize("network", ["m2h", "m2h_small"])
def test_the_reference_on_cuda_agrees_with_the_published_network(network, tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch is not installed for CUDA")
    from m2h_deploy.model import load_checkpoint
    from tests.golden import filler

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.save({name: torch.from_numpy(value) for name, value in filler.weights(network).items()}, tmp_path / "w.pt")
    model = load_checkpoint(tmp_path / "w.pt").cuda()
    golden = np.load(filler.HERE / f"{network}_1x3x224x224_seed0.npz")
    with torch.inference_mode():
        outputs = model(torch.from_numpy(filler.image(1, 224, 224)).cuda())
    for task, output in outputs.items():
        error = np.abs(output[:, :, ::8, ::8].cpu().numpy() - golden[f"out_{task}"]) / golden[f"stat_{task}"][1]
        assert np.quantile(error, 0.999) < 1e-3, task
