"""Make maps of a sequence from the predictions of bundles, and compare them with the true surface and each other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle.folder import Bundle, check_outside, load_bundle
from m2h_deploy.bundle.manifest import Classes, Manifest
from m2h_deploy.data.classes import check_classes, has_unknown, palette
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.trajectory import jumps
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_folder, make_folder, printable, write_text
from m2h_deploy.files.journal import Journal
from m2h_deploy.files.names import is_file
from m2h_deploy.label_spaces.data import label_table
from m2h_deploy.mapping.compare import Difference, differences
from m2h_deploy.mapping.fuse import Fusion, Predicted, Source, TrueLabels, VolumeSettings
from m2h_deploy.mapping.judge import Truth, judge_variant
from m2h_deploy.mapping.mesh import read_mesh
from m2h_deploy.mapping.open3d import import_open3d
from m2h_deploy.mapping.pictures import KINDS, draw_pictures, picture_file
from m2h_deploy.mapping.plan import plan_map
from m2h_deploy.mapping.predictions import Progress, file_stat, predict_sequence
from m2h_deploy.mapping.result import MapResult, MapRow, MapScore
from m2h_deploy.mapping.variant import Variant
from m2h_deploy.temporal import FilterSettings
from m2h_deploy.version import __version__
from m2h_deploy.visualize.plots import check_matplotlib

Kind = Literal["raw", "filtered", "truth"]

#: Name of the row of the true labels.
TRUTH = "ground truth"

#: Share of the frames before which the filter drops the past, beyond which it hardly filters.
_MANY = 0.1

_JOURNAL, _PREDICTIONS, _PICTURES = "map.jsonl", "predictions", "pictures"


@dataclass(frozen=True)
class MapSettings:
    """Options of a map run."""

    raw: bool = True
    """Fuse the predictions as they are."""
    filtered: bool = True
    """Fuse the predictions of the temporal filter."""
    truth: bool = False
    """Also fuse the true depth and labels."""
    limit: int | None = None
    """Use only the first frames."""
    volume: VolumeSettings = field(default_factory=VolumeSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    """Its `dynamic_labels` are class indices of the data, without `unknown`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The variants of each bundle."""
        kinds: dict[Kind, bool] = {"raw": self.raw, "filtered": self.filtered}
        return tuple(kind for kind, wanted in kinds.items() if wanted)


@dataclass(frozen=True)
class _Task:
    """One row to fuse."""

    name: str
    stem: str
    """Beginning of the names of its files."""
    kind: Kind
    bundle: Path | None
    source: Source
    colors: NDArray[np.uint8]
    judge_labels: bool
    key: str
    """Digest of the predictions."""
    left_out: dict[str, str]
    """Frames that could not be predicted, by name, with the reason."""
    milliseconds: dict[str, float]
    """Mean time of the stages of the prediction."""
    table: NDArray[np.uint8] | None = None
    """The bundle's label of each label of the sequence; None if they are the same."""


def map_sequence(
    bundles: Iterable[str | os.PathLike[str]],
    sequence: Sequence,
    out: str | os.PathLike[str],
    settings: MapSettings | None = None,
    *,
    options: BackendOptions | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> MapResult:
    """Predict every frame of a sequence, fuse depth and labels into a map, and judge the map.

    Predictions and finished maps are kept in `out`: a run that was stopped is resumed, and other settings fuse the same
    predictions again.

    Args:
        bundles: Bundles with depth; the first is what the others are compared with.
        sequence: Frames with poses, see `open_sequence`.
        out: Folder of the results: map.json, map.html, a mesh (PLY) for each row, and the predictions.
        settings: What to fuse, and how.
        options: How to open the engines.
        progress: Called with a stage, and the numbers of finished frames and of all frames.
        say: Called with a line about each problem.

    Returns:
        The figures. Without a true surface and true depth there are maps, and no figures of accuracy.

    Raises:
        M2HError: The sequence, a bundle or the folder cannot be used.
    """
    run = _MapRun([Path(bundle) for bundle in bundles], sequence, Path(out), settings or MapSettings())
    return run.run(options or BackendOptions(), progress or (lambda *_: None), say or (lambda _: None))


class _MapRun:
    """One run of `map_sequence`."""

    def __init__(self, bundles: list[Path], sequence: Sequence, out: Path, settings: MapSettings) -> None:
        self.settings, self.sequence, self.out = settings, sequence, out
        if not settings.truth and not bundles:
            raise M2HError("nothing to map: give a bundle, or --truth for the true depth")
        if settings.truth and "depth" not in sequence.label_readers:
            raise M2HError(f"{sequence.folder} has no depth, which --truth needs")
        if bundles and not settings.kinds:
            raise M2HError("nothing to map: fuse the predictions raw, filtered or both")
        import_open3d()
        check_matplotlib("a map", "map")
        # What cannot be used is refused before the predictions are made.
        settings.volume.volume(1)
        if sequence.surface is not None:
            read_mesh(sequence.surface)
        self.plan = plan_map(sequence, jumps(sequence), settings.limit)
        self.bundles = [load_bundle(bundle) for bundle in bundles]
        for bundle in self.bundles:
            if "depth" not in bundle.manifest.tasks:
                raise M2HError(f"{bundle.path} does not predict depth: a map needs it")
        _check_place(out, sequence, bundles)
        self.names = unique_names(bundles)
        self.inputs = self._digest()
        self.problems = list(self.plan.problems)

    def run(self, options: BackendOptions, progress: Progress, say: Callable[[str], None]) -> MapResult:
        """Predict, fuse, judge, and write the results."""
        self.progress, self.say = progress, say
        for problem in self.problems:
            say(problem)
        make_folder(self.out / _PICTURES)
        self.journal = Journal(self.out / _JOURNAL, __version__)
        if not self.journal.path.is_file():
            write_text(self.journal.path, "")  # marks the folder as that of a map run
        self.truth = Truth(self.plan, self.settings.volume, partial(progress, "observing the true surface"))
        tasks = [task for name, bundle in zip(self.names, self.bundles, strict=True)
                 for task in self._tasks(name, bundle, options)]  # fmt: skip
        if self.settings.truth:
            tasks.append(self._truth_task())
        variants = {task.name: self._variant(task) for task in tasks}
        surface = self.journal.once(f"surface {self.inputs}", lambda: self.truth.words)
        if surface is None:
            self._report("no true surface and no true depth: the maps are made, and figures of accuracy are left out")
        elif not self.journal.once(f"observed {self.inputs}", lambda: self.truth.observed):
            without_depth = "depth" not in self.sequence.label_readers
            why = "there is no true depth to tell" if without_depth else "is it in the coordinates of the poses?"
            self._report(f"what the frames show of {surface} is unknown or nothing, and not measured: {why}")
        for name, variant in variants.items():
            if not variant.triangles:
                self._report(
                    f"{name}: the map is empty: is depth within --near and --far, and are the poses in meters?"
                )
            if variant.unread:
                first = next(iter(variant.unread.values()))
                self._report(
                    f"{name}: {len(variant.unread)} of {len(self.plan.posed)} frames cannot be read; the first: {first}"
                )
            if "se3" in variant.maps and "sim3" not in variant.maps:
                self._report(f"{name}: Sim(3) is left out: no plausible scale fits")
            dropped = sum(variant.resets.values())
            if dropped > _MANY * variant.frames:
                reasons = ", ".join(f"{reason} {count}" for reason, count in variant.resets.items())
                self._report(
                    f"{name}: the filter dropped the past before {dropped} of {variant.frames} frames: {reasons}"
                )
        result = self._result(tasks, variants, surface)
        write_text(self.out / "map.json", json.dumps(result.to_json(), indent=2))
        return result

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        self.say(problem)

    def _tasks(self, name: str, bundle: Bundle, options: BackendOptions) -> list[_Task]:
        """Predict the sequence with one bundle, and return its rows."""
        predictions = predict_sequence(
            bundle,
            self.sequence,
            self.out / _PREDICTIONS / name,
            limit=self.settings.limit,
            options=options,
            progress=self.progress,
            say=self.say,
        )
        for what, lost in (("cannot be read", predictions.unread), ("have no result", predictions.failed)):
            if lost:
                share = f"{len(lost)} of {len(self.plan.moments)} frames {what}"
                self._report(f"{name}: {share}; the first: {next(iter(lost.values()))}")
        if not predictions.has_labels:
            self._report(f"{name} does not predict semantics: its map has no labels")
        classes = bundle.manifest.classes
        count = len(classes.names) - has_unknown(classes)
        fits, table = self._fit(name, bundle.manifest)
        return [
            _Task(
                name=name if kind == "raw" else f"{name} {kind}",
                stem=name if kind == "raw" else f"{name}.{kind}",
                kind=kind,
                bundle=bundle.path,
                source=Predicted(predictions, count),
                colors=_colors(classes),
                judge_labels=predictions.has_labels and fits,
                table=table,
                key=_digest([predictions.identity, *predictions.files(self.plan.posed)]),
                left_out=predictions.unread | predictions.failed,
                milliseconds={
                    key.removesuffix("_ms"): value for key, value in predictions.timings.items() if key.endswith("_ms")
                },
            )
            for kind in self.settings.kinds
        ]

    def _fit(self, name: str, manifest: Manifest) -> tuple[bool, NDArray[np.uint8] | None]:
        """Return whether the labels of the sequence can judge those of a bundle, and their table; report why not."""
        names = self.sequence.class_names
        if not names:
            return False, None
        try:
            table = label_table(names, manifest.classes, manifest.label_map)
            if table is None:
                check_classes(names, manifest.classes)
        except M2HError as error:
            self._report(f"{name}: the figures of labels are left out: {error}")
            return False, None
        return True, table

    def _truth_task(self) -> _Task:
        count = len(self.sequence.class_names)
        fitting = (_colors(bundle.manifest.classes) for bundle in self.bundles)
        colors = next((found for found in fitting if len(found) == count), palette(count))
        source = TrueLabels(self.sequence)
        return _Task(TRUTH, "ground-truth", "truth", None, source, colors, count > 0, "truth", {}, {})

    def _variant(self, task: _Task) -> Variant:
        """Return a row from the journal, or fuse and judge it."""
        filtering = asdict(self.settings.filter) if task.kind == "filtered" else None
        key = _digest([self.inputs, task.key, task.colors.tolist(), filtering])
        record = self.journal.get(task.stem)
        if record is None or record["key"] != key or not is_file(self.out / f"{task.stem}.ply"):
            # Forgotten before its files change: the mesh and the pictures are always those of the journal's row.
            self.journal.forget(task.stem)
            record = self.journal.once(task.stem, lambda: {"key": key, "variant": self._fuse(task).to_json()})
        return Variant.from_json(record["variant"])

    def _fuse(self, task: _Task) -> Variant:
        filtering = self.settings.filter if task.kind == "filtered" else None
        fusion = Fusion(self.plan, task.source, self.settings.volume, judge_labels=task.judge_labels, table=task.table)
        fused = fusion.run(filtering, partial(self.progress, f"fusing {task.name}"), scale=task.kind != "truth")
        variant = judge_variant(fused, self.truth, judge_labels=task.judge_labels, table=task.table)
        fused.mesh.write(self.out / f"{task.stem}.ply", task.colors)
        poses = [moment.pose for moment in self.plan.posed if moment.pose is not None]
        draw_pictures(fused, self.truth.surface, poses, task.colors, self.out / _PICTURES, task.stem)
        return variant

    def _result(self, tasks: list[_Task], variants: dict[str, Variant], surface: str | None) -> MapResult:
        pictures = {
            task.name: {
                kind: picture_file(Path(_PICTURES), task.stem, kind).as_posix()
                for kind in KINDS
                if is_file(picture_file(self.out / _PICTURES, task.stem, kind))
            }
            for task in tasks
        }
        return MapResult(
            tool=f"m2h-deploy {__version__}",
            sequence=printable(self.sequence.folder.resolve().name),
            frames=len(self.plan.moments),
            posed=len(self.plan.posed),
            settings={"volume": asdict(self.settings.volume), "filter": asdict(self.settings.filter)},
            surface=surface,
            rows=tuple(_row(task, variants[task.name]) for task in tasks),
            differences=_pairs(tasks, variants),
            problems=tuple(self.problems),
            pictures=pictures,
        )

    def _digest(self) -> str:
        """Return a digest of everything but the predictions that a row depends on."""
        sequence, settings = self.sequence, asdict(self.settings)
        for what in ("raw", "filtered", "truth", "filter"):  # the choice of rows; and what only some of them use
            del settings[what]
        parts: list[Any] = [__version__, settings, asdict(sequence.intrinsics), sequence.class_names]
        parts += [
            (moment.name, moment.timestamp, _pose(moment), file_stat(moment.files)) for moment in self.plan.moments
        ]
        parts.append(None if sequence.surface is None else [str(sequence.surface), *file_stat([sequence.surface])])
        return _digest(parts)


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _pose(moment: Moment) -> list[list[float]] | None:
    return None if moment.pose is None else moment.pose.tolist()


def _colors(classes: Classes) -> NDArray[np.uint8]:
    """Return the colors of the classes without `unknown`, uint8 (C, 3) RGB."""
    return np.array(classes.palette[has_unknown(classes) :], np.uint8).reshape(-1, 3)


def unique_names(bundles: Iterable[Path]) -> list[str]:
    """Name bundles by their folders; a name that occurs again gets a number."""
    names: list[str] = []
    taken = {TRUTH, "ground-truth"}
    for bundle in bundles:
        first = name = printable(bundle.resolve().name) or "bundle"
        number = 1
        while {name, f"{name}.filtered", f"{name} filtered"} & taken:
            number += 1
            name = f"{first}-{number}"
        taken |= {name, f"{name}.filtered", f"{name} filtered"}
        names.append(name)
    return names


def _check_place(out: Path, sequence: Sequence, bundles: Iterable[Path]) -> None:
    """Raise M2HError if the results must not or cannot be written to `out`."""
    for bundle in bundles:
        check_outside(bundle, out)
    if out.resolve() == sequence.folder.resolve():
        raise M2HError(f"{out} is the sequence itself: results could overwrite its files; give another --output")
    check_folder(out)
    if out.is_dir() and any(out.iterdir()) and not is_file(out / _JOURNAL):
        raise M2HError(f"{out} exists, and m2h-deploy map did not write it: give another --output")


def _row(task: _Task, variant: Variant) -> MapRow:
    stages = task.milliseconds | {name: 1000 * seconds for name, seconds in variant.seconds.items()}
    filtering = stages.get("filter", 0.0)
    return MapRow(
        name=task.name,
        bundle=None if task.bundle is None else printable(str(task.bundle)),
        kind=task.kind,
        frames=variant.frames,
        triangles=variant.triangles,
        file=f"{task.stem}.ply",
        maps=tuple(
            MapScore(name, judged.figures, judged.scale, judged.translation, judged.rotation)
            for name, judged in variant.maps.items()
        ),
        figures=variant.frame_figures(),
        rates={name: 1000 / value for name, value in stages.items() if value > 0},
        left_out=task.left_out | variant.unread,
        frame_age=sum(task.milliseconds.values()) + filtering if task.milliseconds else None,
    )


def _pairs(tasks: list[_Task], variants: dict[str, Variant]) -> tuple[Difference, ...]:
    """Compare each bundle with the first of the same kind, and each filtered row with the raw one of its bundle."""
    found: list[Difference] = []
    first: dict[Kind, str] = {}
    for task in tasks:
        if task.kind == "truth":
            continue
        others = [first[task.kind]] if task.kind in first else []
        raw = task.name.removesuffix(f" {task.kind}")
        if task.kind == "filtered" and raw in variants:
            others.append(raw)
        first.setdefault(task.kind, task.name)
        for other in others:
            found += differences(task.name, variants[task.name], other, variants[other])
    return tuple(found)
