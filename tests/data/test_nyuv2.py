"""NYUv2 in both layouts: what one writes, either reads; what is broken is named in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from m2h_deploy.data import NYU40_CLASSES, NYUv2, open_dataset
from m2h_deploy.data.mat5 import read_numbers
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError
from tests.data.nyuv2_mat import write_mat

SEED, FRAMES, SIZE = 9, 3, (48, 64)
META = Path(__file__).parents[3] / "shared" / "nyuv2_meta"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nyuv2")
    write_multitask_folder(root / "folder", FRAMES, SEED, *SIZE)
    write_mat(root / "mat" / "nyu_depth_v2_labeled.mat", FRAMES, SEED, *SIZE, train=1)
    return root


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "folder", tmp_path / "folder"))


@pytest.fixture
def mat(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "mat", tmp_path / "mat")) / "nyu_depth_v2_labeled.mat"


def test_both_layouts_give_back_the_frame_that_was_written(written: Path) -> None:
    from_folder = NYUv2.from_folder(written / "folder", "all")
    from_mat = NYUv2.from_mat(written / "mat" / "nyu_depth_v2_labeled.mat", split="all")
    assert len(from_folder) == len(from_mat) == FRAMES
    for index, (one, other) in enumerate(zip(from_folder, from_mat, strict=True)):
        room = render_room(SEED, index, *SIZE)
        for name in ("image", "depth", "semantics", "edges"):
            expected = getattr(room, name)
            for read in (getattr(one, name), getattr(other, name)):
                assert read.dtype == expected.dtype and np.array_equal(read, expected), name


def test_normals_survive_eight_bits_to_within_a_degree(written: Path) -> None:
    room, read = render_room(SEED, 0, *SIZE), NYUv2.from_folder(written / "folder")[0]
    assert room.normals is not None and read.normals is not None
    cosine = np.clip((room.normals * read.normals).sum(-1), -1, 1)
    assert np.degrees(np.arccos(cosine)).max() < 1.0
    assert np.allclose(np.linalg.norm(read.normals, axis=-1), 1, atol=1e-5)


def test_labels_that_are_computed_are_marked(written: Path) -> None:
    folder, mat = open_dataset(written / "folder"), open_dataset(written / "mat")
    assert folder.derived == folder[0].derived == frozenset()
    assert mat.derived == mat[0].derived == {"normals", "edges"}


def test_splits_are_one_based_in_the_file(written: Path) -> None:
    mat = written / "mat" / "nyu_depth_v2_labeled.mat"
    assert NYUv2.from_mat(mat, split="train").names == ("0001",)
    assert NYUv2.from_mat(mat, split="val").names == NYUv2.from_mat(mat, split="test").names == ("0002", "0003")
    assert np.array_equal(NYUv2.from_mat(mat, split="val")[0].image, render_room(SEED, 1, *SIZE).image)


def test_index_past_the_end_is_an_index_error(written: Path) -> None:
    with pytest.raises(IndexError):
        open_dataset(written / "folder")[FRAMES]


def test_real_splits_and_class_mapping(tmp_path: Path) -> None:
    if not META.is_dir():
        pytest.skip("the official side files are not here")
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(mat, "w") as file:
        # All 1449 frames, tiny; frame 3 carries raw labels of known classes.
        file.create_dataset("images", (1449, 3, 6, 4), np.uint8)
        file.create_dataset("depths", (1449, 6, 4), np.float32)
        file.create_dataset("labels", (1449, 6, 4), np.uint16)
        file["depths"][2] = 2.5
        file["labels"][2, 0] = [21, 11, 894, 0]
    for name in ("splits.mat", "classMapping40.mat"):
        shutil.copy(META / name, tmp_path)
    opened = {split: NYUv2.from_mat(mat, split) for split in ("train", "val", "all")}
    assert {split: len(data) for split, data in opened.items()} == {"train": 795, "val": 654, "all": 1449}
    frame = opened["train"][0]
    assert frame.name == "0003" and frame.semantics is not None
    table = loadmat(META / "classMapping40.mat")["mapClass"].ravel()
    assert frame.semantics.shape == (4, 6)
    assert frame.semantics[:, 0].tolist() == [table[20] - 1, table[10] - 1, table[893] - 1, 255]
    assert NYU40_CLASSES[frame.semantics[0, 0]] == "wall" and NYU40_CLASSES[frame.semantics[1, 0]] == "floor"


def _first(folder: Path, kind: str, suffix: str) -> Path:
    return folder / kind / f"room_{SEED}_00000{suffix}"


def _save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        cv2.imwrite(str(path), array)


def _nan_depth(folder: Path) -> Path:
    path = _first(folder, "depth", ".npy")
    depth = np.load(path)
    depth[3, 4] = np.nan
    np.save(path, depth)
    return path


def _negative_depth(folder: Path) -> Path:
    path = _first(folder, "depth", ".npy")
    np.save(path, np.full(SIZE, -1, np.float32))
    return path


def _scaled_depth(dtype: type, factor: float) -> Callable[[Path], Path]:
    """The depth in another unit."""

    def spoil(folder: Path) -> Path:
        path = _first(folder, "depth", ".npy")
        np.save(path, (np.load(path) * factor).astype(dtype))
        return path

    return spoil


def _pickled_depth(folder: Path) -> Path:
    path = _first(folder, "depth", ".npy")
    np.save(path, np.array([{"no": "thanks"}], object), allow_pickle=True)
    return path


def _missing(kind: str, suffix: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = _first(folder, kind, suffix)
        path.unlink()
        return path

    return spoil


def _replaced(kind: str, suffix: str, array: np.ndarray) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = _first(folder, kind, suffix)
        _save(path, array)
        return path

    return spoil


def _cut(kind: str, suffix: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = _first(folder, kind, suffix)
        path.write_bytes(path.read_bytes()[:40])
        return path

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing("images", ".png"), "image is missing"),
        (_missing("depth", ".npy"), "depth is missing"),
        (_missing("normals", ".png"), "normals is missing"),
        (_missing("segmentation", ".png"), "segmentation is missing"),
        (_missing("edge", ".png"), "edge is missing"),
        (_cut("images", ".png"), "cannot be decoded"),
        (_cut("depth", ".npy"), "not a readable .npy"),
        (_nan_depth, "1 NaN"),
        (_negative_depth, "down to -1"),
        (_pickled_depth, "not a readable .npy"),
        (_replaced("depth", ".npy", np.ones((10, 12), np.float32)), "10x12"),
        (_replaced("segmentation", ".png", np.full(SIZE, 41, np.uint8)), "label 41, expected 1..40"),
        (_replaced("segmentation", ".png", np.zeros((9, 9), np.uint8)), "9x9"),
        (_replaced("segmentation", ".png", np.dstack([np.full(SIZE, n, np.uint8) for n in (1, 2, 3)])), "3 color"),
        (_replaced("normals", ".png", np.zeros((9, 9, 3), np.uint8)), "9x9"),
        (_replaced("edge", ".png", np.zeros((9, 9), np.uint8)), "9x9"),
        (_replaced("edge", ".png", np.full(SIZE, 40, np.uint8)), "edges are 40 to 40, expected 0 and 1"),
        (_replaced("images", ".png", np.zeros(SIZE, np.uint16)), "16-bit depth map, not a picture"),
        (_replaced("images", ".png", np.arange(48, dtype=np.uint8)[:, None].repeat(64, 1) // 8 * 3), "label map"),
        (_scaled_depth(np.uint16, 1000), "depth is uint16, expected floating-point meters"),
        (_scaled_depth(np.int32, 1000), "depth is int32"),
        (_scaled_depth(np.uint8, 1), "depth is uint8"),
        (_scaled_depth(np.complex64, 1), "depth is complex64"),
        (_scaled_depth(np.float32, 1000), "the median depth is"),
        (_scaled_depth(np.float16, 100), "the median depth is"),
        (_scaled_depth(np.float64, 0.001), "the median depth is"),
        (_scaled_depth(np.float32, np.inf), "NaN or infinite"),
    ],
)
def test_a_broken_file_is_named_in_one_line(folder: Path, spoil: Callable[[Path], Path], says: str) -> None:
    path = spoil(folder)
    with pytest.raises(M2HError) as caught:
        _ = open_dataset(folder)[0]
    message = str(caught.value)
    assert str(path) in message and says in message and "\n" not in message


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_meters_of_any_floating_point_type_are_read(folder: Path, dtype: str) -> None:
    path = _first(folder, "depth", ".npy")
    depth = np.load(path)
    depth[:24] = 0
    np.save(path, depth.astype(dtype))
    read = open_dataset(folder)[0].depth
    assert read is not None and read.dtype == np.float32 and np.allclose(read, depth, atol=0.01)


def test_a_frame_without_any_depth_is_unknown_everywhere(folder: Path) -> None:
    np.save(_first(folder, "depth", ".npy"), np.zeros(SIZE, np.float32))
    read = open_dataset(folder)[0].depth
    assert read is not None and not read.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda normals: np.rint((normals + 1) * 127.5).astype(np.uint8), "normals are uint8"),
        (lambda normals: (normals + 3) * 100, "no normal is a unit vector"),
        (lambda normals: np.where(normals > 0.9, np.inf, normals), "NaN or infinity"),
    ],
)
def test_normals_of_another_coding_are_named(
    folder: Path, change: Callable[[np.ndarray], np.ndarray], says: str
) -> None:
    _first(folder, "normals", ".png").unlink()
    path = _first(folder, "normals", ".npy")
    np.save(path, change(render_room(SEED, 0, *SIZE).normals))
    with pytest.raises(M2HError, match=says) as caught:
        _ = open_dataset(folder)[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.save, np.savez])
def test_a_truncated_array_is_named(folder: Path, save: Callable[..., None], share: float) -> None:
    path = _first(folder, "depth", ".npy")
    depth = np.load(path)
    with path.open("wb") as stream:
        save(stream, depth)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(M2HError, match=r"depth is not a readable \.npy file"):
        _ = open_dataset(folder)[0]


def test_a_label_whose_folder_is_absent_is_none(folder: Path) -> None:
    shutil.rmtree(folder / "normals")
    shutil.rmtree(folder / "depth")
    frame = open_dataset(folder)[0]
    assert frame.normals is None and frame.depth is None and frame.semantics is not None


def test_zero_in_the_segmentation_is_unlabeled(folder: Path) -> None:
    _save(_first(folder, "segmentation", ".png"), np.repeat(np.uint8([[0, 40]]), 32, axis=1).repeat(48, axis=0))
    semantics = open_dataset(folder)[0].semantics
    assert semantics is not None and semantics[0, 0] == 255 and semantics[0, -1] == 39


def test_black_and_gray_pixels_are_no_normals(folder: Path) -> None:
    colors = np.full((*SIZE, 3), (255, 128, 128), np.uint8)
    colors[0], colors[1] = 0, 128
    _save(_first(folder, "normals", ".png"), colors)
    normals = open_dataset(folder)[0].normals
    assert normals is not None and (normals[:2] == 0).all()
    assert np.allclose(normals[2:], (0, 0, 1), atol=0.01)


def test_older_folders_with_jpg_and_npy_are_read(folder: Path) -> None:
    room = render_room(SEED, 0, *SIZE)
    for kind, array in (("normals", room.normals), ("edge", room.edges)):
        _first(folder, kind, ".png").unlink()
        np.save(_first(folder, kind, ".npy"), array)
    _first(folder, "images", ".png").unlink()
    cv2.imwrite(str(_first(folder, "images", ".jpg")), room.image)
    np.save(_first(folder, "depth", ".npy"), room.depth[..., None])
    frame = open_dataset(folder)[0]
    assert np.array_equal(frame.edges, room.edges) and np.array_equal(frame.depth, room.depth)
    assert frame.normals is not None and np.allclose(frame.normals, room.normals, atol=1e-6)


@pytest.mark.parametrize(("line", "says"), [("", "empty"), ("../x", "not the name"), ("a\0b", "not the name")])
def test_bad_lists_are_named(folder: Path, line: str, says: str) -> None:
    (folder / "gt_sets" / "val.txt").write_text(line + "\n")
    with pytest.raises(M2HError, match=says):
        open_dataset(folder)


def test_a_list_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "gt_sets" / "val.txt").write_bytes(b"\xff\xfe\xeb")
    with pytest.raises(M2HError, match=r"val\.txt: not a readable list"):
        open_dataset(folder)


def test_an_absent_split_says_which_are_there(folder: Path) -> None:
    with pytest.raises(M2HError, match=r"'train'; there is val"):
        open_dataset(folder, "train")


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


def test_writing_overwrites_nothing(folder: Path) -> None:
    before = (folder / "gt_sets" / "val.txt").read_text()
    with pytest.raises(M2HError, match="there already"):
        write_multitask_folder(folder, 1, SEED + 1, *SIZE)
    with pytest.raises(M2HError, match="use another seed"):
        write_multitask_folder(folder, 1, SEED, *SIZE, split="train")
    assert (folder / "gt_sets" / "val.txt").read_text() == before


def test_a_second_split_joins_the_same_folder(folder: Path) -> None:
    write_multitask_folder(folder, 1, SEED + 1, *SIZE, split="train")
    assert len(open_dataset(folder, "train")) == 1 and len(open_dataset(folder, "all")) == FRAMES + 1


def test_an_interrupted_writer_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_multitask_folder(tmp_path / "folder", 2, 0, *SIZE, progress=interrupt)
    assert not list((tmp_path / "folder" / "gt_sets").iterdir())


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


def test_damaged_side_files_never_do_worse_than_an_error(written: Path, tmp_path: Path) -> None:
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


def test_progress_counts_the_frames(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_multitask_folder(tmp_path / "f", 2, 0, 16, 16, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
