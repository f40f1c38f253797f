"""Process frames on one thread in the order of submission, with a future for each."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from time import monotonic

from m2h_deploy.errors import EngineError, EngineTimeout
from m2h_deploy.runtime.postprocess import Prediction

#: Seconds that closing waits for the current frame.
PATIENCE = 1.5


class FrameFuture(Future[Prediction]):
    """Future of a prediction. `frame_id` counts a runtime's submitted frames from 0."""

    def __init__(self, frame_id: int) -> None:
        super().__init__()
        self.frame_id = frame_id


class Worker:
    """Run submitted work on one thread, in order. Any thread may submit and close.

    A pool of concurrent.futures finishes all work before the program can exit; here Ctrl-C cancels work that has not
    begun.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[FrameFuture, Callable[[], Prediction]]] = deque()
        self._changed = threading.Condition()
        self._running: FrameFuture | None = None
        self._closed = False
        self._count = 0
        self._thread: threading.Thread | None = None
        _open_workers.add(self)

    def submit(self, work: Callable[[], Prediction]) -> FrameFuture:
        """Queue `work()` and return its future. Raises EngineError after `close`."""
        with self._changed:
            if self._closed:
                raise EngineError("the runtime is closed: it takes no more frames")
            future = FrameFuture(self._count)
            self._count += 1
            self._waiting.append((future, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="m2h-submit", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return future

    def close(self, patience: float = PATIENCE) -> None:
        """Cancel waiting work and wait for the current frame; if that is stuck, its future fails with EngineTimeout.

        All futures are done afterwards. Idempotent; may be called from a future's callback.
        """
        with self._changed:
            self._closed = True
            waiting = [future for future, _ in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for future in waiting:
            if future.cancel():
                future.set_running_or_notify_cancel()
        if self._thread is None or self._thread is threading.current_thread():
            return
        self._thread.join(patience)
        running = self._running
        if self._thread.is_alive() and running is not None:
            with suppress(InvalidStateError):
                running.set_exception(EngineTimeout(f"the engine did not finish the frame within {patience:g} s"))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                future, work = self._waiting.popleft()
                if not future.set_running_or_notify_cancel():
                    del future, work
                    continue
                self._running = future
            _finish(future, work)
            self._running = None
            del future, work  # an idle thread must not keep a frame alive


def _finish(future: FrameFuture, work: Callable[[], Prediction]) -> None:
    try:
        result = work()
    except BaseException as error:  # passed on to the caller of the future
        with suppress(InvalidStateError):
            future.set_exception(error)
    else:
        with suppress(InvalidStateError):
            future.set_result(result)


_open_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close all workers: an engine that runs during interpreter shutdown crashes the process."""
    deadline = monotonic() + PATIENCE
    for worker in list(_open_workers):
        worker.close(max(0.0, deadline - monotonic()))
