"""The runtime: a bundle and an image in, a prediction out."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends import Backend, BackendOptions, open_backend
from m2h_deploy.bundle.folder import MANIFEST, Bundle, load_bundle
from m2h_deploy.bundle.manifest import Manifest, edited_field
from m2h_deploy.bundle.self_test import check_self_test, pattern
from m2h_deploy.choices import check_choice
from m2h_deploy.errors import BundleError, CheckFailed, EngineError, EngineTimeout, M2HError, engine_error
from m2h_deploy.runtime.postprocess import Prediction, Resolution, empty_prediction, postprocess_for
from m2h_deploy.runtime.preprocess import SensorPreprocess, as_color_image, preprocess_for
from m2h_deploy.runtime.worker import PATIENCE, FrameFuture, Worker


@dataclass(frozen=True, eq=False)
class Engine:
    """A backend and the lock that lets one thread at a time use it."""

    backend: Backend
    lock: threading.RLock = field(default_factory=threading.RLock)  # type: ignore[valid-type]


class Runtime:
    """Runs one bundle.

    ```
    from m2h_deploy import Runtime

    runtime = Runtime.load("bundle/")
    prediction = runtime(image)          # image: uint8 (H, W, 3) BGR, as OpenCV gives it
    prediction.depth                     # float32 (H, W), meters
    ```

    Threads: every method may be called from any thread. One lock lets one frame at a time through the whole of
    preprocessing, inference and postprocessing, so two threads get right answers and no speed; overlap is what
    `m2h_deploy.stream.stream.Stream` is for. Predictions belong to the caller, unless `out` says where they go. The
    attributes `backend`, `preprocess` and `postprocess` have no lock.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        color: Literal["BGR", "RGB"] = "BGR",
        reopen: Callable[[], Backend] | None = None,
    ) -> None:
        """`reopen` opens the backend again, for a `Stream` whose engine is stuck."""
        self.bundle = bundle
        self.color: Literal["BGR", "RGB"] = color
        self.preprocess = preprocess_for(bundle.manifest.input, color)
        self.postprocess = postprocess_for(bundle.manifest)
        self.reopen = reopen
        self.engine = Engine(backend)
        # An engine of a larger fixed batch sees a single frame repeated.
        self._tensor = self.preprocess.new_tensor(bundle.manifest.input.batch or 1)
        self._group_tensor = self._tensor
        self._worker = Worker()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        self_test: bool = True,
        threads: int | None = None,
        device: str | None = None,
        color: Literal["BGR", "RGB"] = "BGR",
        plugins: Iterable[str | os.PathLike[str]] = (),
    ) -> Runtime:
        """Open the bundle at `path`, check its files and, unless `self_test` is off, its numbers on this machine.

        `plugins` are libraries that a TensorRT plan needs. Loading one runs its code, so a bundle only names them, with
        their sha256, and the caller decides.

        Raises BundleError when the bundle is damaged, MissingExtra or EngineError when its engine cannot be opened on
        this machine, CheckFailed when it computes wrong numbers.
        """
        bundle = load_bundle(path)
        options = BackendOptions(threads=threads, device=device, plugins=tuple(Path(plugin) for plugin in plugins))
        reopen = partial(open_backend, bundle, options)
        try:
            backend = reopen()
        except M2HError as error:
            edited = edited_field(bundle.manifest)
            if edited is None:
                raise
            raise BundleError(f"{error}; {bundle.path / MANIFEST} was edited: {edited}") from None
        runtime = cls(bundle, backend, color=color, reopen=reopen)
        try:
            if self_test:
                runtime.self_test()
        except BaseException:
            runtime.close()
            raise
        return runtime

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def backend(self) -> Backend:
        return self.engine.backend

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the engine has, in its order."""
        return self.manifest.tasks

    def self_test(self) -> None:
        """Run the bundle's golden self-test, if it has one.

        Raises CheckFailed when the numbers are wrong, or the manifest is not what the test was made with.
        """
        test = self.manifest.self_test
        if test is not None:
            edited = edited_field(self.manifest)
            if edited is not None:
                raise CheckFailed(
                    f"self-test failed: {self.bundle.path / MANIFEST} was edited: {edited}; put it back, or export and "
                    "build again"
                )
            engine = self.engine
            with engine.lock:
                self._check(engine)
                outputs = _run(engine, pattern(self.manifest.input))
                check_self_test(test, outputs, self.manifest.engine.precision)

    def __call__(
        self, image: NDArray[Any], *, out: Prediction | None = None, resolution: Resolution = "image"
    ) -> Prediction:
        """uint8 (H, W, 3) (gray and alpha are converted) to a prediction.

        Its arrays have the image's height and width, or with `resolution="network"` the network's own, which costs
        less. They are new and the caller's to keep, or with `out` (see `new_prediction`) those of `out`: a contiguous
        color image then costs no allocation. Raises ImageError on an image of a wrong shape or type, EngineError where
        the engine fails and after `close`.
        """
        engine = self.engine
        with engine.lock:
            self._check(engine)
            start = perf_counter()
            image = self.color_image(image)
            tensor = self.preprocess(image, self._tensor)
            prepared = perf_counter()
            outputs = _run(engine, tensor)
            inferred = perf_counter()
            self._check(engine)
            first = {name: value[0] for name, value in outputs.items()}
            prediction = self.postprocess(first, *self.result_size(image, resolution), out)
            done = perf_counter()
        return with_timings(prediction, prepared - start, inferred - prepared, done - inferred)

    def batch(
        self, images: Sequence[NDArray[Any]], *, resolution: Resolution = "image", at_once: int | None = None
    ) -> list[Prediction]:
        """Predictions for several images, which may differ in size; as many at once as the engine takes.

        An engine of a fixed batch takes that many, and an incomplete last group is filled up; one of a free batch takes
        `at_once`, all of them by default. The timings of a frame are those of its group, divided by its frames. Raises
        M2HError like a single frame; nothing is returned then.
        """
        color = [self.color_image(image, f"image {index}") for index, image in enumerate(images)]
        size = self.manifest.input.batch or at_once or max(len(color), 1)
        predictions: list[Prediction] = []
        engine = self.engine
        with engine.lock:
            for start in range(0, len(color), size):
                self._check(engine)
                predictions += self._group(engine, color[start : start + size], size, resolution)
        return predictions

    def _group(
        self, engine: Engine, images: list[NDArray[np.uint8]], size: int, resolution: Resolution
    ) -> list[Prediction]:
        start = perf_counter()
        count = size if self.manifest.input.batch else len(images)
        if len(self._group_tensor) != count:
            self._group_tensor = self.preprocess.new_tensor(count)
        tensor = self._group_tensor
        for index, image in enumerate(images):
            self.preprocess(image, tensor[index : index + 1])
        tensor[len(images) :] = tensor[len(images) - 1]
        prepared = perf_counter()
        outputs = _run(engine, tensor)
        inferred = perf_counter()
        self._check(engine)
        predictions = [
            self.postprocess({name: value[i] for name, value in outputs.items()}, *self.result_size(image, resolution))
            for i, image in enumerate(images)
        ]
        done = perf_counter()
        stages = (value / len(images) for value in (prepared - start, inferred - prepared, done - inferred))
        preprocess, inference, postprocess = stages
        return [with_timings(prediction, preprocess, inference, postprocess) for prediction in predictions]

    def submit(self, image: NDArray[Any], *, resolution: Resolution = "image") -> FrameFuture:
        """A future for the prediction of `image`, which must not change until the future is done.

        One thread works the frames off in the order in which they were submitted; `future.frame_id` counts them from 0.
        Nothing bounds the queue: a camera wants a `Stream`. `close` finishes the frame in work and cancels the others.
        """
        return self._worker.submit(lambda: self(image, resolution=resolution))

    def new_prediction(self, height: int | None = None, width: int | None = None) -> Prediction:
        """Arrays for `out`, for images of this size; for `resolution="network"` without a size."""
        spec = self.manifest.input
        return empty_prediction(self.tasks, height or spec.height, width or spec.width)

    def result_size(self, image: NDArray[Any], resolution: Resolution) -> tuple[int, int]:
        """Height and width of the results of `image`."""
        check_choice("resolution", resolution, Resolution)
        spec = self.manifest.input
        if self.manifest.sensor is not None and resolution == "network":
            raise M2HError(f"{self.bundle.path}: a sensor graph gives results of the camera's size: resolution 'image'")
        raw = self.manifest.sensor is not None
        return (spec.height, spec.width) if raw or resolution == "network" else image.shape[:2]

    def color_image(self, image: NDArray[Any], name: str = "image") -> NDArray[np.uint8]:
        """`image` in color; NV12 stays as it is where the engine takes that."""
        raw = isinstance(self.preprocess, SensorPreprocess) and self.preprocess.is_raw(image)
        return image if raw else as_color_image(image, name)

    def replace_engine(self, stuck: Engine) -> Engine:
        """A fresh engine in the place of one that does not come back, which is left to its thread.

        Raises EngineError where the runtime does not know how to open it again, or that fails.
        """
        if self.reopen is None:
            raise EngineTimeout(f"{self.bundle.path}: the engine is stuck and cannot be opened again")
        if stuck is self.engine:
            self.engine = Engine(self.reopen())
        return self.engine

    def close(self) -> None:
        """Give back the engine: the frame in work is finished, submitted ones that wait are canceled.

        Harmless to call twice. An engine that is stuck is not waited for longer than two seconds.
        """
        self._closed = True
        deadline = monotonic() + PATIENCE
        self._worker.close()
        if self.engine.lock.acquire(timeout=max(0.0, deadline - monotonic())):
            try:
                self.backend.close()
            finally:
                self.engine.lock.release()

    def _check(self, engine: Engine) -> None:
        if self._closed:
            raise EngineError(f"{self.bundle.path}: the runtime is closed")
        if engine is not self.engine:
            raise EngineTimeout(f"{self.bundle.path}: the engine was stuck and has been replaced: run the frame again")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _run(engine: Engine, tensor: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Run the engine. Raises EngineError where it fails."""
    try:
        return engine.backend.run(tensor)
    except M2HError as error:
        raise engine_error(error) from None


def with_timings(prediction: Prediction, preprocess: float, inference: float, postprocess: float) -> Prediction:
    """`prediction` with the seconds of its stages as milliseconds."""
    stages = {"preprocess": 1000 * preprocess, "inference": 1000 * inference, "postprocess": 1000 * postprocess}
    return dataclasses.replace(prediction, timings=stages)
