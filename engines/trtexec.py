"""Write the command of NVIDIA's own tool that compiles the same plan, for machines that have the tool."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from engines.tensorrt import TensorRtOptions


def trtexec_command(
    model: str,
    plan: str,
    *,
    flavor: str,
    options: TensorRtOptions,
    free_batch: tuple[str, tuple[int, ...]] | None = None,
) -> str:
    """Return the command of NVIDIA's own tool that builds the same plan.

    `free_batch` is the input whose batch is dynamic, as returned by `free_batch_of`.
    """
    words = ["trtexec" if flavor == "tensorrt" else "tensorrt_rtx", f"--onnx={model}", f"--saveEngine={plan}"]
    words += ["--stronglyTyped"] if flavor == "tensorrt" else []
    words += ["--noTF32", "--skipInference", "--profilingVerbosity=detailed"]
    if options.targets:
        words.append("--computeCapabilities=" + ",".join(target.replace(".", "") for target in options.targets))
    if options.workspace_mb is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mb}M")
    if options.level is not None:
        words.append(f"--builderOptimizationLevel={options.level}")
    words += ["--versionCompatible"] if options.version_compatible else []
    words += ["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []
    words += ["--stripWeights"] if options.strip_weights else []
    words += [f"--staticPlugins={library}" for library in options.plugins]
    if free_batch is not None:
        name, rest = free_batch
        ends = [("min", 1), ("opt", options.tuned_batch), ("max", options.largest_batch)]
        words += [f"--{end}Shapes={name}:{'x'.join(map(str, (batch, *rest)))}" for end, batch in ends]
    return shlex.join(words)


def free_batch_of(proto: onnx.ModelProto) -> tuple[str, tuple[int, ...]] | None:
    """Return the name and other sides of the input if the graph's batch is dynamic, None if it is fixed."""
    from m2h_deploy.onnx_graph.interface import dims_of

    value = proto.graph.input[0]
    batch, *rest = dims_of(value)
    return None if batch else (value.name, tuple(rest))
