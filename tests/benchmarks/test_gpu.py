"""Test the parts of the GPU benchmark that need no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.gpu import Cell, Roof, Row, table
from m2h_deploy.errors import M2HError

ROOT = Path(__file__).parents[2]


def test_a_cell_is_read_from_its_text():
    assert Cell.parse("m2h-small:480x640:8") == Cell("m2h-small", 480, 640, 8)


@pytest.mark.parametrize("text", ["m2h", "m2h:224:1", "m2h:axb:1", "m2h:224x224:x"])
def test_an_invalid_cell_is_refused(text):
    with pytest.raises(M2HError, match="VARIANT:HEIGHTxWIDTH:BATCH"):
        Cell.parse(text)


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic():
    roof = Roof(matrix_tflops=100.0, copy_gbs=1000.0)
    assert roof.least_ms(macs=10**12, nbytes=0) == pytest.approx(20.0)
    assert roof.least_ms(macs=0, nbytes=10**9) == pytest.approx(1.0)


def test_an_engine_that_cannot_run_is_listed_with_the_reason():
    line = table([Row("m2h 224x224 batch 1", "tensorrt fp16", note="not installed")]).splitlines()[-1]
    assert line == "| m2h 224x224 batch 1 | tensorrt fp16 |  |  |  |  | not installed |"


@pytest.mark.slow
def test_the_program_runs_on_a_cpu(tmp_path):
    cell = "m2h-tiny:56x56:1"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--cells", cell, "--runs", "2", "--no-parity"]
    done = subprocess.run([*command, "--json", tmp_path / "gpu.json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
    assert rows["PyTorch eager fp32, deploy"]["gpu_ms"] > 0
    assert rows["onnxruntime fp32"]["frame_ms"] > 0
    assert "onnxruntime fp32, verify" in rows
