"""m2h-deploy verify: compare an engine with its checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import (
    DeviceOption,
    EngineCodeFlag,
    JsonFlag,
    OverwriteFlag,
    PluginsOption,
    RecordFlag,
    ThreadsOption,
    app,
    needs,
    ray_option,
    result_option,
)
from cli.console import err, out, print_json
from cli.on_ray import RayGpusOption, RayOption, RayWorkersOption, cluster_of, reporting, tell
from m2h_deploy.errors import CheckFailed, M2HError

if TYPE_CHECKING:
    from m2h_deploy.bundle.folder import Bundle
    from m2h_deploy.parity import LocateResult, VerifyResult
    from m2h_deploy.parity.verify import Locate


gate_option = partial(typer.Option, rich_help_panel="Gates: how much worse the engine may be")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    reference: Annotated[str, typer.Option(metavar="FILE", help="The checkpoint (or its float32 ONNX file).")],
    data: Annotated[
        Path, typer.Option(metavar="PLACE", help="NYUv2 (.mat or multi-task folder), RGB-D pairs, or pictures.")
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the data: train, val, test or all.")] = "val",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use this many frames, evenly spread.", min=1)] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Apply the bundle's depth calibration to both sides.")
    ] = False,
    locate: Annotated[bool, typer.Option("--locate", help="Name the first diverging block.")] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    allow_engine_code: EngineCodeFlag = False,
    miou_drop: Annotated[float, gate_option(metavar="POINTS", help="Largest drop of mIoU.")] = 0.5,
    rmse_increase: Annotated[float, gate_option(metavar="PERCENT", help="Largest increase of RMSE.")] = 1.0,
    merr_increase: Annotated[float, gate_option(metavar="DEGREES", help="Largest increase of the mean angle.")] = 0.3,
    odsf_drop: Annotated[float, gate_option(metavar="POINTS", help="Largest drop of odsF.")] = 0.5,
    psnr: Annotated[float, gate_option(metavar="DB", help="Lowest PSNR of each output.")] = 30.0,
    junit: Annotated[Path | None, result_option(metavar="FILE", help="Write a JUnit file.")] = None,
    html: Annotated[Path | None, result_option(metavar="FILE", help="Write a page with pictures.")] = None,
    record: RecordFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
    ray: RayOption = None,
    ray_workers: RayWorkersOption = None,
    ray_gpus: RayGpusOption = 0.0,
    ray_work: Annotated[
        Path | None,
        ray_option(metavar="FOLDER", help="Where each frame's measurements go.", show_default="BUNDLE.parity"),
    ] = None,
) -> None:
    """Compare an engine with its checkpoint on data, task by task; exit 1 when a gate fails.

    Earlier results of the same kind are replaced by --json, --junit and --html.
    """
    from m2h_deploy.bundle.folder import check_outside
    from m2h_deploy.cluster import RayExecutor
    from m2h_deploy.files.provenance import Kind, check_outputs
    from m2h_deploy.parity import Gates, LocalExecutor
    from m2h_deploy.parity import verify as compare
    from m2h_deploy.visualize.html import check_jinja

    places: dict[Kind, Path | None] = {"junit": junit, "html": html}
    for file in check_outputs(places, overwrite=overwrite, sources=[reference]):
        check_outside(bundle, file)
    if html is not None:
        check_jinja()
    if ray_work is not None:
        check_outside(bundle, ray_work)
    if ray_work is not None and ray is None:
        raise M2HError("--ray-work applies only to a job on Ray: give --ray local too")
    if ray is not None and (plugins or allow_engine_code):
        raise M2HError("--plugins and --allow-engine-code do not apply to a job on Ray: leave out --ray")
    cluster = cluster_of(ray, ray_workers, threads, ray_gpus, device)
    with reporting(resumes=cluster is not None) as report:
        on_ray = None if cluster is None else RayExecutor(cluster, ray_work, report.complain)

        def give(result: VerifyResult) -> None:
            report.stop()
            if on_ray is not None and on_ray.job is not None and result.located is None:
                tell(on_ray.job)
            _give(result, junit, html, as_json=as_json, complete=not locate or result.located is not None)

        result = compare(
            bundle,
            reference,
            data,
            gates=Gates(miou_drop, rmse_increase, merr_increase, odsf_drop, psnr),
            limit=limit,
            split=split,
            pictures=0 if html is None else 2,
            executor=on_ray or LocalExecutor(threads, device, tuple(plugins or ()), allow_engine_code),
            locate=_locate() if locate else None,
            record=record,
            calibrated=calibrated,
            progress=report.advance,
            on_result=give,
        )
    if not result.passed:
        raise CheckFailed(result.summary)


def _give(result: VerifyResult, junit: Path | None, html: Path | None, *, as_json: bool, complete: bool) -> None:
    """Write and print the result as asked for; one that is not `complete` comes again, located."""
    from m2h_deploy.parity import to_json
    from m2h_deploy.parity.report import print_result, write_html, write_junit

    if not as_json:
        print_result(result, out) if result.located is None else out.print(result.located.summary, markup=False)
    elif complete:
        print_json(to_json(result))
    if junit is not None and result.located is None:
        write_junit(result, junit)
    if html is not None:
        write_html(result, html)


def _locate() -> Locate:
    with needs("export"):
        from export import locate_difference

    def locate(bundle: Bundle, reference: str) -> LocateResult:
        with err.status("locating the first diverging block"):
            return locate_difference(bundle, reference)

    return locate
