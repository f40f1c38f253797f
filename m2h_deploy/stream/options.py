"""Options of a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from m2h_deploy.choices import QueuePolicy, check_choice
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.postprocess import Resolution
from m2h_deploy.temporal.filter import TemporalFilter


class StreamKeywords(TypedDict, total=False):
    """The options of a `Stream` as keywords: the fields of `StreamOptions`."""

    policy: QueuePolicy | None
    resolution: Resolution
    reuse: bool
    temporal: TemporalFilter | None
    timeout: float
    reconnect: int | None
    on_problem: Callable[[str], None] | None


@dataclass(frozen=True)
class StreamOptions:
    """How a stream treats its frames and its problems."""

    policy: QueuePolicy | None = None
    """`latest` or `queue`; None to choose by the source."""
    resolution: Resolution = "image"
    """Size of the predictions: `image` for the image's, `network` for the network's own."""
    reuse: bool = False
    """Reuse the arrays of a prediction once the next one is requested, so that the steady state allocates only the
    source's images. Otherwise the caller may keep predictions."""
    temporal: TemporalFilter | None = None
    """Fuses each prediction with the ones before, by the poses of the source's frames. Its intrinsics are those of the
    predictions' size."""
    timeout: float = 10.0
    """Seconds after which an engine counts as stuck."""
    reconnect: int | None = 10
    """Attempts in a row to open a live source again before the iteration raises; None for no limit."""
    on_problem: Callable[[str], None] | None = None
    """Called with the text of each problem, from any thread."""

    def __post_init__(self) -> None:
        if self.policy is not None:
            check_choice("policy", self.policy, QueuePolicy)
        if not self.timeout > 0:
            raise M2HError(f"stream: timeout {self.timeout}: must be above 0")
