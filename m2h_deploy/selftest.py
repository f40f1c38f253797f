"""The golden self-test: a known input, and what this engine must make of it on any machine.

Silent wrong numbers are a known failure of engines (see the README's list), so a runtime proves itself before the
first frame. The input is a formula, so that a program in any language can make it: the 8-bit image whose channel c
(RGB order) at row y, column x is

    (7 x + 3 y + 40 c + 96 ((x div 16 + y div 16) mod 2)) mod 256

at the engine's own size, normalised as the manifest says. An engine that takes raw pixels gets them as they are: BGR,
or for NV12 the formula with c = 0 over all of its 3/2 H rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle import InputSpec, SelfTest, SelfTestOutput
from m2h_deploy.errors import CheckFailed

#: How many values of each output are kept.
SAMPLES = 64

#: Allowed mean error by precision: far above rounding, far below a broken attention or a wrong plug-in.
TOLERANCES = {"fp32": 0.01, "fp16": 0.05, "int8": 0.3}


#: Share of labels that may be another: near a tie rounding decides, and a broken engine errs everywhere.
LABELS = 0.1


def pattern(spec: InputSpec) -> NDArray[Any]:
    """The self-test's input in the engine's own layout, float32 or uint8; batch 1 where the engine takes any."""
    y, x = np.mgrid[: spec.height * 3 // 2 if spec.layout == "NV12" else spec.height, : spec.width]
    planes = [(7 * x + 3 * y + 40 * c + 96 * ((x // 16 + y // 16) % 2)) % 256 for c in range(3)]
    if spec.layout != "NCHW":
        raw = planes[0] if spec.layout == "NV12" else np.stack(planes[::-1], axis=-1)
        return np.repeat(raw.astype(np.uint8)[None], spec.batch or 1, axis=0)
    pixels = np.stack(planes).astype(np.float64) * spec.scale
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    image = ((pixels - mean) / std).astype(np.float32)[None]
    return np.repeat(image, spec.batch or 1, axis=0)


#: Least deviation, as a share of the root mean square. Untrained weights give outputs that hardly vary, and FP16 rounds
#: by the size of the values; a broken engine is wrong by more than this.
_VARIATION = 0.25


def _sample(value: NDArray[np.float32], count: int = SAMPLES) -> NDArray[np.float32]:
    flat = value[0].reshape(-1)
    return flat[np.linspace(0, flat.size - 1, count).astype(np.int64)]


def _deviation(value: NDArray[np.float32]) -> float:
    size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
    return max(float(value.std()), _VARIATION * size, 1e-6)


def make_self_test(outputs: Mapping[str, NDArray[np.float32]], precision: str) -> SelfTest:
    """The self-test that expects `outputs`, what the graph gives on `pattern`."""
    return SelfTest(
        tolerance=TOLERANCES[precision],
        outputs={
            name: SelfTestOutput(values=tuple(float(v) for v in _sample(value)), deviation=_deviation(value))
            for name, value in outputs.items()
        },
    )


def check_self_test(test: SelfTest, outputs: Mapping[str, NDArray[np.float32]]) -> None:
    """Raises CheckFailed, naming the output, when an engine's `outputs` on `pattern` are not what was expected."""
    for name, expected in test.outputs.items():
        values = _sample(np.asarray(outputs[name], np.float32), len(expected.values))
        if name == "labels":
            different, allowed = float(np.mean(values != np.array(expected.values))), test.tolerance + LABELS
            if different > allowed:
                raise CheckFailed(
                    f"self-test failed: {different:.0%} of the labels are wrong (allowed {allowed:.0%}): "
                    "this engine computes wrong numbers on this machine; see m2h-deploy doctor"
                )
            continue
        error = float(np.mean(np.abs(values - np.array(expected.values)))) / expected.deviation
        if not error <= test.tolerance:  # also when it is not a number
            raise CheckFailed(
                f"self-test failed: {name} is off by {error:.2g} of its deviation (allowed {test.tolerance:g}): "
                f"{_meaning(expected)}"
            )


def _meaning(expected: SelfTestOutput) -> str:
    """What a failure says: of outputs that hardly vary it may be rounding."""
    if float(np.std(expected.values)) < 0.5 * expected.deviation:
        return (
            "its values hardly vary, as those of untrained weights do, so this may be rounding; build in fp32, "
            "or run without the self-test and verify on data"
        )
    return "this engine computes wrong numbers on this machine; see m2h-deploy doctor"
