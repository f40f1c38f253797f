"""Three rooms in both layouts of NYUv2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms
from tests.data.nyuv2_mat import FRAMES, SEED, SIZE, write_mat


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nyuv2")
    write_multitask_folder(root / "folder", Rooms(FRAMES, SEED, *SIZE))
    write_mat(root / "mat" / "nyu_depth_v2_labeled.mat", FRAMES, SEED, *SIZE, train=1)
    return root


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "folder", tmp_path / "folder"))


@pytest.fixture
def mat(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "mat", tmp_path / "mat")) / "nyu_depth_v2_labeled.mat"
