"""Test that LoadGen's verdict is shown unchanged and its logs are written atomically."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from m2h_deploy import M2HError
from m2h_deploy.profiling.loadgen import (
    LoadSettings,
    check_logs_folder,
    parse_summary,
    run_scenario,
)
from m2h_deploy.profiling.measure import Subject, Timer

pytest.importorskip("mlperf_loadgen")

IMAGES = [np.full((16, 16, 3), value, np.uint8) for value in range(4)]


def quick(image) -> dict[str, float]:
    time.sleep(0.001)
    return {"preprocess": 0.1, "inference": 0.8, "postprocess": 0.1}


def run(settings: LoadSettings, work=quick, **options):
    return run_scenario(Subject("quick", "sleeps", work), settings, Timer(IMAGES), images=len(IMAGES), **options)


def test_single_stream_asks_for_one_frame_at_a_time_and_is_valid(tmp_path):
    result = run(LoadSettings("single-stream", 0.5, expected_ms=1.0), logs=tmp_path / "deep" / "logs")
    assert (result.summary.line, result.summary.valid, result.trial) == ("VALID", True, True)
    assert result.queries == len(result.samples.total) >= 64
    assert result.summary.figure == "90.0th percentile latency (ns)"
    assert result.summary.value >= 1e6
    assert set(result.samples.summary()) == {"total", "preprocess", "inference", "postprocess"}
    names = {file.name for file in (tmp_path / "deep" / "logs").iterdir()}
    assert {"mlperf_log_summary.txt", "mlperf_log_detail.txt"} <= names
    assert "VALID" in (tmp_path / "deep" / "logs" / "mlperf_log_summary.txt").read_text()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["logs"]


def test_offline_asks_for_everything_at_once_and_is_valid():
    result = run(LoadSettings("offline", 0.5, expected_ms=1.0))
    assert (result.summary.line, result.queries) == ("VALID", 1)
    assert len(result.samples.total) > 1
    assert result.summary.figure == "Samples per second"


def test_multi_stream_sends_many_frames_per_query_and_needs_enough_queries():
    result = run(LoadSettings("multi-stream", 0.3, expected_ms=1.0, streams=3))
    assert len(result.samples.total) == 3 * result.queries
    assert (result.summary.line, result.summary.checks["Early stopping satisfied"]) == ("INVALID", "NO")


def test_server_misses_a_deadline_that_no_engine_meets():
    result = run(LoadSettings("server", 0.3, expected_ms=1.0, qps=100, deadline_ms=0.01))
    assert not result.summary.valid
    assert result.summary.checks["Performance constraints satisfied"] == "NO"


def test_a_failing_engine_ends_the_run_with_its_own_error_and_no_logs(tmp_path):
    def fail(image):
        raise M2HError("the engine is closed")

    with pytest.raises(M2HError, match="the engine is closed"):
        run(LoadSettings("single-stream", 30.0), fail, logs=tmp_path / "logs")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_run_and_leaves_no_logs(tmp_path):
    frames = 0

    def interrupted(image):
        nonlocal frames
        frames += 1
        if frames == 5:
            raise KeyboardInterrupt
        return quick(image)

    with pytest.raises(KeyboardInterrupt):
        run(LoadSettings("offline", 30.0), interrupted, logs=tmp_path / "logs")
    assert frames == 5
    assert list(tmp_path.iterdir()) == []


def test_older_logs_are_replaced_and_other_files_are_not(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "mlperf_log_summary.txt").write_text("of yesterday")
    run(LoadSettings("single-stream", 0.1, expected_ms=1.0), logs=logs)
    assert "MLPerf" in (logs / "mlperf_log_summary.txt").read_text()
    (logs / "notes.txt").write_text("mine")
    with pytest.raises(M2HError, match=r"notes\.txt"):
        check_logs_folder(logs)
    with pytest.raises(M2HError, match="is a file"):
        check_logs_folder(logs / "notes.txt")


def test_a_run_leaves_no_file_open():
    open_files = Path(f"/proc/{os.getpid()}/fd")
    before = {file.name for file in open_files.iterdir()}
    run(LoadSettings("single-stream", 0.1, expected_ms=1.0))
    assert {file.name for file in open_files.iterdir()} <= before


@pytest.mark.parametrize(
    "options",
    [
        {"scenario": "batch"},
        {"scenario": "offline", "duration_s": 0},
        {"scenario": "server", "qps": -1},
        {"scenario": "server", "deadline_ms": 0},
        {"scenario": "multi-stream", "streams": 0},
    ],
)
def test_invalid_loadgen_settings_give_a_one_line_error(options):
    with pytest.raises(M2HError) as error:
        LoadSettings(**options)
    assert "\n" not in str(error.value)


def test_a_summary_without_a_result_is_refused():
    with pytest.raises(M2HError, match="no result"):
        parse_summary("MLPerf Results Summary\nSUT name : PySUT\n")
