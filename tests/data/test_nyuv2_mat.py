"""Test NYUv2 as the official .mat file and its side files: one-line errors name what is damaged."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from m2h_deploy.data import NYUv2
from m2h_deploy.data.mat5 import read_numbers
from m2h_deploy.errors import M2HError

META = Path(__file__).parents[3] / "shared" / "nyuv2_meta"


def _edit(mat: Path, name: str, value: float) -> None:
    with h5py.File(mat, "r+") as file:
        file[name][1, 0, 0] = value


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [("depths", np.nan, "1 NaN"), ("labels", 895, "label 895"), ("depths", -2, "down to -2")],
)
def test_a_broken_frame_of_the_mat_is_named(mat: Path, name: str, value: float, says: str) -> None:
    _edit(mat, name, value)
    with pytest.raises(M2HError) as caught:
        _ = NYUv2.from_mat(mat)[0]
    assert f"{mat} frame 2" in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dtype", "factor", "says"),
    [
        ("depths", np.uint16, 1000, "depth is uint16"),
        ("depths", np.float32, 1000, "the median depth is"),
        ("labels", np.float32, 1, "labels are float32"),
        ("labels", np.int32, -1, "label -"),
    ],
)
def test_arrays_of_another_unit_or_type_in_the_mat_are_named(
    mat: Path, name: str, dtype: type, factor: float, says: str
) -> None:
    with h5py.File(mat, "r+") as file:
        changed = (file[name][()] * float(factor)).astype(dtype)
        del file[name]
        file[name] = changed
    with pytest.raises(M2HError, match=says) as caught:
        _ = NYUv2.from_mat(mat)[0]
    assert f"{mat} frame 2" in str(caught.value)


def test_other_files_in_place_of_the_mat_are_named(mat: Path) -> None:
    splits, mapping = mat.with_name("splits.mat"), mat.with_name("classMapping40.mat")
    savemat(mapping, {"mapClass": np.full((1, 894), 41, np.uint8)})
    with pytest.raises(M2HError, match=r"41\.\.41, expected 1\.\.40"):
        NYUv2.from_mat(mat)
    mapping.unlink()
    with pytest.raises(M2HError, match="class mapping is missing"):
        NYUv2.from_mat(mat)
    savemat(mapping, {"mapClass": np.ones((1, 894), np.uint8)})
    savemat(splits, {"testNdxs": np.array([[4]])})
    with pytest.raises(M2HError, match="has 3 frames, but its splits ask for number 4"):
        NYUv2.from_mat(mat)
    splits.write_bytes(b"not a mat file")
    with pytest.raises(M2HError, match="not a readable MATLAB file"):
        NYUv2.from_mat(mat)
    mat.write_bytes(b"not HDF5")
    with pytest.raises(M2HError, match="not an HDF5 file"):
        NYUv2.from_mat(mat)


def test_arrays_that_do_not_fit_together_are_named(mat: Path) -> None:
    with h5py.File(mat, "r+") as file:
        del file["depths"]
        file["depths"] = np.zeros((2, 64, 48), np.float32)
    with pytest.raises(M2HError, match="do not fit together"):
        NYUv2.from_mat(mat)


def test_side_files_read_the_same_in_scipy(written: Path) -> None:
    files = [(written / "mat" / "splits.mat", ("trainNdxs", "testNdxs"))]
    files.append((written / "mat" / "classMapping40.mat", ("mapClass",)))
    if META.is_dir():
        files.append((META / "splits.mat", ("trainNdxs", "testNdxs")))
        files.append((META / "classMapping40.mat", ("mapClass",)))
    for path, names in files:
        for name in names:
            ours, theirs = read_numbers(path, name), loadmat(path)[name]
            assert ours.shape == theirs.shape and np.array_equal(ours, theirs)


def test_side_files_that_scipy_wrote_are_read(tmp_path: Path) -> None:
    for number, compressed in enumerate((False, True)):
        path = tmp_path / f"{number}.mat"
        savemat(path, {"text": "words", "a": np.arange(6.0).reshape(2, 3)}, do_compression=compressed)
        assert np.array_equal(read_numbers(path, "a"), np.arange(6.0).reshape(2, 3))
        with pytest.raises(M2HError, match="no variable 'text' with numbers"):
            read_numbers(path, "text")


def test_damaged_side_files_are_read_or_raise_an_error(written: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = (written / "mat" / "splits.mat").read_bytes()
    path = tmp_path / "splits.mat"
    failures = 0
    for _ in range(300):
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            read_numbers(path, "testNdxs")
        except M2HError as error:
            failures += 1
            assert str(path) in str(error)
    assert failures > 100
