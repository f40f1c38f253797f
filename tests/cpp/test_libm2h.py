"""Test that libm2h gives Python's numbers, handles damage and misuse, and that its page's commands work.

Everything is built once, by the commands of docs/cpp.md, with AddressSanitizer and UndefinedBehaviorSanitizer:
`make test-cpp`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime
from m2h_deploy.packaging.cpp import package_cpp
from tests.cpp.conftest import change, frame, room

#: Focal lengths and center, as in the page.
CAMERA = ("525", "525", "319.5", "239.5")


def assert_equals_python(given: dict[str, np.ndarray], expected) -> None:
    assert np.mean(given["labels"] == expected.semantics.ravel()) >= 0.999
    assert np.abs(given["depth"] - expected.depth.ravel()).max() <= 1e-3
    assert np.abs(given["normals"] - expected.normals.ravel()).max() <= 1e-3
    assert np.abs(given["edges"] - expected.edges.ravel()).max() <= 1e-3


@pytest.fixture
def sensor_bundle(tiny_onnx, tmp_path) -> Path:
    import onnx

    from engines import build_bundle
    from export import Sensor, add_sensor

    onnx.save(add_sensor(onnx.load(tiny_onnx), Sensor((64, 48))), tmp_path / "sensor.onnx")
    return build_bundle(tmp_path / "sensor.onnx", tmp_path / "bundle").path


def test_the_package_holds_library_example_bundle_and_how_to_build_them(sensor_bundle, tmp_path):
    (sensor_bundle / ".manifest.1-0123abcd.tmp.json").write_text("")  # of another process, which writes a manifest
    change(sensor_bundle, lambda m: m.update(depth_calibration={"scale": 1.1, "offset": 0.0, "evidence": None}))
    package = package_cpp(sensor_bundle, tmp_path / "robot")
    assert {path.name for path in package.iterdir()} == {"README.md", "libm2h", "bundle"}
    assert (package / "libm2h" / "include" / "m2h" / "m2h.h").is_file()
    assert (package / "libm2h" / "examples" / "run.cpp").is_file()
    assert {path.name for path in (package / "bundle").iterdir()} == {"manifest.json", "model.onnx"}
    assert "64 x 48 BGR or RGB" in (package / "README.md").read_text()
    with Runtime.load(package / "bundle") as opened:
        assert opened.manifest.depth_calibration.scale == 1.1
    with pytest.raises(M2HError, match="exists"):
        package_cpp(sensor_bundle, tmp_path / "robot")


def test_a_package_inside_of_its_bundle_is_refused(sensor_bundle, tmp_path):
    before = sorted(sensor_bundle.rglob("*"))
    (tmp_path / "link").symlink_to(sensor_bundle)
    for inside in (sensor_bundle, sensor_bundle / "robot", sensor_bundle / "a" / "robot", tmp_path / "link" / "robot"):
        with pytest.raises(M2HError, match="lies in the bundle"):
            package_cpp(sensor_bundle, inside)
    assert sorted(sensor_bundle.rglob("*")) == before


def test_a_plain_bundle_is_not_packaged_and_the_command_for_one_is_named(tiny_bundle, tmp_path):
    with pytest.raises(M2HError, match="--sensor uint8"):
        package_cpp(tiny_bundle, tmp_path / "robot")
    assert list(tmp_path.iterdir()) == []


def assert_example_wrote(out: Path, suffix: str, runtime: Runtime) -> None:
    results = [f"depth{suffix}", f"labels{suffix}", "points.ply"]
    names = {f"room{index}_{result}" for index in range(2) for result in results}
    assert {path.name for path in out.iterdir()} == names
    for index in range(2):
        expected = runtime(room(index))
        labels, depth = (out / f"room{index}_{result}{suffix}" for result in ("labels", "depth"))
        assert np.mean(cv2.imread(str(labels), cv2.IMREAD_UNCHANGED) == expected.semantics) >= 0.999
        meters = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
        assert np.abs(meters - expected.depth).max() <= 2e-3
        assert_points(out / f"room{index}_points.ply", expected, room(index))


def assert_points(file: Path, expected, image: np.ndarray) -> None:
    """Check a PLY file of every pixel's point against Python's prediction."""
    head, _, content = file.read_bytes().partition(b"end_header\n")
    assert f"element vertex {480 * 640}\n".encode() in head
    fields = re.findall(rb"property (\w+) (\w+)\n", head)
    points = np.frombuffer(content, [(name.decode(), {b"float": "<f4", b"uchar": "u1"}[kind]) for kind, name in fields])
    assert points.dtype.names == ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "label")
    np.testing.assert_allclose(points["z"], expected.depth.ravel(), atol=1e-3)
    np.testing.assert_allclose(points["x"][-1], (639 - 319.5) / 525 * points["z"][-1], rtol=1e-6)
    np.testing.assert_allclose(points["ny"], -expected.normals[..., 1].ravel(), atol=1e-3)
    colors = np.stack([points["blue"], points["green"], points["red"]], axis=-1)
    np.testing.assert_array_equal(colors, image.reshape(-1, 3))
    assert np.mean(points["label"] == expected.semantics.ravel()) >= 0.999


@pytest.mark.cpp
def test_the_pages_commands_gave_results_for_each_picture(built, runtime):
    assert_example_wrote(built.folder / "out", ".png", runtime)


@pytest.mark.cpp
def test_the_example_refuses_truncated_pictures_and_depth_maps(built, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), room(0))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((480, 640), 2000, np.uint16))
    said = built.call("build/examples/m2h_run", built.bundle, tmp_path, tmp_path / "out")
    assert "b.png is a depth map, not a picture: skipped" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a_depth.png", "a_labels.png"}
    content = cv2.imencode(".jpg", room(0))[1].tobytes()
    for cut in (len(content) // 2, len(content) - 2):
        (tmp_path / "half.jpg").write_bytes(content[:cut])
        said = built.call("build/examples/m2h_run", built.bundle, tmp_path / "half.jpg", tmp_path / "out", expect=2)
        assert "half.jpg is not a readable picture, or truncated" in said


@pytest.mark.cpp
def test_the_example_refuses_a_camera_that_is_none(built, tmp_path):
    for camera, said in ((("525", "525", "x", "239.5"), "'x' is not a number"), (("0", "1", "0", "0"), "above 0")):
        words = [built.bundle, "pictures", tmp_path / "out", "--points", *camera]
        assert said in built.call("build/examples/m2h_run", *words, expect=2)
    assert "usage:" in built.call("build/examples/m2h_run", built.bundle, "pictures", "out", "--points", expect=2)


@pytest.mark.cpp
def test_without_opencv_the_example_writes_pgm(built, runtime):
    options = ["-DEXAMPLE_OPENCV=OFF", f"-DCMAKE_PREFIX_PATH={built.folder / 'prefix'}"]
    built.call("cmake", "-S", "robot/libm2h/examples", "-B", "plain", *options)
    built.call("cmake", "--build", "plain")
    built.call("plain/m2h_run", built.bundle, "pictures", "out-plain", "--points", *CAMERA)
    assert_example_wrote(built.folder / "out-plain", ".pgm", runtime)


@pytest.mark.cpp
def test_results_equal_pythons_on_rooms_in_every_layout(built, runtime):
    image = room(0)
    expected = runtime(image)
    assert_equals_python(frame(built, built.bundle, image, "bgr"), expected)
    assert_equals_python(frame(built, built.bundle, np.ascontiguousarray(image[:, :, ::-1]), "rgb"), expected)
    gaps = np.zeros((480, 640 * 3 + 100), np.uint8)
    gaps[:, : 640 * 3] = image.reshape(480, -1)
    assert_equals_python(frame(built, built.bundle, gaps, "bgr", 640 * 3 + 100), expected)


@pytest.mark.cpp
def test_results_equal_pythons_on_the_real_frames(built, runtime, shared):
    for file in sorted((shared / "nyuv2_frames").glob("rgb_*.jpg")):
        image = cv2.imread(str(file))
        assert_equals_python(frame(built, built.bundle, image, "bgr"), runtime(image))


@pytest.mark.cpp
def test_nv12_input_and_millimeter_output_equal_pythons(built, millimeters):
    bundle, raw = millimeters
    given = frame(built, bundle, raw, "nv12")
    with Runtime.load(bundle) as opened:
        expected = opened(raw)
    assert set(given) == {"depth", "labels"}
    built.driver("misuse", bundle)  # this bundle lacks results, and misuse requests them
    assert "m2h-tiny" in built.call("tools/m2h_c_interface", bundle)
    np.testing.assert_array_equal(given["labels"], expected.semantics.ravel())
    np.testing.assert_allclose(given["depth"], expected.depth.ravel(), atol=1e-6)
    assert "export with --sensor uint8" in built.driver("frame", bundle, "pictures/room0.ppm", ".", "bgr", expect=2)


@pytest.mark.cpp
def test_a_hundred_frames_cause_no_memory_error(built):
    built.driver("soak", built.bundle, 100)


@pytest.mark.cpp
def test_two_threads_with_a_runtime_each_get_the_results_of_one(built):
    assert "ok" in built.driver("threads", built.bundle, 4)


@pytest.mark.cpp
def test_misuse_gives_an_error_message(built):
    built.driver("misuse", built.bundle)


@pytest.mark.cpp
def test_the_header_compiles_as_c(built):
    assert "m2h-tiny" in built.call("tools/m2h_c_interface", built.bundle)


@pytest.mark.cpp
def test_opencv_matrices_are_taken_and_returned(built):
    assert "ok" in built.call("tools/m2h_matrices", built.bundle)


@pytest.mark.cpp
@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_003])
def test_sha256_matches_the_standard(built, tmp_path, size):
    content = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(content)
    assert built.call("tools/m2h_sha256", tmp_path / "file").strip() == hashlib.sha256(content).hexdigest()


@pytest.mark.cpp
def test_damaged_files_are_named(damaged):
    bundle, opened = damaged
    weights = bundle / "model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert "model.bin does not have the manifest's sha256" in opened()
    weights.unlink()
    assert "model.bin is missing" in opened()
    weights.symlink_to("/bin/sh")
    assert "leads out of the bundle" in opened()
    (bundle / "manifest.json").unlink()
    assert "is not a bundle" in opened()


@pytest.mark.cpp
def test_a_file_that_the_manifest_does_not_name_is_refused(damaged):
    bundle, opened = damaged
    (bundle / "stranger").write_text("")
    assert "stranger is not named in the manifest" in opened()
    (bundle / "stranger").unlink()
    opened(expect=0)


@pytest.mark.cpp
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(schema_version=2), "newer than 1"),
        (lambda m: m.update(sensor=None), "--sensor uint8"),
        (lambda m: m["input"].update(width=640.5), "whole number"),
        (lambda m: m["input"].update(width=-(2**70)), "whole number"),
        (lambda m: m["input"].update(width=320), "outputs.0.shape"),
        (lambda m: m["input"].update(batch=4), "one frame at a time"),
        (lambda m: m["files"].update({"../../secret": "0" * 64}), "plain file"),
        (lambda m: m["engine"].update(file="other.xml"), "not among them"),
        (lambda m: m["engine"].update(kind="telepathy"), "was built with"),
        (lambda m: m["engine"].update(file=5), "expected text"),
        (lambda m: m["engine"].update(targets="8.6"), "targets: expected a list"),
        (lambda m: m["engine"]["options"].update(version_compatible="yes"), "expected true or false"),
        (lambda m: m["outputs"].__setitem__(1, m["outputs"][0]), "twice"),
        (lambda m: m["outputs"].clear(), "the list is empty"),
        (lambda m: m["engine"]["options"].update(provider_options=[]), "provider_options: expected an object"),
        (lambda m: m["self_test"]["outputs"]["depth"].update(deviation=0), "above 0"),
        (lambda m: m.update(classes=[]), "expected an object"),
        (lambda m: m.update(outputs={}), "expected a list"),
    ],
)
def test_an_invalid_field_is_named(damaged, edit, said):
    bundle, opened = damaged
    change(bundle, edit)
    assert said in opened()


@pytest.mark.cpp
def test_an_engine_that_contradicts_the_manifest_is_refused_before_it_runs(damaged):
    bundle, opened = damaged

    def swap(manifest):
        manifest["outputs"][1]["name"], manifest["outputs"][3]["name"] = "edges", "labels"
        manifest["outputs"][1]["dtype"], manifest["outputs"][3]["dtype"] = "float32", "uint8"
        manifest["self_test"] = None
        xml = (bundle / "model.xml").read_text().replace('names="labels"', 'names="swap"')
        xml = xml.replace('names="edges"', 'names="labels"').replace('names="swap"', 'names="edges"')
        (bundle / "model.xml").write_text(xml)
        manifest["files"]["model.xml"] = hashlib.sha256(xml.encode()).hexdigest()

    change(bundle, swap)
    assert "is not what the manifest says" in opened()


@pytest.mark.cpp
def test_wrong_numbers_fail_the_self_test(damaged):
    bundle, opened = damaged
    change(bundle, lambda m: m["self_test"]["outputs"]["depth"].update(values=[100.0] * 64))
    assert "self-test failed: depth" in opened(expect=1)


@pytest.mark.cpp
def test_a_broken_engine_file_with_a_correct_checksum_is_an_error(damaged):
    bundle, opened = damaged
    for content in (b"", b"<net", b"<net><layers></net>", (bundle / "model.xml").read_bytes()[:5000]):
        (bundle / "model.xml").write_bytes(content)
        change(bundle, lambda m, c=content: m["files"].update({"model.xml": hashlib.sha256(c).hexdigest()}))
        opened()


@pytest.mark.cpp
def test_a_manifest_truncated_anywhere_is_an_error(damaged):
    bundle, opened = damaged
    text = (bundle / "manifest.json").read_bytes()
    for length in np.linspace(0, len(text) - 2, 12).astype(int):
        (bundle / "manifest.json").write_bytes(text[:length])
        opened()
    (bundle / "manifest.json").write_bytes(b"[" * 100_000)
    opened()
