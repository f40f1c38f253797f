"""Choose calibration frames and measure the range of each activation on them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector

from m2h_deploy.choices import Calibrator, check_choice
from m2h_deploy.errors import M2HError
from m2h_deploy.files.arrays import DAMAGED_ARRAY
from m2h_deploy.files.atomic import make_folder, whole_file
from m2h_deploy.onnx_graph.edit import copy_of
from m2h_deploy.onnx_graph.interface import dims_of
from m2h_deploy.onnx_graph.session import cpu_session

_log = logging.getLogger("m2h_deploy.engines.calibration")

#: Smallest and largest value that INT8 represents in a tensor.
Bounds = tuple[float, float]

#: Share of values, in percent, that the percentile calibrator does not clip.
PERCENTILE = 99.99

#: Bins of a histogram, as ONNX Runtime has them by default; 128 levels are the half of INT8.
BINS = {"entropy": 128, "percentile": 2048}

#: Activations are fetched in groups of at most this many bytes per frame.
GROUP_BYTES = 512 << 20


@dataclass(frozen=True)
class CalibrationFrames:
    """Disjoint sets of frames to calibrate on and to check on. Each frame is float32 (1, 3, H, W)."""

    frames: tuple[NDArray[np.float32], ...]
    held_out: tuple[NDArray[np.float32], ...]
    seed: int
    sha256: str
    """Digest of `frames`: shapes and values."""


@dataclass(frozen=True)
class CalibrationRecord:
    """Method and frames of an INT8 calibration; part of a bundle's manifest."""

    method: Calibrator
    percentile: float | None
    frames: int
    seed: int
    frames_sha256: str
    graph_sha256: str


@dataclass(frozen=True)
class Calibration:
    """Frames, and the calibrator that derives ranges from the activations on them."""

    frames: CalibrationFrames
    method: Calibrator = "max"
    percentile: float = PERCENTILE
    cache: Path | None = None
    """Folder in which ranges are cached by graph and frames."""

    def __post_init__(self) -> None:
        check_choice("calibrator", self.method, Calibrator)
        if not 50 < self.percentile <= 100:
            raise M2HError(f"percentile {self.percentile}: must be above 50 and at most 100")


def select_frames(
    frames: Iterable[NDArray[np.float32]],
    *,
    count: int,
    held_out: int = 2,
    seed: int = 0,
    source: str = "calibration",
) -> CalibrationFrames:
    """Choose `count` random frames to calibrate on and `held_out` others to check on; `seed` makes it repeatable.

    Frames are copied, so the iterable may reuse its buffer. Frames of a single color are skipped: ranges measured on
    them are meaningless.

    Raises:
        M2HError: Too few frames remain; names `source`.
    """
    if count < 1 or held_out < 0:
        raise M2HError(f"{source}: cannot calibrate on {count} frames and check on {held_out}: give at least 1 and 0")
    chosen: list[tuple[int, NDArray[np.float32]]] = []
    generator = random.Random(seed)
    wanted, usable, flat = count + held_out, 0, 0
    for frame in frames:
        _check_frame(frame, source)
        if _is_one_color(frame):
            flat += 1
            continue
        # Reservoir sampling: every frame has the same chance and only the chosen ones are in memory.
        place = usable if usable < wanted else generator.randrange(usable + 1)
        if place < wanted:
            chosen[place : place + 1] = [(usable, frame.copy())]
        usable += 1
    if usable < wanted:
        raise M2HError(_too_few(source, usable, flat, count, held_out))
    generator.shuffle(chosen)
    calibrate = [frame for _, frame in sorted(chosen[:count], key=lambda pair: pair[0])]
    check = [frame for _, frame in sorted(chosen[count:], key=lambda pair: pair[0])]
    return CalibrationFrames(tuple(calibrate), tuple(check), seed, frames_digest(calibrate))


def _check_frame(frame: NDArray[np.float32], source: str) -> None:
    if frame.ndim != 4 or frame.shape[:2] != (1, 3) or frame.dtype != np.float32:
        raise M2HError(f"{source}: a frame is {frame.dtype} {frame.shape}, expected float32 (1, 3, H, W)")
    if not np.isfinite(frame).all():
        raise M2HError(f"{source}: a frame contains NaN or infinity")


def _is_one_color(frame: NDArray[np.float32]) -> bool:
    return bool((frame == frame[:, :, :1, :1]).all())


def _too_few(source: str, usable: int, flat: int, count: int, held_out: int) -> str:
    if usable == flat == 0:
        return f"{source}: no frames; give a folder or video with at least {count + held_out}"
    left_out = f" ({flat} of one color were left out)" if flat else ""
    need = f"{count} to calibrate on" + (f" and {held_out} to check on" if held_out else "")
    return f"{source}: {usable} usable frames{left_out}, {need} were asked for; give more frames or ask for fewer"


def frames_digest(frames: Sequence[NDArray[np.float32]]) -> str:
    """Return the sha256 over shapes and values of frames, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.dtype.str}{frame.shape}".encode())
        digest.update(np.ascontiguousarray(frame).tobytes())
    return digest.hexdigest()


def record_of(calibration: Calibration, graph_sha256: str) -> CalibrationRecord:
    """Return the manifest's record of a calibration."""
    return CalibrationRecord(
        method=calibration.method,
        percentile=calibration.percentile if calibration.method == "percentile" else None,
        frames=len(calibration.frames.frames),
        seed=calibration.frames.seed,
        frames_sha256=calibration.frames.sha256,
        graph_sha256=graph_sha256,
    )


def measure_ranges(
    proto: onnx.ModelProto, graph_sha256: str, tensors: Sequence[str], calibration: Calibration
) -> dict[str, Bounds]:
    """Return the range (low, high) at which each of `tensors` saturates, cached or measured on ONNX Runtime.

    `max` takes the smallest and the largest value; `percentile` and `entropy` are ONNX Runtime's calibrators.
    """
    file = _cache_file(calibration, graph_sha256)
    ranges = _read_cache(file) if file is not None else {}
    if not set(tensors) <= set(ranges):
        measure = _extremes if calibration.method == "max" else _clipped
        ranges = measure(proto, tensors, calibration)
        if file is not None:
            _write_cache(file, ranges)
    return {name: ranges[name] for name in tensors}


def magnitude(bounds: Bounds) -> float:
    """Return the largest magnitude within a range."""
    return max(abs(bounds[0]), abs(bounds[1]))


def _extremes(proto: onnx.ModelProto, tensors: Sequence[str], calibration: Calibration) -> dict[str, Bounds]:
    """Return the smallest and the largest value of each of `tensors`, reduced inside the graph to save memory."""
    reduced = copy_of(proto)
    for index, name in enumerate(tensors):
        for operator in ("ReduceMin", "ReduceMax"):
            output = f"{operator}_{index}"
            reduced.graph.node.append(onnx.helper.make_node(operator, [name], [output], keepdims=0))
    lows, highs = ([f"{operator}_{index}" for index in range(len(tensors))] for operator in ("ReduceMin", "ReduceMax"))
    session = _open_with_outputs(reduced, [*lows, *highs])
    found = np.stack(
        [session.run([*lows, *highs], {session.get_inputs()[0].name: frame}) for frame in _frames(session, calibration)]
    )
    low, high = found[:, : len(tensors)].min(axis=0), found[:, len(tensors) :].max(axis=0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(tensors)}


def _clipped(proto: onnx.ModelProto, tensors: Sequence[str], calibration: Calibration) -> dict[str, Bounds]:
    """Return the ranges that ONNX Runtime's calibrator chooses from histograms, with a bounded amount of memory."""
    collector = HistogramCollector(
        method=calibration.method,
        symmetric=False,
        num_bins=BINS[calibration.method],
        num_quantized_bins=128,
        percentile=calibration.percentile,
        scenario="same",
    )
    session = _open_with_outputs(proto, tensors)
    for frame in _frames(session, calibration):
        for name, values in _run_in_groups(session, proto, tensors, frame):
            with redirect_stdout(io.StringIO()):
                collector.collect_value({name: [values]})
    with redirect_stdout(io.StringIO()):
        result = collector.compute_collection_result()
    return {name: (float(result[name][0]), float(result[name][1])) for name in tensors}


def _frames(session: ort.InferenceSession, calibration: Calibration) -> Iterator[NDArray[np.float32]]:
    """Yield the frames to calibrate on, with progress. Raises M2HError for a size that the graph does not take."""
    frames = calibration.frames.frames
    for done, frame in enumerate(frames, start=1):
        _log.info("calibrating on frame %d of %d", done, len(frames))
        check_frame_size(session, frame)
        yield frame


def check_frame_size(session: ort.InferenceSession, frame: NDArray[np.float32]) -> None:
    """Raise M2HError if `frame` does not have the height and width of the session's input."""
    expected = session.get_inputs()[0].shape
    if list(frame.shape[2:]) != expected[2:]:
        raise M2HError(
            f"a calibration frame is {frame.shape[3]} x {frame.shape[2]} pixels, the graph takes "
            f"{expected[3]} x {expected[2]}: preprocess frames for this graph"
        )


def _open_with_outputs(proto: onnx.ModelProto, tensors: Sequence[str]) -> ort.InferenceSession:
    known = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    graph = copy_of(proto)
    # Types and shapes are left to ONNX Runtime's own inference.
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    # The arena would keep memory for the largest of all outputs until the session ends.
    return cpu_session(graph, "the graph to calibrate", arena=False)


def _run_in_groups(
    session: ort.InferenceSession, proto: onnx.ModelProto, tensors: Sequence[str], frame: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the values of `tensors` on `frame`, with one run per GROUP_BYTES of them to bound the memory."""
    feed = {session.get_inputs()[0].name: frame}
    yield from ((name, feed[name]) for name in tensors if name in feed)
    wanted = [name for name in tensors if name not in feed]
    for group in _groups(wanted, _tensor_bytes(proto)):
        yield from zip(group, session.run(group, feed), strict=True)


def _groups(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    total = 0
    for name in names:
        size = sizes.get(name, 0)
        if group and total + size > GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _tensor_bytes(proto: onnx.ModelProto) -> dict[str, int]:
    return {value.name: 4 * math.prod(side or 1 for side in dims_of(value)) for value in proto.graph.value_info}


def _cache_file(calibration: Calibration, graph_sha256: str) -> Path | None:
    if calibration.cache is None:
        return None
    method = calibration.method + (f"{calibration.percentile:g}" if calibration.method == "percentile" else "")
    return calibration.cache / f"{method}-{graph_sha256[:16]}-{calibration.frames.sha256[:16]}.npz"


def _read_cache(file: Path) -> dict[str, Bounds]:
    """Read the ranges of an earlier run; empty if the file is missing or damaged, so that it is written again."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            names, ranges = stored["names"], stored["ranges"]
    except DAMAGED_ARRAY:
        return {}
    if ranges.shape != (len(names), 2):
        return {}
    return {str(name): (float(low), float(high)) for name, (low, high) in zip(names, ranges, strict=True)}


def _write_cache(file: Path, ranges: Mapping[str, Bounds]) -> None:
    # If the cache cannot be written, the next run only takes longer.
    with contextlib.suppress(M2HError), whole_file(make_folder(file.parent) / file.name) as temporary:
        np.savez_compressed(temporary, names=np.array(list(ranges)), ranges=np.array(list(ranges.values())))
