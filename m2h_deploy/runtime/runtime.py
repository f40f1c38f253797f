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

from m2h_deploy.backends import Backend, BackendOptions, import_engine, open_backend
from m2h_deploy.bundle.consistency import edited_field
from m2h_deploy.bundle.folder import MANIFEST, Bundle, load_bundle
from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.bundle.self_test import check_self_test, pattern
from m2h_deploy.choices import SelfTestChoice, check_choice
from m2h_deploy.errors import BundleError, CheckFailed, EngineError, EngineTimeout, M2HError, engine_error
from m2h_deploy.runtime.passed_tests import PassedTest
from m2h_deploy.runtime.postprocess import Prediction, Resolution, empty_prediction, postprocess_for
from m2h_deploy.runtime.preprocess import SensorPreprocess, as_color_image, preprocess_for
from m2h_deploy.runtime.worker import PATIENCE, FrameFuture, Worker


@dataclass(frozen=True, eq=False)
class Engine:
    """A backend, and the lock that only one thread at a time can hold to use it."""

    backend: Backend
    lock: threading.RLock = field(default_factory=threading.RLock)  # type: ignore[valid-type]


class Runtime:
    """Run one bundle.

    ```
    from m2h_deploy import Runtime

    runtime = Runtime.load("bundle/")
    prediction = runtime(image)          # image: uint8 (H, W, 3) BGR, as OpenCV gives it
    prediction.depth                     # float32 (H, W), meters
    ```

    Threads: every method may be called from any thread. One lock serializes preprocessing, inference and
    postprocessing, so several threads get correct results but no speedup; use `m2h_deploy.stream.stream.Stream` to
    overlap the stages. Predictions belong to the caller, except with `out`. The attributes `backend`, `preprocess` and
    `postprocess` are not locked.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        color: Literal["BGR", "RGB"] = "BGR",
        reopen: Callable[[], Backend] | None = None,
    ) -> None:
        """Wrap an open backend; `reopen` opens it again, for a `Stream` whose engine is stuck."""
        self.bundle = bundle
        self.color: Literal["BGR", "RGB"] = color
        self.preprocess = preprocess_for(bundle.manifest.input, color)
        self.postprocess = postprocess_for(bundle.manifest)
        self.reopen = reopen
        self.engine = Engine(backend)
        # An engine with a larger fixed batch gets a single frame repeated.
        self._tensor = self.preprocess.new_tensor(bundle.manifest.input.batch or 1, backend.new_array)
        self._group_tensor = self._tensor
        self._worker = Worker()
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | Bundle,
        *,
        self_test: SelfTestChoice = "auto",
        threads: int | None = None,
        device: str | None = None,
        color: Literal["BGR", "RGB"] = "BGR",
        plugins: Iterable[str | os.PathLike[str]] = (),
        allow_engine_code: bool = False,
        calibrated: bool = True,
    ) -> Runtime:
        """Open the bundle at `path`, verify its files, and its results on this machine by its self-test.

        With `self_test="auto"` the test is skipped if it has passed before with the same bundle, engine, processor and
        options (see `m2h_deploy.runtime.passed_tests`); True always runs it, False never. A `Bundle` is used as it was
        verified when it was loaded.

        `plugins` are libraries that a TensorRT plan needs. Loading one executes its code, so a bundle only names them,
        with their sha256, and the caller decides. A version-compatible plan of TensorRT contains code of its own, which
        `allow_engine_code` lets it execute. Without `calibrated`, depth is the network's own, as if the manifest had no
        `depth_calibration`.

        Raises:
            BundleError: The bundle is damaged.
            MissingExtra: The packages of the engine are not installed.
            EngineError: The engine cannot be opened on this machine.
            CheckFailed: The engine computes wrong results.
        """
        if self_test != "auto" and not isinstance(self_test, bool):
            raise M2HError(f"self_test {self_test!r}: choose one of 'auto', True, False")
        bundle = path if isinstance(path, Bundle) else load_bundle(path, meanwhile=import_engine)
        verified = bundle
        if not calibrated:
            manifest = bundle.manifest.model_copy(update={"depth_calibration": None})
            bundle = dataclasses.replace(bundle, manifest=manifest)
        options = BackendOptions(
            threads=threads,
            device=device,
            plugins=tuple(Path(plugin) for plugin in plugins),
            allow_engine_code=allow_engine_code,
        )
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
            if self_test is not False and bundle.manifest.self_test is not None:
                _test(runtime, PassedTest(verified, backend, options), again=self_test is True)
        except BaseException:
            runtime.close()
            raise
        return runtime

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def backend(self) -> Backend:
        """The open engine, without its lock."""
        return self.engine.backend

    @property
    def tasks(self) -> tuple[str, ...]:
        """The engine's tasks, in its order."""
        return self.manifest.tasks

    def self_test(self) -> None:
        """Run the bundle's golden self-test, if it has one.

        Raises:
            CheckFailed: The results are wrong, or the manifest was edited after the test was made.
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
        """Predict from uint8 (H, W, 3); gray is repeated and alpha is dropped.

        Args:
            image: The image, in the runtime's color order.
            out: Prediction to write to (see `new_prediction`); a contiguous color image then allocates no memory. By
                default the arrays are new and the caller's.
            resolution: "image" for results of the image's height and width, "network" for the network's own, which is
                faster.

        Raises:
            ImageError: The image has a wrong shape or type.
            EngineError: The engine fails, or the runtime is closed.
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
        """Predict several images, which may differ in size, in groups of the engine's batch size.

        An engine with a fixed batch takes that many, and an incomplete last group is filled up; one with a dynamic
        batch takes `at_once`, all of them by default. The timings of a frame are those of its group, divided by the
        number of its frames.

        Raises:
            M2HError: As for a single frame; no results are returned then.
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
            self._group_tensor = self.preprocess.new_tensor(count, engine.backend.new_array)
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
        """Queue `image` and return a future of its prediction; do not change `image` until the future is done.

        One thread processes the frames in the order in which they were submitted; `future.frame_id` counts them from 0.
        The queue is unbounded: use a `Stream` for a camera. `close` finishes the current frame and cancels the others.
        """
        return self._worker.submit(lambda: self(image, resolution=resolution))

    def new_prediction(self, height: int | None = None, width: int | None = None) -> Prediction:
        """Allocate arrays for `out`, for images of this size; without a size, for `resolution="network"`."""
        spec = self.manifest.input
        return empty_prediction(self.tasks, height or spec.height, width or spec.width)

    def result_size(self, image: NDArray[Any], resolution: Resolution) -> tuple[int, int]:
        """Return height and width of the results of `image`."""
        check_choice("resolution", resolution, Resolution)
        spec = self.manifest.input
        if self.manifest.sensor is not None and resolution == "network":
            raise M2HError(f"{self.bundle.path}: a sensor graph gives results of the camera's size: resolution 'image'")
        raw = self.manifest.sensor is not None
        return (spec.height, spec.width) if raw or resolution == "network" else image.shape[:2]

    def color_image(self, image: NDArray[Any], name: str = "image") -> NDArray[np.uint8]:
        """Convert `image` to color; NV12 is returned unchanged if the engine takes it."""
        raw = isinstance(self.preprocess, SensorPreprocess) and self.preprocess.is_raw(image)
        return image if raw else as_color_image(image, name)

    def replace_engine(self, stuck: Engine) -> Engine:
        """Replace a stuck engine by a new one; the stuck one is left to its thread.

        Raises:
            EngineError: The engine cannot be opened again.
        """
        if self.reopen is None:
            raise EngineTimeout(f"{self.bundle.path}: the engine is stuck and cannot be opened again")
        if stuck is self.engine:
            self.engine = Engine(self.reopen())
        return self.engine

    def close(self) -> None:
        """Release the engine: the current frame is finished, waiting submitted ones are canceled.

        Idempotent. Waits at most two seconds for a stuck engine.
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


def _test(runtime: Runtime, passed: PassedTest, *, again: bool) -> None:
    """Run the self-test, unless it is known to pass and is not wanted `again`; record the result."""
    if not again and passed.known():
        return
    try:
        runtime.self_test()
    except CheckFailed:
        passed.forget()
        raise
    passed.remember()


def _run(engine: Engine, tensor: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """Run the engine. Raises EngineError if it fails."""
    try:
        return engine.backend.run(tensor)
    except M2HError as error:
        raise engine_error(error) from None


def with_timings(prediction: Prediction, preprocess: float, inference: float, postprocess: float) -> Prediction:
    """Return `prediction` with the seconds of its stages as milliseconds."""
    stages = {"preprocess": 1000 * preprocess, "inference": 1000 * inference, "postprocess": 1000 * postprocess}
    return dataclasses.replace(prediction, timings=stages)
