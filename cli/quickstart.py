"""m2h-deploy quickstart: run everything with the built-in network."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from cli.app import DeviceOption, JsonFlag, OverwriteFlag, app, needs
from cli.console import err, make_progress, print_json, print_values, say
from cli.export import print_check
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_folder, make_folder


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the results.")] = (
        Path("quickstart")
    ),
    variant: Annotated[str, typer.Option(metavar="NAME", help="Variant of the network.")] = "m2h-tiny",
    frames: Annotated[int, typer.Option(metavar="N", help="Number of rooms.", min=1)] = 3,
    device: DeviceOption = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Run everything with the built-in network: checkpoint, ONNX, bundle, predictions, a picture."""
    with needs("export"):
        from engines import build_bundle
        from export import export_onnx
        from m2h_deploy.model import build_model, load_checkpoint
    from m2h_deploy import Runtime
    from m2h_deploy.bundle.folder import check_bundle_place
    from m2h_deploy.data.rooms.render import render_room, room_name
    from m2h_deploy.files.provenance import check_output
    from m2h_deploy.predict import predict_source
    from m2h_deploy.sinks.files import ResultFiles, check_results
    from m2h_deploy.sources.source import Source, SourceFrame

    check_folder(output)
    check_bundle_place(output / "bundle")
    check_output(output / "model.onnx", "onnx", overwrite=overwrite, access=False)
    if not overwrite:
        check_results(output, {room_name(0, index) for index in range(frames)})
    make_folder(output)
    start = perf_counter()
    with err.status(f"1/3  exporting {variant}"):
        try:
            model, trained = load_checkpoint(variant), True
        except M2HError:
            model, trained = build_model(variant).eval(), False
        exported_file = export_onnx(model, output / "model.onnx")
    print_check(exported_file.report, as_json=False, console=err)
    exported = perf_counter()
    with err.status("2/3  building the bundle"):
        bundle = build_bundle(exported_file.path, output / "bundle")
    built = perf_counter()
    rooms = (render_room(0, index, height=480, width=640) for index in range(frames))
    source = Source(frames, lambda: (SourceFrame(room.name, room.image) for room in rooms))
    files = ResultFiles(output, bundle.manifest.classes)
    with make_progress() as progress, Runtime.load(bundle, device=device) as runtime:
        task = progress.add_task("3/3  predicting", total=frames)
        predicted = predict_source(runtime, source, [files], progress=lambda _: progress.advance(task))
    if predicted.interrupted:
        raise KeyboardInterrupt
    if predicted.failed:
        raise M2HError(predicted.failed[0])
    weights = "trained weights" if trained else "FRESHLY INITIALIZED: its predictions mean nothing"
    summary: dict[str, Any] = {
        "network": f"{variant}, {weights}",
        "export": f"{exported - start:.1f} s",
        "build": f"{built - exported:.1f} s",
        **predicted.timings,
        "picture": str(files.written[0]),
    }
    print_json(summary) if as_json else print_values(summary)
    say(f"next: m2h-deploy tune {variant} --data YOUR_PICTURES/ -o best/ finds the fastest engine of this machine")
