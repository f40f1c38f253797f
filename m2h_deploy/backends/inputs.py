"""The array that an engine on the CPU reads its input from: the caller's, or a converted copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class InputArray:
    """The input array that an engine is bound to. The engine reads the caller's memory where it can.

    An image of another type or memory layout is copied to an array that is kept from frame to frame.
    """

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._converted: NDArray[Any] | None = None
        self._bound: NDArray[Any] | None = None

    def give(self, image: NDArray[Any], bind: Callable[[NDArray[Any]], None]) -> None:
        """Let the engine read `image`; `bind` is called only where it is bound to another array.

        An engine borrows the memory, so the array is held for as long as it is bound.
        """
        if image.dtype != self._dtype or not image.flags.c_contiguous:
            if self._converted is None or self._converted.shape != image.shape:
                self._converted = np.empty(image.shape, self._dtype)
            np.copyto(self._converted, image, casting="same_kind")
            image = self._converted
        if image is not self._bound:
            bind(image)
            self._bound = image

    def clear(self) -> None:
        """Release the arrays."""
        self._converted = self._bound = None
