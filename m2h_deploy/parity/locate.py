"""Locate the first diverging block of two ONNX files of the network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.self_test import pattern
from m2h_deploy.choices import check_choice
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.tasks import TASKS

if TYPE_CHECKING:
    import onnx

#: Relative error that a single operator may add by rounding only, by the engine's precision.
ROUNDING = {"fp32": 1e-4, "fp16": 3e-3, "int8": 5e-2, "fp8": 1e-1}

#: A value diverges if its error is this many times that of its inputs (or the rounding error, if that is larger);
#: skipped operators in between may each add as much.
JUMP = 10.0

#: Number of values fetched in the first run, and of bytes in later ones: all maps of a large network together would
#: exceed the memory.
_FIRST_CHUNK, _CHUNK_BYTES = 24, 400_000_000

_LAYER = re.compile(r"(?:^|/)((?:blocks|layers)\.\d+)(?=/|$)")
_AROUND_LAYERS = {"backbone": ("embed", "stages"), "wmca": ("reduce", "expand")}


@dataclass(frozen=True)
class ValueDifference:
    """Difference of one intermediate value that both files have."""

    name: str
    block: str
    error: float
    """Root mean square difference as a share of the reference's root mean square; inf for non-finite values."""
    inputs_error: float
    """Largest error of the nearest compared values that it is computed from."""
    skipped: int
    """Number of operators in between whose values could not be compared."""


@dataclass(frozen=True)
class BlockDifference:
    """One block of the paper, with the largest error of its values."""

    name: str
    error: float
    values: int


@dataclass(frozen=True)
class LocateResult:
    """Differences of two files, and the first diverging block."""

    values: tuple[ValueDifference, ...]
    blocks: tuple[BlockDifference, ...]
    """In graph order."""
    block: str | None
    """The first diverging block; None if no value diverges."""
    value: str | None
    """The first diverging value."""
    compared: int
    of: int
    """Number of values in the reference; an optimized engine has fewer, because fused operators hide theirs."""
    unseen: tuple[str, ...]
    """Blocks without a compared value: a divergence there is attributed to the next block."""

    @property
    def summary(self) -> str:
        """The result in one line."""
        if self.block is None:
            worst = max(self.values, key=lambda v: v.error)
            return f"no block jumps: the largest relative error is {worst.error:.1e}, in {worst.block}"
        found = next(v for v in self.values if v.name == self.value)
        return (
            f"first difference in {self.block}: {found.name} is off by {found.error:.2g} (relative), "
            f"what it is computed from by {found.inputs_error:.1e}"
        )


def block_of(value: str, *, after_layers: bool = False) -> str:
    """Return the paper's block of a value: `/wmca/layers.0/attention/MatMul_output_0` is in `wmca.layers.0`.

    Blocks are backbone.blocks.i, mstr, msf.task, wmca.layers.i, context (GGFM) and heads.task. Values before the layers
    of backbone and WMCA are in backbone.embed and wmca.reduce, those after them (`after_layers`) in backbone.stages and
    wmca.expand. A network output belongs to its head.
    """
    if value in TASKS:
        return f"heads.{value}"
    first, _, rest = value.lstrip("/").partition("/")
    if first not in _AROUND_LAYERS:
        return first
    layer = _LAYER.search(rest)  # the deploy form has /wmca/exchange/layers.0
    return f"{first}.{layer[1] if layer else _AROUND_LAYERS[first][after_layers]}"


def locate(
    reference: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    image: NDArray[np.float32],
    *,
    precision: str = "fp32",
) -> LocateResult:
    """Run both ONNX files on `image` in ONNX Runtime and compare every value that both name.

    The engine's file may be optimized: ONNX Runtime's level `extended` keeps five of six values of an exported M2H and
    some in every block. Both must have been exported in the same form, so that equal names mean equal values.

    Args:
        reference: float32 file of m2h-deploy export.
        engine: The file to examine, for instance a bundle's model.onnx.
        image: float32 (N, 3, H, W), normalized; repeated if the files have a larger fixed batch.
        precision: The engine's precision; it sets the error that counts as rounding (`ROUNDING`).

    Raises:
        M2HError: A file is not ONNX, onnx or onnxruntime is not installed, or the files have no value in common.
    """
    check_choice("precision", precision, ROUNDING)
    reference_graph, engine_graph = _load(reference), _load(engine)
    names, engine_names = _value_names(reference_graph), set(_value_names(engine_graph))
    common = [name for name in names if name in engine_names]
    probes = _probe(reference_graph, common, reference), _probe(engine_graph, common, engine)
    differences = _errors(*probes, image, common)
    if not differences:
        raise M2HError(f"{engine} has no value in common with {reference}: export both with the same options")
    values = _with_inputs(reference_graph, differences)
    floor = ROUNDING[precision]
    found = next((v for v in values if not v.error < JUMP * max(v.inputs_error, floor) * (1 + v.skipped)), None)
    blocks = _by_block(values)
    return LocateResult(
        values=values,
        blocks=blocks,
        block=found.block if found else None,
        value=found.name if found else None,
        compared=len(values),
        of=len(names),
        unseen=tuple(sorted(_blocks_of(reference_graph) - {block.name for block in blocks})),
    )


def check_locatable(bundle: Bundle) -> None:
    """Raise M2HError if the engine file is not ONNX: a compiled engine does not expose its intermediate values."""
    if bundle.engine_file.suffix != ".onnx":
        raise M2HError(
            f"{bundle.path}: an engine of {bundle.manifest.engine.kind} does not show its intermediate values: "
            "locate in an onnxruntime bundle of the same ONNX file"
        )


def locate_in_bundle(bundle: Bundle, reference: str | os.PathLike[str]) -> LocateResult:
    """Run `locate` for the engine of a bundle, on the self-test's input.

    Raises:
        M2HError: The engine file is not ONNX; a compiled engine does not expose its intermediate values.
    """
    check_locatable(bundle)
    engine = bundle.manifest.engine
    info = GraphInfo.read(_load(reference), reference)
    if info.precision not in (None, "fp32"):
        raise M2HError(f"{reference} is {info.precision}: a reference must be float32, the file before lowering")
    if bundle.manifest.sensor is not None and info.sensor is None:
        raise M2HError(f"{reference} is not a sensor graph, the bundle's is: export it with the same --sensor")
    return locate(reference, bundle.engine_file, pattern(bundle.manifest.input), precision=engine.precision)


def _load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        import onnx  # noqa: F401 (as below)
        import onnxruntime  # noqa: F401 (imported here, so that one message names the missing package)
    except ModuleNotFoundError as error:
        extra = "onnxruntime" if error.name == "onnxruntime" else "build"
        raise missing_extra(str(error.name), extra, "locating a difference") from None
    from m2h_deploy.onnx_graph.files import read_onnx

    return read_onnx(path)


def _value_names(proto: onnx.ModelProto) -> list[str]:
    return [name for node in proto.graph.node for name in node.output if name]


class _Probe:
    """A session that has every requested value as an output."""

    def __init__(self, proto: onnx.ModelProto, wanted: Iterable[str], path: str) -> None:
        import onnx

        from m2h_deploy.onnx_graph.session import cpu_session

        outputs = {value.name for value in proto.graph.output}
        # Without a type: ONNX Runtime infers it.
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
        # Optimization would fuse away requested values.
        self._session = cpu_session(proto, path, optimize="none", threads=len(os.sched_getaffinity(0)))
        self._path = path
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise M2HError(f"{path} takes {len(inputs)} inputs, expected one image: export it again")
        self._input = inputs[0]

    def run(self, names: list[str], image: NDArray[np.float32]) -> Iterable[NDArray[Any]]:
        """Return the values `names` for `image`, repeated to the graph's batch."""
        from m2h_deploy.onnx_graph.session import run_session

        batch = self._input.shape[0]
        if isinstance(batch, int) and batch > len(image):
            image = np.resize(image, (batch, *image.shape[1:]))
        shape = " x ".join(map(str, image.shape))
        return run_session(self._session, image, f"{self._path} on {shape}", names).values()


def _probe(proto: onnx.ModelProto, wanted: list[str], path: str | os.PathLike[str]) -> _Probe:
    return _Probe(proto, wanted, os.fspath(path))


def _errors(reference: _Probe, engine: _Probe, image: NDArray[np.float32], names: list[str]) -> dict[str, float]:
    """Return the relative error of each floating-point value with the same shape on both sides."""
    errors = {}
    left, count, largest = list(names), _FIRST_CHUNK, 1
    while left:
        chunk, left = left[:count], left[count:]
        for name, a, b in zip(chunk, reference.run(chunk, image), engine.run(chunk, image), strict=True):
            largest = max(largest, a.nbytes)
            if a.shape == b.shape and a.size and np.issubdtype(a.dtype, np.floating):
                errors[name] = _relative(a, b)
        count = max(1, _CHUNK_BYTES // (2 * largest))
    return errors


def _relative(reference: NDArray[Any], engine: NDArray[Any]) -> float:
    if not np.isfinite(engine).all():
        return float("inf")
    reference, engine = reference.astype(np.float64), engine.astype(np.float64)
    difference = float(np.sqrt(np.mean((reference - engine) ** 2)))
    size = float(np.sqrt(np.mean(reference**2)))
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def _values_in_order(proto: onnx.ModelProto) -> Iterator[tuple[str, str, list[str]]]:
    """Yield name, block and inputs of every value."""
    entered: set[str] = set()
    for node in proto.graph.node:
        for name in filter(None, node.output):
            first, _, rest = name.lstrip("/").partition("/")
            if _LAYER.search(rest):
                entered.add(first)
            yield name, block_of(name, after_layers=first in entered), list(node.input)


def _blocks_of(proto: onnx.ModelProto) -> set[str]:
    return {block for name, block, _ in _values_in_order(proto) if "/" in name or name in TASKS}


def _with_inputs(proto: onnx.ModelProto, errors: Mapping[str, float]) -> tuple[ValueDifference, ...]:
    """Return each compared value with its inherited error; skipped values pass on the error of their inputs."""
    carried: dict[str, tuple[float, int]] = {}
    values = []
    for name, block, inputs in _values_in_order(proto):
        sources = [carried[source] for source in inputs if source in carried]
        inherited = max((error for error, _ in sources), default=0.0)
        skipped = max((count for _, count in sources), default=0)
        if name in errors:
            values.append(ValueDifference(name, block, errors[name], inherited, skipped))
            carried[name] = errors[name], 0
        else:
            carried[name] = inherited, skipped + 1
    return tuple(values)


def _by_block(values: Iterable[ValueDifference]) -> tuple[BlockDifference, ...]:
    worst: dict[str, tuple[float, int]] = {}
    for value in values:
        error, count = worst.get(value.block, (0.0, 0))
        worst[value.block] = (max(error, value.error), count + 1)
    return tuple(BlockDifference(name, error, count) for name, (error, count) in worst.items())
