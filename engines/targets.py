"""Target GPUs: names and compute capabilities."""

from __future__ import annotations

import re
from collections.abc import Sequence

from m2h_deploy.errors import M2HError

#: Compute capability of GPUs that M2H commonly runs on (https://developer.nvidia.com/cuda-gpus).
GPUS = {
    "t4": "7.5",
    "rtx2080": "7.5",
    "a100": "8.0",
    "a10": "8.6",
    "rtx3060": "8.6",
    "rtx3070": "8.6",
    "rtx3080": "8.6",
    "rtx3090": "8.6",
    "rtxa2000": "8.6",
    "orin": "8.7",
    "l4": "8.9",
    "rtx4060": "8.9",
    "rtx4070": "8.9",
    "rtx4080": "8.9",
    "rtx4090": "8.9",
    "h100": "9.0",
    "b200": "10.0",
    "thor": "11.0",
    "rtx5070": "12.0",
    "rtx5080": "12.0",
    "rtx5090": "12.0",
    "gb10": "12.1",
}

PORTABLE = "portable"

#: Least compute capability that computes in FP8 (Ada), and the capabilities that a TensorRT-RTX plan in FP8 is for
#: unless targets are named; 12.1 must be named.
FP8_CAPABILITY = "8.9"
FP8_TARGETS = (FP8_CAPABILITY, "12.0")


def parse_targets(text: str) -> tuple[str, ...]:
    """Parse a list such as `8.6,rtx4090,12.0` to sorted, unique compute capabilities; `portable` gives an empty tuple.

    Raises:
        M2HError: The list is empty or contains an unknown name, which the message names.
    """
    entries = [entry.strip().lower().replace(" ", "").replace("-", "") for entry in text.split(",") if entry.strip()]
    if not entries:
        raise M2HError(f"targets '{text}': give compute capabilities or GPUs, such as 8.6,rtx4090, or {PORTABLE}")
    if entries == [PORTABLE]:
        return ()
    found = {GPUS.get(entry, entry if re.fullmatch(r"\d{1,2}\.\d", entry) else "") for entry in entries}
    if "" in found:
        unknown = next(e for e in entries if e not in GPUS and not re.fullmatch(r"\d{1,2}\.\d", e))
        raise M2HError(
            f"unknown target '{unknown}': give a compute capability such as 8.6, or one of {', '.join(GPUS)}"
        )
    return tuple(sorted(found, key=_number))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def check_fp8_target(capability: str) -> None:
    """Raise M2HError for a compute capability that does not compute in FP8."""
    if _number(capability) < _number(FP8_CAPABILITY):
        raise M2HError(
            f"compute capability {describe_target(capability)} does not compute in FP8, which begins with "
            f"{FP8_CAPABILITY}: build with --precision fp16 or int8 there"
        )


def describe_target(capability: str) -> str:
    """Describe a compute capability with its GPUs: `8.6` as `8.6 (a10, rtx3060, ...)`."""
    names = [name for name, value in GPUS.items() if value == capability]
    return f"{capability} ({', '.join(names)})" if names else capability


def runs_rtx(capability: str) -> bool:
    """Return whether TensorRT-RTX runs on a compute capability: 7.5, 8.0, 8.6, 8.9 and 12.x of its support matrix.

    It runs neither on the Jetsons nor on data center GPUs from Hopper on.
    """
    return capability in ("7.5", "8.0", "8.6", "8.9") or capability.startswith("12.")


def check_rtx_targets(targets: Sequence[str]) -> None:
    """Raise M2HError for a compute capability that no version of TensorRT-RTX supports."""
    for target in targets:
        if not runs_rtx(target):
            raise M2HError(
                f"TensorRT-RTX does not run on compute capability {describe_target(target)}, but on 7.5, 8.0, 8.6, 8.9 "
                "and 12.x: use --engine tensorrt on the device"
            )
