"""Read the tensors of a PyTorch state dict or a safetensors file without running code; reject other contents."""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from m2h_deploy.causes import MachineError, failure, machine_fault, reason
from m2h_deploy.errors import M2HError, first_line

#: Data types that weights may have; `load_checkpoint` converts them to float32.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Suffix of the integer tensors that belong to a network: batch norm counts its batches.
_COUNTER = "num_batches_tracked"

#: Modules whose classes and functions a plain state dict refers to.
_TENSOR_MODULES = {"collections", "torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter"}

#: Bytes at the beginning of a file that are read to explain why it is not a checkpoint. They include its pickles, which
#: precede the tensor data.
_LARGEST_HEAD = 64 << 20
#: Magic number at the beginning of PyTorch's file format before version 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors by name, and the metadata of a safetensors file.

    A state dict nested under `state_dict` or `model`, as training scripts save it, is found.

    Args:
        file: a PyTorch state dict or a safetensors file.

    Returns:
        The tensors, on the CPU, and the metadata, empty for a PyTorch file.

    Raises:
        M2HError: the file is missing, truncated or of another format, would run code, or has a tensor that cannot be a
            weight: sparse, quantized, complex, without data, float8 or integer.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise MachineError(f"cannot read {file}: {reason(error)}") from None
    safe = len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000
    tensors, metadata = _read_safetensors(file) if safe else (_read_torch(file), {})
    for name, tensor in tensors.items():
        kind = _foreign_kind(name, tensor)
        if kind is not None:
            raise M2HError(f"{file}: {name} is {kind}, not a weight: save the network in float32, float16 or bfloat16")
    return tensors, metadata


def _foreign_kind(name: str, tensor: Tensor) -> str | None:
    """Describe a tensor that is not a weight; None for a weight."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"a {str(tensor.layout).removeprefix('torch.').replace('_', ' ')} tensor"
    if tensor.device.type == "meta":
        return "a tensor without data (on the device 'meta')"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        return f"quantized ({dtype})"
    if tensor.dtype in _FLOATS:
        return None
    counts = name.endswith(_COUNTER) and not (tensor.is_floating_point() or tensor.is_complex())
    return None if counts else dtype


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    damaged = (SafetensorError, OSError, MemoryError, LookupError, AttributeError, TypeError, ValueError, RuntimeError)
    try:
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()
            return {name: handle.get_tensor(name) for name in names}, dict(handle.metadata() or {})
    except damaged as error:
        other = f"{file} is not a readable safetensors file (truncated?): {first_line(error)[:160]}"
        raise failure(error, f"cannot read {file}", other) from None


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; an unreadable file raises an error below
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    # PyTorch's parser can raise any exception for a damaged pickle.
    except Exception as error:
        if (fault := machine_fault(error)) is not None:
            raise MachineError(f"cannot read {file}: {fault}") from None
        raise M2HError(f"{file} {_why_unreadable(file, error)}") from None
    if isinstance(loaded, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise M2HError(f"{file} holds no plain state dict (tensor names to tensors)")
    return {str(name): tensor for name, tensor in loaded.items()}


def _why_unreadable(file: Path, error: Exception) -> str:
    """Explain why PyTorch cannot read a file, from its structure: PyTorch mistakes random bytes for code, too."""
    with file.open("rb") as stream:
        head = stream.read(_LARGEST_HEAD)
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the checkpoint itself: run git lfs pull"
    damaged = f"is a damaged or truncated PyTorch checkpoint: {first_line(error)[:160]}"
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                found = next((name for name in names if name.endswith("/data.pkl")), None)
                if found is None:
                    return "is a zip archive, not a checkpoint: expected a PyTorch state dict or safetensors"
                if any("/code/" in name for name in names):
                    return "is a TorchScript program, not a checkpoint: save the state dict of its network"
                head = archive.read(found)
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
            return damaged
        pickles = list(_pickles(head))
    else:
        pickles = list(_pickles(head))
        if not pickles:
            return "is not a checkpoint: expected a PyTorch state dict or safetensors"
    foreign = next((name for names, _ in pickles for name in names if _is_foreign(name)), None)
    if foreign is not None and isinstance(error, pickle.UnpicklingError):
        return (
            f"holds more than tensors ({foreign}), would run code when unpickled, and was not opened: save it again "
            "as a plain state dict, torch.save(model.state_dict(), path)"
        )
    if head.startswith(b"PK") or len(pickles) > 1 or any(magic for _, magic in pickles):
        return damaged
    return "is not a checkpoint: expected a PyTorch state dict or safetensors"


def _pickles(content: bytes) -> Iterator[tuple[list[str], bool]]:
    """Scan the complete pickles at the beginning of `content` without executing them.

    Yields:
        The global names that a pickle refers to (module.name), and whether it is the magic number.
    """
    stream = io.BytesIO(content)
    while True:
        names: list[str] = []
        texts: list[str] = []
        magic = False
        try:
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    names.append(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
                magic = magic or argument == _LEGACY_MAGIC
        except Exception:  # the parser can raise any exception for bytes that are not a pickle
            return
        yield names, magic


def _is_foreign(name: str) -> bool:
    return name.rpartition(".")[0] not in _TENSOR_MODULES
