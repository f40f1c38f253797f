"""Test that a digest changes exactly with what the result depends on."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest

from m2h_deploy.bundle.folder import load_bundle, record_result
from m2h_deploy.cluster.digests import frame_digest, job_digest, reference_digest
from m2h_deploy.data.cityscapes import Cityscapes
from m2h_deploy.data.folders import RGBDPairs
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.open import open_dataset
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError


def test_a_job_digest_covers_engine_and_settings_but_not_recorded_results(tiny_bundle, tmp_path):
    bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = job_digest(bundle.manifest, {"npz": False})
    assert job_digest(record_result(bundle, parity={"verdict": "pass"}).manifest, {"npz": False}) == before
    assert job_digest(bundle.manifest, {"npz": True}) != before
    files = {**bundle.manifest.files, bundle.manifest.engine.file: "0" * 64}
    assert job_digest(bundle.manifest.model_copy(update={"files": files}), {"npz": False}) != before


@pytest.mark.parametrize("kind", ["images", "depth", "normals", "segmentation", "edge"])
def test_a_frame_digest_changes_with_each_of_its_files(kind, tmp_path):
    folder = write_multitask_folder(tmp_path / "rooms", Rooms(2, height=32, width=40))
    source = open_dataset(folder)
    before = [frame_digest("job", source, index) for index in range(2)]
    file = sorted((folder / kind).iterdir())[1]
    os.utime(file, ns=(1, 1))
    assert frame_digest("job", source, 0) == before[0]
    assert frame_digest("job", source, 1) != before[1]
    assert frame_digest("other", source, 0) != before[0]


def test_a_frame_keeps_its_digest_when_another_comes_before_it(tmp_path):
    folder = write_multitask_folder(tmp_path / "rooms", Rooms(2, height=32, width=40))
    before = frame_digest("job", open_dataset(folder), 0)
    listing = folder / "gt_sets" / "val.txt"
    first, second = listing.read_text().split()
    listing.write_text(f"{second}\n{first}\n")
    assert frame_digest("job", open_dataset(folder), 1) == before


def test_adding_missing_labels_changes_the_frame_digest(tmp_path):
    (tmp_path / "rgb_1.png").write_bytes(b"picture")
    pairs = RGBDPairs(tmp_path, (tmp_path / "rgb_1.png",))
    before = frame_digest("job", pairs, 0)
    (tmp_path / "sync_depth_1.png").write_bytes(b"depth")
    assert frame_digest("job", pairs, 0) != before
    root = tmp_path / "cities"
    image = root / "leftImg8bit" / "val" / "bonn" / "bonn_0_leftImg8bit.png"
    cities = Cityscapes(root, "val", (image,))
    before = frame_digest("job", cities, 0)
    labels = root / "gtFine" / "val" / "bonn" / "bonn_0_gtFine_labelIds.png"
    labels.parent.mkdir(parents=True)
    labels.write_bytes(b"labels")
    assert frame_digest("job", cities, 0) != before


def test_a_frame_without_files_is_identified_by_its_content():
    rooms = Rooms(3, height=32, width=32)
    digests = {frame_digest("job", rooms, index) for index in range(3)}
    assert len(digests) == 3
    assert frame_digest("job", Rooms(9, height=32, width=32), 2) in digests

    class Turned:
        def __getitem__(self, index):
            return dataclasses.replace(rooms[index], depth=np.flip(rooms[index].depth))

    assert frame_digest("job", Turned(), 2) not in digests


def test_a_reference_is_a_file_or_the_name_of_shipped_weights(tmp_path):
    (tmp_path / "one.onnx").write_bytes(b"one")
    assert reference_digest(tmp_path / "one.onnx") != reference_digest("m2h-tiny")
    with pytest.raises(M2HError, match="no checkpoint at nowhere"):
        reference_digest("nowhere")
