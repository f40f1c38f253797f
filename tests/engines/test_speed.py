"""Test that a build tells how much faster than float32 it is, and records it."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest

import engines.speed
from cli.build import tell_speed
from engines import Lowering, OpenVinoOptions, build_bundle
from engines.precision.quantization import QuantPolicy
from engines.speed import measure_speed
from m2h_deploy.bundle.folder import load_bundle
from tests.engines.graphs import SIDE, small_graph


@pytest.fixture
def source(tmp_path):
    onnx.save(small_graph(scale=0.3), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for index in range(5):
        image = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), image)
    return tmp_path / "pictures"


def test_a_lowered_engine_is_measured_against_float32_of_the_same_engine(source, pictures, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    measured = []

    def measure(baseline, others, **options):
        measured.append(load_bundle(baseline[0]).manifest)
        return measure_speed(baseline, others, seconds=0.0, **options)

    monkeypatch.setattr(engines.speed, "measure_speed", measure)
    lowering = Lowering(str(pictures), count=3, policy=QuantPolicy(keep=()), speed=True)
    options = OpenVinoOptions(threads=1, float32=("context",))
    bundle = build_bundle(
        source, tmp_path / "b", engine="openvino", precision="int8", lowering=lowering, options=options
    )
    (baseline,) = measured
    assert (baseline.engine.kind, baseline.engine.precision) == ("openvino", "fp32")
    assert baseline.engine.options["threads"] == 1
    speed = load_bundle(tmp_path / "b").manifest.speed
    assert speed == bundle.manifest.speed
    assert speed["times_as_fast"]["value"] > 0
    assert speed["milliseconds"]["value"] > 0
    assert speed["engine"].startswith("OpenVINO")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "pictures", "small.onnx"]


def test_float32_and_a_build_that_was_not_asked_are_not_measured(source, tmp_path):
    assert build_bundle(source, tmp_path / "b", lowering=Lowering(speed=True)).manifest.speed is None


def test_the_baseline_is_once_as_fast_as_itself(source, tmp_path):
    path = build_bundle(source, tmp_path / "b").path
    baseline, (one, two) = measure_speed((path, None), [(path, 1), (path, 2)], seconds=0.0)
    assert baseline.times_as_fast.value == 1.0
    assert (one.threads, two.threads) == (1, 2)
    assert len({one.engine, two.engine}) == 1


@pytest.mark.parametrize(("ratio", "warned"), [(0.42, True), (1.5, False)])
def test_slower_than_float32_is_a_warning_with_a_better_choice(ratio, warned, capsys):
    value = {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
    tell_speed({"times_as_fast": value, "engine": "ONNX Runtime", "processor": "a processor"}, "int8")
    said = capsys.readouterr().err
    assert f"int8 is {ratio:.2f} times as fast as fp32 ({ratio - 0.1:.2f} to {ratio + 0.1:.2f})" in said
    assert ("m2h-deploy tune" in said) == warned
