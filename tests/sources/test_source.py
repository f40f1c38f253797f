"""Test which sources a stream accepts: a camera's index, a path, an address; others are refused in one line."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime, Stream
from m2h_deploy.data.rooms.render import render_room


@pytest.mark.parametrize("index", [9999, np.int64(9999), "9999"])
def test_a_number_is_a_camera_and_a_missing_one_gives_a_one_line_error(tiny_bundle, index):
    with (
        Runtime.load(tiny_bundle, threads=1) as runtime,
        pytest.raises(M2HError, match="cannot open camera 9999") as error,
    ):
        Stream(runtime, index)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (-1, "the index must be at least 0"),
        (3_000_000_000, "no camera 3000000000"),
        ("3000000000", "no camera 3000000000"),
        (True, "not bool"),
        (np.zeros((48, 64, 3), np.uint8), "not ndarray: an image in memory goes to runtime"),
        ([], "not list"),
        (None, "not NoneType"),
    ],
    ids=["negative", "huge", "huge text", "bool", "image", "list", "none"],
)
def test_an_invalid_source_gives_a_one_line_error(tiny_bundle, source, words):
    with Runtime.load(tiny_bundle, threads=1) as runtime, pytest.raises(M2HError, match=words) as error:
        Stream(runtime, source)
    assert "\n" not in str(error.value)


def test_a_path_and_its_text_are_the_same_source(tiny_bundle, tmp_path):
    cv2.imwrite(str(tmp_path / "room.png"), render_room(0, 0, 48, 64).image)
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        for source in (tmp_path, str(tmp_path), tmp_path / "room.png"):
            assert [frame.prediction.depth.shape for frame in Stream(runtime, source)] == [(48, 64)]
