"""What `run --ray` and `verify --ray` share: options, progress, and the line at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cli.app import ray_option
from cli.console import make_progress, say
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    from m2h_deploy.cluster import Cluster, JobResult

RayOption = Annotated[
    str | None, ray_option("--ray", metavar="ADDRESS", help="Run frames on Ray: local, auto or a cluster's HOST:PORT.")
]
RayWorkersOption = Annotated[
    int | None, ray_option(metavar="N", help="How many engines.", min=1, show_default="CPUs less one, for Ray")
]
RayGpusOption = Annotated[float, ray_option(metavar="N", help="GPUs of each worker; 0.5 puts two on one.", min=0)]


def cluster_of(
    address: str | None, workers: int | None, threads: int | None, gpus: float, device: str | None
) -> Cluster | None:
    """Return the cluster that the options name; None without --ray. Raise M2HError on the others without it."""
    if address is None:
        if workers is not None or gpus:
            raise M2HError("--ray-workers and --ray-gpus apply only to a job on Ray: give --ray local too")
        return None
    if device is not None:
        raise M2HError("--device is for one engine: leave it out with --ray; --ray-gpus gives each worker its own")
    from m2h_deploy.cluster.session import Cluster, import_ray

    import_ray()  # what is missing is said before anything is opened
    return Cluster(address, workers, threads or 1, gpus)


@dataclass(frozen=True)
class Reporter:
    """Where the progress of many frames goes."""

    advance: Callable[[int, int], None]
    complain: Callable[[str, str], None]
    stop: Callable[[], None]
    """Take the bar away."""


@contextmanager
def reporting(*, resumes: bool = True) -> Iterator[Reporter]:
    """Show a bar on stderr; after Ctrl-C say how a job that resumes goes on."""
    with make_progress() as progress:
        task = progress.add_task("starting" if resumes else "frames", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, description="frames", completed=done, total=total)

        def complain(kind: str, text: str) -> None:
            style = "red" if kind == "failed" else "yellow"
            progress.console.print(text, style=style, markup=False, soft_wrap=True)

        try:
            yield Reporter(advance, complain, progress.stop)
        except KeyboardInterrupt:
            progress.stop()
            if resumes:
                say("interrupted: what is done is kept, and the same command goes on from there", "yellow")
            raise


def tell(job: JobResult) -> None:
    """Say on stderr how the job went."""
    say(job.summary)
    if job.replaced:
        say(f"{job.replaced} workers died and were replaced: their frames were done again", "yellow")
