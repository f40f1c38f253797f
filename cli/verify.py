"""m2h-deploy verify: an engine beside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import EngineDeviceOption, OverwriteFlag, app, needs
from cli.console import err, out, print_json, say
from cli.on_ray import GpusOption, RayOption, WorkersOption, cluster_of, reporting, tell
from m2h_deploy.errors import CheckFailed, M2HError

if TYPE_CHECKING:
    from m2h_deploy.bundle.folder import Bundle
    from m2h_deploy.parity import LocateResult, VerifyResult
    from m2h_deploy.parity.verify import Locate


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    reference: Annotated[str, typer.Option(help="The checkpoint (or its float32 ONNX file).")],
    data: Annotated[Path, typer.Option(help="NYUv2 (.mat or multi-task folder), RGB-D pairs, or pictures.")],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "val",
    limit: Annotated[int | None, typer.Option(help="Use this many frames, evenly spread.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    device: EngineDeviceOption = None,
    miou_drop: Annotated[float, typer.Option(help="Gate: points of mIoU.")] = 0.5,
    rmse_increase: Annotated[float, typer.Option(help="Gate: percent of RMSE.")] = 1.0,
    merr_increase: Annotated[float, typer.Option(help="Gate: degrees of mean angle.")] = 0.3,
    odsf_drop: Annotated[float, typer.Option(help="Gate: points of odsF.")] = 0.5,
    psnr: Annotated[float, typer.Option(help="Gate: lowest PSNR of each output in dB.")] = 30.0,
    locate: Annotated[bool, typer.Option(help="Name the first diverging block.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON ('-': stdout).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    gpus: GpusOption = 0.0,
    work: Annotated[Path | None, typer.Option(help="Ray: folder of each frame's measurements. [BUNDLE.parity]")] = None,
    overwrite: OverwriteFlag = False,
) -> None:
    """Compare an engine with its checkpoint on data, task by task; exit 1 when a gate fails.

    Earlier results of the same kind are replaced by --json, --junit and --html.
    """
    from m2h_deploy.bundle.folder import check_outside
    from m2h_deploy.cluster import RayExecutor
    from m2h_deploy.files.provenance import Kind, check_outputs
    from m2h_deploy.parity import Gates, LocalExecutor
    from m2h_deploy.parity import verify as compare

    places: dict[Kind, Path | None] = {"json": json_file, "junit": junit, "html": html}
    for file in check_outputs(places, overwrite=overwrite, sources=[reference]):
        check_outside(bundle, file)
    if work is not None and ray is None:
        raise M2HError("--work applies only to a job on Ray: give --ray local too")
    cluster = cluster_of(ray, workers, threads, gpus, device)
    with reporting(resumes=cluster is not None) as report:
        on_ray = None if cluster is None else RayExecutor(cluster, work, report.complain)

        def give(result: VerifyResult) -> None:
            report.stop()
            if on_ray is not None and on_ray.job is not None and result.located is None:
                tell(on_ray.job)
            _give(result, json_file, junit, html, complete=not locate or result.located is not None)

        result = compare(
            bundle,
            reference,
            data,
            gates=Gates(miou_drop, rmse_increase, merr_increase, odsf_drop, psnr),
            limit=limit,
            split=split,
            pictures=0 if html is None else 2,
            executor=on_ray or LocalExecutor(threads, device),
            locate=_locate() if locate else None,
            progress=report.advance,
            notice=lambda text: say(text, "yellow"),
            on_result=give,
        )
    if not result.passed:
        raise CheckFailed(result.summary)


def _give(
    result: VerifyResult, json_file: Path | None, junit: Path | None, html: Path | None, *, complete: bool
) -> None:
    """Write and print the result where it was asked for; one that is not `complete` comes again, located."""
    import json

    from m2h_deploy.files.atomic import write_text
    from m2h_deploy.parity import to_json
    from m2h_deploy.parity.report import print_result, write_html, write_junit

    stdout = str(json_file) == "-"
    if json_file is not None and not stdout:
        write_text(json_file, json.dumps(to_json(result), indent=2))
    if html is not None:
        write_html(result, html)
    if junit is not None and result.located is None:
        write_junit(result, junit)
    if not stdout:
        print_result(result, out) if result.located is None else out.print(result.located.summary, markup=False)
    elif complete:
        print_json(to_json(result))


def _locate() -> Locate:
    with needs("export"):
        from export import locate_difference

    def locate(bundle: Bundle, reference: str) -> LocateResult:
        with err.status("locating the first diverging block"):
            return locate_difference(bundle, reference)

    return locate
