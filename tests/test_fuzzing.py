"""Test that any input gives a result or a one-line error."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m2h_deploy import M2HError, Prediction, Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.files.images import read_image
from tests.fake_engine import FakeEngine

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
THOUSANDS = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))

#: Values that replace a field's own: of other types, out of range, not numbers, hostile.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 255, 256, 1 << 31, 1 << 63, -(1 << 63), 0.0, 1e-320, 1e308, math.nan, math.inf]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../x", "/etc/passwd", "depth", "float16", "uint8", "NV12", "0" * 64, "a\x00b", "\ud800"]),
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3)), max_size=5),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every field and element of a JSON value."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children)[:12]:  # a palette has many similar elements
        found += places(child, (*path, key))
    return found


@st.composite
def mutations(draw: st.DrawFn, manifest: dict[str, Any]) -> dict[str, Any]:
    """Generate manifests with one to three fields removed, replaced, doubled, exchanged, or slightly changed."""
    changed = copy.deepcopy(manifest)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(places(changed)))
        parent = changed
        for key in above:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "remove", "insert", "nudge", "exchange"]))
        if kind == "remove":
            del parent[last]
        elif kind == "insert" and isinstance(parent, list):
            parent.insert(last, copy.deepcopy(draw(st.sampled_from(parent))))
        elif kind == "insert":
            parent[draw(st.text(max_size=8))] = draw(ODD)
        elif kind == "nudge" and isinstance(parent[last], (int, float)):
            parent[last] = parent[last] + draw(st.sampled_from([-1, 1, 0.5, -parent[last]]))
        elif kind == "exchange" and isinstance(parent, list):
            other = draw(st.integers(0, len(parent) - 1))
            parent[last], parent[other] = parent[other], parent[last]
        else:
            parent[last] = draw(ODD)
        if not changed:
            break
    return changed


def one_line(error: M2HError) -> bool:
    words = str(error)
    return bool(words) and "\n" not in words


@pytest.fixture(scope="module")
def broken(tiny_bundle, tmp_path_factory) -> Path:
    """Return a copy whose manifest is rewritten for every example."""
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("broken") / "bundle"))


def check_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    """Check that a mutated manifest is refused in one line, or that its bundle loads and gives the outputs it names."""
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    try:
        loaded = load_bundle(bundle)
        with Runtime.load(bundle, threads=1, self_test=loaded.manifest.self_test is not None) as runtime:
            prediction = runtime(np.zeros((32, 32, 3), np.uint8))
    except M2HError as error:
        assert one_line(error), str(error)
        return
    assert all(getattr(prediction, task) is not None for task in loaded.manifest.tasks)


def check_manifest_without_engine(bundle: Path, manifest: dict[str, Any]) -> None:
    """Check the same on a fake engine that trusts the manifest, whose fields must be consistent."""
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    try:
        loaded = load_bundle(bundle)
        with Runtime(loaded, FakeEngine(loaded)) as runtime:
            runtime.self_test()
            runtime(np.zeros((32, 32, 3), np.uint8))
    except M2HError as error:
        assert one_line(error), str(error)


def fuzz_manifests(broken: Path, tiny_bundle: Path, profile: settings, check: Any) -> None:
    original = json.loads((tiny_bundle / "manifest.json").read_text())

    @profile
    @given(mutations(original))
    def examples(manifest: dict[str, Any]) -> None:
        check(broken, manifest)

    examples()


def test_manifests(broken, tiny_bundle):
    fuzz_manifests(broken, tiny_bundle, FAST, check_manifest_without_engine)


@pytest.mark.slow
def test_thousands_of_manifests(broken, tiny_bundle):
    fuzz_manifests(broken, tiny_bundle, THOUSANDS, check_manifest_without_engine)


@pytest.mark.slow
def test_manifests_on_the_real_engine(broken, tiny_bundle):
    fuzz_manifests(broken, tiny_bundle, settings(THOUSANDS, max_examples=200), check_manifest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["outputs"][0].update(shape=[1, 2, 112, 140]), "outputs.0: depth: shape (1, 2, 112, 140)"),
        (lambda m: m["outputs"][0].update(shape=[1, 1, 112]), "expected (1, 1, 112, 140)"),
        (lambda m: m["outputs"][1].update(shape=[1, 40, 112, 140]), "semantics: shape"),
        (lambda m: m["outputs"].append(m["outputs"][0]), "a task is there twice"),
        (lambda m: m.update(outputs=[]), "outputs: the list is empty"),
        (lambda m: m["outputs"][0].update(dtype="uint8"), "only a sensor graph"),
        (lambda m: m["outputs"][0].update(dtype="float16"), "'depth' is float16"),
        (lambda m: m["input"].update(name="picture"), "names 'picture', and the engine has image"),
        (lambda m: m["input"].update(batch=2), "expected (2, 1, 112, 140)"),
        (lambda m: m["input"].update(height=113), "expected (1, 1, 113, 140)"),
        (lambda m: m["input"].update(scale=0), "scale is above 0"),
        (lambda m: m["input"].update(color="BGR"), "only a sensor graph takes raw pixels"),
        (lambda m: m["classes"]["names"].pop(), "40 names and 41 colors"),
        (lambda m: m["classes"]["palette"][0].__setitem__(0, 256), "colors are 0 to 255"),
        (lambda m: m.update(depth_range=[10, 1]), "depth_range: 10.0 to 1.0 m is not a range"),
        (lambda m: m["self_test"]["outputs"].update(labels=m["self_test"]["outputs"]["depth"]), "no output labels"),
        (lambda m: m["self_test"]["outputs"]["depth"].update(values=[]), "values: the list is empty"),
        (lambda m: m["engine"]["options"].update(threads="many"), "engine.options.threads"),
        (lambda m: m["engine"]["options"].update(provider_options=["x"]), "provider_options is not an object"),
    ],
)
def test_inconsistent_fields_are_named(broken, tiny_bundle, change, words):
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    change(manifest)
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(M2HError) as error:
        Runtime.load(broken, threads=1)
    assert one_line(error.value)
    assert words in str(error.value)


def test_a_self_test_of_another_length_is_run(broken, tiny_bundle):
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    for expected in manifest["self_test"]["outputs"].values():
        expected["values"] = expected["values"][:1]
    (broken / "manifest.json").write_text(json.dumps(manifest))
    Runtime.load(broken, threads=1).close()


SIDES = st.sampled_from([0, 1, 2, 15, 16, 17, 31, 64])
DTYPES = st.sampled_from([np.uint8, np.uint8, np.uint8, np.uint16, np.int8, np.float32, np.bool_, np.complex64, object])


@st.composite
def images(draw: st.DrawFn) -> Any:
    """Generate arrays of all shapes, types and layouts, and values that are not arrays."""
    shape = draw(st.one_of(st.tuples(SIDES, SIDES, st.sampled_from([0, 1, 2, 3, 4, 5])), st.tuples(SIDES, SIDES)))
    shape = draw(st.sampled_from([shape, shape, shape, shape[:1], (), (1, *shape)]))
    image = np.full(shape, draw(st.sampled_from([0, 1])), draw(DTYPES))
    layout = draw(st.sampled_from(["plain", "plain", "reversed", "strided", "fortran", "readonly", "list"]))
    if layout == "reversed" and image.ndim:
        return image[::-1, ..., ::-1] if image.ndim > 1 else image[::-1]
    if layout == "strided" and image.ndim > 1:
        return np.repeat(image, 2, axis=1)[:, ::2]
    if layout == "fortran":
        return np.asfortranarray(image)
    if layout == "readonly":
        image.flags.writeable = False
    return image.tolist() if layout == "list" else image


def fuzz_images(bundle: Path, profile: settings) -> None:
    loaded = load_bundle(bundle)
    with Runtime(loaded, FakeEngine(loaded)) as runtime:

        @profile
        @given(images())
        def examples(image: Any) -> None:
            try:
                prediction = runtime(image)
            except M2HError as error:
                assert one_line(error)
                return
            assert isinstance(prediction, Prediction)
            assert prediction.depth is not None
            assert prediction.depth.shape == image.shape[:2]

        examples()


def test_images(tiny_bundle):
    fuzz_images(tiny_bundle, FAST)


@pytest.mark.slow
def test_thousands_of_images(tiny_bundle):
    fuzz_images(tiny_bundle, THOUSANDS)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Generate a file that is truncated, overwritten in places, or has a piece repeated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["cut", "write", "repeat"]))
        if kind == "cut":
            del data[at:]
        elif kind == "write":
            piece = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(piece)] = piece
        else:
            data[at:at] = data[at : at + 64]
    return bytes(data)


def fuzz_files(folder: Path, profile: settings, suffix: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    content = cv2.imencode(suffix, picture)[1].tobytes()
    file = folder / f"picture{suffix}"

    @profile
    @given(damaged(content))
    def examples(data: bytes) -> None:
        file.write_bytes(data)
        try:
            image = read_image(file)
        except M2HError as error:
            assert one_line(error)
            return
        assert image.dtype == np.uint8
        assert image.ndim == 3

    examples()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_picture_files(tmp_path, suffix, capfd):
    fuzz_files(tmp_path, FAST, suffix)
    capfd.readouterr()  # OpenCV's decoders print their own messages


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_thousands_of_picture_files(tmp_path, suffix):
    fuzz_files(tmp_path, THOUSANDS, suffix)


def fuzz_metadata(tiny_onnx: Path, folder: Path, profile: settings) -> None:
    """Check that mutated metadata of an ONNX file is read, or refused in one line."""
    from m2h_deploy.onnx_graph.files import read_onnx
    from m2h_deploy.onnx_graph.info import GraphInfo

    original = onnx.load(tiny_onnx, load_external_data=False)
    entries = [(entry.key, entry.value) for entry in original.metadata_props]
    assert entries
    values = st.one_of(
        st.text(max_size=40),
        st.sampled_from(["{}", "[]", "null", "0", "-1", "1e999", "NaN", '{"a": 1}', "[" * 5000, "m2h", "\x00"]),
        st.sampled_from([value for _, value in entries]),
    )

    @st.composite
    def metadata(draw: st.DrawFn) -> list[tuple[str, str]]:
        changed = list(entries)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(changed) - 1))
            kind = draw(st.sampled_from(["value", "inside", "remove", "double"]))
            key, value = changed[at]
            if kind == "remove" and len(changed) > 1:
                del changed[at]
            elif kind == "double":
                changed.append((key, draw(values)))
            elif kind == "inside" and changed[at] in entries and value.startswith("{"):
                changed[at] = (key, json.dumps(draw(mutations(json.loads(value)))))
            else:
                changed[at] = (key, draw(values))
        return changed

    @profile
    @given(metadata())
    def examples(props: list[tuple[str, str]]) -> None:
        proto = onnx.ModelProto()
        proto.CopyFrom(skeleton)
        for key, value in props:
            entry = proto.metadata_props.add()
            try:
                entry.key, entry.value = key, value
            except UnicodeEncodeError:
                return
        try:
            GraphInfo.read(proto, tiny_onnx)
        except M2HError as error:
            assert one_line(error)

    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(original)
    del skeleton.metadata_props[:]
    for tensor in skeleton.graph.initializer:
        tensor.ClearField("raw_data")  # metadata is read without weights
    read_onnx(tiny_onnx)
    examples()


def test_metadata(tiny_onnx, tmp_path):
    fuzz_metadata(tiny_onnx, tmp_path, FAST)


@pytest.mark.slow
def test_thousands_of_metadata(tiny_onnx, tmp_path):
    fuzz_metadata(tiny_onnx, tmp_path, settings(THOUSANDS, max_examples=1000))


def test_the_digests_of_the_manifest_match_the_files(tiny_bundle):
    manifest = load_bundle(tiny_bundle).manifest
    assert {name: file_sha256(tiny_bundle / name) for name in manifest.files} == manifest.files
