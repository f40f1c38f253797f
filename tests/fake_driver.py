"""Compile a library that answers as the NVIDIA driver of any version with any GPUs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "backends" / "fake_libcuda.c"


def compile_library(folder: Path, name: str, source: Path) -> Path:
    """Compile a C file to the shared library `name` in `folder`. Skips the test without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder.mkdir(exist_ok=True)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / name), str(source)], check=True)
    return folder / name


def fake_driver(folder: Path) -> Path:
    """Compile the driver's library in `folder`. FAKE_CUDA, FAKE_INIT, FAKE_COUNT, FAKE_CAPABILITY set its answers."""
    return compile_library(folder, "libcuda.so.1", SOURCE)
