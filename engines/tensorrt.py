"""Build for TensorRT and TensorRT-RTX: compile a strongly typed ONNX graph to a plan.

TensorRT builds for the GPU of the machine it runs on. TensorRT-RTX needs no GPU to build, and kernels are chosen on the
device. Unless targets are named, its plan is for compute capability 8.0, 8.6, 8.9 and 12.x: Turing (7.5) must be named
(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html). For FP8 it is for
8.9 and 12.0 then.

Both flavors' own API is used, which is the same for all that matters here. Polygraphy would add a layer that fixes the
flavor once per process, by an environment variable, and that hides the parser's errors by node.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engines.options import EngineOptions
from engines.targets import FP8_TARGETS, check_fp8_target, check_rtx_targets
from engines.tensorrt_config import TimingCache, check_known, configure
from engines.trtexec import free_batch_of, trtexec_command
from m2h_deploy.backends import BackendOptions
from m2h_deploy.backends.driver import capability_here, missing_gpu
from m2h_deploy.backends.tensorrt_api import NAMES, load_tensorrt, start
from m2h_deploy.backends.tensorrt_log import Messages, listen
from m2h_deploy.blocks import block_of
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import library_path, write_bytes
from m2h_deploy.files.digests import file_sha256

if TYPE_CHECKING:
    import onnx

_log = logging.getLogger("m2h_deploy.engines.tensorrt")

PLAN_FILE = "model.plan"
WEIGHTS_FILE = "weights.onnx"

#: Note for users of INT8 convolutions on TensorRT-RTX: its support matrix has INT8 for matrix products only, and its
#: builder reports that it converts the scales of convolutions to float32.
RTX_INT8_NOTE = (
    "TensorRT-RTX has no INT8 convolutions: with them the plan grows beyond FP16's and gains no speed; leave them out "
    'with the policy {"quantize": ["/*/MatMul*"]}, or keep INT8 to the weights of Linear with {"weights_only": true}'
)


@dataclass(frozen=True)
class TensorRtOptions(EngineOptions):
    """Build options for a plan. Options that a flavor does not support are rejected."""

    targets: tuple[str, ...] = ()
    """Compute capabilities; empty: portable (TensorRT-RTX: 8.0, 8.6, 8.9, 12.x; FP8: 8.9, 12.0) or this machine's GPU
    (TensorRT)."""
    workspace_mb: int | None = None
    level: int | None = None
    """Builder optimization level 0 to 5 (TensorRT)."""
    version_compatible: bool = False
    """Let later versions of TensorRT run the plan (TensorRT)."""
    hardware_compatible: bool = False
    """Let every GPU from Ampere on run the plan (TensorRT)."""
    strip_weights: bool = False
    """Leave the weights out of the plan; the runtime restores them from the ONNX file."""
    max_batch: int | None = None
    """Largest batch of a graph with a dynamic batch; None: 4."""
    expected_batch: int | None = None
    """Batch that such a graph is tuned for; None: 1."""
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries. Their m2h::WindowPartition and m2h::WindowReverse replace the graph's functions."""

    @property
    def largest_batch(self) -> int:
        """The largest batch of a graph with a dynamic batch."""
        return 4 if self.max_batch is None else self.max_batch

    @property
    def tuned_batch(self) -> int:
        """The batch that a graph with a dynamic batch is tuned for."""
        return 1 if self.expected_batch is None else self.expected_batch

    def to_open(self) -> BackendOptions:
        """Return the options for opening the plan that was built here: with its plug-ins and its own code."""
        return BackendOptions(plugins=self.plugins, allow_engine_code=self.version_compatible)


@dataclass(frozen=True)
class BuildRecord:
    """Record of a build: the plan, its source file and the options."""

    flavor: str
    version: str
    precision: str
    options: TensorRtOptions
    onnx_sha256: str
    plan_bytes: int
    seconds: float
    fused_attention: int
    """Number of softmaxes that the builder fused into attention."""
    notes: tuple[str, ...]


def build_tensorrt(
    model: Path, folder: Path, precision: str, options: TensorRtOptions | None = None, *, flavor: str
) -> EngineInfo:
    """Compile the ONNX file `model`, which is already in `precision`, to a plan in `folder`.

    Returns:
        The engine's entry in the manifest.

    Raises:
        M2HError: The graph is in another precision, or cannot be built; see `build_plan`.
    """
    from m2h_deploy.onnx_graph.files import read_onnx
    from m2h_deploy.onnx_graph.precision import graph_precision

    options = with_targets(options or TensorRtOptions(), flavor, precision)
    proto = read_onnx(model)
    found = graph_precision(proto, model)
    if found != precision:
        raise M2HError(f"{model} is {found}, not {precision}: convert it before it is compiled")
    record = _compile(check_flavor(flavor, options, precision), proto, model, folder / PLAN_FILE, flavor, options)
    if options.strip_weights:
        (folder / WEIGHTS_FILE).write_bytes(model.read_bytes())
    details = {key: value for key, value in asdict(options).items() if key not in ("targets", "plugins")}
    # Named and not copied: a bundle never contains code, and the runtime loads a library only if its caller gives it.
    plugins = [{"name": path.name, "sha256": file_sha256(path)} for path in options.plugins]
    details |= {"max_batch": options.largest_batch, "plugins": plugins, "plan_bytes": record.plan_bytes}
    details |= {"build_seconds": round(record.seconds, 1), "fused_attention": record.fused_attention}
    details |= {"notes": list(record.notes), "onnx_sha256": record.onnx_sha256}
    details["trtexec"] = trtexec_command(
        "model.onnx", PLAN_FILE, flavor=flavor, options=options, free_batch=free_batch_of(proto)
    )
    if options.strip_weights:
        details["weights"] = WEIGHTS_FILE
    return EngineInfo(
        kind=flavor,
        version=record.version,
        precision=precision,  # type: ignore[arg-type]
        file=PLAN_FILE,
        targets=options.targets,
        options=details,
    )


def build_plan(model: Path, plan: Path, *, flavor: str, options: TensorRtOptions | None = None) -> BuildRecord:
    """Compile `model` to `plan`, with a progress bar on stderr.

    The network is strongly typed (the graph's casts and Q/DQ decide) and TF32 is off. `plan` is written atomically.

    Raises:
        M2HError: The graph cannot be parsed or built; the message has TensorRT's own text, by node and block.
    """
    from m2h_deploy.onnx_graph.files import read_onnx
    from m2h_deploy.onnx_graph.precision import graph_precision

    if not plan.absolute().parent.is_dir():
        raise M2HError(f"cannot write {plan}: its folder does not exist")
    proto = read_onnx(model)
    precision = graph_precision(proto, model)
    options = with_targets(options or TensorRtOptions(), flavor, precision)
    trt = check_flavor(flavor, options, precision)
    return _compile(trt, proto, model, plan, flavor, options)


def _compile(
    trt: Any, proto: onnx.ModelProto, model: Path, plan: Path, flavor: str, options: TensorRtOptions
) -> BuildRecord:
    """Compile the file `model`, which holds `proto`, to `plan` with the flavor's module `trt`; see `build_plan`."""
    from m2h_deploy.onnx_graph.files import onnx_sha256
    from m2h_deploy.onnx_graph.precision import graph_precision

    logger, messages = listen(flavor)
    builder = start(trt.Builder, f"{NAMES[flavor]} {trt.__version__}", logger, messages)
    _load_plugins(builder, options.plugins)
    network = _parse(trt, builder, logger, model, flavor, options)
    config = configure(trt, builder, network, flavor, options)
    timings = TimingCache(trt, config, flavor)
    messages.errors.clear()  # a timing cache of another version is refused with an error
    begin = perf_counter()
    serialized = _build(trt, builder, network, config)
    seconds = perf_counter() - begin
    if serialized is None:
        raise M2HError(f"{NAMES[flavor]} {trt.__version__} cannot build {model}: {_reason(messages, flavor, options)}")
    timings.save()
    write_bytes(plan, memoryview(serialized))
    return BuildRecord(
        flavor=flavor,
        version=trt.__version__,
        precision=graph_precision(proto),
        options=options,
        onnx_sha256=onnx_sha256(model),
        plan_bytes=plan.stat().st_size,
        seconds=seconds,
        fused_attention=sum("Softmax" in name for name in messages.attention),
        notes=(RTX_INT8_NOTE,) if flavor == "tensorrt-rtx" and _has_int8_convolutions(proto) else (),
    )


def _has_int8_convolutions(proto: onnx.ModelProto) -> bool:
    import onnx

    int8 = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    made = {node.output[0] for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in int8}
    return any(node.op_type == "Conv" and node.input[1] in made for node in proto.graph.node)


def with_targets(options: TensorRtOptions, flavor: str, precision: str) -> TensorRtOptions:
    """Return `options` with the targets of an FP8 plan of TensorRT-RTX, if none are named."""
    fp8 = flavor == "tensorrt-rtx" and precision == "fp8" and not options.targets
    return replace(options, targets=FP8_TARGETS) if fp8 else options


def check_options(flavor: str, options: TensorRtOptions, precision: str | None = None) -> None:
    """Raise M2HError on options that no version of the flavor supports, or not in `precision`.

    Does not import TensorRT.
    """
    if options.largest_batch < 1:
        raise M2HError(f"largest batch {options.max_batch}: must be at least 1")
    if not 1 <= options.tuned_batch <= options.largest_batch:
        raise M2HError(f"expected batch {options.tuned_batch}: must be from 1 to the largest, {options.largest_batch}")
    if options.level is not None and not 0 <= options.level <= 5:
        raise M2HError(f"builder level {options.level}: must be between 0 and 5")
    for library in options.plugins:
        if not library.is_file():
            raise M2HError(f"no plug-in library at {library}")
    if precision == "fp8":
        _check_fp8(flavor, options)
    if flavor != "tensorrt-rtx":
        return
    absent = {"builder level": options.level, "version compatibility": options.version_compatible or None}
    absent["hardware compatibility"] = options.hardware_compatible or None
    for name, value in absent.items():
        if value is not None:
            raise M2HError(
                f"TensorRT-RTX has no {name}: leave it out (its plans are portable between GPUs, not between versions)"
            )
    check_rtx_targets(options.targets)


def _check_fp8(flavor: str, options: TensorRtOptions) -> None:
    """Raise M2HError if the plan is for a GPU that does not compute in FP8."""
    if options.hardware_compatible:
        raise M2HError("a plan for every GPU from Ampere on cannot compute in FP8: leave hardware compatibility out")
    here = flavor == "tensorrt" and not options.targets and missing_gpu(bindings=False) is None
    for target in (capability_here(),) if here else options.targets:
        check_fp8_target(target)


def check_graph(options: TensorRtOptions, proto: onnx.ModelProto, source: Path) -> None:
    """Raise M2HError if TensorRT does not support the graph of the file `source` with `options`."""
    import onnx

    if any(value.type.tensor_type.elem_type == onnx.TensorProto.UINT16 for value in proto.graph.output):
        raise M2HError(f"{source} gives depth as uint16, which TensorRT lacks: export it with --depth-format float32")
    if (options.max_batch, options.expected_batch) != (None, None) and free_batch_of(proto) is None:
        raise M2HError(f"{source} has a fixed batch: leave the batches out, or export it with --dynamic-batch")


def check_flavor(flavor: str, options: TensorRtOptions, precision: str | None = None) -> Any:
    """Return the module of a flavor that can build with `options` here. Raises M2HError if it cannot."""
    trt = check_machine(flavor)
    check_options(flavor, options, precision)
    if flavor == "tensorrt-rtx":
        check_known(trt, flavor, options.targets)
    elif options.targets and not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        raise M2HError(
            f"TensorRT {trt.__version__} builds for the GPU of this machine only: leave the targets out and build on "
            "the target, or use tensorrt-rtx"
        )
    return trt


def check_machine(flavor: str) -> Any:
    """Return the module of a flavor that can build on this machine. Raises M2HError, with the reason, if it cannot."""
    trt = load_tensorrt(flavor)
    # TensorRT-RTX builds without a GPU; neither builds with cuda-bindings.
    missing = missing_gpu(bindings=False) if flavor == "tensorrt" else None
    if missing is not None:
        raise M2HError(f"TensorRT builds only on a machine with a GPU: {missing}")
    return trt


def _load_plugins(builder: Any, libraries: Sequence[Path]) -> None:
    registry = builder.get_plugin_registry()
    for library in libraries:
        if registry.load_library(os.fspath(library)) is None:
            raise M2HError(f"{library} is not a TensorRT plug-in library for this flavor and version")


def _parse(trt: Any, builder: Any, logger: Any, model: Path, flavor: str, options: TensorRtOptions) -> Any:
    # TensorRT 11 supports only strongly typed networks and may drop the flag.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if options.plugins:
        override = getattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE", None)
        if override is None:
            raise M2HError(
                f"{NAMES[flavor]} {trt.__version__} cannot let a plug-in replace an ONNX function: use 10.13 or later"
            )
        parser.set_flag(override)
    with library_path(model) as file:
        parsed = parser.parse_from_file(file)
    if not parsed:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise M2HError(
            f"{NAMES[flavor]} {trt.__version__} cannot parse {model}: {'; '.join(map(_parser_error, errors))}"
        )
    return network


def _parser_error(error: Any) -> str:
    """Format one of the parser's errors: operator, node, block, NVIDIA's message, and the enclosing functions."""
    name, operator = error.node_name(), error.node_operator()
    # Nodes inside a function have no names; the outermost call has one.
    calls = list(error.local_function_stack()) if hasattr(error, "local_function_stack") else []
    where = f"{operator or 'a node'} at {name or f'position {error.node()}'}"
    inside = f", called from {' > '.join(calls)}" if calls else ""
    block = block_of(calls[0] if calls else name)
    return f"{where}{inside} (block {block}): {' '.join(error.desc().split())} [{error.code()}]"


def _build(trt: Any, builder: Any, network: Any, config: Any) -> Any:
    """Return the serialized network, or None. Builds in a thread so that Ctrl-C reaches the monitor at once."""
    canceled = Event()
    config.progress_monitor = make_monitor(trt, canceled)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            return future.result()
        except BaseException:
            canceled.set()  # the pool's exit waits until TensorRT has stopped
            raise


def make_monitor(trt: Any, canceled: Event) -> Any:
    """Make TensorRT's IProgressMonitor, which logs each step and stops the build once `canceled` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _log.info("%s, step %d of %d", phase_name, step + 1, self.steps[phase_name])
            return not canceled.is_set()

    return Monitor()


def _reason(messages: Messages, flavor: str, options: TensorRtOptions) -> str:
    """Return TensorRT's first error, which is the cause; later ones only say that the build failed."""
    reason = messages.errors[0] if messages.errors else "it gives no reason"
    # Seen with 1.7: without weights to fold it compiles kernels immediately, which needs the driver.
    hint = "; a plan without weights can only be built on a machine with a GPU"
    return reason + (hint if flavor == "tensorrt-rtx" and options.strip_weights else "")
