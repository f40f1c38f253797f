"""The inference stage of a stream: frames go through the engine in order, and a stuck engine is replaced."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from m2h_deploy.backends.base import Pending
from m2h_deploy.data.frame import Pose
from m2h_deploy.errors import EngineTimeout, first_line
from m2h_deploy.runtime.postprocess import nonfinite_outputs
from m2h_deploy.runtime.runtime import Engine, Runtime
from m2h_deploy.stream.channel import Channel
from m2h_deploy.stream.health import HealthRecord
from m2h_deploy.stream.threads import Threads
from m2h_deploy.stream.watchdog import Watch

#: Number of times in a row that a stuck engine is replaced before the stream fails.
MAX_RESTARTS = 3


class _GivenUpError(Exception):
    """The watchdog has given up the frames of an engine."""


@dataclass(eq=False)
class Slot:
    """A frame in work, and the buffers that it uses."""

    tensor: NDArray[Any]
    outputs: dict[str, NDArray[Any]]
    first: dict[str, NDArray[Any]]
    id: int = 0
    timestamp: float = 0.0
    image: Any = None
    pose: Pose | None = None
    taken: float = 0.0
    """Time of the image as its source states it, or else `timestamp`."""
    preprocess: float = 0.0
    inference: float = 0.0
    """Seconds from the beginning of inference to its end."""
    pending: Pending | None = None

    def begin(self, engine: Engine) -> None:
        """Give the frame to the engine."""
        self.inference = -perf_counter()
        self.pending = engine.backend.begin(self.tensor, self.outputs)

    def wait_computed(self) -> None:
        """Wait until the engine has computed the frame."""
        if self.pending is not None:
            self.pending.wait_computed()

    def finish(self) -> None:
        """Wait for the outputs."""
        if self.pending is not None:
            self.pending.finish()
        self.inference += perf_counter()


@dataclass(frozen=True)
class Channels:
    """The queues that slots pass through."""

    inbox: Channel[Slot]
    done: Channel[Slot]
    free: Channel[Slot]


class Inference:
    """Give the frames of `channels.inbox` to the engine, and pass them on to `channels.done` with their outputs.

    An engine that works on several frames at a time gets the next one before the last is finished: at once, or with
    `latest` when the last is computed and only its outputs are on their way, so that the next frame is a new one.
    """

    def __init__(
        self,
        runtime: Runtime,
        channels: Channels,
        threads: Threads,
        record: HealthRecord,
        *,
        timeout: float,
        latest: bool,
    ) -> None:
        self._runtime, self._channels, self._threads, self._record = runtime, channels, threads, record
        self._timeout, self._latest = timeout, latest
        self._watch: Watch[tuple[Slot, ...]] = Watch()
        self._restarts = 0

    def start(self) -> None:
        """Start the threads of this stage.

        An engine that works on several frames at a time first runs as many: it prepares each place the first time,
        which may take longer than a frame's timeout.
        """
        engine = self._runtime.engine
        with engine.lock:
            for _ in range(engine.backend.in_work if engine.backend.in_work > 1 else 0):
                slot = self.new_slot()
                slot.tensor[:] = 0
                engine.backend.begin(slot.tensor, slot.outputs).finish()
        self._threads.spawn("infer", lambda: self._infer(self._runtime.engine))
        self._threads.spawn("watch", self._watch_engine)

    def new_slot(self) -> Slot:
        """Allocate the buffers of a frame."""
        batch, backend = self._runtime.manifest.input.batch or 1, self._runtime.backend
        outputs = backend.new_outputs(batch)
        tensor = self._runtime.preprocess.new_tensor(batch, backend.new_array)
        return Slot(tensor, outputs, {name: value[0] for name, value in outputs.items()})

    def release(self, slot: Slot) -> None:
        """Let another frame use the buffers."""
        slot.image = slot.pending = None
        self._channels.free.put(slot)

    def pass_on(self, channel: Channel[Slot], slot: Slot) -> None:
        """Put a slot into a channel, and count the frame that makes room for it as dropped."""
        thrown = channel.put(slot)
        if thrown is not None and not self._threads.stop.is_set():
            self._record.count("dropped")
            self.release(thrown)

    def _infer(self, engine: Engine) -> None:
        work: deque[Slot] = deque()  # the frames that the engine has, the oldest first
        while True:
            done: list[tuple[Slot, str]] = []
            given_up = False
            try:
                if self._latest and work:
                    self._watched(engine, work, work[-1].wait_computed)
                slot = self._channels.inbox.get(wait=not work)
                if slot is None and not work:
                    break
                if (taken := self._take_turn(engine)) is None:
                    return
                try:
                    if taken is not engine:  # another stream of this runtime has replaced it
                        done += self._lose(work)
                    engine = taken
                    self._advance(engine, work, slot, done)
                finally:
                    taken.lock.release()
            except _GivenUpError:
                given_up = True
            # The lock is released: the next stage may wait for the caller, who may wait for the lock.
            for finished, problem in done:
                self._deliver(finished, problem)
            if given_up and not self._go_on(engine, work):
                return
        self._channels.done.end()

    def _go_on(self, engine: Engine, work: deque[Slot]) -> bool:
        """Return whether this thread continues after the watchdog has given up its frames: if the engine is kept."""
        if self._runtime.reopen is not None:  # another thread with another engine has taken over
            if engine is not self._runtime.engine:
                with engine.lock:
                    engine.backend.close()
            return False
        for _ in range(len(work)):
            self._channels.free.put(self.new_slot())
        work.clear()
        return True

    def _advance(self, engine: Engine, work: deque[Slot], slot: Slot | None, done: list[tuple[Slot, str]]) -> None:
        """Begin the frame of `slot`, if any, and finish the oldest one if the engine has no place for another.

        What leaves `work` is added to `done`, with what went wrong or "".
        """
        if slot is not None:
            work.append(slot)
            problem = self._watched(engine, work, partial(slot.begin, engine))
            if problem:
                done.append((work.pop(), problem))
        if work and (slot is None or len(work) >= engine.backend.in_work):
            problem = self._watched(engine, work, work[0].finish)
            self._restarts = 0
            done.append((work.popleft(), problem))

    def _watched(self, engine: Engine, work: deque[Slot], call: Callable[[], None]) -> str:
        """Call the engine under the watchdog; return what went wrong, "" if nothing.

        Raises:
            _GivenUpError: The watchdog has given up the frames in `work`, whose slots must not be used again.
        """
        turn = self._watch.begin(tuple(work), engine)
        problem = ""
        try:
            call()
        except Exception as error:  # engines raise exceptions of any type
            problem = first_line(error)
        if not self._watch.end(turn):
            raise _GivenUpError
        return problem

    def _deliver(self, slot: Slot, problem: str) -> None:
        bad = [] if problem else nonfinite_outputs(slot.first)
        if not problem and not bad:
            self.pass_on(self._channels.done, slot)
            return
        if problem:
            self._record.count("failed", f"frame {slot.id}: {problem}")
        else:
            self._record.count("nonfinite", f"frame {slot.id}: {', '.join(bad)} not finite")
        self.release(slot)

    def _lose(self, work: deque[Slot]) -> list[tuple[Slot, str]]:
        """Give up the frames of an engine that was replaced, which may still write to their slots."""
        lost = [(dataclasses.replace(self.new_slot(), id=slot.id), "the engine was replaced") for slot in work]
        work.clear()
        return lost

    def _take_turn(self, engine: Engine) -> Engine | None:
        """Lock the engine, or the one that has replaced it, once other callers have released it.

        Returns None if the stream ends before that.
        """
        while not self._threads.stop.is_set():
            if engine.lock.acquire(timeout=0.1):
                if engine is self._runtime.engine:
                    return engine
                engine.lock.release()
            engine = self._runtime.engine
        return None

    def _watch_engine(self) -> None:
        while not self._threads.stop.wait(min(self._timeout / 4, 0.25)):
            overdue = self._watch.overdue(self._timeout)
            if overdue is None:
                continue
            slots, engine, thread = overdue
            for slot in slots:
                self._record.count("stuck", f"frame {slot.id}: the engine did not return within {self._timeout:g} s")
            self._restarts += 1
            if self._runtime.reopen is None:
                continue  # the engine cannot be opened again: the stream continues when it returns
            if self._restarts > MAX_RESTARTS:
                raise EngineTimeout(f"the engine was stuck {self._restarts} times in a row and is not opened again")
            fresh = self._runtime.replace_engine(engine)
            self._threads.forget(thread)
            self._record.count("restarts")
            for _ in slots:
                self._channels.free.put(self.new_slot())
            self._threads.spawn("infer", partial(self._infer, fresh))
