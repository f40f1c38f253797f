"""Stream: frames of a camera or a file in, predictions out, with reading, inference and postprocessing overlapped."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.choices import QueuePolicy, check_choice
from m2h_deploy.errors import EngineTimeout, M2HError, first_line
from m2h_deploy.runtime.postprocess import Prediction, Resolution, nonfinite_outputs, postprocess_for
from m2h_deploy.runtime.preprocess import preprocess_for
from m2h_deploy.runtime.runtime import Engine, Runtime, with_timings
from m2h_deploy.sources.source import Skipped, Source, SourceFrame, open_source
from m2h_deploy.stream.channel import Channel
from m2h_deploy.stream.health import Health, HealthRecord
from m2h_deploy.stream.watchdog import Watch

#: Number of times in a row that a stuck engine is replaced before the stream fails.
MAX_RESTARTS = 3

#: First and longest pause between two attempts to open a source, in seconds.
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 8.0

#: Capacity of the first and the last queue with the policy `queue`, in frames.
QUEUE_DEPTH = 4

#: Seconds that `close` waits for all threads together.
_PATIENCE = 1.5


class StreamFrame(NamedTuple):
    """One frame and its prediction."""

    id: int
    """Number of the frame in the source, from 0. Numbers of dropped and failed frames are skipped."""
    timestamp: float
    """`time.monotonic()` when the frame was read, in seconds."""
    image: NDArray[np.uint8]
    """uint8 (H, W, 3)."""
    prediction: Prediction


@dataclass(eq=False)
class _Slot:
    """A frame in work, and the buffers that it uses."""

    tensor: NDArray[Any]
    outputs: dict[str, NDArray[Any]]
    first: dict[str, NDArray[Any]]
    id: int = 0
    timestamp: float = 0.0
    image: Any = None
    preprocess: float = 0.0
    inference: float = 0.0


class Stream:
    """Predictions on a source, in the order of its frames.

    ```
    stream = Stream(runtime, 0)                       # camera index, video, folder, image, rtsp://...
    for id, timestamp, image, prediction in stream:   # ends with the source, Ctrl-C or `break`
        ...
    stream.health                                     # counters of the outcomes
    ```

    Three threads overlap: reading with preprocessing, inference, postprocessing. `policy="latest"`, for a robot,
    predicts the newest frame and drops older ones. `policy="queue"`, for a file, predicts every frame and pauses the
    source while a few frames are in work. The default is `latest` for live sources and `queue` for files.

    A frame is lost if it cannot be read, or if the engine raises, outputs NaN or infinity, or does not return within
    `timeout` seconds. The loss is counted in `health` and reported to `on_problem`, and the stream continues. A stuck
    engine is replaced by a new one, at most three times in a row. A live source that ends is opened again after half a
    second, then after twice as long and so on up to 8 s.

    A stream runs once. Iterate in one thread; `health` and `close` may be used from any thread. Other callers may use
    the runtime meanwhile: they take turns with the stream.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: Source | str | int | os.PathLike[str],
        *,
        policy: QueuePolicy | None = None,
        resolution: Resolution = "image",
        reuse: bool = False,
        timeout: float = 10.0,
        reconnect: int | None = 10,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        """Open the source.

        Args:
            runtime: the runtime that predicts.
            source: a camera's index, the path of an image, folder or video, a URL, or a `Source`.
            policy: `latest` or `queue`; None to choose by the source.
            resolution: size of the predictions: `image` for the image's, `network` for the network's own.
            reuse: reuse the arrays of a prediction once the next one is requested, so that the steady state allocates
                only the source's images. Otherwise the caller may keep predictions.
            timeout: seconds after which an engine counts as stuck.
            reconnect: attempts in a row to open a live source again before the iteration raises; None for no limit.
            on_problem: called with the text of each problem, from any thread.

        Raises:
            M2HError: the source cannot be opened, or a value is out of range.
        """
        self._source = source if isinstance(source, Source) else open_source(source)
        self.policy: QueuePolicy = policy or ("latest" if self._source.live else "queue")
        check_choice("policy", self.policy, QueuePolicy)
        if not timeout > 0:
            raise M2HError(f"stream: timeout {timeout}: must be above 0")
        self._runtime, self._resolution, self._reuse = runtime, resolution, reuse
        self._timeout, self._reconnect = timeout, reconnect
        runtime.result_size(np.empty((1, 1, 3), np.uint8), resolution)  # raises on an unknown resolution
        self._record = HealthRecord(on_problem)
        latest = self.policy == "latest"
        depth = 1 if latest else QUEUE_DEPTH
        self._inbox: Channel[_Slot] = Channel(depth, replace=latest)
        self._between: Channel[_Slot] = Channel(1, replace=latest)
        self._results: Channel[StreamFrame] = Channel(depth, replace=latest)
        self._free: Channel[_Slot] = Channel(1 << 20)
        # One slot per thread, and as many as the channels hold.
        for _ in range(4 + depth):
            self._free.put(self._new_slot())
        self._spare: deque[Prediction] = deque()
        self._stop = threading.Event()
        self._failure: M2HError | None = None
        self._watch: Watch[_Slot] = Watch()
        self._restarts = 0
        self._threads: list[threading.Thread] = []

    @property
    def health(self) -> Health:
        """Current counters."""
        return self._record.snapshot()

    def __iter__(self) -> Iterator[StreamFrame]:
        """Start the threads and yield the predictions.

        Raises:
            M2HError: the source or the engine failed permanently, or the stream ran before.
        """
        if self._threads or self._stop.is_set():
            raise M2HError("a stream runs once: make another one")
        try:
            self._start()
            while (frame := self._results.get()) is not None:
                self._record.count("delivered")
                yield frame
                if self._reuse:
                    self._spare.append(frame.prediction)
            if self._failure is not None:
                raise self._failure
        finally:
            self.close()

    def close(self) -> None:
        """Stop all threads, and count the frames in work as canceled. Idempotent.

        Returns within two seconds even if the source or the engine is stuck; their threads then end on their own.
        """
        self._stop.set()
        for channel in (self._inbox, self._between, self._results, self._free):
            channel.end(discard=True)
        deadline = monotonic() + _PATIENCE
        for thread in tuple(self._threads):
            # Ctrl-C can come before the last thread has started.
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, deadline - monotonic()))
        self._record.settle()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_slot(self) -> _Slot:
        batch = self._runtime.manifest.input.batch or 1
        outputs = self._runtime.backend.new_outputs(batch)
        tensor = self._runtime.preprocess.new_tensor(batch)
        return _Slot(tensor, outputs, {name: value[0] for name, value in outputs.items()})

    def _start(self) -> None:
        self._spawn("read", self._read)
        self._spawn("infer", lambda: self._infer(self._runtime.engine))
        self._spawn("postprocess", self._postprocess)
        self._spawn("watch", self._watch_engine)

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # a thread must not end silently
                self._give_up(
                    error if isinstance(error, M2HError) else M2HError(f"stream, {name}: {first_line(error)}")
                )

        thread = threading.Thread(target=guarded, name=f"m2h-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _give_up(self, error: M2HError) -> None:
        """End the stream with `error`; predictions that are finished are still delivered."""
        if self._failure is None:
            self._failure = error
        self._stop.set()
        for channel in (self._inbox, self._between, self._free):
            channel.end(discard=True)
        self._results.end()

    # Reading

    def _read(self) -> None:
        preprocess = preprocess_for(self._runtime.manifest.input, self._runtime.color)
        attempts = 0
        while True:
            before = self.health.read
            problem = self._read_to_the_end(preprocess)
            if self._stop.is_set():
                return
            if not self._source.live:
                if problem is not None:
                    self._failure = problem
                self._inbox.end()
                return
            attempts = 1 if self.health.read > before else attempts + 1
            if self._reconnect is not None and attempts > self._reconnect:
                self._failure = M2HError(f"the source died and did not come back after {self._reconnect} tries")
                self._inbox.end()
                return
            self._record.report(str(problem or "the source ended: opening it again"))
            if self._stop.wait(min(FIRST_BACKOFF * 2 ** (attempts - 1), MAX_BACKOFF)):
                return

    def _read_to_the_end(self, preprocess: Callable[..., Any]) -> M2HError | None:
        """Read frames until the source ends; return its error, if any."""
        first = self.health.read > 0  # the first frame after an end counts as a reconnect
        try:
            for item in self._source.read():
                if self._stop.is_set():
                    return None
                if isinstance(item, Skipped):
                    self._record.report(item.reason)
                elif isinstance(item, M2HError):
                    if self._source.live:
                        return item
                    self._record.count("read")
                    self._record.count("corrupt", str(item))
                else:
                    if first:
                        self._record.count("reconnects")
                        first = False
                    self._take(item, preprocess)
        except M2HError as error:
            return error
        except Exception as error:
            return M2HError(f"the source failed: {first_line(error)}")
        return None

    def _take(self, frame: SourceFrame, preprocess: Callable[..., Any]) -> None:
        timestamp = monotonic()
        number = self._record.count("read")
        slot = self._free.get()
        if slot is None:
            return
        start = perf_counter()
        try:
            slot.image = self._runtime.color_image(frame.image, frame.name)
            preprocess(slot.image, slot.tensor)
        except M2HError as error:
            self._record.count("corrupt", str(error))
            self._release(slot)
            return
        slot.id, slot.timestamp, slot.preprocess = number, timestamp, perf_counter() - start
        self._pass_on(self._inbox, slot)

    def _pass_on(self, channel: Channel[_Slot], slot: _Slot) -> None:
        thrown = channel.put(slot)
        if thrown is not None and not self._stop.is_set():
            self._record.count("dropped")
            self._release(thrown)

    def _release(self, slot: _Slot) -> None:
        slot.image = None
        self._free.put(slot)

    # Inference

    def _infer(self, engine: Engine) -> None:
        while (slot := self._inbox.get()) is not None:
            if (taken := self._take_turn(engine)) is None:
                return
            engine = taken
            try:
                turn = self._watch.begin(slot, engine)
                start, problem = perf_counter(), ""
                try:
                    engine.backend.run(slot.tensor, out=slot.outputs)
                except Exception as error:  # engines raise exceptions of any type
                    problem = first_line(error)
                slot.inference = perf_counter() - start
            finally:
                engine.lock.release()
            if not self._watch.end(turn):  # the watchdog gave this item up: the slot must not be used again
                if self._runtime.reopen is not None:  # another thread with another engine takes over
                    if engine is not self._runtime.engine:
                        engine.backend.close()
                    return
                self._free.put(self._new_slot())
                continue
            self._restarts = 0
            bad = [] if problem else nonfinite_outputs(slot.first)
            if problem:
                self._record.count("failed", f"frame {slot.id}: {problem}")
                self._release(slot)
            elif bad:
                self._record.count("nonfinite", f"frame {slot.id}: {', '.join(bad)} not finite")
                self._release(slot)
            else:
                self._pass_on(self._between, slot)
        self._between.end()

    def _take_turn(self, engine: Engine) -> Engine | None:
        """Lock the engine, or the one that has replaced it, once other callers have released it.

        Returns None if the stream ends before that.
        """
        while not self._stop.is_set():
            if engine.lock.acquire(timeout=0.1):
                if engine is self._runtime.engine:
                    return engine
                engine.lock.release()
            engine = self._runtime.engine
        return None

    def _watch_engine(self) -> None:
        while not self._stop.wait(min(self._timeout / 4, 0.25)):
            overdue = self._watch.overdue(self._timeout)
            if overdue is None:
                continue
            slot, engine, thread = overdue
            self._record.count("stuck", f"frame {slot.id}: the engine did not return within {self._timeout:g} s")
            self._restarts += 1
            if self._runtime.reopen is None:
                continue  # the engine cannot be opened again: the stream continues when it returns
            if self._restarts > MAX_RESTARTS:
                raise EngineTimeout(f"the engine was stuck {self._restarts} times in a row and is not opened again")
            fresh = self._runtime.replace_engine(engine)
            self._threads.remove(thread)  # `close` does not wait for it
            self._record.count("restarts")
            self._free.put(self._new_slot())
            self._spawn("infer", lambda engine=fresh: self._infer(engine))  # type: ignore[misc]

    # Postprocessing

    def _postprocess(self) -> None:
        postprocess = postprocess_for(self._runtime.manifest)
        while (slot := self._between.get()) is not None:
            start = perf_counter()
            height, width = self._runtime.result_size(slot.image, self._resolution)
            prediction = postprocess(slot.first, height, width, self._spare_prediction(height, width))
            prediction = with_timings(prediction, slot.preprocess, slot.inference, perf_counter() - start)
            frame = StreamFrame(slot.id, slot.timestamp, slot.image, prediction)
            self._release(slot)
            thrown = self._results.put(frame)
            if thrown is not None and not self._stop.is_set():
                self._record.count("dropped")
                if self._reuse:
                    self._spare.append(thrown.prediction)
        self._results.end()

    def _spare_prediction(self, height: int, width: int) -> Prediction | None:
        """Return a prediction of this size that the caller no longer uses, or None."""
        while self._spare:
            spare = self._spare.popleft()
            arrays = (getattr(spare, task) for task in self._runtime.tasks)
            if all(array.shape[:2] == (height, width) for array in arrays):
                return spare
        return None
