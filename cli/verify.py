"""m2h-deploy verify: an engine beside its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.app import OverwriteFlag, app, needs
from cli.on_ray import GpusOption, RayOption, WorkersOption, cluster_of, reporting, tell
from m2h_deploy.console import err, make_progress, out, print_json, say
from m2h_deploy.errors import CheckFailed, M2HError

if TYPE_CHECKING:
    from export import Sensor
    from m2h_deploy.bundle.manifest import Bundle, Manifest
    from m2h_deploy.cluster import Cluster
    from m2h_deploy.parity import Gates, LocateResult, VerifyResult


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    reference: Annotated[str, typer.Option(help="The checkpoint (or its float32 ONNX file).")],
    data: Annotated[Path, typer.Option(help="NYUv2 (.mat or multi-task folder), RGB-D pairs, or pictures.")],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "val",
    limit: Annotated[int | None, typer.Option(help="Use this many frames, evenly spread.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
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
    import os

    from m2h_deploy.bundle.manifest import check_outside, load_bundle, record_result
    from m2h_deploy.files.provenance import Kind, check_outputs
    from m2h_deploy.parity import Gates

    places: dict[Kind, Path | None] = {"json": json_file, "junit": junit, "html": html}
    for file in check_outputs(places, overwrite=overwrite, sources=[reference]):
        check_outside(bundle, file)
    if work is not None and ray is None:
        raise M2HError("--work applies only to a job on Ray: give --ray local too")
    cluster = cluster_of(ray, workers, threads, gpus)
    opened = load_bundle(bundle)
    recorded = os.access(bundle, os.W_OK)
    if not recorded:
        say(f"no write permission for {bundle}: the result is not recorded in its manifest", "yellow")
    gates = Gates(miou_drop, rmse_increase, merr_increase, odsf_drop, psnr)
    if cluster is None:
        result = _compare(bundle, reference, data, gates, limit, split, threads)
    else:
        result = _compare_on_ray(cluster, bundle, reference, data, gates, limit, split, work, pictures=html is not None)
    _give(result, (lambda: _locate(opened, reference)) if locate else None, json_file, junit, html)
    if recorded:  # last, so that a full disk costs no result
        from m2h_deploy.parity import to_json

        record_result(opened, parity=to_json(result))
    if not result.passed:
        raise CheckFailed(result.summary)


def _compare(
    bundle: Path, reference: str, data: Path, gates: Gates, limit: int | None, split: str, threads: int | None
) -> VerifyResult:
    from m2h_deploy.data import open_dataset
    from m2h_deploy.parity import verify as compare
    from m2h_deploy.parity.verify import name_of

    source = open_dataset(data, split)
    for reason in getattr(source, "skipped", ()):
        say(reason, "yellow")
    with make_progress() as progress:
        task = progress.add_task("frames", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return compare(
            bundle,
            reference,
            source,
            gates=gates,
            limit=limit,
            data_name=name_of(data),
            threads=threads,
            record=False,
            progress=advance,
        )


def _compare_on_ray(
    cluster: Cluster,
    bundle: Path,
    reference: str,
    data: Path,
    gates: Gates,
    limit: int | None,
    split: str,
    work: Path | None,
    *,
    pictures: bool,
) -> VerifyResult:
    from m2h_deploy.cluster import verify_on

    bundle = bundle.resolve()
    with reporting() as reporter:
        result, job = verify_on(
            cluster,
            bundle,
            reference,
            data,
            work=work or bundle.with_name(f"{bundle.name}.parity"),
            gates=gates,
            limit=limit,
            split=split,
            pictures=2 if pictures else 0,
            record=False,
            progress=reporter.advance,
            complain=reporter.complain,
        )
    tell(job)
    return result


def _give(
    result: VerifyResult,
    locate: Callable[[], LocateResult] | None,
    json_file: Path | None,
    junit: Path | None,
    html: Path | None,
) -> None:
    """Report the result, then find the first diverging block, which takes long."""
    from m2h_deploy.parity import to_json
    from m2h_deploy.parity.report import print_result, write_junit

    stdout = str(json_file) == "-"
    _write(result, None, json_file, html)
    if junit is not None:
        write_junit(result, junit)
    if not stdout:
        print_result(result, out)
    located = locate() if locate is not None else None
    if located is not None:
        _write(result, located, json_file, html)
        if not stdout:
            out.print(located.summary, markup=False)
    if stdout:
        print_json(to_json(result, located))


def _write(result: VerifyResult, located: LocateResult | None, json_file: Path | None, html: Path | None) -> None:
    import json

    from m2h_deploy.files.atomic import write_text
    from m2h_deploy.parity import to_json
    from m2h_deploy.parity.report import write_html

    if json_file is not None and str(json_file) != "-":
        write_text(json_file, json.dumps(to_json(result, located), indent=2))
    if html is not None:
        write_html(result, html, located=located)


def _locate(bundle: Bundle, reference: str) -> LocateResult:
    """Export the reference as the bundle's graph was exported, and compare the two value by value."""
    with needs("export"):
        from export import export_onnx
        from m2h_deploy.model import load_checkpoint
    from m2h_deploy.files.atomic import scratch_folder
    from m2h_deploy.parity import locate_in_bundle
    from m2h_deploy.runtime.preprocess import normalization_of

    if reference.endswith(".onnx"):
        return locate_in_bundle(bundle, reference)
    manifest = bundle.manifest
    with scratch_folder("m2h-locate-") as folder, err.status("exporting the reference"):
        path = export_onnx(
            load_checkpoint(reference),
            folder / "reference.onnx",
            height=manifest.network_input.height,
            width=manifest.network_input.width,
            batch=manifest.input.batch or 1,
            dynamic_batch=manifest.input.batch is None,
            opset=manifest.model.opset,
            tasks=manifest.tasks if manifest.sensor is None else None,
            windows=manifest.model.windows,  # type: ignore[arg-type]
            form=manifest.model.form,  # type: ignore[arg-type]
            normalization=normalization_of(manifest.network_input),
            classes=manifest.classes,
            sensor=_sensor_of(manifest),
        )
        return locate_in_bundle(bundle, path)


def _sensor_of(manifest: Manifest) -> Sensor | None:
    """The sensor that a bundle's graph was exported for; outputs keep their names and types."""
    from export import Sensor

    if manifest.sensor is None:
        return None
    outputs = {output.name: output.dtype for output in manifest.outputs}
    depth: Any = outputs.get("depth", "float32")
    return Sensor((manifest.input.width, manifest.input.height), manifest.sensor.format, tuple(outputs), depth)
