"""Test ONNX files with external weights: all commands read them, and errors name invalid ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines import build_bundle
from engines.inspect.inspect import inspect
from engines.precision.convert import to_fp16
from m2h_deploy import Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.onnx_graph.files import as_single_file, external_files, onnx_sha256, read_onnx
from m2h_deploy.packaging.mono_hydra import package_mono_hydra
from m2h_deploy.parity.locate import locate
from m2h_deploy.parity.reference import open_reference


@pytest.fixture
def external(tiny_onnx, tmp_path) -> Path:
    """Save `tiny_onnx` as most tools save large models: with the weights in a file beside the graph."""
    path = tmp_path / "m" / "e.onnx"
    path.parent.mkdir()
    onnx.save(onnx.load(tiny_onnx), path, save_as_external_data=True, location="e.data", size_threshold=0)
    assert path.stat().st_size < (path.parent / "e.data").stat().st_size / 10
    return path


def same_weights(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    left, right = ({t.name: t for t in proto.graph.initializer} for proto in (a, b))
    return left.keys() == right.keys() and all(
        np.array_equal(numpy_helper.to_array(left[name]), numpy_helper.to_array(right[name])) for name in left
    )


def test_the_graph_is_read_with_its_external_weights(external, tiny_onnx, tmp_path):
    assert external_files(external) == [external.parent / "e.data"]
    assert external_files(tiny_onnx) == []
    assert same_weights(read_onnx(external), onnx.load(tiny_onnx))
    single = as_single_file(external, tmp_path / "single")
    shutil.move(external.parent / "e.data", tmp_path / "gone")
    assert same_weights(onnx.load(single), onnx.load(tiny_onnx))
    assert as_single_file(tiny_onnx, tmp_path / "none") == tiny_onnx and not (tmp_path / "none").exists()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_with_external_weights_computes_the_same(engine, external, tiny_bundle, tmp_path):
    pytest.importorskip(engine)
    built = build_bundle(external, tmp_path / "bundle", engine=engine)
    shutil.rmtree(external.parent)
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with Runtime.load(tiny_bundle) as expected, Runtime.load(built.path) as found:
        np.testing.assert_allclose(found(image).depth, expected(image).depth, rtol=1e-3, atol=1e-3)


def test_tensorrt_rtx_reads_external_weights(external, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    built = build_bundle(external, tmp_path / "bundle", engine="tensorrt-rtx")
    assert built.manifest.engine.options["plan_bytes"] > (external.parent / "e.data").stat().st_size / 2


@pytest.mark.slow
def test_fp16_with_external_weights_gives_the_same_graph(external, tiny_onnx, tmp_path):
    pytest.importorskip("modelopt")
    to_fp16(external, tmp_path / "a.onnx")
    to_fp16(tiny_onnx, tmp_path / "b.onnx")
    assert external_files(tmp_path / "a.onnx") == []
    assert same_weights(onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "b.onnx"))


def test_inspect_package_and_verify_read_external_weights(external, tiny_onnx, tiny_bundle, tmp_path):
    found, single = inspect(external), inspect(tiny_onnx)
    assert found["bytes"] >= single["parameters"] * 4
    assert {key: found[key] for key in ("parameters", "macs", "blocks")} == {
        key: single[key] for key in ("parameters", "macs", "blocks")
    }
    package_mono_hydra(external, tmp_path / "mono")
    assert external_files(tmp_path / "mono" / "m2h.onnx") == []
    image = np.random.default_rng(0).standard_normal((1, 3, 112, 140), np.float32)
    spec = load_bundle(tiny_bundle).manifest.network_input
    expected, given = open_reference(tiny_onnx, spec).run(image), open_reference(external, spec).run(image)
    assert all(np.array_equal(given[task], expected[task]) for task in expected)
    assert locate(external, tiny_onnx, image).block is None


def test_links_to_weights_are_followed(external, tiny_onnx, tmp_path):
    """The cache of a model hub has such links."""
    hub = tmp_path / "hub"
    hub.mkdir()
    for file in external.parent.iterdir():
        (hub / file.name).symlink_to(file)
    assert same_weights(read_onnx(hub / "e.onnx"), onnx.load(tiny_onnx))
    os.link(external.parent / "e.data", tmp_path / "second name")
    assert same_weights(read_onnx(external), onnx.load(tiny_onnx))


def test_the_digest_covers_the_weights(external, tiny_onnx):
    assert onnx_sha256(tiny_onnx) == file_sha256(tiny_onnx)
    before = onnx_sha256(external)
    data = external.parent / "e.data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert onnx_sha256(external) != before


def refused(path: Path) -> str:
    messages = []
    for read in (read_onnx, lambda p: build_bundle(p, p.with_name("bundle")), inspect):
        with pytest.raises(M2HError) as error:
            read(path)
        messages.append(str(error.value))
    assert not path.with_name("bundle").exists()
    assert all(str(path) in message and "\n" not in message for message in messages)
    return messages[0]


def test_missing_and_truncated_weights_are_named(external):
    data = external.parent / "e.data"
    content = data.read_bytes()
    for length in (0, len(content) // 2, len(content) - 1):
        data.write_bytes(content[:length])
        assert f"its weights in {data} are truncated" in refused(external)
    data.unlink()
    assert f"its weights in {data} cannot be read: No such file" in refused(external)
    data.mkdir()
    assert "Is a directory" in refused(external)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("location", "/etc/passwd", "lies at '/etc/passwd'"),
        ("location", "../secret", "lies at '../secret'"),
        ("location", "", "expected a file beside"),
        ("offset", "-4", "at -4"),
        ("offset", "many", "no readable type, offset and length"),
        ("length", "3", "has 3 bytes"),
    ],
)
def test_weights_outside_the_graphs_folder_are_not_read(external, key, value, says):
    proto = onnx.load(external, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
    external.write_bytes(proto.SerializeToString())
    assert says in refused(external)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.99999])
def test_a_truncated_graph_is_named(tiny_onnx, tmp_path, share):
    content = tiny_onnx.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
    assert "truncated" in refused(tmp_path / "cut.onnx")


def test_weights_listed_as_inputs_are_not_inputs(tiny_onnx, tmp_path):
    proto = onnx.load(tiny_onnx)
    for tensor in proto.graph.initializer:
        proto.graph.input.insert(0, helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.save(proto, tmp_path / "listed.onnx")
    assert [value.name for value in read_onnx(tmp_path / "listed.onnx").graph.input] == ["image"]
    manifest = build_bundle(tmp_path / "listed.onnx", tmp_path / "bundle").manifest
    assert manifest.input.name == "image"
