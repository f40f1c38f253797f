"""Test that a CPU engine reads the caller's image in place if possible, and is rebound only to another array."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.backends.inputs import InputArray


def test_an_array_that_fits_is_bound_once_and_not_copied():
    image, bound = np.zeros((1, 3, 4, 4), np.float32), []
    array = InputArray("float32")
    for _ in range(3):
        array.give(image, bound.append)
    assert len(bound) == 1 and bound[0] is image
    array.give(image.copy(), bound.append)
    assert len(bound) == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_type_or_layout_is_copied_to_one_array_that_is_kept(dtype):
    image, bound = np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3).transpose(0, 3, 1, 2), []
    array = InputArray(dtype)
    for offset in (0, 1):
        array.give(image + np.float32(offset), bound.append)
        assert bound[0].dtype == dtype and bound[0].flags.c_contiguous
        assert (bound[0] == image + offset).all()
    assert len(bound) == 1


def test_a_failed_binding_is_retried_on_the_next_call():
    image, bound = np.zeros((1, 3, 4, 4), np.float32), []
    array = InputArray("float32")

    def fail(_: np.ndarray) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        array.give(image, fail)
    array.give(image, bound.append)
    assert len(bound) == 1
