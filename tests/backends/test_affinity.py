"""Threads of an engine stay on the processors that the bundle asks for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engines import build_bundle
from m2h_deploy import M2HError
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.backends.affinity import parse_processors
from m2h_deploy.bundle.self_test import pattern

HERE = sorted(os.sched_getaffinity(0))


def threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engines_threads_stay_where_the_bundle_wants_them(engine, tiny_onnx, tmp_path):
    bundle = build_bundle(tiny_onnx, tmp_path / "bundle", engine=engine, threads=2, affinity=HERE[-1:])
    assert bundle.manifest.engine.options["affinity"] == HERE[-1:]
    before = threads()
    backend = open_backend(bundle, BackendOptions())
    backend.run(np.asarray(pattern(bundle.manifest.input)))
    started = threads() - before
    assert started
    assert {tuple(os.sched_getaffinity(thread)) for thread in started} == {(HERE[-1],)}
    assert sorted(os.sched_getaffinity(0)) == HERE
    backend.close()


@pytest.mark.parametrize(("wanted", "said"), [([max(HERE) + 1], "may use"), (["0"], "numbers"), (3, "numbers")])
def test_processors_that_are_not_there_are_refused(wanted, said, tiny_bundle):
    from m2h_deploy.bundle.folder import load_bundle

    bundle = load_bundle(tiny_bundle)
    bundle.manifest.engine.options["affinity"] = wanted
    with pytest.raises(M2HError, match=said):
        open_backend(bundle, BackendOptions())
    assert sorted(os.sched_getaffinity(0)) == HERE


def test_processors_are_written_as_for_taskset():
    assert parse_processors("3,0-1") == (0, 1, 3)
    for text in ("", "a", "2-1", "-1", "0,,1"):
        with pytest.raises(M2HError, match="0,2-3"):
            parse_processors(text)
