"""Test that truncated images are refused, and that depth and label maps are not taken for pictures."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.precision.frames import calibration_frames, open_pictures
from m2h_deploy.data import open_dataset
from m2h_deploy.data.classes import default_classes
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import is_truncated_jpeg, read_image
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.runtime.preprocess import PRESETS
from m2h_deploy.sinks.files import write_prediction
from m2h_deploy.sources.source import Skipped, SourceFrame, open_source

ROOM = render_room(2, 0, 120, 160)
GRAY = np.asarray(cv2.cvtColor(ROOM.image, cv2.COLOR_BGR2GRAY), np.uint8)
LABELS = np.asarray(ROOM.semantics + 1, np.uint8)
MILLIMETERS = np.rint(ROOM.depth * 1000).astype(np.uint16)

JPEGS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restart markers": [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
}


def jpeg(kind: str) -> bytes:
    return bytes(cv2.imencode(".jpg", ROOM.image, JPEGS[kind])[1].tobytes())


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_without_an_end_is_truncated(kind, tmp_path):
    """Detected from the bytes, because OpenCV before 4.11 decodes such files."""
    content = jpeg(kind)
    # A camera's thumbnail has its own end marker before the picture's; a phone's file continues after the end marker.
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    for whole in (content, content + b"\0" * 100, content + b"more", content[:2] + thumbnail + content[2:]):
        assert not is_truncated_jpeg(whole)
    for cut in (3, 100, len(content) // 2, len(content) - 2, len(content) - 1):
        for data in (
            content[:cut],
            content[:2] + thumbnail + content[2:cut],
            content[:cut] + bytes(len(content) - cut),
        ):
            assert is_truncated_jpeg(data)
        (tmp_path / "cut.jpg").write_bytes(content[:cut])
        with pytest.raises(M2HError, match=r"cut\.jpg: image is truncated"):
            read_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_a_truncated_file_of_any_format_is_refused(suffix, tmp_path):
    content = cv2.imencode(suffix, ROOM.image)[1].tobytes()
    file = tmp_path / f"cut{suffix}"
    for share in (0.01, 0.3, 0.5, 0.9, 0.99):
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(M2HError) as error:
            read_image(file)
        assert str(file) in str(error.value) and "truncated" in str(error.value) and "\n" not in str(error.value)
        assert isinstance(next(open_source(str(tmp_path)).read()), M2HError)
    file.write_bytes(content)
    assert read_image(file).shape == ROOM.image.shape


def palette_png(indices: np.ndarray, colors: list[int]) -> bytes:
    """Return a PNG of 8-bit palette indices, which OpenCV cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = indices.shape
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (b"IHDR", header), (b"PLTE", bytes(colors)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def voc_palette() -> list[int]:
    """Return VOC's palette: bits 0 to 2 of an index are the highest bits of red, green, blue, bits 3 to 5 the next."""
    return [
        sum((index >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for index in range(256) for c in range(3)
    ]


def encoded(suffix: str, array: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, array)[1].tobytes())


GRAYS = [value for value in range(256) for _ in range(3)]
MAPS = {
    "a.png": (encoded(".png", MILLIMETERS), "16-bit depth map"),
    "b.tif": (encoded(".tif", ROOM.depth), "float32 depth map"),
    "c.png": (encoded(".png", LABELS), "label map"),
    "d.png": (encoded(".png", np.where(LABELS == 1, 255, LABELS).astype(np.uint8)), "label map"),
    "e.bmp": (encoded(".bmp", LABELS), "label map"),
    "f.png": (palette_png(LABELS, voc_palette()), "label map"),
    "depth_07.png": (encoded(".png", GRAY), "depth map"),
    "roomDepth7.webp": (encoded(".webp", cv2.cvtColor(GRAY, cv2.COLOR_GRAY2BGR)), "depth map"),
    "07_disparity.png": (encoded(".png", GRAY), "depth map"),
    "x_labels.png": (encoded(".png", (LABELS == 1).astype(np.uint8)), "label map"),
    "seg-7.png": (palette_png(LABELS % 7, GRAYS), "label map"),
    "edges.png": (encoded(".png", np.asarray(ROOM.edges * 255, np.uint8)), "edge map"),
}
PICTURES = {
    "color.png": encoded(".png", ROOM.image),
    "gray.png": encoded(".png", GRAY),
    "dark.png": encoded(".png", GRAY // 32),
    "darker.tif": encoded(".tif", GRAY // 64),
    "night.png": encoded(".png", GRAY // 8),
    "black.png": encoded(".png", np.zeros_like(GRAY)),
    "document.png": encoded(".png", np.where(ROOM.edges > 0, 0, 255).astype(np.uint8)),
    "palette.png": palette_png(GRAY // 32, GRAYS),
    "depth.jpg": encoded(".jpg", ROOM.image),
    "depth_of_field.png": encoded(".png", ROOM.image),
    "depth_7_rgb.png": encoded(".png", GRAY),
    "alpha.png": encoded(".png", cv2.cvtColor(ROOM.image, cv2.COLOR_BGR2BGRA)),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_not_taken_for_a_picture(name, tmp_path):
    content, kind = MAPS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(M2HError, match=f"{name} is a {kind}, not a picture"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_not_taken_for_a_map(name, tmp_path):
    (tmp_path / name).write_bytes(PICTURES[name])
    assert read_image(tmp_path / name).shape == ROOM.image.shape


def test_a_map_is_recognized_by_its_folder(tmp_path):
    for folder, refused in (("depth", True), ("depth of field", False)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(PICTURES["gray.png"])
        if refused:
            with pytest.raises(M2HError, match=r"1\.png is a depth map"):
                open_source(str(tmp_path / folder / "1.png"))
        else:
            open_source(str(tmp_path / folder / "1.png"))


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Return a folder with two pictures, a damaged one, and all kinds of maps."""
    for name, content in ((name, content) for name, (content, _) in MAPS.items()):
        (tmp_path / name).write_bytes(content)
    for name in ("color.png", "gray.png"):
        (tmp_path / name).write_bytes(PICTURES[name])
    (tmp_path / "z.png").write_bytes(b"no picture")
    return tmp_path


def test_run_verify_and_calibration_see_the_same_pictures(mixed):
    items = list(open_source(str(mixed)).read())
    assert [item.name for item in items if isinstance(item, SourceFrame)] == ["color", "gray"]
    assert len([item for item in items if isinstance(item, M2HError)]) == 1
    skipped = {item.reason for item in items if isinstance(item, Skipped)}
    assert len(skipped) == len(MAPS)

    data = open_dataset(mixed)
    assert set(data.skipped) == skipped
    assert [data[index].name for index in range(2)] == ["color", "gray"]
    with pytest.raises(M2HError, match=r"z\.png: image cannot be decoded"):
        _ = data[2]

    (mixed / "z.png").unlink()
    frames = calibration_frames(open_pictures(str(mixed)), PRESETS["published"], height=28, width=28)
    assert len(list(frames)) == 2


def test_a_folder_of_maps_alone_holds_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(MAPS["a.png"][0])
    with pytest.raises(M2HError, match=r"holds no pictures: .*a\.png is a 16-bit depth map"):
        open_dataset(tmp_path)


def test_a_picture_of_16_bits_a_color_is_refused_everywhere(tmp_path):
    (tmp_path / "deep.png").write_bytes(encoded(".png", ROOM.image.astype(np.uint16) * 256))
    assert "uint16" in str(next(open_source(str(tmp_path)).read()))
    with pytest.raises(M2HError, match=r"deep\.png: pixels are uint16"):
        _ = open_dataset(tmp_path)[0]


@pytest.mark.parametrize(("suffix", "at", "order"), [(".png", 16, "big"), (".bmp", 18, "little")])
def test_a_header_that_states_a_huge_size_allocates_no_memory(suffix, at, order, tmp_path):
    content = bytearray(encoded(suffix, ROOM.image))
    content[at : at + 4] = (1_000_000).to_bytes(4, order)
    (tmp_path / f"huge{suffix}").write_bytes(bytes(content))
    with pytest.raises(M2HError, match=r"of 1000000 x 120 pixels is too large"):
        read_image(tmp_path / f"huge{suffix}")


def test_a_dangling_link_is_reported(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES["color.png"])
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "nothing.png")
    first, second, third = open_source(str(tmp_path)).read()
    assert np.array_equal(first.image, second.image)
    assert str(third) == f"{tmp_path / 'c.png'}: image is missing"


NAMES = ["空" * 80, "x" * 251, "x" * 243, "x" * 244, "7", "-i", "a b", "%d", "12:30:00", "a\nb", "[1]*", "空.空"]


def test_a_picture_of_any_name_has_results_of_its_own(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / "in" / f"{name}.png").write_bytes(PICTURES["color.png"])
    items = [item for item in open_source(str(tmp_path / "in")).read() if isinstance(item, SourceFrame)]
    assert len({item.name for item in items}) == len(NAMES)
    assert {item.name for item in items} >= {name for name in NAMES if len(os.fsencode(name)) <= 243}
    prediction = Prediction(ROOM.depth, ROOM.semantics, ROOM.normals, ROOM.edges.astype(np.float32))
    for item in items:
        write_prediction(tmp_path / "out", item.name, item.image, prediction, default_classes(40), npz=True)
    assert len(list((tmp_path / "out").iterdir())) == 4 * len(NAMES)


def test_a_name_with_control_characters_is_printed_on_one_line(tmp_path):
    (tmp_path / "a\nb\x1b[31m.png").write_bytes(b"no picture")
    (tmp_path / "depth\n.png").write_bytes(MAPS["a.png"][0])
    broken, skipped = open_source(str(tmp_path)).read()
    assert "a\\nb\\x1b[31m.png: image cannot be decoded" in str(broken)
    assert "depth\\n.png is a 16-bit depth map" in skipped.reason
    assert open_dataset(tmp_path).skipped == (skipped.reason,)
