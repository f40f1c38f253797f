"""Test that libm2h gives the labels of a label map in the graph."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest

from engines import build_bundle
from export import Sensor, add_sensor
from m2h_deploy import Runtime
from m2h_deploy.data.classes import default_classes
from m2h_deploy.label_spaces.read import load_label_space
from m2h_deploy.label_spaces.reduce import reduce_logits
from tests.cpp.conftest import frame, room
from tests.engines.graphs import small_graph, with_label_map

pytestmark = pytest.mark.cpp

SIZE = (64, 48)


@pytest.mark.parametrize("resolution", ["network", "full"])
def test_labels_are_those_of_the_logits_reduced_outside_on_every_pixel(built, tmp_path, resolution):
    classes, label_map = load_label_space("nyud20").resolve(default_classes(41))
    plain = small_graph(classes=41, scale=0.5)
    sensor = Sensor(SIZE, outputs=("depth", "labels"))
    mapped = add_sensor(with_label_map(plain, classes, label_map, resolution), sensor)
    for name, graph in (("plain", plain), ("mapped", mapped)):
        onnx.save(graph, tmp_path / f"{name}.onnx")
        build_bundle(tmp_path / f"{name}.onnx", tmp_path / name, engine="openvino")
    image = np.ascontiguousarray(cv2.resize(room(0), SIZE))
    given = frame(built, tmp_path / "mapped", image, "bgr")["labels"].reshape(SIZE[::-1])
    with Runtime.load(tmp_path / "mapped") as runtime:
        np.testing.assert_array_equal(given, runtime(image).semantics)
    with Runtime.load(tmp_path / "plain") as runtime:
        reduced = reduce_logits(runtime.backend.run(runtime.preprocess(image))["semantics"], label_map)[0]
    if resolution == "full":
        planes = np.stack([cv2.resize(plane, SIZE, interpolation=cv2.INTER_LINEAR) for plane in reduced])
    else:
        planes = np.stack([cv2.resize(plane, SIZE, interpolation=cv2.INTER_NEAREST) for plane in reduced])
    second, first = np.sort(planes, axis=0)[-2:]
    clear = first - second > 1e-4 * np.abs(planes).max()  # on others rounding decides
    assert clear.mean() > 0.99 and len(np.unique(given)) > 3
    np.testing.assert_array_equal(given[clear], planes.argmax(0)[clear])
