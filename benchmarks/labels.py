"""Gain and cost of labels at full resolution, and of the two ways to reduce logits over groups of classes.

    m2h-deploy export m2h-tiny -o model.onnx
    python benchmarks/labels.py model.onnx --rooms 100

Runs a plain float32 graph of 41 classes, at its own size, on rooms of 640x480 that no training step of m2h-tiny has
seen, and reports the mIoU (over the classes that occur) of each variant with the paired 95 % interval of its difference
from the first one:

- argmax of the logits at the network's size, labels resized; and of logits resized to the image;
- the same with the label maps that ship, the logits reduced by their maximum, or by logsumexp, which is a group's true
  probability.

Then the CPU time of a frame on one thread, as a multiple of that of the first variant, for plain and raw-pixel graphs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from export import Sensor, add_sensor
from export.graph import infer_shapes
from export.label_map import reduce_semantics
from m2h_deploy.bundle.manifest import Classes, LabelMap
from m2h_deploy.data.classes import has_unknown
from m2h_deploy.data.rooms.render import Rooms, render_room
from m2h_deploy.label_spaces.data import label_table
from m2h_deploy.label_spaces.read import SHIPPED, load_label_space
from m2h_deploy.label_spaces.reduce import reduce_logits
from m2h_deploy.metrics import SemanticsMetric
from m2h_deploy.metrics.bootstrap import draws
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from m2h_deploy.profiling.hardware import read_cpu
from m2h_deploy.runtime.postprocess import Postprocess
from m2h_deploy.runtime.preprocess import Preprocess

HEIGHT, WIDTH, SEED = 480, 640, 2


def log_sum_exp(logits: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """Reduce logits as `reduce_logits` does, by logsumexp."""
    reduced = reduce_logits(logits, label_map)
    for index, group in enumerate(label_map.groups):
        if group:
            largest = reduced[:, index]
            members = np.exp(logits[:, list(group)] - largest[:, None])
            reduced[:, index] = largest + np.log(members.sum(axis=1))
    return reduced


def variants(logits: np.ndarray, info: GraphInfo) -> Iterator[tuple[str, Classes, LabelMap | None, np.ndarray, bool]]:
    """Yield name, classes, label map, logits, and whether labels are of full resolution."""
    for full in (False, True):
        yield f"own classes, {'full' if full else 'network'}", info.classes, None, logits, full
    for name in SHIPPED:
        classes, label_map = load_label_space(name).resolve(info.classes)
        reduced = reduce_logits(logits, label_map)
        yield f"{name}, network", classes, label_map, reduced, False
        yield f"{name}, full", classes, label_map, reduced, True
        yield f"{name}, logsumexp, network", classes, label_map, log_sum_exp(logits, label_map), False


def measure_gain(proto: onnx.ModelProto, info: GraphInfo, count: int) -> list[dict[str, Any]]:
    """Return a row for each variant: mIoU, and the difference from the first row of its label map."""
    session = cpu_session(proto.SerializeToString(), "the graph", threads=1)
    height, width = session.get_inputs()[0].shape[2:]
    preprocess = Preprocess(info.normalization, height, width)
    rooms = Rooms(count, SEED, HEIGHT, WIDTH)
    states: dict[str, list[np.ndarray]] = {}
    for frame in rooms:
        logits = run_session(session, preprocess(frame.image), outputs=["semantics"])["semantics"]
        assert frame.semantics is not None
        for name, classes, label_map, given, full in variants(logits, info):
            post = Postprocess(info.depth_range, full_labels=full)
            labels = post({"semantics": given[0]}, HEIGHT, WIDTH).semantics
            table = label_table(rooms.class_names, classes, label_map)
            target = frame.semantics if table is None else table[frame.semantics]
            metric = SemanticsMetric(len(classes.names), unknown=has_unknown(classes))
            states.setdefault(name, []).append(metric.frame_state(labels, target))
    weights = draws(count, 2000)
    rows, first = [], {}
    for name, found in states.items():
        values = miou(np.array(found), weights)
        base = first.setdefault(name.split(",")[0], values)
        low, high = np.percentile((values - base)[1:], [2.5, 97.5])
        rows.append({"variant": name, "miou": values[0], "gain": values[0] - base[0], "interval": [low, high]})
    return rows


def miou(states: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean IoU over the classes that occur, in percent: of all frames, then of each resample."""
    totals = np.concatenate([states.sum(axis=0)[None], weights @ states])
    hits, predicted, expected = np.moveaxis(totals.reshape(len(totals), 3, -1), 1, 0)
    union = predicted + expected - hits
    ratio = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=(union > 0) & (expected > 0))
    return 100 * np.nanmean(ratio, axis=1)


def measure_cost(proto: onnx.ModelProto, info: GraphInfo, seconds: float) -> list[dict[str, Any]]:
    """Return the median CPU time of a frame for each kind of graph, label map and resolution, taken in turns."""
    image = render_room(SEED, 0, HEIGHT, WIDTH).image
    runs: dict[str, Callable[[], object]] = {}
    for space in (None, "nyud20"):
        for resolution in ("network", "full"):
            graph = with_labels(proto, info, space, resolution)
            name = f"{space or 'own classes'}, {resolution}"
            runs[f"plain, {name}"] = plain_frame(graph, info, image, full=resolution == "full")
            sensor = cpu_session(add_sensor(graph, Sensor((WIDTH, HEIGHT))).SerializeToString(), "sensor", threads=1)
            runs[f"sensor, {name}"] = lambda sensor=sensor: sensor.run(None, {"image": image[None]})  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    bases = {kind: medians[f"{kind}, own classes, network"] for kind in ("plain", "sensor")}
    return [
        {"frame": name, "cpu_ms": 1000 * value, "ratio": value / bases[name.split(",")[0]], "runs": len(times[name])}
        for name, value in medians.items()
    ]


def with_labels(proto: onnx.ModelProto, info: GraphInfo, space: str | None, resolution: Any) -> onnx.ModelProto:
    """Return the graph with a label map and its labels' resolution in the metadata, as an export writes it."""
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    changed = dataclasses.replace(info, label_resolution=resolution)
    if space is not None:
        classes, label_map = load_label_space(space).resolve(info.classes)
        reduce_semantics(graph, label_map)
        changed = dataclasses.replace(changed, classes=classes, label_map=label_map)
    changed.write(graph)
    return infer_shapes(graph)


def plain_frame(graph: onnx.ModelProto, info: GraphInfo, image: np.ndarray, *, full: bool) -> Callable[[], object]:
    """Return a function that preprocesses an image, runs a plain graph and postprocesses its outputs."""
    session = cpu_session(graph.SerializeToString(), "the graph", threads=1)
    preprocess = Preprocess(info.normalization, *session.get_inputs()[0].shape[2:])
    postprocess = Postprocess(info.depth_range, full_labels=full)

    def frame() -> object:
        outputs = run_session(session, preprocess(image))
        return postprocess({name: value[0] for name, value in outputs.items()}, HEIGHT, WIDTH)

    return frame


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="plain float32 ONNX file of 41 classes")
    parser.add_argument("--rooms", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30, help="duration of the measurement of time")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    proto = onnx.load(arguments.model)
    info = GraphInfo.read(proto, arguments.model)
    cost = measure_cost(proto, info, arguments.seconds)
    gain = measure_gain(proto, info, arguments.rooms) if arguments.rooms else []
    print(read_cpu().model)
    for row in gain:
        low, high = row["interval"]
        print(f"{row['variant']:<32} mIoU {row['miou']:6.2f} %  {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}]")
    for row in cost:
        print(f"{row['frame']:<32} {row['cpu_ms']:7.1f} ms of CPU time, x {row['ratio']:.3f} ({row['runs']} runs)")
    if arguments.json:
        report = {"cpu": read_cpu().model, "gain": gain, "cost": cost}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
