"""Test that a sensor graph in a model repository gives the depth that the runtime gives for a calibrated bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from m2h_deploy import Runtime
from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from m2h_deploy.packaging.triton import write_repository


@pytest.fixture(scope="module")
def build(tiny_onnx, tmp_path_factory):
    """Return a function that builds a sensor bundle for a 64 x 48 camera, with depth in the given type."""
    from engines import build_bundle
    from export import Sensor, add_sensor

    folder = tmp_path_factory.mktemp("sensor")

    def make(depth: str) -> Path:
        if not (folder / depth).exists():
            proto = onnx.load(tiny_onnx)
            info = GraphInfo.read(proto, tiny_onnx)
            # The random network's depth is up to 150 m: in its own range it would be the same nearly everywhere.
            replace(info, config={**info.config, "max_depth": 1000.0}).write(proto)
            sensor = Sensor((64, 48), outputs=("depth", "labels"), depth=depth)
            onnx.save(add_sensor(proto, sensor), folder / f"{depth}.onnx")
            build_bundle(folder / f"{depth}.onnx", folder / depth)
        return folder / depth

    return make


@pytest.fixture
def image() -> np.ndarray:
    return np.ascontiguousarray(render_room(5, 0, height=48, width=64).image)


def calibrated_copy(bundle: Path, out: Path, calibration: DepthCalibration) -> Path:
    shutil.copytree(bundle, out)
    write_manifest(out, load_bundle(out).manifest.model_copy(update={"depth_calibration": calibration}))
    return out


def results_of(folder: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """Run the graph of a model repository, as Triton's backend does."""
    return run_session(cpu_session(str(folder / "1" / "model.onnx"), threads=1), image[np.newaxis])


def middle_of(bundle: Path, image: np.ndarray) -> float:
    with Runtime.load(bundle, calibrated=False) as runtime:
        return float(np.median(runtime(image).depth))


@pytest.mark.parametrize("case", ["scale", "offset", "below 0"])
def test_the_graph_gives_the_runtimes_bits(build, image, tmp_path, case):
    plain = build("float32")
    offset = {"scale": 0.0, "offset": 0.0417, "below 0": -middle_of(plain, image)}[case]
    calibration = DepthCalibration(scale=1.0 if case == "below 0" else 1.0837, offset=offset)
    bundle = calibrated_copy(plain, tmp_path / "bundle", calibration)
    results = results_of(write_repository(bundle, tmp_path / "repository"), image)
    with Runtime.load(bundle, threads=1) as runtime:
        expected = runtime(image)
    np.testing.assert_array_equal(results["depth"][0].view(np.uint32), expected.depth.view(np.uint32))
    np.testing.assert_array_equal(results["labels"][0], expected.semantics)
    assert case != "below 0" or 0.3 < np.mean(results["depth"] == 0) < 0.7


@pytest.mark.parametrize(("scale", "offset"), [(1.25, -0.5), (1000.0, 0.0), (1.0, -1e6)])
def test_millimeters_are_rounded_and_limited(build, image, tmp_path, scale, offset):
    plain = build("uint16")
    bundle = calibrated_copy(plain, tmp_path / "bundle", DepthCalibration(scale=scale, offset=offset))
    results = results_of(write_repository(bundle, tmp_path / "repository"), image)
    assert results["depth"].dtype == np.uint16
    with Runtime.load(bundle, threads=1) as runtime:
        meters = runtime(image).depth
    limited = np.clip(meters.astype(np.float64) * 1000, 0, 65535)
    assert np.abs(results["depth"][0] - limited).max() <= 0.52  # half a millimeter, and the rounding of meters
    if scale == 1000:
        assert (results["depth"] == 65535).any()
    if offset == -1e6:
        assert (results["depth"] == 0).all()


def test_weights_in_another_file_are_copied_beside_the_graph(build, image, tmp_path):
    bundle = calibrated_copy(build("float32"), tmp_path / "bundle", DepthCalibration(scale=1.1))
    proto = onnx.load(bundle / "model.onnx")
    onnx.save(proto, bundle / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=256)
    digests = {name: file_sha256(bundle / name) for name in ("model.onnx", "model.data")}
    manifest = load_bundle(build("float32")).manifest
    changes = {"depth_calibration": DepthCalibration(scale=1.1), "files": digests}
    write_manifest(bundle, manifest.model_copy(update=changes))
    folder = write_repository(bundle, tmp_path / "repository")
    assert (folder / "1" / "model.data").read_bytes() == (bundle / "model.data").read_bytes()
    assert (folder / "1" / "model.onnx").stat().st_size < (folder / "1" / "model.data").stat().st_size
    with Runtime.load(bundle, threads=1) as runtime:
        np.testing.assert_array_equal(results_of(folder, image)["depth"][0], runtime(image).depth)


def test_names_and_shapes_of_the_graph_stay_the_same(build, tmp_path):
    plain = build("float32")
    bundle = calibrated_copy(plain, tmp_path / "bundle", DepthCalibration(scale=1.1, offset=-0.1))
    folder = write_repository(bundle, tmp_path / "repository")
    before, after = (onnx.load(path).graph for path in (plain / "model.onnx", folder / "1" / "model.onnx"))
    assert after.input == before.input
    assert after.output == before.output
