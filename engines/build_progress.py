"""Progress of a TensorRT build as Rich bars on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class BuildProgress:
    """One bar a phase, phases nested as TensorRT nests them. Silent where stderr is not a terminal.

    Set `canceled` from any thread: the next step then tells TensorRT to stop.
    """

    def __init__(self, title: str) -> None:
        self.canceled = False
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._title = title

    def __enter__(self) -> BuildProgress:
        self._progress.start()
        self._progress.add_task(self._title, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, phase: str, steps: int) -> None:
        """A phase of `steps` steps begins."""
        self._tasks[phase] = self._progress.add_task(f"  {phase}", total=steps)

    def step(self, phase: str, step: int) -> bool:
        """Step `step` (0-based) of a phase is done. False asks TensorRT to stop."""
        if phase in self._tasks:
            self._progress.update(self._tasks[phase], completed=step + 1)
        return not self.canceled

    def finish(self, phase: str) -> None:
        """A phase has ended."""
        if phase in self._tasks:
            self._progress.remove_task(self._tasks.pop(phase))
