"""Test which sources a stream accepts: a camera's index, a path, an address; others are refused in one line."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime, Stream
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.sources.source import SourceFrame, open_source
from tests.data.sequence_folders import write_scannet, write_seven_scenes, write_tum


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


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (write_tum, [f"1000.{index}00000" for index in range(4)]),
        (write_seven_scenes, [f"frame-{index:06d}" for index in range(3)]),
        (write_scannet, [f"{index:06d}" for index in range(11)]),
    ],
    ids=["TUM", "7-Scenes", "ScanNet"],
)
def test_a_sequence_is_the_source_of_its_images_in_order(write, names, tmp_path):
    source = open_source(write(tmp_path))
    items = list(source.read())
    assert [item.name for item in items if isinstance(item, SourceFrame)] == names
    assert source.count == len(names) and source.names == set(names)
    colors = [item.image[0, 0] for item in items if isinstance(item, SourceFrame)]
    if write is not write_scannet:  # JPEG
        assert [color.tolist() for color in colors] == [[index, 1, 2] for index in range(len(names))]


def test_a_source_needs_no_camera_and_reports_images_that_do_not_exist(tmp_path):
    root = write_tum(tmp_path)
    (root / "camera.json").unlink()
    (root / "rgb" / "1000.100000.png").unlink()
    items = list(open_source(root).read())
    assert [isinstance(item, SourceFrame) for item in items] == [True, False, True, True]
    assert "1000.100000.png: image is missing" in str(items[1])
    (root / "rgb.txt").write_text("# nothing\n")
    with pytest.raises(M2HError, match="is a sequence without images"):
        open_source(root)
