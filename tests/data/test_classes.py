"""Test custom class lists: names and colors from JSON, and one-line errors."""

from __future__ import annotations

import json

import pytest

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.classes import CITYSCAPES_CLASSES, NYU40_CLASSES, check_classes, default_classes, load_classes
from m2h_deploy.errors import M2HError


def write(folder, content: object):
    path = folder / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_names_alone_get_distinct_colors(tmp_path):
    classes = load_classes(write(tmp_path, ["road", " grass ", "Straße"]))
    assert classes.names == ("road", "grass", "Straße")
    assert len(set(classes.palette)) == 3
    assert classes.palette == default_classes(3).palette


def test_colors_may_be_given_for_some_classes(tmp_path):
    classes = load_classes(write(tmp_path, ["unknown", {"name": "road", "color": [128, 64, 255]}, {"name": "grass"}]))
    assert classes.names == ("unknown", "road", "grass")
    assert classes.palette[:2] == ((0, 0, 0), (128, 64, 255))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ({"road": 1}, "expected a JSON list"),
        ([], "expected a JSON list"),
        (["road", 3], "entry 1 is neither a name nor"),
        (["road", ["grass"]], "entry 1 is neither a name nor"),
        ([{"name": "road", "colour": [1, 2, 3]}], "entry 0 is neither a name nor"),
        ([{"color": [1, 2, 3]}], "entry 0 is neither a name nor"),
        (["road", ""], "entry 1 has the name ''"),
        (["road", "  "], "entry 1 has the name"),
        (["road", "two\nlines"], "printable"),
        ([{"name": 3}], "entry 0 has the name 3"),
        (["road", "grass", "road"], "entries 0 and 2 have the same name 'road'"),
        (["road", "road "], "the same name 'road'"),
        ([{"name": "road", "color": [1, 2]}], "three whole numbers"),
        ([{"name": "road", "color": [1, 2, 256]}], "from 0 to 255"),
        ([{"name": "road", "color": [1, 2, -1]}], "from 0 to 255"),
        ([{"name": "road", "color": [1, 2, 0.5]}], "whole numbers"),
        ([{"name": "road", "color": [1, 2, True]}], "whole numbers"),
        ([{"name": "road", "color": "#ff0000"}], "in RGB order"),
    ],
)
def test_an_invalid_list_gives_a_one_line_error_that_names_the_file(content, says, tmp_path):
    with pytest.raises(M2HError) as error:
        load_classes(write(tmp_path, content))
    assert says in str(error.value)
    assert "classes.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(M2HError, match=r"cannot read the classes .*none\.json"):
        load_classes(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(M2HError, match=r"bytes\.json: not JSON"):
        load_classes(tmp_path / "bytes.json")


def test_class_counts_of_known_data_sets_get_their_names():
    assert default_classes(40).names == NYU40_CLASSES
    assert default_classes(41).names == ("unknown", *NYU40_CLASSES)
    assert default_classes(19).names == CITYSCAPES_CLASSES
    assert default_classes(13).names[12] == "class 12"


def classes_of(*names: str) -> Classes:
    return Classes(names=names, palette=((0, 0, 0),) * len(names))


def test_classes_match_regardless_of_spelling():
    check_classes(("wall", "refridgerator"), classes_of("Wall", "refrigerator"))
    check_classes(("wall", "floor"), classes_of("unknown", "wall", "floor"))
    check_classes(NYU40_CLASSES, default_classes(41))
    check_classes(("a", "b", "c"), default_classes(3))


@pytest.mark.parametrize(
    ("names", "engine", "says"),
    [
        (("wall", "floor"), ("wall", "floor", "bed"), "the data has 2 classes, the engine 3"),
        (("wall", "floor"), ("floor", "wall"), "class 1 of the data is 'floor', which is class 0 of the engine"),
        (("wall", "floor"), ("road", "grass"), "are not the engine's"),
    ],
)
def test_data_of_other_classes_is_refused(names, engine, says):
    with pytest.raises(M2HError, match=says):
        check_classes(names, classes_of(*engine))
