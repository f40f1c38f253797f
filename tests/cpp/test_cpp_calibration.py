"""Test that libm2h calibrates depth as Python does, and names fields that were edited."""

from __future__ import annotations

import json

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.bundle.depth_calibration import CalibrationEvidence, DepthCalibration
from m2h_deploy.bundle.folder import load_bundle, record_calibration
from tests.cpp.conftest import change, frame, room

pytestmark = pytest.mark.cpp


def assert_same_bits(given: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(given.view(np.uint32), expected.view(np.uint32))


def test_calibrated_depth_has_the_bits_of_pythons_arithmetic(built, damaged):
    bundle, opened = damaged
    plain = frame(built, bundle, room(0), "bgr")
    middle = -float(np.median(plain["depth"]))
    for scale, offset in ((1.0837, 0.0), (0.9131, 0.0417), (1.0, middle)):
        change(bundle, lambda m, s=scale, o=offset: m.update(depth_calibration={"scale": s, "offset": o}))
        expected = plain["depth"].copy()
        DepthCalibration(scale=scale, offset=offset).apply(expected)
        given = frame(built, bundle, room(0), "bgr")
        assert_same_bits(given["depth"], expected)
        assert (given["depth"] >= 0).all()
        for name in ("labels", "normals", "edges"):
            np.testing.assert_array_equal(given[name], plain[name])
    assert 0.4 < np.mean(given["depth"] == 0) < 0.6  # the offset is minus the median
    # Nothing but the depth of frames is calibrated: the self-test passes, and the network's depth can still be had.
    assert f"depth calibrated by 1 {middle:.4}" in opened(expect=0)
    assert_same_bits(frame(built, bundle, room(0), "bgr", calibrated=False)["depth"], plain["depth"])


def test_millimeters_are_calibrated_as_python_calibrates_them(built, millimeters):
    bundle, raw = millimeters
    plain = frame(built, bundle, raw, "nv12")
    calibration = DepthCalibration(scale=1.25, offset=-0.5)
    change(bundle, lambda m: m.update(depth_calibration=calibration.model_dump()))
    expected = plain["depth"].copy()
    calibration.apply(expected)
    given = frame(built, bundle, raw, "nv12")
    assert_same_bits(given["depth"], expected)
    with Runtime.load(bundle) as runtime:
        np.testing.assert_allclose(given["depth"], runtime(raw).depth.ravel(), atol=2e-6)


def test_what_python_writes_and_one_scale_alone_are_valid(damaged):
    bundle, opened = damaged
    evidence = CalibrationEvidence(frames=3, values=9, folds=3, abs_rel_before=0.2, abs_rel_after=0.1)
    record_calibration(load_bundle(bundle), DepthCalibration(scale=2, offset=0.5, source="points", evidence=evidence))
    assert "depth calibrated by 2 0.5" in opened(expect=0)
    change(bundle, lambda m: m.update(depth_calibration={"scale": 2}))
    assert "depth calibrated by 2 0" in opened(expect=0)
    change(bundle, lambda m: m.update(depth_calibration=None))
    assert "calibrated" not in opened(expect=0)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"scale": 0}, "depth_calibration.scale: must be from 1e-6 to 1e6"),
        ({"scale": -1.5}, "depth_calibration.scale: must be from 1e-6 to 1e6"),
        ({"scale": 1e-60}, "depth_calibration.scale: must be from 1e-6 to 1e6"),
        ({"scale": 1e300}, "depth_calibration.scale: must be from 1e-6 to 1e6"),
        ({"scale": "1.5"}, "depth_calibration.scale: expected a number"),
        ({"scale": True}, "depth_calibration.scale: expected a number"),
        ({"scale": None}, "depth_calibration.scale: expected a number"),
        ({"offset": 0.5}, "depth_calibration.scale: is missing"),
        ({"scale": 1, "offset": None}, "depth_calibration.offset: expected a number"),
        ({"scale": 1, "offset": -1e300}, "depth_calibration.offset: must be from -1e6 to 1e6"),
        ({"scale": 1, "ofset": 0.5}, "depth_calibration.ofset: is not a known field"),
        ({"scale": 1, "evidence": []}, "depth_calibration.evidence: expected an object"),
        ([1, 0], "depth_calibration: expected an object"),
        (1.5, "depth_calibration: expected an object"),
        ({"scale": float("nan")}, "is not readable JSON"),
    ],
)
def test_an_invalid_calibration_is_named(damaged, calibration, said):
    bundle, opened = damaged
    change(bundle, lambda m: m.update(depth_calibration=calibration))
    assert said in opened()


def test_a_label_map_needs_nothing_of_the_library(damaged):
    bundle, opened = damaged
    names = json.loads((bundle / "manifest.json").read_text())["classes"]["names"]
    groups = [[index] for index in range(len(names))]
    mapping = {"name": "same", "network_classes": names, "groups": groups}
    change(bundle, lambda m: m.update(label_map=mapping, label_resolution="full"))
    opened(expect=0)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m["input"].update(mean=[0, 0, 0.5]), "input.mean is [0,0,0.5] and was [0.48"),
        (lambda m: m["engine"].update(precision="int8"), 'engine.precision is "int8" and was "fp32"'),
        (lambda m: m.update(depth_range=[0, 5]), "depth_range is [0,5] and was ["),
        (lambda m: m["input"].pop("scale"), "input.scale is missing and was 0.00392"),
        (lambda m: m["sensor"].update(network_width={"a": 1}), "sensor.network_width is an object and was 224"),
        (lambda m: m["self_test"]["made_with"].update({"input.mean": [[[1]]]}), "and was a list when"),
    ],
)
def test_an_edited_field_is_named_with_its_former_value(damaged, edit, said):
    bundle, opened = damaged
    change(bundle, edit)
    message = opened(expect=1)
    assert said in message
    assert "self-test failed: its manifest was edited" in message
    assert "put it back, or export and build again" in message


def test_an_edited_field_is_named_beside_the_error_that_it_causes(damaged):
    bundle, opened = damaged
    change(bundle, lambda m: m["engine"].update(kind="telepathy"))
    message = opened()
    assert "was built with" in message
    assert 'engine.kind is "telepathy" and was "openvino" when the bundle was built' in message
    change(bundle, lambda m: m["input"].update(width=320))
    assert "outputs.0.shape" in opened()


def test_fields_that_the_self_test_does_not_depend_on_may_be_changed(damaged):
    bundle, opened = damaged
    change(bundle, lambda m: m["classes"]["names"].__setitem__(0, "another name"))
    opened(expect=0)


def test_deeply_nested_values_are_no_danger(damaged):
    bundle, opened = damaged
    text = (bundle / "manifest.json").read_text()
    deep = "[" * 100_000 + "]" * 100_000
    for value in (deep, '{"input.mean": ' + deep + "}", '{"files": ' + deep + "}"):
        (bundle / "manifest.json").write_text(text.replace('"made_with": {', f'"made_with": {value}, "other": {{', 1))
        opened(expect=0 if value == deep else 1)
