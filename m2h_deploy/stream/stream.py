"""Stream: frames of a camera or a file in, predictions out, with reading, inference and postprocessing overlapped."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic, perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.choices import QueuePolicy
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.runtime.postprocess import Prediction, postprocess_for
from m2h_deploy.runtime.preprocess import preprocess_for
from m2h_deploy.runtime.runtime import Runtime, with_timings
from m2h_deploy.sources.source import Skipped, Source, SourceFrame, open_source
from m2h_deploy.stream.channel import Channel
from m2h_deploy.stream.health import Health, HealthRecord
from m2h_deploy.stream.inference import Channels, Inference, Slot
from m2h_deploy.stream.options import StreamKeywords, StreamOptions
from m2h_deploy.stream.threads import Threads

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        **options: Unpack[StreamKeywords],
    ) -> None:
        """Open the source.

        Args:
            runtime: the runtime that predicts.
            source: a camera's index, the path of an image, folder or video, a URL, or a `Source`.
            options: the fields of `StreamOptions`.

        Raises:
            M2HError: the source cannot be opened, or a value is out of range.
        """
        self._options = StreamOptions(**options)
        self._source = source if isinstance(source, Source) else open_source(source)
        self.policy: QueuePolicy = self._options.policy or ("latest" if self._source.live else "queue")
        self._runtime = runtime
        runtime.result_size(np.empty((1, 1, 3), np.uint8), self._options.resolution)  # raises on an unknown resolution
        self._record = HealthRecord(self._options.on_problem)
        latest = self.policy == "latest"
        depth = 1 if latest else QUEUE_DEPTH
        self._inbox: Channel[Slot] = Channel(depth, replace=latest)
        self._between: Channel[Slot] = Channel(1, replace=latest)
        self._results: Channel[StreamFrame] = Channel(depth, replace=latest)
        self._free: Channel[Slot] = Channel(1 << 20)
        self._threads = Threads(self._thread_failed)
        channels = Channels(self._inbox, self._between, self._free)
        self._inference = Inference(
            runtime, channels, self._threads, self._record, timeout=self._options.timeout, latest=latest
        )
        # Those of the reader, the engine and the postprocessing, and as many as the channels hold.
        for _ in range(2 + runtime.backend.in_work + 1 + depth):
            self._free.put(self._inference.new_slot())
        self._spare: deque[Prediction] = deque()
        self._failure: M2HError | None = None

    @property
    def health(self) -> Health:
        """Current counters."""
        return self._record.snapshot()

    def __iter__(self) -> Iterator[StreamFrame]:
        """Start the threads and yield the predictions.

        Raises:
            M2HError: the source or the engine failed permanently, or the stream ran before.
        """
        if self._threads.started:
            raise M2HError("a stream runs once: make another one")
        try:
            self._start()
            while (frame := self._results.get()) is not None:
                self._record.count("delivered")
                yield frame
                if self._options.reuse:
                    self._spare.append(frame.prediction)
            if self._failure is not None:
                raise self._failure
        finally:
            self.close()

    def close(self) -> None:
        """Stop all threads, and count the frames in work as canceled. Idempotent.

        Returns within two seconds even if the source or the engine is stuck; their threads then end on their own.
        """
        self._threads.stop.set()
        for channel in (self._inbox, self._between, self._results, self._free):
            channel.end(discard=True)
        self._threads.join(_PATIENCE)
        self._record.settle()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._threads.spawn("read", self._read)
        self._inference.start()
        self._threads.spawn("postprocess", self._postprocess)

    def _thread_failed(self, name: str, error: Exception) -> None:
        self._give_up(error if isinstance(error, M2HError) else M2HError(f"stream, {name}: {first_line(error)}"))

    def _give_up(self, error: M2HError) -> None:
        """End the stream with `error`; predictions that are finished are still delivered."""
        if self._failure is None:
            self._failure = error
        self._threads.stop.set()
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
            if self._threads.stop.is_set():
                return
            if not self._source.live:
                if problem is not None:
                    self._failure = problem
                self._inbox.end()
                return
            attempts = 1 if self.health.read > before else attempts + 1
            if self._options.reconnect is not None and attempts > self._options.reconnect:
                self._failure = M2HError(f"the source died and did not come back after {self._options.reconnect} tries")
                self._inbox.end()
                return
            self._record.report(str(problem or "the source ended: opening it again"))
            if self._threads.stop.wait(min(FIRST_BACKOFF * 2 ** (attempts - 1), MAX_BACKOFF)):
                return

    def _read_to_the_end(self, preprocess: Callable[..., Any]) -> M2HError | None:
        """Read frames until the source ends; return its error, if any."""
        first = self.health.read > 0  # the first frame after an end counts as a reconnect
        try:
            for item in self._source.read():
                if self._threads.stop.is_set():
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
            self._inference.release(slot)
            return
        slot.id, slot.timestamp, slot.preprocess = number, timestamp, perf_counter() - start
        slot.pose, slot.taken = frame.pose, timestamp if frame.timestamp is None else frame.timestamp
        self._inference.pass_on(self._inbox, slot)

    # Postprocessing

    def _postprocess(self) -> None:
        postprocess = postprocess_for(self._runtime.manifest)
        while (slot := self._between.get()) is not None:
            start = perf_counter()
            height, width = self._runtime.result_size(slot.image, self._options.resolution)
            prediction = postprocess(slot.first, height, width, self._spare_prediction(height, width))
            prediction = with_timings(prediction, slot.preprocess, slot.inference, perf_counter() - start)
            prediction = self._filtered(prediction, slot)
            frame = StreamFrame(slot.id, slot.timestamp, slot.image, prediction)
            self._inference.release(slot)
            thrown = self._results.put(frame)
            if thrown is not None and not self._threads.stop.is_set():
                self._record.count("dropped")
                if self._options.reuse:
                    self._spare.append(thrown.prediction)
        self._results.end()

    def _filtered(self, prediction: Prediction, slot: Slot) -> Prediction:
        if self._options.temporal is None:
            return prediction
        try:
            return self._options.temporal(prediction, slot.pose, slot.taken)
        except M2HError as error:
            self._record.report(str(error))
            return prediction

    def _spare_prediction(self, height: int, width: int) -> Prediction | None:
        """Return a prediction of this size that the caller no longer uses, or None."""
        while self._spare:
            spare = self._spare.popleft()
            arrays = (getattr(spare, task) for task in self._runtime.tasks)
            if all(array.shape[:2] == (height, width) for array in arrays):
                return spare
        return None
