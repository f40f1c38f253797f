"""Plan where an engine's tensors lie in memory; nothing is allocated here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from m2h_deploy.errors import M2HError

#: Alignment in bytes of CUDA allocations, and of TensorRT's bindings.
ALIGNMENT = 256


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine; a dynamic batch is -1 in `shape`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_input: bool


@dataclass(frozen=True)
class Placement:
    """A tensor's position in the one allocation that all tensors share."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_input: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def plan_buffers(tensors: Iterable[TensorSpec], batch: int) -> tuple[tuple[Placement, ...], int]:
    """Place `tensors` for batch size `batch`, inputs first, and return the size of the allocation in bytes.

    Raises:
        M2HError: A side other than the batch is dynamic.
    """
    placements: list[Placement] = []
    offset = 0
    for tensor in sorted(tensors, key=lambda spec: not spec.is_input):
        shape = (batch if tensor.shape[0] == -1 else tensor.shape[0], *tensor.shape[1:])
        if any(side < 1 for side in shape):
            raise M2HError(f"the engine's tensor {tensor.name} has shape {tensor.shape}: only the batch may be free")
        placement = Placement(tensor.name, shape, tensor.dtype, tensor.is_input, offset)
        placements.append(placement)
        offset += -(-placement.nbytes // ALIGNMENT) * ALIGNMENT
    return tuple(placements), offset
