"""Test tables of points with known distance."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.calibration.points import read_points, samples_of_points
from m2h_deploy.camera import intrinsics_of_view
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError

HEAD = "image,u,v,meters\n"
GOOD = "a.png,10,10,2\na.png,50,30,2.5\na.png,70,50,3\n"


@pytest.fixture
def table(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), render_room(2, 0, 72, 96).image)

    def write(text: str):
        (tmp_path / "points.csv").write_text(text)
        return tmp_path / "points.csv"

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks image, u, v, meters"),
        ("image,u,v\n", "lacks meters"),
        (HEAD, "0 points are not enough"),
        (HEAD + "a.png,1,1,2\n", "1 point is not enough: give at least 3"),
        (HEAD + "a.png,1,1,0\n" + GOOD, "line 2: 0 meters: distances must be above 0"),
        (HEAD + GOOD + "a.png,1,1,-3\n", "line 5: -3 meters"),
        (HEAD + "a.png,1,1,nan\n" + GOOD, "line 2: nan meters"),
        (HEAD + "a.png,one,1,2\n" + GOOD, "line 2: u is 'one', not a number"),
        (HEAD + "a.png,1\n" + GOOD, "line 2: v is '', not a number"),
        (HEAD + ",1,1,2\n" + GOOD, "line 2: names no image"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(text, message, table):
    with pytest.raises(M2HError, match=message):
        read_points(table(text))


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    with pytest.raises(M2HError, match=r"x\.csv is not a CSV table"):
        read_points(tmp_path / "x.csv")
    with pytest.raises(M2HError, match=r"none\.csv"):
        read_points(tmp_path / "none.csv")


def test_british_spelling_and_spaces_are_read(table):
    points = read_points(
        table("image, u, v, Meters\na.png, 1, 2, 3.5\na.png,4,5,6\na.png,7,8,9\n".replace("ter", "tre"))
    )
    assert [(point.u, point.v, point.meters) for point in points] == [(1, 2, 3.5), (4, 5, 6), (7, 8, 9)]
    assert points[0].image == points[1].image


def test_a_point_outside_of_its_image_is_refused(table, tiny_bundle):
    points = read_points(table(HEAD + GOOD + "a.png,96,10,2\n"))
    with (
        Runtime.load(tiny_bundle) as runtime,
        pytest.raises(M2HError, match=r"line 5: the point 96, 10 is outside of a\.png \(96 x 72 pixels\)"),
    ):
        samples_of_points(runtime, points, "points.csv")


def test_a_missing_image_is_named(table):
    with pytest.raises(M2HError, match=r"points\.csv: line 5: there is no image .*gone\.png"):
        read_points(table(HEAD + GOOD + "gone.png,6,10,2\n"))


def test_depth_is_taken_between_pixels_and_along_the_axis(table, trained_bundle):
    points = read_points(table(HEAD + "a.png,10.5,10,2\na.png,50,30.25,2.5\na.png,90,60,3\n"))
    camera = intrinsics_of_view(90, 72, 96)
    with Runtime.load(trained_bundle) as runtime:
        depth = runtime(cv2.imread(str(points[0].image))).depth
        straight = samples_of_points(runtime, points, "points.csv")
        taped = samples_of_points(runtime, points, "points.csv", camera=lambda height, width: camera)
    assert straight.predicted[0] == pytest.approx((depth[10, 10] + depth[10, 11]) / 2, rel=1e-4)
    assert straight.predicted[1] == pytest.approx(0.75 * depth[30, 50] + 0.25 * depth[31, 50], rel=1e-2)
    ray = np.array([(90 - camera.cx) / camera.fx, (60 - camera.cy) / camera.fy, 1])
    assert taped.measured[2] == pytest.approx(3 / np.linalg.norm(ray))
    assert straight.units == 3 and straight.frames == 1
