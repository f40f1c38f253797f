"""Read complete ONNX files: weights in other files next to them (external data) are loaded into the graph.

All readers use this module. The onnx package rejects links to weights, which model hubs use, and its older versions
read truncated weights without an error.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnx

from m2h_deploy.causes import MachineError, failure, reason
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.files.digests import file_sha256

#: Largest size of a protobuf message in bytes, and so of an ONNX file.
_LARGEST = (1 << 31) - 1


def read_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read the ONNX file at `path` with all of its weights.

    Weights that are also listed among the inputs, as by older exporters, are removed from the inputs.

    Raises:
        M2HError: The file is missing, not ONNX or truncated, or its external weights are missing.
    """
    proto = read_message(Path(path))
    total = proto.ByteSize()
    for tensor, location, offset, length in _external(proto, Path(path)):
        total += length
        if total > _LARGEST:
            raise M2HError(f"{path} has more than 2 GB of weights, which one ONNX file cannot hold")
        tensor.raw_data = _read_part(Path(path), tensor.name, location, offset, length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    weights = _listed_weights(proto)
    inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return proto


def read_message(path: Path) -> onnx.ModelProto:
    """Read the ONNX file at `path` without those of its weights that are in other files.

    Raises:
        M2HError: The file is missing, not ONNX or truncated.
    """
    try:
        proto = onnx.load(os.fspath(path), load_external_data=False)
    except FileNotFoundError:
        raise M2HError(f"no ONNX file at {path}: make one with m2h-deploy export") from None
    except Exception as error:  # protobuf's DecodeError has no stable import path
        other = f"{path} is not an ONNX file, or truncated: {first_line(error)}"
        raise failure(error, f"cannot read {path}", other) from None
    if not proto.graph.node or not proto.opset_import:
        part = "nodes" if not proto.graph.node else "opset"
        raise M2HError(f"{path} is not an ONNX file, or truncated: it has no {part}")
    return proto


def external_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files next to the ONNX file at `path` that hold its weights; raises the same errors as `read_onnx`."""
    files = (location for _, location, _, _ in _external(read_message(Path(path)), Path(path)))
    return list(dict.fromkeys(files))


def as_single_file(path: Path, folder: Path) -> Path:
    """Return `path`, or a copy in `folder` if its weights are in other files or listed among its inputs."""
    if not external_files(path) and not _listed_weights(read_message(path)):
        return path
    folder.mkdir(exist_ok=True)
    copy = folder / path.name
    copy.write_bytes(read_onnx(path).SerializeToString())
    return copy


def onnx_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of an ONNX file; with weights in other files, that of all their digests."""
    files = [Path(path), *external_files(path)]
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _listed_weights(proto: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer} & {value.name for value in proto.graph.input}


def _external(proto: onnx.ModelProto, path: Path) -> Iterator[tuple[onnx.TensorProto, Path, int, int]]:
    """Yield each tensor that is stored in another file, with the file, the offset and the number of bytes."""
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = Path(entries.get("location", ""))
        # An untrusted file must not make the reader load other files of this machine as weights.
        if location.is_absolute() or ".." in location.parts or not location.name:
            raise M2HError(f"{path}: weight {tensor.name} lies at '{location}', expected a file beside the ONNX file")
        try:
            expected = _bytes(tensor)
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
        except ValueError:
            raise M2HError(f"{path}: weight {tensor.name} has no readable type, offset and length") from None
        if offset < 0 or length != expected:
            raise M2HError(f"{path}: weight {tensor.name} has {length} bytes at {offset}, expected {expected}")
        yield tensor, path.parent / location, offset, length


def _read_part(path: Path, name: str, file: Path, offset: int, length: int) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read(length)
    except OSError as error:
        raise MachineError(
            f"{path}: its weights in {file} cannot be read: {reason(error)}; keep both files together"
        ) from None
    if len(content) < length:
        raise M2HError(f"{path}: its weights in {file} are truncated: {name} has {len(content)} of {length} bytes")
    return content


def _bytes(tensor: onnx.TensorProto) -> int:
    """Return the number of bytes of a tensor's values."""
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    size = re.search(r"(?:FLOAT|INT|COMPLEX)(\d+)", kind)
    bits = int(size[1]) if size else {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}.get(kind, 0)
    return (math.prod(tensor.dims) * bits + 7) // 8


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of the graph, of its functions, and of nested graphs."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs += attribute.graphs
