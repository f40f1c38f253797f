"""Test that OpenVINO bundles give the network's outputs, in the recorded precision."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

pytest.importorskip("openvino")
import openvino as ov

from engines.openvino import OpenVinoOptions, build_openvino, preferred_precisions
from engines.precision.convert import to_fp16
from m2h_deploy.backends import BackendOptions
from m2h_deploy.backends.openvino import OpenVINOBackend, available_precision, cache_folder
from m2h_deploy.bundle.folder import Bundle, load_bundle, write_manifest
from m2h_deploy.bundle.manifest import Classes, OutputSpec
from m2h_deploy.bundle.self_test import pattern
from m2h_deploy.errors import M2HError
from m2h_deploy.files.digests import file_sha256
from tests.engines.graphs import SIDE, quantize_elsewhere, small_graph

ONE_THREAD = BackendOptions(threads=1)


@pytest.fixture(scope="module")
def tiny_ir(tiny_onnx, tiny_bundle, tmp_path_factory) -> Bundle:
    """Convert `tiny_onnx` (112 x 140) to OpenVINO's IR. Read-only."""
    folder = tmp_path_factory.mktemp("openvino")
    info = build_openvino(tiny_onnx, folder, "fp32", OpenVinoOptions(threads=1))
    return _bundle(folder, load_bundle(tiny_bundle).manifest.model_copy(update={"engine": info}))


def _bundle(folder: Path, manifest) -> Bundle:
    files = {file.name: file_sha256(file) for file in folder.iterdir() if file.suffix in (".xml", ".bin")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    return load_bundle(folder)


def _small_bundle(folder: Path, like: Path, graph: Path, **options) -> Bundle:
    """Return a bundle of `small_graph`: depth and semantics of a 16 x 16 image."""
    folder.mkdir()
    manifest = load_bundle(like).manifest
    outputs = tuple(
        OutputSpec(name=name, meaning="", unit="", shape=(None, channels, SIDE, SIDE))
        for name, channels in (("depth", 1), ("semantics", 4))
    )
    spec = manifest.input.model_copy(update={"batch": None, "height": SIDE, "width": SIDE})
    info = build_openvino(graph, folder, **options)
    classes = Classes(names=manifest.classes.names[:4], palette=manifest.classes.palette[:4])
    changes = {"engine": info, "input": spec, "outputs": outputs, "classes": classes, "self_test": None}
    return _bundle(folder, manifest.model_copy(update=changes))


def _saved(proto: onnx.ModelProto, file: Path) -> Path:
    onnx.save(proto, file)
    return file


def _images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)


def _expected(graph: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def _error(value: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square error as a share of the expected output's standard deviation."""
    return float(np.sqrt(np.mean(np.square(value - expected, dtype=np.float64))) / expected.std())


def test_outputs_equal_the_networks(tiny_ir, tiny_model):
    image = pattern(tiny_ir.manifest.input)
    backend = OpenVINOBackend(tiny_ir, ONE_THREAD)
    outputs = backend.run(image)
    with torch.inference_mode():
        expected = tiny_model(torch.from_numpy(image))
    assert list(outputs) == ["depth", "semantics", "normals", "edges"]
    for name, value in outputs.items():
        assert value.dtype == np.float32
        assert _error(value, expected[name].numpy()) < 1e-3, name
    out = backend.new_outputs()
    assert all(backend.run(image, out=out)[name] is out[name] for name in out)
    np.testing.assert_array_equal(out["depth"], outputs["depth"])
    backend.close()
    backend.close()
    with pytest.raises(M2HError, match="closed"):
        backend.run(image)


def test_precision_fp32_is_float32_on_a_cpu_that_would_take_bfloat16(tiny_ir):
    backend = OpenVINOBackend(tiny_ir, ONE_THREAD)
    assert tiny_ir.manifest.engine.options["inference_precision"] == "f32"
    assert backend.precision == "f32"
    assert backend.description.startswith("OpenVINO 20")
    assert backend.description.endswith("CPU, f32")


def test_its_buffers_are_bound_once_and_overwritten(tmp_path, tiny_bundle):
    graph = _saved(small_graph(), tmp_path / "small.onnx")
    backend = OpenVINOBackend(_small_bundle(tmp_path / "b", tiny_bundle, graph, precision="fp32"), ONE_THREAD)
    first, second = _images(1), _images(1)[:, ::-1].copy()
    outputs = backend.run(first)
    assert _error(outputs["depth"], _expected(graph, first)["depth"]) < 1e-3
    again = backend.run(second)
    assert again["depth"] is outputs["depth"]
    assert _error(outputs["depth"], _expected(graph, second)["depth"]) < 1e-3
    second += 1  # the same array with other values, as a camera's buffer
    assert _error(backend.run(second)["depth"], _expected(graph, second)["depth"]) < 1e-3
    strided = np.repeat(first, 2, axis=3)[..., ::2]
    assert _error(backend.run(strided)["depth"], _expected(graph, first)["depth"]) < 1e-3


def test_a_dynamic_batch_gives_the_results_of_single_frames(tmp_path, tiny_bundle):
    graph = _saved(small_graph(batch="batch"), tmp_path / "small.onnx")
    backend = OpenVINOBackend(_small_bundle(tmp_path / "b", tiny_bundle, graph, precision="fp32"), ONE_THREAD)
    both = _images(2)
    outputs = {name: value.copy() for name, value in backend.run(both).items()}
    assert outputs["semantics"].shape == (2, 4, SIDE, SIDE)
    for index in range(2):
        alone = backend.run(both[index : index + 1])
        assert _error(alone["semantics"], outputs["semantics"][index : index + 1]) < 1e-5


def test_functions_of_the_graph_are_inlined(tmp_path, tiny_bundle):
    graph = _saved(small_graph(functions=True), tmp_path / "small.onnx")
    backend = OpenVINOBackend(_small_bundle(tmp_path / "b", tiny_bundle, graph, precision="fp32"), ONE_THREAD)
    assert _error(backend.run(_images(1))["depth"], _expected(graph, _images(1))["depth"]) < 1e-3


@pytest.mark.parametrize("hint", [None, "bf16", "f16", "f32"])
def test_fp16_graphs_load_with_half_the_weights(tmp_path, tiny_bundle, hint):
    graph = _saved(small_graph(), tmp_path / "small.onnx")
    to_fp16(graph, tmp_path / "half.onnx")
    full = _small_bundle(tmp_path / "full", tiny_bundle, graph, precision="fp32")
    half = _small_bundle(
        tmp_path / "half", tiny_bundle, tmp_path / "half.onnx", precision="fp16", options=OpenVinoOptions(hint=hint)
    )
    sizes = [(bundle.path / "model.bin").stat().st_size for bundle in (half, full)]
    assert sizes[0] < 0.6 * sizes[1]
    backend = OpenVINOBackend(half, ONE_THREAD)
    assert _error(backend.run(_images(1))["semantics"], _expected(graph, _images(1))["semantics"]) < 0.05
    # On any processor: the recorded precision or float32, never a lower precision that the engine chose by itself.
    recorded = half.manifest.engine.options["inference_precision"]
    assert recorded == hint or hint is None
    assert backend.precision == available_precision(ov.Core(), "CPU", recorded)
    assert backend.precision in (recorded, "f32")
    assert backend.description.endswith(f"({recorded} is not available here)") == (backend.precision != recorded)


def test_a_block_in_float32_is_marked_in_the_engine_file_and_computed_more_exactly(tmp_path, tiny_bundle):
    graph = _saved(small_graph(scale=0.3), tmp_path / "small.onnx")
    bundles = {}
    for name, blocks in (("rounded", ()), ("exact", ("backbone", "msf.*", "wmca", "context", "heads.*"))):
        options = OpenVinoOptions(hint="bf16", float32=blocks)
        bundles[name] = _small_bundle(tmp_path / name, tiny_bundle, graph, precision="fp16", options=options)
    assert bundles["exact"].manifest.engine.options["float32"][0] == "backbone"
    content = (bundles["exact"].path / "model.xml").read_text()
    assert content.count('name="precise"') > 5
    assert 'name="precise"' not in (bundles["rounded"].path / "model.xml").read_text()
    expected = _expected(graph, _images(1))["semantics"]
    rounded, exact = (
        _error(OpenVINOBackend(bundles[name], ONE_THREAD).run(_images(1))["semantics"], expected)
        for name in ("rounded", "exact")
    )
    if available_precision(ov.Core(), "CPU", "bf16") == "bf16":
        assert exact < rounded
    assert exact < 0.05


def test_float32_names_blocks_of_the_graph_and_needs_a_lower_precision(tmp_path):
    graph = _saved(small_graph(), tmp_path / "small.onnx")
    with pytest.raises(M2HError, match=r"'heads\.edge' matches nothing"):
        build_openvino(graph, tmp_path, "fp16", OpenVinoOptions(float32=("heads.edge",)))
    with pytest.raises(M2HError, match="leave float32 out"):
        build_openvino(graph, tmp_path, "fp32", OpenVinoOptions(float32=("heads.depth",)))


class Processor:
    """A fake OpenVINO core that reports a processor's capabilities."""

    def __init__(self, *capabilities: str) -> None:
        self.get_property = lambda device, name: [*capabilities, "EXPORT_IMPORT"]


@pytest.mark.parametrize(
    ("capabilities", "default", "expected"),
    [
        (("FP32", "INT8", "BIN"), "f32", {"f32": "f32", "bf16": "f32", "f16": "f32"}),  # AVX2
        (("BF16", "FP32", "INT8"), "bf16", {"f32": "f32", "bf16": "bf16", "f16": "f32"}),  # Zen 4
        (("BF16", "FP32", "FP16"), "bf16", {"f32": "f32", "bf16": "bf16", "f16": "f16"}),  # Sapphire Rapids
    ],
)
def test_the_precision_fits_the_processor_and_is_not_coarser_than_recorded(capabilities, default, expected):
    processor = Processor(*capabilities)
    assert {hint: available_precision(processor, "CPU", hint) for hint in expected} == expected
    # On Arm, FP16 is preferred.
    assert preferred_precisions(processor, "fp16")[0] in (default, "f16")
    assert preferred_precisions(processor, "int8") == [*(["bf16"] if "BF16" in capabilities else []), "f32"]
    assert preferred_precisions(processor, "fp32") == ["f32"]


def test_int8_graphs_load(tmp_path, tiny_bundle):
    graph, quantized = _saved(small_graph(), tmp_path / "small.onnx"), tmp_path / "int8.onnx"
    quantize_elsewhere(graph, quantized, _images(1))
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(quantized).graph.node)
    backend = OpenVINOBackend(_small_bundle(tmp_path / "b", tiny_bundle, quantized, precision="int8"), ONE_THREAD)
    assert backend.precision == "f32"
    assert _error(backend.run(_images(1))["semantics"], _expected(quantized, _images(1))["semantics"]) < 0.05


def test_a_wrong_hint_and_a_wrong_precision_are_refused(tiny_onnx, tmp_path):
    with pytest.raises(M2HError, match="computes in f32"):
        build_openvino(tiny_onnx, tmp_path, "fp32", OpenVinoOptions(hint="bf16"))
    with pytest.raises(M2HError, match="no CPU computes in FP8"):
        build_openvino(tiny_onnx, tmp_path, precision="fp8")
    with pytest.raises(M2HError, match="choose one of fp32, fp16, int8"):
        build_openvino(tiny_onnx, tmp_path, precision="fp64")
    with pytest.raises(M2HError, match="choose one of f32, bf16, f16"):
        OpenVinoOptions(hint="fp8")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_openvino_lacks_gives_a_one_line_error(tmp_path):
    proto = small_graph()
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Unheard", "nowhere"
    proto.opset_import.add(domain="nowhere", version=1)
    with pytest.raises(M2HError, match="OpenVINO does not take") as caught:
        build_openvino(_saved(proto, tmp_path / "odd.onnx"), tmp_path, precision="fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no xml", "cut xml", "cut weights"])
def test_a_damaged_ir_gives_a_one_line_error(tiny_ir, tmp_path, damage):
    shutil.copytree(tiny_ir.path, tmp_path / "b")
    xml, weights = tmp_path / "b" / "model.xml", tmp_path / "b" / "model.bin"
    if damage == "no xml":
        xml.write_text("hello")
    elif damage == "cut xml":
        xml.write_bytes(xml.read_bytes()[:5000])
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    bundle = _bundle(tmp_path / "b", tiny_ir.manifest)
    with pytest.raises(M2HError, match=r"OpenVINO cannot read .*model\.xml") as caught:
        OpenVINOBackend(bundle, ONE_THREAD)
    assert "\n" not in str(caught.value)
    assert "Exception from" not in str(caught.value)


def test_mistakes_at_run_time_give_one_line_errors(tiny_ir):
    with pytest.raises(M2HError, match=r"asks for device NPU7, OpenVINO finds .*CPU"):
        OpenVINOBackend(tiny_ir, BackendOptions(device="NPU7"))
    backend = OpenVINOBackend(tiny_ir, ONE_THREAD)
    with pytest.raises(M2HError, match=r"takes images \(1, 3, 112, 140\), got an array of \(2, 3, 112, 140\)"):
        backend.run(np.zeros((2, 3, 112, 140), np.float32))


def test_compiled_models_are_cached_on_request_per_user_outside_the_bundle(tmp_path, tiny_bundle, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder(False) is None
    assert cache_folder(tmp_path / "mine") == tmp_path / "mine"
    graph = _saved(small_graph(), tmp_path / "small.onnx")
    bundle = _small_bundle(tmp_path / "b", tiny_bundle, graph, precision="fp32")
    OpenVINOBackend(bundle, ONE_THREAD)
    assert not (tmp_path / "cache").exists()
    before = {file.name for file in bundle.path.iterdir()}
    expected = _expected(graph, _images(1))["depth"]
    for _ in range(2):
        backend = OpenVINOBackend(bundle, BackendOptions(threads=1, extra={"cache": True}))
        assert _error(backend.run(_images(1))["depth"], expected) < 1e-3
    kept = list((tmp_path / "cache" / "m2h-deploy" / "openvino").iterdir())
    assert kept
    assert {file.name for file in bundle.path.iterdir()} == before
    for file in kept:
        file.write_bytes(b"damaged")
    backend = OpenVINOBackend(bundle, BackendOptions(threads=1, extra={"cache": True}))
    assert _error(backend.run(_images(1))["depth"], expected) < 1e-3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder(True) is None


def test_a_bundle_is_built_tested_and_run(tiny_onnx, tiny_bundle, tmp_path):
    from engines import build_bundle
    from m2h_deploy import Runtime
    from m2h_deploy.data.rooms.render import render_room

    bundle = build_bundle(tiny_onnx, tmp_path / "b", engine="openvino", options=OpenVinoOptions(threads=1))
    assert sorted(bundle.manifest.files) == ["model.bin", "model.xml"]
    image = render_room(0, 0, height=120, width=160).image
    with Runtime.load(bundle.path) as mine, Runtime.load(tiny_bundle) as other:
        prediction, expected = mine(image), other(image)
    assert _error(prediction.depth, expected.depth) < 1e-3
    assert np.mean(prediction.semantics == expected.semantics) > 0.999


def test_a_device_needs_neither_onnx_nor_torch():
    hide = "import sys; sys.modules['onnx'] = sys.modules['torch'] = None; import m2h_deploy.backends.openvino"
    result = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
