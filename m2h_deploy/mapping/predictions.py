"""Predictions of a bundle on a sequence, kept on disk: depth and labels of every frame in TUM's layout.

```
depth/TIMESTAMP.png    uint16, meters x 5000 (at most 13.1 m), 0 unknown
labels/TIMESTAMP.png   uint8, class index + 1 without the class `unknown`, 0 unlabeled
depth.txt, labels.txt  "TIMESTAMP depth/TIMESTAMP.png" for each frame that has a result
groundtruth.txt        poses of the frames, camera to world: "TIMESTAMP tx ty tz qx qy qz qw"
camera.json            width, height, fx, fy, cx, cy
predictions.json       the bundle and the sequence
journal.jsonl          timings of each frame
```
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.causes import MachineError, reason
from m2h_deploy.data.classes import has_unknown
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.tum import DEPTH_SCALE, time_name
from m2h_deploy.data.sequences.tum_writer import encode_depth, write_camera, write_list, write_poses
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import make_folder, write_bytes, write_text
from m2h_deploy.files.images import read_plane
from m2h_deploy.files.journal import Journal
from m2h_deploy.files.text import read_json
from m2h_deploy.predict import predict_item, timing_summary
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.sinks.files import encode_png
from m2h_deploy.sources.source import SourceFrame
from m2h_deploy.version import __version__

#: Called with the name of a stage, and the numbers of finished frames and of all frames.
Progress = Callable[[str, int, int], None]

_IDENTITY, _JOURNAL = "predictions.json", "journal.jsonl"


@dataclass(frozen=True)
class Predictions:
    """The predictions of one bundle on one sequence."""

    folder: Path
    identity: str
    """Digest of the bundle and the sequence."""
    classes: Classes
    """The bundle's classes."""
    has_labels: bool
    unread: dict[str, str]
    """Frames of the sequence that cannot be read, by name, with the reason."""
    failed: dict[str, str]
    """Frames that the engine gave no result for, by name, with the reason."""
    timings: dict[str, Any]
    """See `predict.timing_summary`."""
    again: int
    """Number of frames that an earlier run predicted."""

    def __contains__(self, moment: Moment) -> bool:
        return moment.name not in self.failed and moment.name not in self.unread

    def files(self, moments: Iterable[Moment]) -> list[int]:
        """Return sizes and modification times of the files of frames; -1 for a frame without a result."""
        kinds = ["depth", *(["labels"] if self.has_labels else [])]
        return [
            number
            for moment in moments
            for number in (file_stat(_file(self.folder, kind, moment) for kind in kinds) if moment in self else [-1])
        ]

    def read(self, moment: Moment) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
        """Read the results of a frame.

        Returns:
            Depth, float32 (H, W) meters, 0 unknown; labels as stored, uint8 (H, W), 0 unlabeled, None without labels.

        Raises:
            M2HError: A file is missing or damaged.
        """
        depth = read_plane(_file(self.folder, "depth", moment), "predicted depth")
        labels = read_plane(_file(self.folder, "labels", moment), "predicted labels") if self.has_labels else None
        return depth.astype(np.float32) / np.float32(DEPTH_SCALE), labels


def sequence_digest(moments: Iterable[Moment]) -> str:
    """Return the digest of the images: names, time stamps, sizes and modification times."""
    parts = [(moment.name, moment.timestamp, *file_stat(moment.files[:1])) for moment in moments]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def bundle_digest(bundle: Bundle) -> str:
    """Return the digest of an engine with its manifest, without the results that were recorded in it."""
    results = dict.fromkeys(("parity", "latency", "speed", "tuning"))
    content = bundle.manifest.model_copy(update=results).model_dump(mode="json")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def predict_sequence(
    bundle: Bundle,
    sequence: Sequence,
    folder: Path,
    *,
    limit: int | None = None,
    options: BackendOptions | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Predictions:
    """Predict the frames of a sequence that `folder` does not have yet, one at a time.

    A run that was killed is resumed: a frame is done if the journal and both files have it. Predictions of another
    bundle, sequence or device are removed and made again.

    Args:
        bundle: The bundle; it must predict depth.
        sequence: The frames.
        folder: The folder of this bundle's predictions.
        limit: Predict only the first frames.
        options: How to open the engine.
        progress: Called after each frame.
        say: Called with a line if earlier predictions are removed.

    Raises:
        M2HError: The engine cannot be opened, no frame has a result, or the folder holds something else.
    """
    options, moments = options or BackendOptions(), sequence.moments[:limit]
    identity = _claim(folder, bundle, sequence, options, say or _ignore)
    has_labels = "semantics" in bundle.manifest.tasks
    kinds = ["depth", *(["labels"] if has_labels else [])]
    for kind in kinds:
        make_folder(folder / kind)
    journal = Journal(folder / _JOURNAL, identity)
    waiting = [moment for moment in moments if not _is_done(folder, moment, journal, kinds)]
    unread: dict[str, str] = {}
    failed: dict[str, str] = {}
    advance = partial(progress or _ignore, f"predicting {folder.name}")
    again = len(moments) - len(waiting)
    advance(again, len(moments))
    if waiting:
        with _open(bundle, options) as runtime:
            for number, moment in enumerate(waiting, again + 1):
                try:
                    image = sequence.read_image(moment)
                except M2HError as error:
                    unread[moment.name] = str(error)
                else:
                    why = _predict(runtime, SourceFrame(moment.name, image), moment, folder, journal)
                    failed |= {} if why is None else {moment.name: why}
                advance(number, len(moments))
    done = [moment for moment in moments if moment.name not in failed and moment.name not in unread]
    if not done:
        why = next(iter((failed or unread).values()), "it has no frames")
        raise M2HError(f"{bundle.path}: no frame of {sequence.folder} has a result; the first: {why}")
    _write_lists(folder, sequence, done, kinds)
    timings = timing_summary([journal.once(time_name(moment.timestamp), dict) for moment in done])
    return Predictions(folder, identity, bundle.manifest.classes, has_labels, unread, failed, timings, again)


def _claim(
    folder: Path, bundle: Bundle, sequence: Sequence, options: BackendOptions, say: Callable[[str], None]
) -> str:
    """Prepare the folder, and return the digest of what the predictions depend on."""
    content: dict[str, Any] = {
        "tool": f"m2h-deploy {__version__}",
        "bundle": bundle_digest(bundle),
        "sequence": sequence_digest(sequence.moments),
        "options": asdict(options) | {"plugins": [str(plugin) for plugin in options.plugins]},
    }
    make_folder(folder)
    file = folder / _IDENTITY
    if file.is_file():
        earlier = read_json(file, "the origin of the predictions")
        if earlier != content:
            say(f"{folder} holds predictions of another bundle, sequence or engine option: they are made again")
            _remove(folder)
    elif any(folder.iterdir()):
        raise M2HError(f"{folder} exists, and m2h-deploy map did not write it: give another --output")
    write_text(file, json.dumps(content, indent=2))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove(folder: Path) -> None:
    try:
        (folder / _JOURNAL).unlink(missing_ok=True)  # first: without it, no frame counts as done
        for kind in ("depth", "labels"):
            (folder / f"{kind}.txt").unlink(missing_ok=True)
            if (folder / kind).is_dir():
                shutil.rmtree(folder / kind)
    except OSError as error:
        raise MachineError(f"cannot remove earlier predictions in {folder}: {reason(error)}") from None


def _open(bundle: Bundle, options: BackendOptions) -> Runtime:
    return Runtime.load(
        bundle.path,
        threads=options.threads,
        device=options.device,
        plugins=options.plugins,
        allow_engine_code=options.allow_engine_code,
    )


def _predict(runtime: Runtime, frame: SourceFrame, moment: Moment, folder: Path, journal: Journal) -> str | None:
    """Predict one frame and write its files; return why it has no result."""

    def write(_: SourceFrame, prediction: Prediction) -> None:
        _write(folder, moment, prediction, runtime.manifest.classes)

    outcome = predict_item(runtime, frame, [write])
    if outcome.status != "done":
        return outcome.reason
    journal.once(time_name(moment.timestamp), lambda: outcome.timings)
    return None


def _write(folder: Path, moment: Moment, prediction: Prediction, classes: Classes) -> None:
    assert prediction.depth is not None
    write_bytes(_file(folder, "depth", moment), encode_png(encode_depth(prediction.depth)))
    if prediction.semantics is not None:
        write_bytes(_file(folder, "labels", moment), encode_png(stored_labels(prediction.semantics, classes)))


def _write_lists(folder: Path, sequence: Sequence, moments: list[Moment], kinds: list[str]) -> None:
    """Write the lists of files, the poses that are known, and the intrinsics."""
    for kind in kinds:
        write_list(folder, kind, [moment.timestamp for moment in moments])
    write_poses(folder, ((moment.timestamp, moment.pose) for moment in moments))
    write_camera(folder, sequence.intrinsics, sequence.size)


def stored_labels(labels: NDArray[np.uint8], classes: Classes) -> NDArray[np.uint8]:
    """Return labels of a network as they are stored: 0 for `unknown`, and 1 for the first class after it."""
    return labels if has_unknown(classes) else (labels + np.uint8(1)).astype(np.uint8)


def _file(folder: Path, kind: str, moment: Moment) -> Path:
    return folder / kind / f"{time_name(moment.timestamp)}.png"


def _is_done(folder: Path, moment: Moment, journal: Journal, kinds: Iterable[str]) -> bool:
    return time_name(moment.timestamp) in journal and all(_file(folder, kind, moment).is_file() for kind in kinds)


def file_stat(files: Iterable[Path]) -> list[int]:
    """Return sizes and modification times of files; -1 for a missing one."""
    found: list[int] = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            found.append(-1)
            continue
        found += [stat.st_size, stat.st_mtime_ns]
    return found


def _ignore(*_: object) -> None:
    """Do nothing."""
