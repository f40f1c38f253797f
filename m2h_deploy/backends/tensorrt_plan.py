"""Open a plan of TensorRT or TensorRT-RTX: what it needs, whether this machine has it, and its parts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from m2h_deploy.backends.base import BackendOptions
from m2h_deploy.backends.buffers import TensorSpec
from m2h_deploy.backends.driver import missing_gpu
from m2h_deploy.backends.tensorrt_api import NAMES, start
from m2h_deploy.backends.tensorrt_log import Messages
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.errors import M2HError
from m2h_deploy.files.cache import user_cache_folder
from m2h_deploy.files.digests import file_sha256

#: Diagnostics of TensorRT-RTX's `get_engine_validity`, as text.
DIAGNOSTICS = {
    "VERSION_MISMATCH": "it was built by another version of TensorRT-RTX",
    "UNSUPPORTED_CC": "it was built for other GPUs",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "the file is damaged or not a plan",
    "CUDA_ERROR": "CUDA fails on this machine",
}


#: Major versions whose version-compatible plans a later major version runs, by that version (NVIDIA's support matrix).
_EARLIER = {10: 8, 11: 10}


def read_plan(bundle: Bundle) -> bytes:
    """Return the bytes of the plan. Raises M2HError if the file cannot be read."""
    try:
        return bundle.engine_file.read_bytes()
    except OSError as error:
        raise M2HError(f"cannot read {bundle.engine_file}: {error.strerror or error}") from None


def device_index(device: str | None) -> int:
    """Parse `0`, `cuda` or `cuda:1` to the index of a GPU; None is the first one. Raises M2HError on anything else."""
    index = (device or "0").removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdecimal():
        raise M2HError(f"device '{device}': give a GPU as 0 or cuda:0")
    return int(index)


def check_versions(manifest: Manifest, installed: str, where: str) -> None:
    """Raise M2HError if the installed TensorRT cannot run a plan of the manifest's version.

    A version-compatible plan runs on later versions of the same major version, and on the next one that has a rule.
    """
    engine = manifest.engine
    built, name = engine.version, NAMES[engine.kind]
    if built == installed:
        return
    before, now = _version_numbers(built), _version_numbers(installed)
    follows = now[0] == before[0] or _EARLIER.get(now[0]) == before[0]
    if engine.options.get("version_compatible") and follows and now >= before:
        return
    raise M2HError(
        f"{where} was built by {name} {built} and {installed} is installed: install {name} {built}, or build it again"
    )


def _version_numbers(version: str) -> list[int]:
    """Return the first three numbers of a version; `10.14rc1` counts as 10.14."""
    return [int(number) for number in re.findall(r"(?:^|\.)(\d+)", version)[:3]] or [0]


def check_code(bundle: Bundle, options: BackendOptions) -> bool:
    """Return whether the plan contains code that has to be executed.

    Raises:
        M2HError: It does, and the caller does not allow it.
    """
    contains = bool(bundle.manifest.engine.options.get("version_compatible"))
    if contains and not options.allow_engine_code:
        raise M2HError(
            f"{bundle.path}: a version-compatible plan contains code that is executed when it is opened: if you trust "
            "where it comes from, allow it with --allow-engine-code, or Runtime.load(..., allow_engine_code=True)"
        )
    return contains


def check_gpu(trt: Any, logger: Any, plan: bytes, bundle: Bundle, index: int) -> None:
    """Raise M2HError, with the reason, if GPU `index` cannot be used. To be called before TensorRT is started.

    TensorRT's runtime object crashes the process if CUDA could not be initialized. That of TensorRT-RTX does not, and
    detects a damaged plan without a GPU.
    """
    missing = missing_gpu(index)
    if missing is None:
        return
    if bundle.manifest.engine.kind == "tensorrt-rtx":
        check_whole(trt, trt.Runtime(logger), plan, bundle, here=False)
    if missing.cause not in ("no driver", "no device"):
        raise M2HError(f"{bundle.path} cannot run on GPU {index}: {missing}")
    raise M2HError(
        f"{bundle.path} needs an NVIDIA GPU ({targets_in_words(bundle.manifest)}), and none can be used here "
        f"({missing}): copy the bundle to such a machine, or build one for this one with --engine onnxruntime"
    )


def start_runtime(trt: Any, logger: Any, messages: Messages, kind: str) -> Any:
    """Start TensorRT on the current device. Raises M2HError, with TensorRT's reason, if it does not start."""
    messages.errors.clear()
    return start(trt.Runtime, f"{NAMES[kind]} {trt.__version__}", logger, messages)


def check_whole(trt: Any, runtime: Any, plan: bytes, bundle: Bundle, *, here: bool = True) -> None:
    """Raise M2HError if TensorRT-RTX finds the plan damaged, or, with `here`, not fit for the current device."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(plan)
    reasons = words_for(trt, int(diagnostics))
    if DIAGNOSTICS["MALFORMED_ENGINE"] in reasons:
        raise M2HError(f"{bundle.engine_file} cannot be run: {DIAGNOSTICS['MALFORMED_ENGINE']}; build it again")
    if validity == trt.EngineValidity.INVALID and here:
        raise M2HError(
            f"{bundle.engine_file} cannot run here: {'; '.join(reasons) or 'it does not fit this machine'}; "
            "build it again for this machine"
        )


def words_for(trt: Any, diagnostics: int) -> list[str]:
    """Return TensorRT-RTX's diagnostic bits as phrases."""
    members = trt.EngineInvalidityDiagnostics.__members__
    return [DIAGNOSTICS.get(name, name.lower()) for name, bit in members.items() if diagnostics & int(bit)]


def targets_in_words(manifest: Manifest) -> str:
    """Describe the GPUs that a plan is for."""
    engine = manifest.engine
    if engine.targets:
        return f"compute capability {', '.join(engine.targets)}"
    return "compute capability 8.0, 8.6, 8.9 or 12.x" if engine.kind == "tensorrt-rtx" else "the kind it was built on"


def check_capability(manifest: Manifest, capability: str, where: str) -> None:
    """Raise M2HError if the plan names targets and this GPU is not among them."""
    targets = manifest.engine.targets
    if targets and capability not in targets:
        raise M2HError(
            f"{where} was built for compute capability {', '.join(targets)} and this GPU has {capability}: "
            f"build it again with --target {capability}"
        )


def cache_path(bundle: Bundle, capability: str, version: str) -> Path | None:
    """Return the file for TensorRT-RTX's compiled kernels in the user's cache folder, named by plan, version and GPU.

    None if the folder cannot be written.
    """
    folder = user_cache_folder("tensorrt-rtx")
    digest = bundle.manifest.files[bundle.manifest.engine.file]
    return None if folder is None else folder / f"{digest}.{version}.sm{capability.replace('.', '')}.cache"


def check_plugins(bundle: Bundle, given: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the plug-in libraries to load before the plan: those of the manifest, from the caller's list.

    A bundle names its libraries with their sha256 but does not contain them, so that loading one is the caller's
    decision.

    Raises:
        M2HError: A required library is missing, or is not the one that the plan was built with.
    """
    wanted = bundle.manifest.engine.options.get("plugins") or []
    if not isinstance(wanted, list) or not all(_is_plugin(entry) for entry in wanted):
        raise M2HError(f"{bundle.path}: engine.options.plugins is not a list of names with sha256: build it again")
    missing = [str(library) for library in given if not library.is_file()]
    if missing:
        raise M2HError(f"no plug-in library at {missing[0]}")
    digests = {file_sha256(library): library for library in given}
    for entry in wanted:
        name = entry["name"]
        if entry["sha256"] not in digests:
            other = any(library.name == name for library in given)
            what = f"the {name} given is not the one it was built with" if other else f"it needs the plug-in {name}"
            raise M2HError(
                f"{bundle.path}: {what} (sha256 {entry['sha256'][:16]}...); a bundle contains no code: give the "
                f"library to Runtime.load(..., plugins=['{name}']) if you trust it"
            )
    return tuple(digests[entry["sha256"]] for entry in wanted)


def _is_plugin(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "sha256"))


def load_plugins(runtime: Any, libraries: tuple[Path, ...]) -> None:
    """Load plug-in libraries. Raises M2HError if one is not for this version."""
    for library in libraries:
        if runtime.get_plugin_registry().load_library(os.fspath(library)) is None:
            raise M2HError(f"{library} is not a TensorRT plug-in library for this version")


def restore_weights(trt: Any, engine: Any, logger: Any, bundle: Bundle) -> None:
    """Restore the weights of a plan that was built without them."""
    name = bundle.manifest.engine.options.get("weights")
    if name is None:
        return
    if not isinstance(name, str) or name not in bundle.manifest.files:
        raise M2HError(f"{bundle.path}: the plan's weights {name} are not among the manifest's files")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(os.fspath(bundle.path / name)) or not refitter.refit_cuda_engine():
        raise M2HError(f"{bundle.path}: the weights in {name} do not fit the plan; build it again")


def tensor_specs(trt: Any, engine: Any) -> tuple[TensorSpec, ...]:
    """Return the engine's inputs and outputs."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        TensorSpec(
            name,
            tuple(engine.get_tensor_shape(name)),
            np.dtype(trt.nptype(engine.get_tensor_dtype(name))),
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        )
        for name in names
    )
