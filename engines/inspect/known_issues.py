"""Known issues of combinations of engine, version and device, as data.

Every `link` is a public thread or page that reports the problem; issues without a link were observed by this project.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

EVERY = ("*",)


@dataclass(frozen=True)
class KnownIssue:
    """One affected combination, its effect, and the remedy."""

    engine: str
    """Engine kind, as in a manifest."""
    versions: tuple[str, ...]
    """Affected versions of the engine: `10.3` stands for every 10.3.x, `>=11` for 11 and later, `*` for all."""
    condition: str
    """Further conditions, as text."""
    effect: str
    remedy: str
    link: str | None = None
    capabilities: tuple[str, ...] = ()
    """Affected compute capabilities; empty: any GPU."""
    cpu_features: tuple[str, ...] = ()
    """CPU features, any of which triggers it; empty: any CPU."""
    distributions: tuple[str, ...] = ()
    """Python distributions that must all be installed to trigger it."""


@dataclass(frozen=True)
class Installed:
    """A machine's engines and devices, which issues are matched against."""

    engines: dict[str, str]
    """Version by engine kind."""
    capabilities: Sequence[str] = ()
    """Compute capabilities of the GPUs; empty without a GPU or if they are unknown."""
    cpu_features: Set[str] = frozenset()
    distributions: Set[str] = field(default_factory=frozenset)


_ATTENTION = "upgrade TensorRT; otherwise scale Q and K before their product, or compute attention as explicit MatMuls"

KNOWN_ISSUES: tuple[KnownIssue, ...] = (
    KnownIssue(
        "tensorrt",
        ("10.0.0",),
        "FP16 with fused attention (the early access release of 10.0)",
        "attention gives wrong numbers, with no error",
        "install TensorRT 10.0.1 or later",
        "https://github.com/NVIDIA/TensorRT/issues/3777",
    ),
    KnownIssue(
        "tensorrt",
        ("10.3",),
        "a ViT in FP16, or a transformer with free dimensions",
        "wrong outputs with no error: nearly one class for the whole image",
        f"{_ATTENTION} (JetPack 6 has this version: trust the self-test and m2h-deploy verify there)",
        "https://github.com/NVIDIA/TensorRT/issues/4723",
    ),
    KnownIssue(
        "tensorrt",
        ("10.3",),
        "Depth Anything 3 on a Jetson Orin with JetPack 6.2",
        "depth differs from the desktop's, and its scale changes from frame to frame, with no error",
        "one user's remedy is TensorRT 10.16.1 in the container nvcr.io/nvidia/tensorrt:26.03-py3; on compute "
        "capability 12.0 that version gives wrong attention in FP16 and BF16, so take it for Orin only",
        "https://github.com/ika-rwth-aachen/ros2-depth-anything-v3-trt/issues/16",
        capabilities=("8.7",),
    ),
    KnownIssue(
        "tensorrt",
        ("10.4",),
        "a ViT, in float32 too",
        "outputs that have nothing to do with the network's, with no error; NaN in FP16",
        _ATTENTION,
        "https://github.com/NVIDIA/TensorRT/issues/4742",
    ),
    KnownIssue(
        "tensorrt",
        ("10.7",),
        "attention exported from scaled_dot_product_attention, in float32 too",
        "attention gives wrong numbers, with no error",
        _ATTENTION,
        "https://github.com/NVIDIA/TensorRT/issues/4333",
    ),
    KnownIssue(
        "tensorrt",
        ("10.13.3",),
        "projections that share a LayerNorm (query, key and value), with a largest batch of 1, on a Jetson Thor",
        "the projections are fused and give wrong numbers, with no error",
        'build with the environment variable __LUNOWUD="-peep:fc_h_fusion=off", which a user found to correct it',
        "https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151",
        capabilities=("11.0",),
    ),
    KnownIssue(
        "tensorrt",
        ("10.13.3",),
        "a build with the FP8 or FP4 builder flag on a Jetson Thor",
        "the engine is float32, with no error and no warning",
        "put the precision into the graph: m2h-deploy build --precision fp16, int8 or fp8",
        "https://github.com/NVIDIA/TensorRT/issues/4590",
        capabilities=("11.0",),
    ),
    KnownIssue(
        "tensorrt",
        ("10.16",),
        "a ViT in FP16 or BF16 with fused attention on compute capability 12.0",
        "attention gives wrong numbers from the first block on, with no error; float32 is exact",
        f"build in float32 there, or {_ATTENTION}",
        "https://github.com/NVIDIA/TensorRT/issues/4837",
        capabilities=("12.0",),
    ),
    KnownIssue(
        "tensorrt",
        (">=11",),
        "a build that relies on the FP16 or INT8 builder flag, or on a calibrator",
        "those are gone: a float32 graph gives a float32 engine",
        "put the precision into the graph, as m2h-deploy build --precision does",
        "https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x-python-api-patterns.html",
    ),
    KnownIssue(
        "tensorrt-rtx",
        EVERY,
        "an INT8 graph with Q/DQ around convolutions",
        "they are computed in FP16 and float32: no faster than FP16, and less exact",
        'build with --precision fp16, or quantize matrix products alone: the policy {"quantize": ["/*/MatMul*"]}',
    ),
    KnownIssue(
        "onnxruntime",
        EVERY,
        "onnxruntime and onnxruntime-gpu installed together",
        "one overwrites the other's files, and the CUDA provider is gone",
        "pip uninstall both, then install onnxruntime-gpu alone",
        "https://github.com/microsoft/onnxruntime/issues/26996",
        distributions=("onnxruntime", "onnxruntime-gpu"),
    ),
    KnownIssue(
        "onnxruntime",
        EVERY,
        "a GPU provider whose libraries do not load",
        "the session runs on the CPU, and only its log says so",
        "compare session.get_providers() with what was asked for, as this project's backend does",
        "https://github.com/microsoft/onnxruntime/issues/23372",
        distributions=("onnxruntime-gpu",),
    ),
    KnownIssue(
        "openvino",
        EVERY,
        "a CPU with bfloat16 and no inference precision asked for",
        "a float32 graph is computed in bfloat16",
        "ask for f32, as this project's bundles of precision fp32 do, and say which one was timed",
        "https://github.com/openvinotoolkit/openvino.genai/issues/164",
        cpu_features=("avx512_bf16", "amx_bf16"),
    ),
    KnownIssue(
        "openvino",
        ("2026.4",),
        "an ONNX file with local functions of a domain of its own",
        "reading it ends the process with a segmentation fault",
        "inline the functions first, as m2h-deploy build --engine openvino does",
    ),
)


def affects(issue: KnownIssue, version: str) -> bool:
    """Return whether `version` of the issue's engine is affected."""
    return any(_matches(pattern, version) for pattern in issue.versions)


def _matches(pattern: str, version: str) -> bool:
    if pattern == "*":
        return True
    have = _numbers(version)
    if pattern.startswith(">="):
        return have >= _numbers(pattern[2:])
    wanted = _numbers(pattern)
    return have[: len(wanted)] == wanted


def _numbers(version: str) -> tuple[int, ...]:
    """Parse `10.16.1.11` to (10, 16, 1, 11) and `10.0.0b6` to (10, 0, 0), up to the first non-numeric part."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def applies(issue: KnownIssue, installed: Installed) -> bool:
    """Return whether an issue's engine, version, device and packages are all present; ignores its `condition`.

    A GPU of unknown compute capability counts as affected: an unnecessary warning costs less than a missing one.
    """
    version = installed.engines.get(issue.engine)
    if version is None or not affects(issue, version):
        return False
    if issue.capabilities and installed.capabilities and not set(issue.capabilities) & set(installed.capabilities):
        return False
    if issue.cpu_features and not set(issue.cpu_features) & set(installed.cpu_features):
        return False
    return set(issue.distributions) <= set(installed.distributions)
