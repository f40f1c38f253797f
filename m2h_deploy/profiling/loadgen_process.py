"""LoadGen's separate process; `m2h_deploy.profiling.loadgen` starts it and processes its samples."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from m2h_deploy.profiling.loadgen import MESSAGE, LoadSettings, load_loadgen

_NAMES = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}

#: LoadGen's offline scenario needs as many samples as the data set has, up to this number.
_OFFLINE_SAMPLES = 24_576


def _test_settings(loadgen: Any, settings: LoadSettings, images: int) -> Any:
    """Return LoadGen's own configuration for the scenario with the requested changes."""
    name = _NAMES[settings.scenario]
    test = loadgen.TestSettings()
    test.scenario = getattr(loadgen.TestScenario, name)
    test.mode = loadgen.TestMode.PerformanceOnly
    test.FromConfig("", "m2h", name, 0)  # 0: the rules compiled into LoadGen
    expected_ns = int(settings.expected_ms * 1e6)
    if settings.scenario == "single-stream":
        test.single_stream_expected_latency_ns = expected_ns
    elif settings.scenario == "multi-stream":
        test.multi_stream_samples_per_query = settings.streams
        test.multi_stream_expected_latency_ns = settings.streams * expected_ns
    elif settings.scenario == "offline":
        test.offline_expected_qps = 1000 / settings.expected_ms
        test.min_query_count = min(images, _OFFLINE_SAMPLES)
    else:
        test.server_target_qps = settings.rate
        test.server_target_latency_ns = int(settings.deadline_ms * 1e6)
    if settings.duration_s is not None:
        test.min_duration_ms = max(1, int(settings.duration_s * 1000))
        test.min_query_count = 1
    return test


def run_test(settings: LoadSettings, images: int, folder: str, asked: int, answer: int) -> None:
    """Run the scenario; write each sample to the file descriptor `asked` and wait for a byte from `answer`."""
    loadgen = load_loadgen()
    queries = 0

    def issue(query: Sequence[Any]) -> None:
        nonlocal queries
        queries += 1
        for sample in query:
            os.write(asked, MESSAGE.pack(queries, sample.index))
            if not os.read(answer, 1):
                os._exit(0)  # the parent has ended
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    output = loadgen.LogOutputSettings()
    output.outdir = folder
    log = loadgen.LogSettings()
    log.log_output = output
    log.enable_trace = False
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(images, images, lambda indices: None, lambda indices: None)
    loadgen.StartTestWithLogSettings(system, library, _test_settings(loadgen, settings, images), log, "")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)


if __name__ == "__main__":
    text, count, logs, out_fd, in_fd = sys.argv[1:]
    run_test(LoadSettings(**json.loads(text)), int(count), logs, int(out_fd), int(in_fd))
