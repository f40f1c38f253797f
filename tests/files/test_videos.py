"""Test that a truncated video is an error, and that a video may have any file name."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.files.videos import is_cut_short
from m2h_deploy.sources.source import Source, SourceFrame, open_source

FRAMES = 20
KINDS = [("avi", "MJPG"), ("mp4", "mp4v"), ("mov", "mp4v"), ("mkv", "MJPG"), ("webm", "VP80")]


def write_video(path: Path, codec: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path.absolute()), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV does not write {path.suffix}")
    generator = np.random.default_rng(0)
    for _ in range(FRAMES):
        writer.write(cv2.resize(generator.integers(0, 255, (12, 16, 3), np.uint8), (64, 48)))
    writer.release()
    return path


def frames(source: Source) -> tuple[list[SourceFrame], list[str]]:
    """Return the frames that were read, and the messages."""
    items = list(source.read())
    good = [item for item in items if isinstance(item, SourceFrame)]
    return good, [str(item) for item in items if not isinstance(item, SourceFrame)]


@pytest.mark.parametrize(("suffix", "codec"), KINDS)
def test_a_complete_video_gives_no_message(suffix, codec, tmp_path):
    path = write_video(tmp_path / f"v.{suffix}", codec)
    assert not is_cut_short(path)
    good, said = frames(open_source(str(path)))
    assert (len(good), said) == (FRAMES, [])


@pytest.mark.parametrize(("suffix", "codec"), KINDS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
def test_a_truncated_video_is_an_error_after_its_complete_frames(suffix, codec, share, tmp_path):
    path = write_video(tmp_path / f"v.{suffix}", codec)
    whole, _ = frames(open_source(str(path)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    try:
        source = open_source(str(path))
    except M2HError as error:  # an MP4 has its index at the end
        assert str(error) == f"cannot open video {path}: it is cut short; copy it again"
        return
    good, said = frames(source)
    assert said == [f"{path} is cut short: it has {len(good)} of {FRAMES} frames; copy it again"]
    assert len(good) < FRAMES
    assert good or suffix == "mov"  # its index is damaged
    for cut, expected in zip(good, whole, strict=False):
        assert np.array_equal(cut.image, expected.image)


def box(kind: bytes, length: int) -> bytes:
    return length.to_bytes(4, "big") + kind


@pytest.mark.parametrize(
    ("content", "short"),
    [
        (box(b"ftyp", 16) + bytes(8) + box(b"mdat", 100) + bytes(92), False),
        (box(b"ftyp", 16) + bytes(8) + box(b"mdat", 101) + bytes(92), True),
        (box(b"ftyp", 16) + bytes(8) + box(b"mdat", 0) + bytes(92), False),  # up to the end of the file
        (box(b"mdat", 1) + (24).to_bytes(8, "big") + bytes(8), False),  # 64-bit length
        (box(b"mdat", 1) + (1 << 40).to_bytes(8, "big") + bytes(8), True),
        (b"RIFF" + (8).to_bytes(4, "little") + b"AVI LIST", False),
        (b"RIFF" + (9).to_bytes(4, "little") + b"AVI LIST\0", False),  # an odd chunk without its padding
        (b"RIFF" + (40).to_bytes(4, "little") + b"AVI LIST", True),
        (b"RIFF" + bytes(4) + b"AVI LIST", False),  # a recording that was never closed
        (b"RIFF" + (8).to_bytes(4, "little") + b"AVI LISTRIFF" + (8).to_bytes(4, "little") + b"AVIX", True),
        (b"\x1aE\xdf\xa3\x82ab\x18S\x80g\x83abc", False),
        (b"\x1aE\xdf\xa3\x82ab\x18S\x80g\x84abc", True),
        (b"\x1aE\xdf\xa3\x82ab\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xffabc", False),  # size unknown: a stream
        (b"", False),
        (b"not a video", False),
    ],
)
def test_the_end_of_a_container(content, short, tmp_path):
    path = tmp_path / "v"
    path.write_bytes(content)
    assert is_cut_short(path) is short


NAMES = [
    "2024-05-01T12:30:00.mp4",
    "12:30.avi",
    "file:a.avi",
    "http:a.avi",
    "a%d.avi",
    "frame_%04d.mp4",
    "7.avi",
    "-i.avi",
    "--limit.mp4",
    "two words.avi",
    "房間.mp4",
    "a'b\"c.avi",
    "a|b.avi",
    "a,b;c.avi",
    "[1].avi",
    "x" * 251 + ".avi",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_video_of_any_name_is_read(name, tmp_path, monkeypatch):
    plain = write_video(tmp_path / f"plain{Path(name).suffix}", "MJPG" if name.endswith("avi") else "mp4v")
    plain.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    good, said = frames(open_source(name))
    assert (len(good), said) == (FRAMES, [])
    stem = Path(name).stem
    assert good[3].name == f"{stem}_000003" or (len(name) > 200 and good[3].name.startswith("x" * 200))
    assert len(os.fsencode(f"{good[3].name}_overlay.png")) <= 255


def test_a_link_to_a_video_is_read(tmp_path):
    path = write_video(tmp_path / "v.avi")
    (tmp_path / "link.avi").symlink_to(path)
    assert len(frames(open_source(str(tmp_path / "link.avi")))[0]) == FRAMES


def test_a_number_is_a_file_name_first_and_a_camera_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    cv2.imwrite(str(tmp_path / "7" / "0.png"), np.zeros((16, 16, 3), np.uint8))
    assert [item.name for item in open_source("7").read()] == ["0"]
    with pytest.raises(M2HError, match="no camera 99999999999999999999"):
        open_source("99999999999999999999")
    with pytest.raises(M2HError, match="no image, folder, video or camera"):
        open_source("x" * 5000)
