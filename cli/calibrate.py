"""m2h-deploy calibrate: correct the depth of a bundle for one camera."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.table import Table

from cli.app import DeviceOption, EngineCodeFlag, JsonFlag, OverwriteFlag, PluginsOption, ThreadsOption, app
from cli.console import make_progress, out, print_json, say
from cli.sequence import OffsetOption, PosesOption, RateOption, open_posed
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    from m2h_deploy.bundle.depth_calibration import Source
    from m2h_deploy.calibration.calibrate import Measure
    from m2h_deploy.calibration.result import CalibrateResult
    from m2h_deploy.data.frame import Intrinsics
    from m2h_deploy.data.sequence import Sequence

measure_option = partial(typer.Option, rich_help_panel="What is known: give one")
camera_option = partial(typer.Option, rich_help_panel="Camera")

#: Frames of a data set or a sequence that are used.
_FRAMES = 32

#: Fewer points or images than this are warned of.
_FEW = 5

#: Kind of the measurement, and what makes it, given a function that shows the progress.
_Prepared: TypeAlias = "tuple[Source, Callable[[Callable[[int, int], None]], Measure]]"


@app.command()
def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; its manifest is changed.")],
    data: Annotated[
        Path | None,
        measure_option(metavar="PLACE", help="RGB-D frames of this camera, in a layout that verify takes."),
    ] = None,
    points: Annotated[
        Path | None, measure_option(metavar="FILE", help="CSV table image,u,v,meters of points with known distance.")
    ] = None,
    motion: Annotated[
        Path | None, measure_option(metavar="PLACE", help="Sequence with poses; depth comes from its motion.")
    ] = None,
    focal: Annotated[
        bool, measure_option("--focal", help="Only the camera: estimate the scale from its focal length.")
    ] = False,
    scale: Annotated[float | None, measure_option(metavar="FACTOR", help="A factor that is known.")] = None,
    remove: Annotated[bool, measure_option("--remove", help="Remove the calibration.")] = False,
    intrinsics: Annotated[str | None, camera_option(metavar="FX,FY,CX,CY", help="The camera, in pixels.")] = None,
    fov: Annotated[float | None, camera_option(metavar="DEGREES", help="Its horizontal field of view instead.")] = None,
    camera_size: Annotated[
        str | None, camera_option(metavar="WxH", help="Size of its images, for --focal.", show_default="640x480")
    ] = None,
    taped: Annotated[
        bool,
        camera_option("--taped", help="--points: distances from the camera to the point, as a tape measures them."),
    ] = False,
    poses: PosesOption = None,
    offset: OffsetOption = 0.0,
    rate: RateOption = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split of --data: train, val, test or all.", show_default="val")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Use this many frames, evenly spread.", min=3, show_default="32"),
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw before and after (PNG).")] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    allow_engine_code: EngineCodeFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Correct the depth of a bundle for one camera, and keep it in the manifest if it lowers the error.

    The correction is fitted robustly and judged by cross-validation; without a significant gain, nothing is changed.
    """
    from m2h_deploy.backends import BackendOptions
    from m2h_deploy.bundle.folder import check_outside
    from m2h_deploy.calibration import calibrate as fit
    from m2h_deploy.calibration.picture import PICTURE, write_picture
    from m2h_deploy.files.provenance import check_outputs
    from m2h_deploy.visualize.plots import check_matplotlib

    given = {"--data": data, "--points": points, "--motion": motion, "--scale": scale}
    names = [name for name, value in given.items() if value is not None] + ["--focal"] * focal + ["--remove"] * remove
    if len(names) != 1:
        raise M2HError(
            f"{' and '.join(names)} exclude each other: give one"
            if names
            else "give what is known: --data, --points, --motion, --focal or --scale, or --remove"
        )
    moving = poses is not None or bool(offset) or rate is not None
    if split is not None and data is None:
        raise M2HError(f"--split applies only to --data, not to {names[0]}")
    if limit is not None and data is None and motion is None:
        raise M2HError(f"--limit applies to --data and --motion, not to {names[0]}")
    _check_options(names[0], intrinsics, fov, camera_size, taped=taped, moving=moving, drawn=picture is not None)
    if picture is not None:
        check_outputs({"png": picture}, overwrite=overwrite)
        check_outside(bundle, picture)
        check_matplotlib(PICTURE)
    if data is None and points is None and motion is None:
        _give(_set(bundle, scale, intrinsics, fov, camera_size, remove=remove), as_json=as_json)
        return
    options = BackendOptions(threads, device, plugins=tuple(plugins or ()), allow_engine_code=allow_engine_code)
    if data is not None:
        source, prepare = _frames(data, split or "val", limit or _FRAMES)
    elif points is not None:
        source, prepare = _points(points, intrinsics, fov, taped=taped)
    else:
        opened = open_posed(motion or "", poses, intrinsics, offset=offset, rate=rate)
        source, prepare = _motion(opened, limit or _FRAMES)
    with make_progress() as bar:
        task = bar.add_task("frames", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        result = fit(bundle, source, prepare(advance), options=options)
    if picture is not None:
        write_picture(result, picture)
    _give(result, as_json=as_json)


def _check_options(
    given: str,
    intrinsics: str | None,
    fov: float | None,
    camera_size: str | None,
    *,
    taped: bool,
    moving: bool,
    drawn: bool,
) -> None:
    """Raise M2HError on options that do not apply to what is known."""
    if intrinsics is not None and fov is not None:
        raise M2HError("give --fov or --intrinsics, not both")
    camera = intrinsics is not None or fov is not None
    if given == "--motion" and fov is not None:
        raise M2HError("--fov does not apply to --motion, whose poses need the exact camera: give --intrinsics")
    if given == "--focal" and not camera:
        raise M2HError("--focal needs the camera: give --fov or --intrinsics")
    if given == "--points" and taped != camera:
        raise M2HError("--taped needs the camera: give --fov or --intrinsics" if taped else
                       "--fov and --intrinsics apply to --points only with --taped: give that too")  # fmt: skip
    if taped and given != "--points":
        raise M2HError("--taped applies only to --points")
    if camera and given not in ("--focal", "--points", "--motion"):
        raise M2HError(f"--fov and --intrinsics do not apply to {given}")
    if camera_size is not None and given != "--focal":
        raise M2HError("--camera-size applies only to --focal")
    if given != "--motion" and moving:
        raise M2HError("--poses, --offset and --rate apply only to --motion")
    if drawn and given not in ("--data", "--points", "--motion"):
        raise M2HError(f"--picture applies to --data, --points and --motion, not to {given}")


def _frames(data: Path, split: str, limit: int) -> _Prepared:
    from m2h_deploy.calibration.frames import samples_of_frames
    from m2h_deploy.data.open import open_dataset
    from m2h_deploy.data.subset import spread

    opened = open_dataset(data, split)
    indices = spread(len(opened), limit, str(data))
    return "frames", lambda advance: lambda runtime: samples_of_frames(runtime, opened, indices, str(data), advance)


def _points(table: Path, intrinsics: str | None, fov: float | None, *, taped: bool) -> _Prepared:
    from m2h_deploy.calibration.points import read_points, samples_of_points

    points = read_points(table)
    camera = _camera(intrinsics, fov) if taped else None
    return "points", lambda advance: partial(
        samples_of_points, points=points, table=str(table), camera=camera, progress=advance
    )


def _motion(sequence: Sequence, limit: int) -> _Prepared:
    from m2h_deploy.calibration.motion import samples_of_motion

    return "sequence", lambda advance: partial(samples_of_motion, sequence=sequence, limit=limit, progress=advance)


def _camera(intrinsics: str | None, fov: float | None) -> Callable[[int, int], Intrinsics]:
    from m2h_deploy.camera import intrinsics_of_view, parse_intrinsics

    if intrinsics is not None:
        camera = parse_intrinsics(intrinsics)
        return lambda height, width: camera
    return lambda height, width: intrinsics_of_view(fov or 0.0, height, width)


def _set(
    bundle: Path, scale: float | None, intrinsics: str | None, fov: float | None, size: str | None, *, remove: bool
) -> CalibrateResult:
    """Write a calibration that is known without a measurement, or remove the present one."""
    from m2h_deploy.calibration.calibrate import known_scale, set_calibration
    from m2h_deploy.calibration.focal import focal_scale
    from m2h_deploy.camera import parse_camera_size

    if remove:
        return set_calibration(bundle, None)
    if scale is not None:
        return set_calibration(bundle, known_scale(scale, "manual"))
    width, height = parse_camera_size(size or "640x480")
    camera = _camera(intrinsics, fov)(height, width)
    return set_calibration(bundle, known_scale(focal_scale(camera, height, width), "focal"))


def _give(result: CalibrateResult, *, as_json: bool) -> None:
    """Print the candidates and the outcome."""
    if as_json:
        print_json(result.to_json())
        return
    if result.choice is not None and result.samples is not None:
        table = Table(box=None)
        for heading in ("depth", "scale", "offset m", "abs rel %", "gain", "needed gain"):
            table.add_column(heading, justify="left" if heading == "depth" else "right")
        for place, candidate in enumerate(result.choice.candidates):
            correction = candidate.correction
            gains = [f"{100 * value:.2f}" if place else "" for value in (candidate.gain, candidate.needed)]
            gains = gains if candidate.considered else ["distances too alike", ""]
            style = "bold" if candidate is result.choice.best else ""
            table.add_row(candidate.name, f"{correction.scale:.4f}", f"{correction.offset:.3f}",
                          f"{100 * candidate.abs_rel:.2f}", *gains, style=style)  # fmt: skip
        out.print(table)
        _tell_left_out(result)
    out.print(result.summary, markup=False)
    if result.source == "focal":
        say("an estimate: check it with a few measured points (--points)", "yellow")


def _tell_left_out(result: CalibrateResult) -> None:
    choice, samples = result.choice, result.samples
    assert choice is not None and samples is not None
    if choice.outliers:
        say(f"{choice.outliers} of {len(samples.measured)} values contradict the others and are not used")
    if result.source == "points" and (samples.units < _FEW or samples.frames < 2):
        count = f"{len(samples.measured)} points in {samples.frames} image{'s' if samples.frames > 1 else ''}"
        say(f"{count} are few: measure more, in several images and at different distances", "yellow")
    if samples.left_out:
        say(f"{samples.left_out} values are at the end of the network's range and are not used")
