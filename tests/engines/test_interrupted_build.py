"""Test that an interrupted build leaves no partial bundle and no temporary files, and keeps an older bundle."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import engines.build
from engines import ENGINES, build_bundle
from m2h_deploy.bundle.folder import load_bundle
from tests.engines.graphs import small_graph


class CanceledError(Exception):
    """An exception that a caller's progress callback raises to cancel."""


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def cancel(message: str) -> None:
    raise CanceledError


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Return a graph with external weights, which a build copies; temporary folders are beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = tmp_path / "small.onnx"
    onnx.save(small_graph(), path, save_as_external_data=True, location="small.data", size_threshold=0)
    return path


def in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt while the engine is compiled and its file is partly written."""
    builder = ENGINES["onnxruntime"]

    def build(model: Path, folder: Path, *arguments: object) -> None:
        builder.build(model, folder, *arguments)
        (folder / "more.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(ENGINES, "onnxruntime", dataclasses.replace(builder, build=build))


def in_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.build, "open_backend", interrupt)


def in_the_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.build, "lower", interrupt)


STAGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, str]]] = {
    "lowering": (in_the_lowering, {"precision": "fp16", "engine": "openvino"}),
    "engine": (in_the_engine, {}),
    "self-test": (in_the_self_test, {}),
}


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Return the path and content of every file in a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize("older", [False, True], ids=["new place", "older bundle"])
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_nothing_behind(stage, older, small, tmp_path, monkeypatch):
    if older:
        build_bundle(small, tmp_path / "bundle")
    before = everything_in(tmp_path)
    prepare, options = STAGES[stage]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        prepare(patch)
        build_bundle(small, tmp_path / "bundle", **options)
    assert everything_in(tmp_path) == before
    if older:
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("stop", [cancel, interrupt])
def test_a_progress_callback_that_raises_cancels_the_build(stop, small, tmp_path):
    before = everything_in(tmp_path)
    with pytest.raises((CanceledError, KeyboardInterrupt)):
        build_bundle(small, tmp_path / "deep" / "bundle", progress=stop)
    assert everything_in(tmp_path) == before


def test_a_kept_graph_is_written_atomically(small, tmp_path, monkeypatch):
    before = everything_in(tmp_path)
    in_the_lowering(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        build_bundle(small, tmp_path / "bundle", engine="openvino", precision="fp16", graph=tmp_path / "kept.onnx")
    assert everything_in(tmp_path) == before
