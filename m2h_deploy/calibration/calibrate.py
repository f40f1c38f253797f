"""Fit the depth of a bundle to a camera, and write the correction to its manifest where it helps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle.depth_calibration import CalibrationEvidence, DepthCalibration, Source
from m2h_deploy.bundle.folder import Bundle, check_recordable, load_bundle, record_calibration
from m2h_deploy.calibration.choose import Choice, choose_correction
from m2h_deploy.calibration.fit import Correction
from m2h_deploy.calibration.result import CalibrateResult
from m2h_deploy.calibration.samples import Samples
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import printable
from m2h_deploy.runtime.runtime import Runtime

#: Takes a runtime without calibration, and returns its depth beside what was measured.
Measure = Callable[[Runtime], Samples]

#: A factor outside of 0.1 to 10 indicates a wrong unit.
_LARGEST = 10.0


def calibrate(
    bundle_path: str | os.PathLike[str], source: Source, measure: Measure, *, options: BackendOptions | None = None
) -> CalibrateResult:
    """Fit a scale, or a scale and an offset, and keep it in the manifest if it lowers the error significantly.

    ```python
    points = read_points("points.csv")
    calibrate("bundle/", "points", lambda runtime: samples_of_points(runtime, points, "points.csv"))
    ```

    Args:
        bundle_path: The bundle's folder.
        source: Kind of measurement, for the manifest.
        measure: Returns the network's depth beside what was measured: `samples_of_frames`, `samples_of_points` or
            `samples_of_motion` with their arguments.
        options: Threads and device of the engine, and what it may load.

    Returns:
        The candidates and the choice; `kept` tells whether the manifest was changed.

    Raises:
        M2HError: The bundle cannot be used or written, or too little was measured.
    """
    bundle = _writable(bundle_path)
    if "depth" not in bundle.manifest.tasks:
        raise M2HError(f"{bundle.path}: the engine has no depth to calibrate")
    opened = options or BackendOptions()
    with Runtime.load(
        bundle,
        threads=opened.threads,
        device=opened.device,
        plugins=opened.plugins,
        allow_engine_code=opened.allow_engine_code,
        calibrated=False,
    ) as runtime:
        samples = measure(runtime)
    before = bundle.manifest.depth_calibration
    present = Correction() if before is None else Correction(before.scale, before.offset)
    choice = choose_correction(samples, present)
    _check_size(choice.candidates[1].correction.scale)
    after = before
    if choice.best is not choice.candidates[0]:
        after = _calibration(choice, samples, source)
        record_calibration(bundle, after)
    return CalibrateResult(_name(bundle), source, before, after, choice, samples)


def set_calibration(bundle_path: str | os.PathLike[str], calibration: DepthCalibration | None) -> CalibrateResult:
    """Write a given calibration to the manifest, or remove the one that is there.

    Raises:
        M2HError: The bundle cannot be used or written, or has no depth.
    """
    bundle = _writable(bundle_path)
    if calibration is not None and "depth" not in bundle.manifest.tasks:
        raise M2HError(f"{bundle.path}: the engine has no depth to calibrate")
    before = bundle.manifest.depth_calibration
    if calibration != before:
        record_calibration(bundle, calibration)
    return CalibrateResult(_name(bundle), "manual" if calibration is None else calibration.source, before, calibration)


def known_scale(scale: float, source: Source) -> DepthCalibration:
    """Return the calibration by a factor that is known. Raises M2HError if it cannot be one."""
    if not (math.isfinite(scale) and 1 / _LARGEST <= scale <= _LARGEST):
        raise M2HError(f"scale {scale:g}: a factor on the depth is from {1 / _LARGEST:g} to {_LARGEST:g}")
    return DepthCalibration(scale=scale, source=source)


def _writable(path: str | os.PathLike[str]) -> Bundle:
    bundle = load_bundle(path)
    check_recordable(bundle, "copy the bundle to another place")
    return bundle


def _name(bundle: Bundle) -> str:
    return printable(bundle.path.name or str(bundle.path))


def _check_size(scale: float) -> None:
    if not 1 / _LARGEST <= scale <= _LARGEST:
        raise M2HError(f"the measured depth is {scale:.3g} times the predicted one: give distances and poses in meters")


def _calibration(choice: Choice, samples: Samples, source: Source) -> DepthCalibration:
    correction = choice.best.correction
    return DepthCalibration(
        scale=correction.scale,
        offset=correction.offset,
        source=source,
        evidence=CalibrationEvidence(
            frames=samples.frames,
            values=len(samples.measured),
            folds=choice.folds,
            abs_rel_before=choice.candidates[0].abs_rel,
            abs_rel_after=choice.best.abs_rel,
        ),
    )
