"""Input arrays of engines that are bound to memory of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class InputArray:
    """Input array that an engine is bound to: the caller's memory, without a copy, if its type and layout fit.

    Otherwise the image is copied to an array that is reused for all frames. `copied_by_binding`: the engine reads the
    array when it is bound, not when it runs, and has to be bound for each frame.
    """

    def __init__(self, dtype: Any, *, copied_by_binding: bool = False) -> None:
        self._dtype = np.dtype(dtype)
        self._copied = copied_by_binding
        self._converted: NDArray[Any] | None = None
        self._bound: NDArray[Any] | None = None

    def give(self, image: NDArray[Any], bind: Callable[[NDArray[Any]], None]) -> None:
        """Make the engine read `image`; call `bind` only if that is necessary.

        An engine borrows the memory, so the array is held for as long as it is bound.
        """
        if image.dtype != self._dtype or not image.flags.c_contiguous:
            if self._converted is None or self._converted.shape != image.shape:
                self._converted = np.empty(image.shape, self._dtype)
            np.copyto(self._converted, image, casting="same_kind")
            image = self._converted
        if self._copied or image is not self._bound:
            bind(image)
            self._bound = image

    def clear(self) -> None:
        """Release the arrays."""
        self._converted = self._bound = None
