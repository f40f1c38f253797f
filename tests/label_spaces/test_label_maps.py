"""Test label maps: their files, what is refused in them, and the labels of data in their space."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.classes import NYU40_CLASSES, default_classes
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.label_spaces.data import label_table, map_dataset
from m2h_deploy.label_spaces.read import SHIPPED, load_label_space, read_label_remap
from m2h_deploy.label_spaces.reduce import reduce_logits
from m2h_deploy.label_spaces.space import space_of
from tests.commands import refused

#: NYUv2's class to the label in nyud20, from Mono-Hydra's nyud40_remap.yaml.
NYUD20 = {
    **{0: 0, 1: 1, 2: 2, 20: 2, 22: 3, 8: 4, 9: 5, 13: 5, 16: 5, 12: 6, 15: 7, 10: 7, 40: 8, 4: 9, 18: 9, 3: 10},
    **{
        17: 10,
        29: 10,
        37: 10,
        24: 10,
        32: 10,
        7: 11,
        14: 11,
        5: 12,
        11: 13,
        19: 13,
        30: 13,
        6: 14,
        35: 15,
        28: 16,
        33: 16,
    },
    **{34: 16, 36: 16, 23: 17, 25: 17, 26: 17, 27: 18, 21: 18, 38: 19, 39: 19, 31: 20},
}
NETWORK = Classes(names=("wall", "floor", "Chair", "sofa"), palette=((0, 0, 0),) * 4)


def written(tmp_path, text: str):
    path = tmp_path / "map.yaml"
    path.write_text(text)
    return path


def resolved(tmp_path, text: str, network: Classes = NETWORK):
    return load_label_space(written(tmp_path, text)).resolve(network)


def test_nyud20_groups_as_mono_hydra_does_and_for_40_classes_too():
    _, of_41 = load_label_space("nyud20").resolve(default_classes(41))
    _, of_40 = load_label_space("nyud20").resolve(default_classes(40))
    assert dict(enumerate(of_41.table)) == NYUD20
    assert of_40.table == of_41.table[1:] and of_40.groups[0] == ()


def test_hydra_s_classes_have_its_ids_and_every_class_of_nyuv2_has_one():
    classes, label_map = load_label_space("hydra").resolve(default_classes(41))
    assert len(classes.names) == 39 and len(set(classes.palette)) == 39
    ids = {"void": 0, "floor": 2, "picture": 6, "bed": 11, "ceiling": 17, "tv_monitor": 22, "objects": 37, "misc": 38}
    assert {name: classes.names.index(name) for name in ids} == ids
    assert None not in label_map.table and label_map.table[0] == 0
    same = [name for name in NYU40_CLASSES if name in classes.names]
    assert len(same) > 15
    for name in same:
        assert classes.names[label_map.table[1 + NYU40_CLASSES.index(name)]] == name


def test_a_file_names_classes_by_name_or_index_and_collects_the_rest(tmp_path):
    text = """
        name: robot
        classes:
        - {name: empty, from: []}
        - {name: seat, color: [1, 2, 3], from: [chair, 3]}
        - {name: other, from: rest}
    """
    classes, label_map = resolved(tmp_path, text)
    assert classes.names == ("empty", "seat", "other") and classes.palette[1] == (1, 2, 3)
    assert label_map.name == "robot" and label_map.network_classes == NETWORK.names
    assert label_map.groups == ((), (2, 3), (0, 1)) and label_map.table == (2, 2, 1, 1)
    again = space_of(label_map, classes, "a bundle").resolve(NETWORK)
    assert again == (classes, label_map)


def test_a_class_without_a_group_has_no_label(tmp_path):
    _, label_map = resolved(tmp_path, "name: a\nclasses: [{name: x, from: floor}]")
    assert label_map.table == (None, 0, None, None)


def test_both_formats_of_mono_hydra_are_read_as_its_remap_table_is(tmp_path):
    pairs = "[{sub_id: 1, super_id: 0}, {sub_id: 3, super_id: 2}]"
    info = "class_info/1/labels: [0]\nclass_info/3/labels: 2\nclass_info/3/color: [0.5, 0, 1]\n"
    for text in (pairs, info):
        classes, label_map = resolved(tmp_path, text)
        assert len(classes.names) == 4 and label_map.groups == ((1, 3), (0,), (), (2,))
        np.testing.assert_array_equal(read_label_remap(tmp_path / "map.yaml")[:4], label_map.table)
    assert classes.palette[3] == (128, 0, 255)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("[", "not readable YAML"),
        ("a: b", "expected name and classes"),
        ("name: a\nclasses: []", "no classes"),
        ("name: a\nclasses: {x: y}", "not a list"),
        ("classes: [{name: x, from: wall}]", "give it a name"),
        ("name: a\nmore: b\nclasses: [{name: x, from: wall}]", "unknown entry 'more'"),
        ("name: a\nclasses: [{name: x}]", "class 0 is not"),
        ("name: a\nclasses: [{name: x, from: wall, shade: [1, 2, 3]}]", "class 0 is not"),
        ("name: a\nclasses: [{name: 3, from: wall}]", "in quotes"),
        ("name: a\nclasses: [{name: x, color: [1, 2], from: wall}]", "three whole numbers"),
        ("name: a\nclasses: [{name: x, from: [true]}]", "True in from"),
        ("name: a\nclasses: [{name: x, from: wall}, {name: x, from: floor}]", "two classes have the name 'x'"),
        ("name: a\nclasses: [{name: x, from: rest}, {name: y, from: rest}]", "two classes take the rest"),
        ("name: a\nclasses: [{name: x, from: flor}]", "did you mean 'floor'"),
        ("name: a\nclasses: [{name: x, from: grass}]", "its 4 classes begin with wall"),
        ("name: a\nclasses: [{name: x, from: 4}]", "class 4, and the network has 4, 0 to 3"),
        ("name: a\nclasses: [{name: x, from: -1}]", "class -1, and the network has 4"),
        ("name: a\nclasses: [{name: x, from: wall}, {name: y, from: 0}]", "'wall' of the network is in 'x' and 'y'"),
        ("name: a\nclasses: [{name: x, from: [wall, 0]}]", "'wall' of the network is twice"),
        ("name: a\nclasses: [{name: x, from: []}]", "no class of the network"),
        ("name: a\nclasses:\n" + "".join(f"- {{name: c{i}, from: []}}\n" for i in range(256)), "256 classes are more"),
        ("[{sub_id: 1, super_id: 4}]", "class 4, and the network has 4"),
        ("[{sub_id: 1, super_id: x}]", "whole numbers"),
        ("class_info/1/labels: [0]\nclass_info/1/color: [2, 0, 0]", "three numbers from 0 to 1"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, text, words):
    message = refused(resolved, tmp_path, text)
    assert str(tmp_path / "map.yaml") in message and words in message


def test_a_map_that_is_missing_names_those_that_ship(tmp_path):
    assert SHIPPED == ("hydra", "nyud20")
    assert "hydra or nyud20" in refused(load_label_space, "nyud")
    assert "No such file" in refused(load_label_space, tmp_path / "missing.yaml")
    written(tmp_path, "").write_bytes(b"\xff\xfe")
    assert "not readable YAML" in refused(load_label_space, tmp_path / "map.yaml")


def test_reduced_logits_are_the_largest_of_each_group_and_an_empty_group_is_below_all(tmp_path):
    text = "name: a\nclasses: [{name: e, from: []}, {name: x, from: [1, 3]}, {name: y, from: [0]}]"
    _, label_map = resolved(tmp_path, text)
    logits = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    reduced = reduce_logits(logits, label_map)
    np.testing.assert_array_equal(reduced[:, 1], np.maximum(logits[:, 1], logits[:, 3]))
    np.testing.assert_array_equal(reduced[:, 2], logits[:, 0])
    assert (reduced[:, 0] == reduced[:, 1:].min(axis=1) - 1).all() and reduced.dtype == np.float32


def test_the_first_group_wins_a_tie_though_its_class_comes_later(tmp_path):
    _, label_map = resolved(tmp_path, "name: a\nclasses: [{name: x, from: [3]}, {name: y, from: [0, 1, 2]}]")
    tie = np.zeros((1, 4, 1, 1), np.float32)
    assert reduce_logits(tie, label_map).argmax(1).item() == 0
    assert label_map.table[tie.argmax(1).item()] == 1  # mapping the argmax instead takes the network's first class


def test_labels_of_data_are_mapped_and_those_without_a_group_are_ignored():
    classes, label_map = load_label_space("nyud20").resolve(default_classes(41))
    rooms = Rooms(2, height=48, width=64)
    mapped = map_dataset(rooms, classes, label_map)
    expected = np.array([NYUD20[label + 1] - 1 for label in range(40)] + [255] * 216)  # data do not count `unknown`
    for frame, own in zip(mapped, rooms, strict=True):
        np.testing.assert_array_equal(frame.semantics, expected[own.semantics])
        np.testing.assert_array_equal(frame.image, own.image)
    assert mapped.class_names == classes.names[1:] and len(mapped) == 2
    without_people = label_map.model_copy(update={"groups": (*label_map.groups[:20], ())})
    table = label_table(NYU40_CLASSES, classes, without_people)
    assert table is not None
    assert table[NYU40_CLASSES.index("person")] == 255 and table[0] == 0


def test_data_of_the_label_space_itself_stay_and_foreign_data_are_refused():
    classes, label_map = load_label_space("nyud20").resolve(default_classes(41))
    assert label_table(classes.names[1:], classes, label_map) is None
    assert label_table((), classes, label_map) is None
    assert label_table(NYU40_CLASSES, default_classes(41), None) is None
    assert "neither those of the label map nyud20 nor the network's" in refused(
        label_table, ("road", "sky"), classes, label_map
    )


def test_mapped_data_can_be_sent_to_workers():
    classes, label_map = load_label_space("hydra").resolve(default_classes(41))
    mapped = pickle.loads(pickle.dumps(map_dataset(Rooms(1, height=48, width=64), classes, label_map)))
    assert mapped[0].semantics.max() < 39 and not hasattr(mapped, "files_of")
