"""Test the benchmarks that measure in processes of their own, on a small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.small_network import small_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("small") / "bundle", "onnxruntime")


def benchmark(name, *arguments):
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_start_up_is_divided_into_stages(bundle, tmp_path):
    done = benchmark("startup", bundle, "--rounds", 2, "--threads", 1, "--json", tmp_path / "startup.json")
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "startup.json").read_text())["bundle"]
    assert runs.keys() == {"plain", "runtime", "first start"}
    for run in (*runs["plain"], *runs["runtime"]):
        assert min(run["import"], run["engine"], run["first frame"], run["processor"]) > 0
    assert all(run["checksums"] > 0 for run in runs["runtime"])
    assert all(run["checksums"] == 0 for run in runs["plain"])
    assert len(done.stdout.splitlines()) == 5


def test_engine_options_are_compared_with_the_runtimes(bundle, tmp_path):
    arguments = ("--rounds", 2, "--threads", 1, "--only", "and arena off", "--json", tmp_path / "options.json")
    done = benchmark("engine_options", bundle, *arguments)
    assert done.returncode == 0, done.stderr
    ours, other = json.loads((tmp_path / "options.json").read_text())
    assert (ours["options"], ours["ratio"]) == ("the runtime's", 1.0)
    assert other["options"] == "and arena off"
    assert 0 < other["settled_mb"] <= other["peak_mb"] + 1


@pytest.mark.parametrize("name", ["startup", "engine_options"])
def test_one_round_is_refused(name, bundle):
    done = benchmark(name, bundle, "--rounds", 1)
    assert done.returncode == 2
    assert "at least 2" in done.stderr
