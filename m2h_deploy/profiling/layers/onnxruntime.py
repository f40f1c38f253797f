"""ONNX Runtime's own profile: a JSON file of events, one a node and run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m2h_deploy.backends import BackendOptions
from m2h_deploy.backends.onnxruntime import open_session
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.causes import reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.profiling.layers import LayerTime, Run

_SUFFIX = "_kernel_time"

#: numpy's types for ONNX Runtime's.
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def profile(bundle: Bundle, options: BackendOptions, runs: int) -> list[Run]:
    """Layers of `runs` runs. See `profile_layers`."""
    with scratch_folder("m2h-profile-") as folder:
        session, _ = open_session(bundle, options, profile=str(folder / "profile"))
        image = session.get_inputs()[0]
        shape = [side if isinstance(side, int) else 1 for side in image.shape]
        feed = {image.name: np.zeros(shape, _TYPES[image.type])}
        try:
            for _ in range(runs):
                session.run(None, feed)
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise M2HError(f"{bundle.path}: cannot be profiled: {reason(error)}") from None
        return read_events(json.loads(Path(session.end_profiling()).read_bytes()))


def read_events(events: Iterable[dict[str, Any]]) -> list[Run]:
    """The layers of every run in a profile, in the order of execution."""
    runs: list[list[LayerTime]] = []
    ends: list[float] = []
    nodes = []
    for event in events:
        if event.get("name") == "model_run":
            ends.append(event["ts"] + event["dur"])
        elif event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            nodes.append(event)
    ends.sort()
    runs = [[] for _ in ends]
    place = 0
    for event in sorted(nodes, key=lambda event: event["ts"]):
        while event["ts"] > ends[place]:
            place += 1
        kind = str(event.get("args", {}).get("op_name", ""))
        runs[place].append(LayerTime(event["name"].removesuffix(_SUFFIX), kind, event["dur"] / 1000))
    return [run for run in runs if run]
