"""`build_bundle`: an exported ONNX file to a bundle that says and proves what it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx

from engines.lowered import Float32Graph, Lowering, lower, read_lowered, self_test_of, with_rounding
from engines.manifest import input_spec, make_manifest
from engines.openvino import Hint, build_openvino, check_hint
from engines.precision.frames import Pictures
from engines.request import NEED_GPU, BuildRequest
from engines.tensorrt import PLAN_FILE, BuildOptions, build_tensorrt, free_batch_of, trtexec_command
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.backends.cuda import capability_here, missing_gpu
from m2h_deploy.bundle.manifest import (
    Bundle,
    EngineInfo,
    InputSpec,
    check_bundle_place,
    load_bundle,
    new_bundle_folder,
    write_manifest,
)
from m2h_deploy.bundle.self_test import check_self_test, pattern
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.atomic import scratch_folder, write_bytes
from m2h_deploy.onnx_graph.files import as_single_file
from m2h_deploy.onnx_graph.info import ModelCard, load_graph, read_card, read_precision
from m2h_deploy.onnx_graph.interface import check_interface


def build_bundle(
    onnx_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    engine: str = "onnxruntime",
    precision: str | None = None,
    threads: int | None = None,
    affinity: Sequence[int] = (),
    provider: str = "cpu",
    hint: Hint | None = None,
    lowering: Lowering | None = None,
    tensorrt: BuildOptions | None = None,
    graph: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Build an engine from an exported ONNX file and put it into a bundle at `out_dir`.

    The precision is the graph's own. With `precision` fp16 or int8 a float32 graph is lowered first (`lowering`), and
    that graph is compiled; `graph` keeps it, to look into or to compile on a device. A graph that is lowered already is
    compiled as it is. `threads` and `affinity` (processors that those threads stay on) are recorded as the defaults of
    an engine on the CPU, `provider` is ONNX Runtime's, `hint` OpenVINO's. `progress` is told when the input was
    accepted and the work begins.

    The bundle holds a golden self-test made from the float32 graph on ONNX Runtime's CPU; a file that was lowered here
    brings it along. A graph that another tool lowered brings none: then the self-test is what that graph gives on ONNX
    Runtime's CPU, and its `reference` in the manifest says so. Where the engine runs on this machine it has passed the
    test (TensorRT needs a GPU for that).

    An older bundle at `out_dir` is replaced only when the new one is whole. Raises M2HError on bad input, before any
    work where it can be known, and CheckFailed when the engine's numbers are wrong.
    """
    lowering, tensorrt = lowering or Lowering(), tensorrt or BuildOptions()
    request = BuildRequest(
        Path(onnx_path), engine, precision, threads, tuple(affinity), provider, hint, lowering, tensorrt, graph
    )
    request.check_engine()
    request.check_graph_place(Path(out_dir))
    check_bundle_place(out_dir, request.source)
    pictures = request.pictures()
    # In this order: an error of writing names the innermost place that has no space.
    with scratch_folder("m2h-build-") as scratch, ExitStack() as stack:
        prepared = _prepare(request, pictures, scratch, progress)
        with _named(request.source, prepared.file):
            lowered = read_lowered(prepared.proto, prepared.file)
            test = (
                lowered.self_test
                if lowered
                else self_test_of(prepared.proto, prepared.file, prepared.precision, prepared.spec)
            )
            folder = stack.enter_context(new_bundle_folder(out_dir))
            info = _compile(request, prepared, folder)
            test = with_rounding(test, prepared.proto, prepared.file, prepared.spec, info)
        manifest = make_manifest(prepared.proto, prepared.card, request.source, info, test, lowered, folder)
        write_manifest(folder, manifest)
        if _runs_here(info):
            _prove(folder, request, brought=lowered is not None and not prepared.lowered_here)
    return load_bundle(out_dir)


@contextmanager
def _named(source: Path, copy: Path) -> Iterator[None]:
    """Let errors name the file that was given, and not the temporary copy that the engine reads."""
    try:
        yield
    except M2HError as error:
        raise type(error)(str(error).replace(os.fspath(copy), os.fspath(source))) from None


def trtexec_of(
    onnx_path: str | os.PathLike[str],
    *,
    engine: str,
    precision: str | None = None,
    lowering: Lowering | None = None,
    tensorrt: BuildOptions | None = None,
    graph: Path | None = None,
) -> str:
    """The command of NVIDIA's own tool that compiles the graph on a machine with TensorRT; needs none here.

    A graph that is to be lowered is lowered first and kept as `graph`. Raises M2HError as `build_bundle` does.
    """
    source, lowering, tensorrt = Path(onnx_path), lowering or Lowering(), tensorrt or BuildOptions()
    request = BuildRequest(source, engine, precision, lowering=lowering, tensorrt=tensorrt, graph=graph)
    request.check_graph_place(None)
    pictures = request.pictures()
    with scratch_folder("m2h-build-") as scratch:
        prepared = _prepare(request, pictures, scratch)
    batch = free_batch_of(prepared.proto)
    file = (graph or source).name
    return trtexec_command(file, PLAN_FILE, flavor=engine, options=tensorrt, free_batch=batch)


@dataclass(frozen=True)
class _Prepared:
    """The graph that is compiled."""

    file: Path
    proto: onnx.ModelProto
    card: ModelCard
    spec: InputSpec
    precision: str
    lowered_here: bool


def _prepare(
    request: BuildRequest, pictures: Pictures | None, scratch: Path, progress: Callable[[str], None] | None = None
) -> _Prepared:
    """Load the graph, and lower it where it is not in the precision that was asked for; `scratch` takes copies."""
    source, target = request.source, scratch / "model.onnx"
    proto = load_graph(source)
    card = read_card(proto, source)
    check_interface(proto, card, source)
    found = read_precision(proto, source)
    spec = input_spec(proto, card)
    _check_graph(request, proto, card, found)
    if progress is not None:
        progress(f"building {request.engine} in {request.precision or found}")
    whole = as_single_file(source, scratch / "whole")
    if request.precision in (None, found):
        return _Prepared(whole, proto, card, spec, found, lowered_here=False)
    with _named(source, whole):
        lower(Float32Graph(whole, card, spec), target, request.precision, request.lowering, pictures)
    if request.graph is not None:
        write_bytes(request.graph, target.read_bytes())
    proto = load_graph(target)
    return _Prepared(target, proto, card, input_spec(proto, card), request.precision, lowered_here=True)


def _check_graph(request: BuildRequest, proto: onnx.ModelProto, card: ModelCard, found: str) -> None:
    """Raises M2HError on a request that does not fit the graph, which is in the precision `found`."""
    source, wanted, lowering = request.source, request.precision, request.lowering
    if found != "fp32" and wanted not in (None, found):
        raise M2HError(f"{source} is {found}, not {wanted}: give the float32 file, or leave the precision out")
    if found != "fp32" and (lowering != Lowering() or request.graph is not None):
        raise M2HError(f"{source} is {found} already: calibration, policy, io and a graph to keep need a float32 graph")
    if found != wanted == "int8" and lowering.frames is None:
        raise M2HError("int8 needs calibration frames: give --calibration a folder, a video, or NYUv2")
    if card.sensor and lowering.io == "fp16":
        raise M2HError(f"{source} is a sensor graph, whose input and output types are fixed: leave io at fp32")
    kinds = {value.type.tensor_type.elem_type for value in proto.graph.output}
    if card.sensor and onnx.TensorProto.UINT16 in kinds and request.engine in NEED_GPU:
        raise M2HError(f"{source} gives depth as uint16, which TensorRT lacks: export it with --depth float32")
    if request.tensorrt.max_batch is not None and free_batch_of(proto) is None:
        raise M2HError(f"{source} has a fixed batch: leave the largest batch out, or export it with --dynamic-batch")
    if request.engine == "openvino":
        check_hint(wanted or found, request.hint)


def _compile(request: BuildRequest, prepared: _Prepared, folder: Path) -> EngineInfo:
    """Build the engine of the graph into `folder`."""
    model, precision, threads = prepared.file, prepared.precision, request.threads
    if request.engine == "onnxruntime":
        from engines.onnxruntime import build_onnxruntime

        info = build_onnxruntime(model, folder, precision=precision, threads=threads, provider=request.provider)
    elif request.engine == "openvino":
        hint = request.hint
        if hint is None and find_spec("onnxruntime") is None:
            hint = "f32"  # nothing here can measure what a coarser one does to the network
        info = build_openvino(model, folder, precision=precision, threads=threads, hint=hint)
    else:
        info = build_tensorrt(model, folder, flavor=request.engine, precision=precision, options=request.tensorrt)
    if request.affinity:
        info = info.model_copy(update={"options": {**info.options, "affinity": list(request.affinity)}})
    return info


def _runs_here(info: EngineInfo) -> bool:
    if info.kind not in NEED_GPU:
        return True
    try:
        # A plan for other cards is to be proved on one of those, by the runtime.
        return missing_gpu() is None and (not info.targets or capability_here() in info.targets)
    except ModuleNotFoundError:  # a machine that only builds has no cuda-python
        return False


def _prove(folder: Path, request: BuildRequest, *, brought: bool) -> None:
    """Run the new bundle's self-test with the engine itself, before the bundle gets its place.

    `brought`: the user's file came with the test.
    """
    bundle = load_bundle(folder)
    backend = open_backend(bundle, BackendOptions(plugins=request.tensorrt.plugins))
    try:
        assert bundle.manifest.self_test is not None
        outputs = backend.run(pattern(bundle.manifest.input))
        check_self_test(bundle.manifest.self_test, outputs, bundle.manifest.engine.precision)
    except CheckFailed as error:
        changed = f"; or {request.source} was changed after it was lowered" if brought else ""
        raise CheckFailed(f"{error}{changed}") from None
    finally:
        backend.close()
