"""Process the requests that Triton has batched with the bundle's runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.serving.options import IMAGE, engine_batch, output_names

Arrays = Mapping[str, NDArray[Any]]


def infer_function(runtime: Runtime) -> Callable[[Sequence[Arrays]], list[dict[str, NDArray[Any]]]]:
    """Return a function from requests, `image` uint8 (n, H, W, 3) BGR each, to the arrays of their n frames.

    The arrays are those of the engine's tasks, as `Runtime` returns them: `labels` (n, H, W) uint8, `depth` (n, H, W)
    meters, `normals` (n, H, W, 3), `edges` (n, H, W). All frames run as one batch if the engine supports it. The
    function raises M2HError if a frame is not a valid image.
    """
    names = output_names(runtime.manifest)
    at_once = engine_batch(runtime.manifest)

    def infer(requests: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        images = [request[IMAGE] for request in requests]
        predictions = iter(runtime.batch([frame for image in images for frame in image], at_once=at_once))
        return [_stack([next(predictions) for _ in image], names) for image in images]

    return infer


def warm_up(runtime: Runtime, batch: int) -> None:
    """Run a batch, because the first one of a size allocates the engine's buffers, which would delay a client."""
    spec = runtime.manifest.input
    infer_function(runtime)([{IMAGE: np.zeros((batch, spec.height, spec.width, 3), np.uint8)}])


def _stack(predictions: list[Prediction], names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    if len(predictions) == 1:  # the usual case, without a copy
        return {name: getattr(predictions[0], task)[np.newaxis] for task, name in names.items()}
    return {name: np.stack([getattr(one, task) for one in predictions]) for task, name in names.items()}
