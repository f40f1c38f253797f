"""Build a self-describing, self-tested bundle from an exported ONNX file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from engines.manifest import input_spec, make_manifest
from engines.options import EngineOptions
from engines.precision.frames import Pictures
from engines.precision.lowering import Float32Graph, Lowering, lower, self_test_of, with_rounding
from engines.registry import engine_builder
from engines.request import BuildRequest
from engines.targets import runs_rtx
from engines.tensorrt import PLAN_FILE, TensorRtOptions, with_targets
from engines.trtexec import free_batch_of, trtexec_command
from m2h_deploy.backends import KINDS, open_backend
from m2h_deploy.backends.driver import capability_here, missing_gpu
from m2h_deploy.bundle.folder import Bundle, check_bundle_place, load_bundle, new_bundle_folder, write_manifest
from m2h_deploy.bundle.manifest import EngineInfo, InputSpec, Manifest, SelfTest
from m2h_deploy.bundle.self_test import check_self_test, pattern
from m2h_deploy.errors import CheckFailed, M2HError, MissingExtra
from m2h_deploy.files.atomic import scratch_folder, write_bytes
from m2h_deploy.onnx_graph.files import as_single_file, read_onnx
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import check_interface, dims_of
from m2h_deploy.onnx_graph.precision import read_precision

_log = logging.getLogger("m2h_deploy.engines.build")


def build_bundle(
    onnx_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    engine: str = "onnxruntime",
    precision: str | None = None,
    options: EngineOptions | None = None,
    lowering: Lowering | None = None,
    graph: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Build an engine from an exported ONNX file and put it into a bundle at `out_dir`.

    The bundle holds a golden self-test made from the float32 graph on ONNX Runtime's CPU; a file that was lowered here
    carries its own. A graph that another tool lowered has no self-test: then the test is what that graph gives on ONNX
    Runtime's CPU, and its `reference` in the manifest says so. If the engine runs on this machine (TensorRT needs a GPU
    for that), it has passed the test; otherwise a warning is logged that says why the test did not run. An older bundle
    at `out_dir` is replaced only when the new one is complete.

    Args:
        onnx_path: An ONNX file of `export_onnx`.
        out_dir: Folder of the bundle.
        engine: Engine kind, a key of `ENGINES`.
        precision: None for the graph's own. With fp16, int8 or fp8 a float32 graph is lowered first; a graph that is
            lowered already is compiled unchanged.
        options: Options of the engine kind: `OnnxRuntimeOptions`, `OpenVinoOptions` or `TensorRtOptions`.
        lowering: How to lower a float32 graph.
        graph: File to keep the lowered graph in, to inspect it or to compile it on a device.
        progress: Called with a message once the input is accepted and the work begins.

    Raises:
        M2HError: The input is invalid; raised before any work if that can be known.
        CheckFailed: The engine's outputs fail the self-test.
    """
    builder = engine_builder(engine)
    options, lowering = options or builder.options(), lowering or Lowering()
    request = BuildRequest(Path(onnx_path), builder, precision, options, lowering, graph)
    builder.check_machine(options)
    request.check_graph_place(Path(out_dir))
    check_bundle_place(out_dir, request.source)
    pictures = request.pictures()
    # In this order: an error of writing names the innermost place that has no space.
    with scratch_folder("m2h-build-") as scratch, ExitStack() as stack:
        prepared = _prepare(request, pictures, scratch, progress)
        with _named(request.source, prepared.file):
            test = _self_test(prepared)
            folder = stack.enter_context(new_bundle_folder(out_dir))
            compiled = builder.build(prepared.file, folder, prepared.precision, options)
            test = with_rounding(test, prepared.proto, prepared.file, prepared.spec, compiled)
        manifest = make_manifest(prepared.proto, prepared.info, request.source, compiled, test, folder)
        manifest = _keep_calibration(manifest, Path(out_dir))
        write_manifest(folder, manifest)
        brought = prepared.info.lowered is not None and not prepared.lowered_here
        errors = _prove(folder, request, brought=brought)
        if errors:
            write_manifest(folder, _with_measured(manifest, errors))
    bundle = load_bundle(out_dir)
    return _with_speed(bundle, request) if lowering.speed and errors and prepared.lowered_here else bundle


def _keep_calibration(manifest: Manifest, place: Path) -> Manifest:
    """Take over the depth calibration of an earlier bundle of the same weights, which is replaced; say so."""
    try:
        earlier = load_bundle(place).manifest
    except M2HError:
        return manifest
    calibration = earlier.depth_calibration
    if calibration is None:
        return manifest
    same = _depth_facts(earlier) == _depth_facts(manifest)
    if not same or "depth" not in manifest.tasks:
        _log.warning("%s was calibrated (%s), and the new engine is not: calibrate it again", place, calibration.text)
        return manifest
    _log.warning("the depth calibration of the earlier bundle is kept: %s", calibration.text)
    return manifest.model_copy(update={"depth_calibration": calibration})


def _depth_facts(manifest: Manifest) -> tuple[object, ...]:
    """Return what the scale of the network's depth depends on."""
    spec = manifest.network_input
    return manifest.model.weights_sha256, spec.height, spec.width, manifest.depth_range


def _with_speed(bundle: Bundle, request: BuildRequest) -> Bundle:
    """Record how much faster `bundle` is than the same engine in float32; where that fails, log a warning."""
    from engines.speed import compare_with_float32

    _log.info("comparing with float32")
    try:
        with scratch_folder("m2h-float32-") as scratch:
            options = request.options.in_float32()
            build_bundle(request.source, scratch / "float32", engine=request.engine.name, options=options)
            return compare_with_float32(bundle, scratch / "float32", request.options.to_open())
    except M2HError as error:  # the bundle is complete
        _log.warning("the speed was not compared with float32: %s", error)
        return bundle


@contextmanager
def _named(source: Path, copy: Path) -> Iterator[None]:
    """Make errors name the file that was given instead of the temporary copy that the engine reads."""
    try:
        yield
    except M2HError as error:
        raise type(error)(str(error).replace(os.fspath(copy), os.fspath(source))) from None


def trtexec_of(
    onnx_path: str | os.PathLike[str],
    *,
    engine: str,
    precision: str | None = None,
    options: TensorRtOptions | None = None,
    lowering: Lowering | None = None,
    graph: Path | None = None,
) -> str:
    """Return the command of NVIDIA's own tool that compiles the graph on a machine with TensorRT; needs none here.

    A graph that is to be lowered is lowered first and kept as `graph`.

    Raises:
        M2HError: As in `build_bundle`.
    """
    source, options = Path(onnx_path), options or TensorRtOptions()
    request = BuildRequest(source, engine_builder(engine), precision, options, lowering or Lowering(), graph)
    request.check_graph_place(None)
    pictures = request.pictures()
    with scratch_folder("m2h-build-") as scratch:
        prepared = _prepare(request, pictures, scratch)
    batch = free_batch_of(prepared.proto)
    file = (graph or source).name
    options = with_targets(options, engine, prepared.precision)
    return trtexec_command(file, PLAN_FILE, flavor=engine, options=options, free_batch=batch)


@dataclass(frozen=True)
class _Prepared:
    """The graph to compile."""

    file: Path
    proto: onnx.ModelProto
    info: GraphInfo
    spec: InputSpec
    precision: str
    lowered_here: bool


def _self_test(prepared: _Prepared) -> SelfTest:
    """Return the self-test that a lowered graph carries; else make one."""
    lowered = prepared.info.lowered
    if lowered is not None:
        return lowered.self_test
    return self_test_of(prepared.proto, prepared.file, prepared.precision, prepared.spec)


def _prepare(
    request: BuildRequest, pictures: Pictures | None, scratch: Path, progress: Callable[[str], None] | None = None
) -> _Prepared:
    """Load the graph, and lower it if it is not in the requested precision; copies go to the folder `scratch`."""
    source, target = request.source, scratch / "model.onnx"
    proto = read_onnx(source)
    info = GraphInfo.read(proto, source)
    check_interface(proto, info, source)
    found = read_precision(proto, source)
    spec = input_spec(proto, info)
    _check_graph(request, proto, info, found)
    if progress is not None:
        progress(f"building {request.engine.name} in {request.precision or found}")
    whole = as_single_file(source, scratch / "whole")
    if request.precision in (None, found):
        return _Prepared(whole, proto, info, spec, found, lowered_here=False)
    tool = request.engine.lowering_tool(request.options, request.precision)
    with _named(source, whole):
        lower(Float32Graph(whole, info, spec), target, request.precision, request.lowering, pictures, tool)
    if request.graph is not None:
        write_bytes(request.graph, target.read_bytes())
    proto = read_onnx(target)
    info = GraphInfo.read(proto, target)
    return _Prepared(target, proto, info, input_spec(proto, info), request.precision, lowered_here=True)


def _check_graph(request: BuildRequest, proto: onnx.ModelProto, info: GraphInfo, found: str) -> None:
    """Raise M2HError if the request does not fit the graph, which is in the precision `found`."""
    source, wanted, lowering = request.source, request.precision, request.lowering
    if found != "fp32" and wanted not in (None, found):
        raise M2HError(f"{source} is {found}, not {wanted}: give the float32 file, or leave the precision out")
    if found != "fp32" and (lowering.given or request.graph is not None):
        raise M2HError(f"{source} is {found} already: calibration, policy, io and a graph to keep need a float32 graph")
    if wanted is not None and wanted != found:
        request.engine.lowering_tool(request.options, wanted)
    if found != wanted and wanted in ("int8", "fp8") and lowering.frames is None:
        raise M2HError(f"{wanted} needs calibration frames: give --calibration a folder, a video, or NYUv2")
    batch = dims_of(proto.graph.input[0])[0]
    if batch > 1 and lowering.frames is not None:
        raise M2HError(f"{source} takes {batch} frames at once: calibrate a file of the same export with a batch of 1")
    if info.sensor and lowering.io == "fp16":
        raise M2HError(f"{source} is a sensor graph, whose input and output types are fixed: leave io at fp32")
    request.engine.check_options(request.options, wanted or found)
    request.engine.check_graph(request.options, proto, source)


def _obstacle(info: EngineInfo) -> str | None:
    """Return why this machine cannot run the engine, as far as the driver knows; None if nothing speaks against it."""
    if not KINDS[info.kind].needs_gpu:
        return None
    missing = missing_gpu()
    if missing is not None:
        return str(missing)
    capability = capability_here()
    if info.targets and capability not in info.targets:
        return f"the plan is for compute capability {', '.join(info.targets)}, and this GPU has {capability}"
    if info.kind == "tensorrt-rtx" and not runs_rtx(capability):
        return f"TensorRT-RTX does not run on this GPU, of compute capability {capability}: use --engine tensorrt"
    return None


def _with_measured(manifest: Manifest, errors: dict[str, float]) -> Manifest:
    assert manifest.self_test is not None
    return manifest.model_copy(update={"self_test": manifest.self_test.model_copy(update={"measured": errors})})


def _prove(folder: Path, request: BuildRequest, *, brought: bool) -> dict[str, float]:
    """Run the new bundle's self-test with the engine itself, before the bundle is moved into place; return the errors.

    Without an error, and with a logged warning, if this machine cannot run the engine.

    `brought`: the self-test came with the user's file.
    """
    bundle = load_bundle(folder)
    obstacle = _obstacle(bundle.manifest.engine)
    try:
        backend = None if obstacle is not None else open_backend(bundle, request.options.to_open())
    except MissingExtra as error:  # building a plan needs fewer packages than running it
        backend, obstacle = None, str(error)
    if backend is None:
        _log.warning("the self-test did not run: %s", obstacle)
        return {}
    try:
        assert bundle.manifest.self_test is not None
        outputs = backend.run(pattern(bundle.manifest.input))
        return check_self_test(bundle.manifest.self_test, outputs, bundle.manifest.engine.precision)
    except CheckFailed as error:
        changed = f"; or {request.source} was changed after it was lowered" if brought else ""
        raise CheckFailed(f"{error}{changed}") from None
    finally:
        backend.close()
