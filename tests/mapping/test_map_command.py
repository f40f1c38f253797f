"""Test m2h-deploy map: the table, JSON, the page, and its errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import cli.console
from tests.commands import mistake, run_here

pytestmark = pytest.mark.usefixtures("coarse")

FEW = ("--limit", 4)


@pytest.fixture(scope="module")
def mapped(coarse, nyu_bundle, room, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("command") / "map"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.console.out, "_width", 200)  # where there is no terminal, the width depends on the runner
        result = run_here("map", nyu_bundle, room, "-o", out, "--truth", *FEW)
    assert result.exception is None, result.exception
    return result.stdout, out


def test_the_table_has_the_rows_the_figures_and_the_differences(mapped):
    printed, out = mapped
    assert printed.startswith("3 maps of 4 frames of room, compared with the surface surface.ply")
    for words in ("ME cm", "F-score %", "SE(3)", "TAE %", "frames per second", "95 % interval", "ground truth"):
        assert words in printed
    assert "small-41 filtered against small-41" in printed
    number = r"[+-]\d+\.\d+"
    verdict = "(yes, better|yes, worse|no|equal)"
    assert re.search(rf"ME +none +{number} cm +{number} to {number} +{verdict}", printed)
    assert {"map.json", "map.html", "small-41.ply", "small-41.filtered.ply", "ground-truth.ply"} <= {
        file.name for file in out.iterdir()
    }


def test_the_page_has_pictures_and_explains_each_figure(mapped):
    page = (mapped[1] / "map.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "Mean distance of the map&#39;s surface from the true surface." in page
    assert "small-41 filtered" in page
    assert "<script" not in page


def test_json_is_the_result_and_the_same_command_resumes(mapped, nyu_bundle, room):
    _, out = mapped
    before = (out / "map.json").read_text()
    result = run_here("map", nyu_bundle, room, "-o", out, "--truth", "--json", *FEW)
    assert json.loads(result.stdout) == json.loads(before)


def test_one_variant_other_sizes_and_the_true_labels_alone(mapped, nyu_bundle, room, tmp_path):
    out = tmp_path / "map"
    shutil.copytree(mapped[1], out)
    options = ("-o", out, "--voxel", 0.1, "--truncation", 0.3, "--far", 3, "--json", *FEW)
    only = json.loads(run_here("map", nyu_bundle, room, "--filter", *options).stdout)
    assert [row["name"] for row in only["rows"]] == ["small-41 filtered"]
    assert only["settings"]["volume"] == {"voxel": 0.1, "truncation": 0.3, "depth_range": [0.1, 3]}
    truth = json.loads(run_here("map", room, "--truth", *options).stdout)
    assert [row["name"] for row in truth["rows"]] == ["ground truth"]


def test_other_poses_camera_and_surface_are_used(room, tmp_path):
    poses = tmp_path / "poses.txt"
    lines = (room / "groundtruth.txt").read_text().splitlines()
    moved = [line if line.startswith("#") else " ".join([*line.split()[:3], "9", *line.split()[4:]]) for line in lines]
    poses.write_text("\n".join(moved))
    surface = tmp_path / "surface.ply"
    shutil.copyfile(room / "surface.ply", surface)
    options = ("--poses", poses, "--surface", surface, "--intrinsics", "50,50,31.5,23.5")
    found = json.loads(run_here("map", room, "--truth", "-o", tmp_path / "map", "--json", *options, *FEW).stdout)
    assert found["rows"][0]["maps"][0]["figures"]["mean"] > 1


def test_what_the_command_refuses(nyu_bundle, room, tmp_path):
    out = ("-o", tmp_path / "map")
    assert "no such file or folder" in mistake("map", nyu_bundle, tmp_path / "nowhere", *out)
    assert "give a bundle, or --truth" in mistake("map", room, *out)
    assert "lies in the bundle" in mistake("map", nyu_bundle, room, "-o", nyu_bundle / "map")
    assert "true surface is missing" in mistake("map", nyu_bundle, room, *out, "--surface", tmp_path / "a.ply")
    assert "not a triangle mesh" in mistake("map", nyu_bundle, room, *out, "--surface", room / "rgb.txt")
    assert "fx,fy,cx,cy" in mistake("map", nyu_bundle, room, *out, "--intrinsics", "1,2")
    assert "truncation" in mistake("map", nyu_bundle, room, *out, "--voxel", 1)
    assert "is the sequence itself" in mistake("map", nyu_bundle, room, "-o", room)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in sorted((room / "rgb").iterdir())[:3]:
        shutil.copyfile(file, pictures / file.name)
    camera = ("--intrinsics", "50,50,31.5,23.5")
    assert "--poses FILE" in mistake("map", nyu_bundle, pictures, *out, *camera)
    assert not (tmp_path / "map").exists()
