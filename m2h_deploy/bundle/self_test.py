"""The golden self-test: a known input and its expected outputs on any machine.

Silently wrong results are a known failure of engines (`m2h-deploy doctor` lists cases), so a runtime tests itself
before the first frame. The input is a formula, so that a program in any language can make it: the 8-bit image whose
channel c (RGB order) at row y, column x is

    (7 x + 3 y + 40 c + 96 ((x div 16 + y div 16) mod 2)) mod 256

at the engine's own size, normalized as the manifest says. An engine that takes raw pixels gets them unnormalized: BGR,
or for NV12 the formula with c = 0 over all of its 3/2 H rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import InputSpec, SelfTest, SelfTestOutput
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.numerics import spread

#: Number of values stored of each output.
SAMPLES = 64

#: Share of the worst values that the mean error excludes: a few pixels of some networks are unstable.
LEFT_OUT = 1 / 16

#: Smallest tolerance of the mean error in float32 and in lower precision, as a share of an output's deviation: well
#: above rounding errors, and well below the error of a broken attention or a wrong plug-in.
LEAST_TOLERANCE, LEAST_LOW_TOLERANCE = 0.01, 0.05

#: Share of labels that may differ: rounding decides near ties, but a broken engine is wrong everywhere.
LABELS = 0.1

#: An engine in lower precision may have this many times the error of rounding the graph to that precision, up to the
#: largest tolerance; unrelated values have an error of about one deviation.
ROUNDING_FACTOR, LARGEST_TOLERANCE = 4.0, 0.5


def pattern(spec: InputSpec) -> NDArray[Any]:
    """Return the self-test's input in the engine's own layout, float32 or uint8; batch 1 if the batch is dynamic."""
    y, x = np.mgrid[: spec.height * 3 // 2 if spec.layout == "NV12" else spec.height, : spec.width]
    planes = [(7 * x + 3 * y + 40 * c + 96 * ((x // 16 + y // 16) % 2)) % 256 for c in range(3)]
    if spec.layout != "NCHW":
        raw = planes[0] if spec.layout == "NV12" else np.stack(planes[::-1], axis=-1)
        return np.repeat(raw.astype(np.uint8)[None], spec.batch or 1, axis=0)
    pixels = np.stack(planes).astype(np.float64) * spec.scale
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    image = ((pixels - mean) / std).astype(np.float32)[None]
    return np.repeat(image, spec.batch or 1, axis=0)


def _sample(value: NDArray[Any], count: int = SAMPLES) -> NDArray[Any]:
    flat = value[0].reshape(-1)
    return np.asarray(flat[np.linspace(0, flat.size - 1, count).astype(np.int64)])


def _error(name: str, values: NDArray[Any], expected: NDArray[Any], deviation: float) -> float:
    """Return the mean error without the worst values, relative to the deviation; for labels the share that differs."""
    if name == "labels":
        return float(np.mean(values != expected))
    errors = np.sort(np.abs(values.astype(np.float64) - expected))  # NaN last
    if not np.isfinite(errors[-1]):
        return float("nan")
    return float(np.mean(errors[: len(errors) - int(LEFT_OUT * len(errors))])) / deviation


def make_self_test(outputs: Mapping[str, NDArray[Any]], rounded: Mapping[str, NDArray[Any]] | None = None) -> SelfTest:
    """Return the self-test that expects `outputs`, the float32 graph's results on `pattern`.

    `rounded` are the graph's results when it is rounded to the engine's precision; None is float32. An engine may have
    `ROUNDING_FACTOR` times that error.

    Raises:
        M2HError: An output is useless in this precision.
    """
    least = LEAST_TOLERANCE if rounded is None else LEAST_LOW_TOLERANCE
    tests = {
        name: SelfTestOutput(
            values=tuple(map(float, _sample(value))),
            deviation=spread(value),
            tolerance=least + LABELS if name == "labels" else None,
        )
        for name, value in outputs.items()
    }
    test = SelfTest(tolerance=least, outputs=tests)
    return test if rounded is None else widen_tolerances(test, rounded)


def widen_tolerances(test: SelfTest, rounded: Mapping[str, NDArray[Any]]) -> SelfTest:
    """Return `test` for an engine that rounds; `rounded` are the graph's results with the same rounding.

    Raises:
        M2HError: An output is useless in this precision.
    """
    tests = {}
    for name, expected in test.outputs.items():
        wanted = np.array(expected.values)
        error = _error(name, _sample(rounded[name], len(wanted)), wanted, expected.deviation)
        if not error <= LARGEST_TOLERANCE:
            raise M2HError(
                f"{name} is off by {error:.2g} of its deviation when the graph is rounded to this precision: "
                "the network needs a higher precision: build with --precision fp32"
            )
        wider = min(ROUNDING_FACTOR * error, LARGEST_TOLERANCE)
        if wider > test.tolerance_of(name):
            expected = expected.model_copy(update={"tolerance": wider})
        tests[name] = expected
    return test.model_copy(update={"outputs": tests})


def check_self_test(test: SelfTest, outputs: Mapping[str, NDArray[Any]], precision: str = "fp32") -> dict[str, float]:
    """Return the error of each of an engine's `outputs` on `pattern`, as a share of the output's deviation.

    `precision` is the engine's, for the message. Raises CheckFailed, naming the output, when one is too large.
    """
    errors = {}
    for name, expected in test.outputs.items():
        wanted = np.array(expected.values)
        error = _error(name, _sample(outputs[name], len(wanted)), wanted, expected.deviation)
        tolerance = test.tolerance_of(name)
        if error <= tolerance:  # False for NaN
            errors[name] = error
            continue
        off = f"{error:.0%} of the labels differ" if name == "labels" else f"{name} is off by {error:.2g} deviations"
        raise CheckFailed(f"self-test failed: {off} (allowed {tolerance:.2g}): {_meaning(precision)}")
    return errors


def _meaning(precision: str) -> str:
    if precision == "fp32":
        return "this engine computes wrong numbers on this machine; see m2h-deploy doctor"
    return (
        f"this engine computes wrong numbers on this machine, or {precision} is too coarse for this network; "
        "build with --precision fp32, and see m2h-deploy doctor"
    )
