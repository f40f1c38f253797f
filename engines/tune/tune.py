"""Find the fastest engine on this machine that passes the accuracy gates, by building and measuring every one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from engines.build import build_bundle
from engines.precision.lowering import Lowering
from engines.precision.quantization import QuantPolicy
from engines.registry import options_of
from engines.speed import measure_speed
from engines.tune.candidates import Candidate, candidates_here, thread_counts
from engines.tune.frames import Counts, TuneFrames, divide
from engines.tune.policy import OutOfTime, PolicySearch
from engines.tune.result import Row, TuneResult
from m2h_deploy.backends.driver import capability_here, missing_gpu
from m2h_deploy.bundle.folder import MANIFEST, check_bundle_place, load_bundle, new_bundle_folder, write_manifest
from m2h_deploy.causes import MachineError
from m2h_deploy.errors import M2HError, MissingExtra
from m2h_deploy.files.atomic import make_folder, printable, write_text
from m2h_deploy.files.journal import Journal
from m2h_deploy.onnx_graph.files import onnx_sha256, read_onnx
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import check_interface, dims_of
from m2h_deploy.onnx_graph.precision import read_precision
from m2h_deploy.parity import Gates, LocalExecutor, to_json, verify
from m2h_deploy.parity.executor import Memory
from m2h_deploy.profiling.machine import describe_machine
from m2h_deploy.version import __version__, installed_version

Progress = Callable[[str, float], None]

#: The name of a float32 engine and its number of threads.
Baseline = tuple[str, int | None]

#: The obstacle of a candidate that the budget left no time for.
LATE = "the budget was used up"

#: Share of the remaining budget that the search for a policy may take.
_SEARCH_SHARE = 0.5


@dataclass(frozen=True)
class TuneSettings:
    """Options of a tuning run: engines, frames, gates and time."""

    engines: tuple[str, ...] | None = None
    """Engine kinds; None: all that run here."""
    counts: Counts = field(default_factory=Counts)
    seed: int = 0
    """Seed of the choice of frames."""
    gates: Gates = field(default_factory=Gates)
    budget_minutes: float | None = None
    """No step begins after this time; the best of what was measured wins."""

    def __post_init__(self) -> None:
        if self.budget_minutes is not None and not 0 < self.budget_minutes < float("inf"):
            raise M2HError(f"budget {self.budget_minutes:g} minutes: must be above 0")


def work_folder(out: Path) -> Path:
    """Return the folder beside the winner's bundle that keeps what was measured."""
    return out.with_name(f"{out.name}.tune")


def tune(
    onnx_path: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    settings: TuneSettings | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> TuneResult:
    """Build the float32 graph of `onnx_path` in every way that this machine runs, and put the best into `out_dir`.

    The best is the fastest that passes its self-test and every gate of `verify` on frames that calibration did not see.
    Without labels the reference is the truth. What was measured is kept in the folder `OUT.tune` beside the bundle: a
    run that was killed is resumed, if graph, data, settings, versions and processor are the same.

    Args:
        onnx_path: The float32 ONNX file of m2h-deploy export.
        data: A data set (with splits: calibrated on train, judged on val) or a folder of pictures.
        out_dir: Folder of the winner's bundle.
        settings: What to try, and the gates.
        progress: Called with the current step and the share of it that is done.
        say: Called with a line about each candidate that is done.

    Returns:
        The table. If no candidate passes the gates, its `winner` is None and there is no bundle.

    Raises:
        M2HError: The graph or the data cannot be used.
    """
    run = _Tuning(Path(onnx_path), Path(data), Path(out_dir), settings or TuneSettings(), progress, say)
    return run.run()


class _Tuning:
    """One tuning run."""

    def __init__(
        self,
        source: Path,
        data: Path,
        out: Path,
        settings: TuneSettings,
        progress: Progress | None,
        say: Callable[[str], None] | None,
    ) -> None:
        self.source, self.out, self.settings = source, out, settings
        self.tell: Progress = progress or (lambda what, share: None)
        self.say = say or (lambda line: None)
        self.start = time.monotonic()
        self.info, self.graph = _read(source)
        check_bundle_place(out, source)
        self.candidates, self.skipped = candidates_here(settings.engines)
        self.frames: TuneFrames = divide(data, settings.counts, settings.seed)
        self.work = make_folder(work_folder(out))
        self.machine = describe_machine()
        self.digest = self._digest()
        self.journal = Journal(self.work / "journal.jsonl", self.digest)
        self.memory = Memory(make_folder(self._folder("reference")))
        self.search = PolicySearch(self.graph, self.info, self.frames, settings.gates, self.journal, settings.seed)
        self.rows: dict[str, Row] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.search.check_frames()

    def run(self) -> TuneResult:
        """Measure the candidates, and put the winner in place."""
        waiting = list(self.candidates)
        baseline = self._baseline([candidate for candidate in waiting if candidate.precision == "fp32"])
        while waiting:
            candidate = waiting.pop(0)
            if self._late():
                self._add(Row(candidate.name, candidate.engine, candidate.precision, obstacle=LATE))
                continue
            row = self._measure(candidate, baseline)
            self._add(row)
            waiting = [*self._variants(candidate, row), *waiting]
        result = self._result(baseline)
        self._publish(result)
        return result

    def _baseline(self, floats: list[Candidate]) -> Baseline:
        """Build the float32 engines, and return the fastest with its number of threads: the others' baseline."""
        built = [candidate for candidate in floats if self._build(candidate) is None]
        if not built:
            reasons = "; ".join(f"{candidate.name}: {self._build(candidate)}" for candidate in floats)
            raise M2HError(f"no float32 engine works here: {reasons}")
        ways = [(candidate.name, count) for candidate in built for count in thread_counts(candidate.engine)]

        def measure() -> Baseline:
            first, *others = [(self._folder(name), count) for name, count in ways]
            speeds = measure_speed(first, others, progress=lambda share: self.tell("finding the baseline", share))
            ratios = [speed.times_as_fast.value for speed in (speeds[0], *speeds[1])]
            return ways[ratios.index(max(ratios))]

        name, count = self.journal.once("baseline", measure)
        return str(name), count

    def _measure(self, candidate: Candidate, baseline: Baseline) -> Row:
        row = Row(candidate.name, candidate.engine, candidate.precision)
        obstacle = self._build(candidate)
        if obstacle is not None:
            return replace(row, obstacle=obstacle)
        if candidate.precision == "int8":
            self._policy(candidate)  # its record, where an earlier run built the engine
        folder = self._folder(candidate.name)
        manifest = load_bundle(folder).manifest
        row = replace(row, megabytes=sum((folder / name).stat().st_size for name in manifest.files) / 1e6)
        try:
            speeds = self._step(f"speed {candidate.name}", lambda: self._speeds(candidate, folder, baseline))
            row = replace(row, speeds=tuple(speeds))
            parity = self._step(f"gates {candidate.name}", lambda: self._gates(candidate, folder))
        except M2HError as error:
            return replace(row, obstacle=str(error))
        return replace(row, parity=parity)

    def _step(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return a measurement of the journal, or make it. Raises M2HError if the budget is used up."""
        if key not in self.journal and self._late():
            raise M2HError(LATE)
        return self.journal.once(key, measure)

    def _build(self, candidate: Candidate) -> str | None:
        """Build a candidate unless an earlier run did; return why it cannot be built, None if it is there."""
        folder, key = self._folder(candidate.name), f"build {candidate.name}"
        if key in self.journal and self.journal.once(key, lambda: None) is None and not (folder / MANIFEST).is_file():
            raise M2HError(f"{folder} is gone: remove {self.work} to start again")

        def build() -> str | None:
            self.tell(f"building {candidate.name}", 0.0)
            try:
                bundle = build_bundle(
                    self.source,
                    folder,
                    engine=candidate.engine,
                    precision=candidate.precision,
                    options=options_of(candidate.engine, candidate.options),
                    lowering=self._lowering(candidate),
                )
            except (MissingExtra, MachineError):
                raise
            except M2HError as error:
                return str(error)
            test = bundle.manifest.self_test
            return None if test is not None and test.measured else "its self-test did not run on this machine"

        try:
            found = self.journal.once(key, build)
        except OutOfTime:
            return LATE
        except (MissingExtra, MachineError) as error:  # the next run may find it mended
            return str(error)
        return None if found is None else str(found)

    def _lowering(self, candidate: Candidate) -> Lowering:
        if candidate.precision == "fp32":
            return Lowering()
        if candidate.precision == "fp16":
            return Lowering(frames=self.frames.calibration)
        return Lowering(
            frames=self.frames.calibration,
            count=self.frames.count - self.frames.held_out,
            held_out=self.frames.held_out,
            seed=self.settings.seed,
            policy=self._policy(candidate) if candidate.precision == "int8" else None,
        )

    def _policy(self, candidate: Candidate) -> QuantPolicy:
        """Search a policy, or return that of an earlier run. Raises OutOfTime if the budget does not allow it."""
        symmetric = candidate.tool == "modelopt"
        activations = "int8" if symmetric else "uint8"

        def search() -> dict[str, Any]:
            left = self._left()
            deadline = None if left is None else time.monotonic() + _SEARCH_SHARE * left
            return self.search.find(symmetric=symmetric, deadline=deadline, progress=self.tell).to_json()

        found = self.journal.once(f"search {activations}", search)
        self.found[activations] = found
        write_text(self.work / f"policy-{activations}.json", json.dumps(found["policy"], indent=2))
        return QuantPolicy(quantize=tuple(found["policy"]["quantize"]), keep=())

    def _speeds(self, candidate: Candidate, folder: Path, baseline: Baseline) -> list[dict[str, Any]]:
        what = f"timing {candidate.name}"
        others = [(folder, count) for count in thread_counts(candidate.engine)]
        first = self._folder(baseline[0]), baseline[1]
        _, speeds = measure_speed(first, others, progress=lambda share: self.tell(what, share))
        return [speed.to_json() for speed in speeds]

    def _gates(self, candidate: Candidate, folder: Path) -> dict[str, Any]:
        result = verify(
            folder,
            self.source,
            self.frames.check,
            executor=LocalExecutor(memory=self.memory),
            progress=lambda done, total: self.tell(f"judging {candidate.name}", done / total),
            gates=self.settings.gates,
            pictures=0,
        )
        return to_json(result)

    def _variants(self, candidate: Candidate, row: Row) -> list[Candidate]:
        """Return what to try where OpenVINO in bfloat16 fails: the heads of the failed tasks in float32."""
        failed = row.failed_tasks
        if candidate.options.get("hint") != "bf16" or "float32" in candidate.options or not failed:
            return []
        heads = tuple(f"heads.{task}" for task in failed)
        note = "-".join([candidate.note, *failed, "f32"])
        return [replace(candidate, options={**candidate.options, "float32": heads}, note=note)]

    def _add(self, row: Row) -> None:
        self.rows[row.name] = row
        self.say(row.summary)

    def _result(self, baseline: Baseline) -> TuneResult:
        return TuneResult(
            tool=f"m2h-deploy {__version__}",
            graph=self.source.name,
            data=self.frames.calibration.source,
            frames=len(self.frames.check),
            seed=self.settings.seed,
            processor=self.machine.cpu,
            packages=self.machine.packages,
            minutes=(time.monotonic() - self.start) / 60,
            baseline=baseline[0] + (f" with {baseline[1]} thread{'s' * (baseline[1] > 1)}" if baseline[1] else ""),
            rows=tuple(self.rows.values()),
            skipped=tuple(asdict(entry) for entry in self.skipped),
            searches=self.found,
        )

    def _publish(self, result: TuneResult) -> None:
        """Write the table and the page, then copy the winner's bundle into place with the table in its manifest."""
        write_text(self.work / "tune.json", json.dumps(result.to_json(), indent=2))
        page = self.work / "index.html"
        page.unlink(missing_ok=True)
        with contextlib.suppress(MissingExtra):  # without jinja2 or matplotlib there is no page
            from engines.tune.page import write_page

            write_page(result, page)
        winner = result.winner
        if winner is None:
            return
        bundle = load_bundle(self._folder(winner.name))
        manifest = bundle.manifest
        engine = manifest.engine
        if winner.threads is not None:
            engine = engine.model_copy(update={"options": {**engine.options, "threads": winner.threads}})
        parity = {**(winner.parity or {}), "bundle": printable(self.out.name)}
        updates = {"engine": engine, "parity": parity, "tuning": result.to_json()}
        with new_bundle_folder(self.out) as folder:
            for name in manifest.files:
                shutil.copyfile(bundle.path / name, folder / name)
            write_manifest(folder, manifest.model_copy(update=updates))

    def _folder(self, name: str) -> Path:
        return self.work / f"{name}-{self.digest[:8]}"

    def _left(self) -> float | None:
        """Return the seconds that are left of the budget; None without one."""
        budget = self.settings.budget_minutes
        return None if budget is None else 60 * budget - (time.monotonic() - self.start)

    def _late(self) -> bool:
        left = self._left()
        return left is not None and left <= 0

    def _digest(self) -> str:
        """Return a digest of everything that a measured value depends on."""
        settings = {key: value for key, value in asdict(self.settings).items() if key != "budget_minutes"}
        pixels = hashlib.sha256()
        for frame in (*self.frames.search, *self.frames.check):
            for array in (frame.image, frame.depth, frame.semantics, frame.normals, frame.edges):
                pixels.update(b"-" if array is None else array.tobytes())
        for image in self.frames.calibration.read():
            pixels.update(image.tobytes())
        parts = [
            __version__,
            onnx_sha256(self.source),
            settings,
            pixels.hexdigest(),
            self.machine.cpu,
            self.machine.affinity,
            self.machine.packages,
            str(missing_gpu() or capability_here()),
            [installed_version(name) for name in ("nncf", "nvidia-modelopt", "onnx", "scipy")],
        ]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _read(source: Path) -> tuple[GraphInfo, onnx.ModelProto]:
    proto = read_onnx(source)
    info = GraphInfo.read(proto, source)
    check_interface(proto, info, source)
    found = read_precision(proto, source)
    if found != "fp32":
        raise M2HError(f"{source} is {found} already: give the float32 file of m2h-deploy export")
    if info.sensor is not None:
        raise M2HError(f"{source} is a sensor graph: tune the file of the same export without it, then build it alike")
    batch = dims_of(proto.graph.input[0])[0]
    if batch > 1:
        raise M2HError(f"{source} takes {batch} frames at once: tune a file of the same export with a batch of 1")
    return info, proto
