"""Package a bundle with the sources of libm2h: a folder that builds and runs on a machine without Python."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from m2h_deploy.backends import KINDS, engine_kind
from m2h_deploy.backends.registry import CppEngine
from m2h_deploy.bundle.folder import Bundle, check_outside, copy_bundle, load_bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import whole_folder, write_text

#: The parts of the sources that a user of the library needs.
_PARTS = ("CMakeLists.txt", "cmake", "include", "src", "examples")


def cpp_sources() -> Path:
    """Return the folder of libm2h's sources: in the installed package, or next to it in the repository."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "cpp", here.parent / "cpp"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise M2HError("the sources of libm2h are not installed with this package: take cpp/ of the repository")


def package_cpp(bundle_path: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> Path:
    """Write a new folder `out_dir` with libm2h's sources, the example, the sensor bundle and build instructions.

    Raises:
        M2HError: `out_dir` exists or lies in the bundle, libm2h does not run the bundle's engine kind, or the bundle's
            graph does not take raw pixels.
    """
    bundle = load_bundle(bundle_path)
    if bundle.manifest.sensor is None:
        raise M2HError(
            f"{bundle.path} takes normalized tensors, and libm2h runs sensor graphs only: make one with m2h-deploy "
            "export CHECKPOINT -o sensor.onnx --sensor uint8 --camera-size 640x480, then m2h-deploy build"
        )
    engine = engine_kind(bundle)
    if engine.cpp is None:
        known = ", ".join(kind.name for kind in KINDS.values() if kind.cpp is not None)
        raise M2HError(f"{bundle.path}: libm2h does not run engines of kind {engine.name}: build one of {known}")
    out = check_outside(bundle.path, out_dir)
    sources = cpp_sources()
    with whole_folder(out) as temporary:
        _copy(sources, temporary / "libm2h")
        copy_bundle(bundle, temporary / "bundle")
        write_text(temporary / "README.md", _readme(bundle, engine.cpp))
    return out


def _copy(sources: Path, target: Path) -> None:
    target.mkdir()
    for part in _PARTS:
        if (sources / part).is_dir():
            shutil.copytree(sources / part, target / part)
        else:
            shutil.copyfile(sources / part, target / part)


def _readme(bundle: Bundle, cpp: CppEngine) -> str:
    manifest = bundle.manifest
    spec, engine = manifest.input, manifest.engine
    pixels = "NV12" if spec.layout == "NV12" else "BGR or RGB"
    return f"""# {manifest.model.variant} for C and C++

- `bundle/`: {engine.kind} {engine.version}, {engine.precision}; takes {spec.width} x {spec.height} {pixels} and gives
  {", ".join(output.name for output in manifest.outputs)}.
- `libm2h/`: the library (`include/m2h/m2h.h` for C, `m2h.hpp` for C++17) and an example.

Needs CMake {cpp.cmake}, a C++17 compiler, nlohmann-json 3.7 (Debian: nlohmann-json3-dev), and
{cpp.needs}.

    cmake -S libm2h -B build -DCMAKE_INSTALL_PREFIX=$PWD/prefix
    cmake --build build
    cmake --install build
    build/examples/m2h_run bundle pictures/ out/

In a project of your own:

    find_package(m2h REQUIRED)                       # with -DCMAKE_PREFIX_PATH=.../prefix
    target_link_libraries(robot PRIVATE m2h::m2h)
"""
