"""What `run --ray` and `verify --ray` share: the options, progress, and what is said at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2h_deploy.console import make_progress, print_json, print_values, say
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    from m2h_deploy.cluster import Cluster, JobResult

RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Run frames on Ray: 'local', 'auto' or a cluster's HOST:PORT."),
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Ray: how many engines; by default one CPU stays free for Ray.", min=1)
]
GpusOption = Annotated[float, typer.Option(help="Ray: GPUs of each worker; 0.5 puts two on one.", min=0)]


def cluster_of(address: str | None, workers: int | None, threads: int | None, gpus: float) -> Cluster | None:
    """The cluster that the options name; None without --ray. Raises M2HError on the others without it."""
    if address is None:
        if workers is not None or gpus:
            raise M2HError("--workers and --gpus apply only to a job on Ray: give --ray local too")
        return None
    from m2h_deploy.cluster import Cluster
    from m2h_deploy.cluster.session import import_ray

    import_ray()  # what is missing is said before anything is opened
    return Cluster(address, workers, threads or 1, gpus)


@dataclass(frozen=True)
class Reporter:
    """Where a job's progress goes."""

    advance: Any
    complain: Any


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A bar on stderr for the length of a job; Ctrl-C is told how the job goes on."""
    with make_progress() as progress:
        task = progress.add_task("starting", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, description="frames", completed=done, total=total)

        def complain(kind: str, text: str) -> None:
            style = "red" if kind == "failed" else "yellow"
            progress.console.print(text, style=style, markup=False, soft_wrap=True)

        try:
            yield Reporter(advance, complain)
        except KeyboardInterrupt:
            progress.stop()
            say("interrupted: what is done is kept, and the same command goes on from there", "yellow")
            raise


def tell(job: JobResult) -> None:
    """How the job went, in a line on stderr."""
    done = job.frames - job.reused
    how = f" by {job.workers} workers, {done / job.seconds:.1f} a second" if done else ""
    say(f"{done} frames done{how}; {job.reused} were there")
    if job.replaced:
        say(f"{job.replaced} workers died and were replaced: their frames were done again", "yellow")


def job_values(job: JobResult) -> dict[str, Any]:
    """For --json."""
    done = job.frames - job.reused
    return {
        "frames": job.frames,
        "reused": job.reused,
        "failed": len(job.failed),
        "skipped": len(job.skipped),
        "workers": job.workers,
        "replaced_workers": job.replaced,
        "seconds": job.seconds,
        "frames_per_second": done / job.seconds if done else None,
    }


def run_on_ray(
    cluster: Cluster,
    bundle: Path,
    source: str,
    output: Path,
    *,
    parquet: bool,
    npz: bool,
    limit: int | None,
    self_test: bool,
    plugins: list[Path],
    overwrite: bool,
    as_json: bool,
) -> None:
    """`run` with its frames on a pool of workers."""
    from m2h_deploy.cluster import predict_folder

    with reporting() as reporter:
        job = predict_folder(
            bundle,
            source,
            output,
            cluster=cluster,
            parquet=parquet,
            npz=npz,
            limit=limit,
            self_test=self_test,
            plugins=plugins,
            overwrite=overwrite,
            progress=reporter.advance,
            complain=reporter.complain,
        )
    values = job_values(job) | {"output": str(output)}
    if as_json:
        print_json(values)
    else:
        tell(job)
        print_values(values)
    if job.failed:
        count = job.frames + len(job.failed)
        raise M2HError(f"{len(job.failed)} of {count} frames gave no result (named above)")
