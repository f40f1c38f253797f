"""The runtime: a bundle and an image in, a prediction out."""

from __future__ import annotations

import dataclasses
import os
from time import perf_counter
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends import Backend, BackendOptions, open_backend
from m2h_deploy.bundle import Bundle, Manifest, load_bundle
from m2h_deploy.postprocess import Postprocess, Prediction
from m2h_deploy.preprocess import Normalisation, Preprocess, as_color_image
from m2h_deploy.selftest import check_self_test, pattern


class Runtime:
    """Runs one bundle. Use one runtime per thread.

    ```
    from m2h_deploy import Runtime

    runtime = Runtime.load("bundle/")
    prediction = runtime(image)          # image: uint8 (H, W, 3) BGR, as OpenCV gives it
    prediction.depth                     # float32 (H, W), metres
    ```
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, color: Literal["BGR", "RGB"] = "BGR") -> None:
        spec = bundle.manifest.input
        self.bundle = bundle
        self.backend = backend
        mean, std = spec.mean, (spec.std[0], spec.std[1], spec.std[2])
        self.preprocess = Preprocess(Normalisation(mean, std), spec.height, spec.width, color=color)
        self.postprocess = Postprocess(bundle.manifest.depth_range)
        self._batch = spec.batch or 1

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        self_test: bool = True,
        threads: int | None = None,
        device: str | None = None,
        color: Literal["BGR", "RGB"] = "BGR",
    ) -> Runtime:
        """Open the bundle at `path`, check its files and, unless `self_test` is off, its numbers on this machine.

        Raises M2HError when the bundle is damaged or does not fit this machine, CheckFailed when it computes
        wrong numbers.
        """
        bundle = load_bundle(path)
        runtime = cls(bundle, open_backend(bundle, BackendOptions(threads=threads, device=device)), color=color)
        if self_test:
            runtime.self_test()
        return runtime

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def self_test(self) -> None:
        """Run the bundle's golden self-test, if it has one. Raises CheckFailed when the numbers are wrong."""
        test = self.manifest.self_test
        if test is not None:
            check_self_test(test, self.backend.run(pattern(self.manifest.input)))

    def __call__(self, image: NDArray[Any]) -> Prediction:
        """uint8 (H, W, 3) (grey and alpha are converted) to a prediction of the same height and width.

        The prediction's arrays are the caller's to keep. Raises M2HError on an image that is none.
        """
        start = perf_counter()
        image = as_color_image(image)
        tensor = self.preprocess(image)
        if self._batch > 1:  # an engine of a larger fixed batch sees the frame repeated
            tensor = np.repeat(tensor, self._batch, axis=0)
        prepared = perf_counter()
        outputs = self.backend.run(tensor)
        inferred = perf_counter()
        first = {name: value[0] for name, value in outputs.items()}
        prediction = self.postprocess(first, image.shape[0], image.shape[1])
        done = perf_counter()
        stages = {"preprocess": prepared - start, "inference": inferred - prepared, "postprocess": done - inferred}
        return dataclasses.replace(prediction, timings={name: 1000 * value for name, value in stages.items()})

    def close(self) -> None:
        """Give back the engine. Harmless to call twice."""
        self.backend.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
