"""Configure TensorRT's builder: precision, targets, batches, and what it remembers of earlier builds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import describe_target
from m2h_deploy.backends.driver import read_driver
from m2h_deploy.backends.tensorrt_api import NAMES
from m2h_deploy.errors import M2HError
from m2h_deploy.files.cache import read_checked, user_cache_folder, write_checked

if TYPE_CHECKING:
    from engines.tensorrt import TensorRtOptions


def configure(trt: Any, builder: Any, network: Any, flavor: str, options: TensorRtOptions) -> Any:
    """Return the builder's configuration for a network."""
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    # Names every layer's graph nodes, which a profile needs; measured, it adds nothing to a plan.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: a plan that a CUDA graph can hold
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        # Exactly the same weights are restored, so TensorRT may fold them into the plan.
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL if flavor == "tensorrt" else trt.BuilderFlag.REFIT)
    if options.targets:
        _set_targets(trt, config, flavor, options.targets)
    shape = tuple(network.get_input(0).shape)
    if shape[0] == -1:
        profile = builder.create_optimization_profile()
        batches = (1, options.tuned_batch, options.largest_batch)
        profile.set_shape(network.get_input(0).name, *((batch, *shape[1:]) for batch in batches))
        config.add_optimization_profile(profile)
    return config


def _known_targets(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that this version can target, by names such as `8.6`."""
    members = trt.ComputeCapability.__members__.items()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}


def check_known(trt: Any, flavor: str, targets: Sequence[str]) -> None:
    """Raise M2HError for a compute capability that this version cannot build for."""
    known = _known_targets(trt)
    for target in targets:
        if target not in known:
            raise M2HError(
                f"{NAMES[flavor]} {trt.__version__} does not build for compute capability {describe_target(target)}: "
                f"it knows {', '.join(sorted(known, key=lambda c: [int(p) for p in c.split('.')]))}"
            )


def _set_targets(trt: Any, config: Any, flavor: str, targets: Sequence[str]) -> None:
    check_known(trt, flavor, targets)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(_known_targets(trt)[target], index)


class TimingCache:
    """The times of kernels that TensorRT measured in earlier builds on this GPU, which a new build need not repeat.

    TensorRT-RTX chooses kernels on the device and has none. A folder that cannot be written costs time only.
    """

    def __init__(self, trt: Any, config: Any, flavor: str) -> None:
        self._config = config
        self._file = _timing_file(trt) if flavor == "tensorrt" else None
        self._before = b"" if self._file is None else read_checked(self._file) or b""
        if self._file is not None:
            cache = config.create_timing_cache(self._before)
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                # Another version's, or damaged: an empty one is filled.
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def save(self) -> None:
        """Keep what the build has added."""
        cache = None if self._file is None else self._config.get_timing_cache()
        if self._file is not None and cache is not None:
            content = bytes(memoryview(cache.serialize()))
            if content != self._before:
                write_checked(self._file, content)


def _timing_file(trt: Any) -> Path | None:
    """Return the file of the timing cache, named by version and GPU; None without a GPU or a folder."""
    folder, gpus = user_cache_folder("tensorrt"), read_driver().gpus
    if folder is None or not gpus:
        return None
    name = "".join(letter if letter.isalnum() else "-" for letter in gpus[0].name)
    return folder / f"{name}.{trt.__version__}.timing"
