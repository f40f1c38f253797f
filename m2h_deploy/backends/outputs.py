"""Output arrays of an engine, reused from frame to frame: the engine's own or the caller's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError

Outputs = dict[str, NDArray[Any]]


def given_dtype(dtype: Any) -> np.dtype:
    """Return the type that callers get for an output of type `dtype`: unsigned integers as they are, else float32."""
    return np.dtype(dtype) if np.dtype(dtype).kind == "u" else np.dtype(np.float32)


class OutputArrays:
    """Arrays by output name, float32 except for labels (see `given_dtype`).

    If the engine writes another type, it has arrays of its own, and `finish` converts. `sides` are each output's sides
    without the batch, `dtypes` the types that the engine writes. `allocate` makes arrays from a shape and a type.
    """

    def __init__(
        self,
        sides: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, np.dtype],
        allocate: Callable[[tuple[int, ...], np.dtype], NDArray[Any]] = np.empty,
    ) -> None:
        self._sides, self._dtypes, self._allocate = dict(sides), dict(dtypes), allocate
        self._own: Outputs = {}
        self._target: Outputs = {}
        self.raw: dict[str, NDArray[Any]] = {}
        """Arrays that the engine is bound to."""

    def new(self, batch: int) -> Outputs:
        """Allocate arrays for `out`."""
        shapes = {name: (batch, *sides) for name, sides in self._sides.items()}
        return {name: self._allocate(shape, given_dtype(self._dtypes[name])) for name, shape in shapes.items()}

    def take(self, batch: int, out: Outputs | None) -> bool:
        """Choose the arrays for this frame's outputs; return True if the engine has to be bound again.

        Raises:
            M2HError: `out` lacks an output or has one of another shape or type.
        """
        if out is None:
            if not self._own or len(next(iter(self._own.values()))) != batch:
                self._own = self.new(batch)
            out = self._own
        elif any(name not in out for name in self._sides):
            raise M2HError(f"out lacks {', '.join(sorted(set(self._sides) - set(out)))}")
        if self._target and all(out[name] is array for name, array in self._target.items()):
            return False
        for name, sides in self._sides.items():
            array, shape, dtype = out[name], (batch, *sides), given_dtype(self._dtypes[name])
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise M2HError(f"out['{name}'] is {array.dtype} {array.shape}: expected contiguous {dtype} {shape}")
        self._target = {name: out[name] for name in self._sides}
        self.raw = {name: self._raw(name, array) for name, array in self._target.items()}
        return True

    def _raw(self, name: str, target: NDArray[Any]) -> NDArray[Any]:
        if self._dtypes[name] == target.dtype:
            return target
        kept = self.raw.get(name)
        if kept is not None and kept.shape == target.shape:
            return kept
        return self._allocate(target.shape, self._dtypes[name])

    def finish(self) -> Outputs:
        """Return the frame's outputs, in the arrays chosen by `take`."""
        for name, array in self._target.items():
            if self.raw[name] is not array:
                np.copyto(array, self.raw[name], casting="same_kind")
        return dict(self._target)

    def clear(self) -> None:
        """Release all arrays."""
        self._own, self._target, self.raw = {}, {}, {}


def check_image(shape: tuple[int, ...], batch: int | None, sides: tuple[int, ...], where: str) -> None:
    """Raise M2HError if the shape of an image is not (batch, *sides); a batch of None means any."""
    if len(shape) != 1 + len(sides) or shape[1:] != sides or not shape[0] or batch not in (None, shape[0]):
        words = ", ".join(str(side) for side in (batch or "N", *sides))
        raise M2HError(f"{where} takes images ({words}), got an array of {shape}")


def check_tensor(
    where: str, name: str, expected: tuple[Any, tuple[int | None, ...]], found: tuple[Any, tuple[int | None, ...]]
) -> None:
    """Raise M2HError if a tensor of the engine differs from the manifest in type or shape; None means any side.

    Otherwise the error would appear in the middle of a frame, or data be written beyond a buffer. A dynamic batch in
    the manifest fits any.
    """
    (dtype, sides), (engine_dtype, engine_sides) = expected, found
    fits = dtype == engine_dtype and sides[1:] == engine_sides[1:] and sides[:1] in (engine_sides[:1], (None,))
    if not fits:
        words = [" x ".join("N" if side is None else str(side) for side in given) for given in (sides, engine_sides)]
        raise M2HError(
            f"{where}: '{name}' is {dtype} {words[0]} in the manifest, and {engine_dtype} {words[1]} in the engine: "
            "build the bundle again"
        )
