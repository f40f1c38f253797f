"""Test that libm2h's TensorRT backend compiles against NVIDIA's headers of every version that it is for.

The headers are not in this repository. `M2H_TENSORRT_HEADERS` names a folder with those of each version: 10.3, 10.16
and 11.0 (`include/` of NVIDIA's public TensorRT repository at v10.3.0, v10.16 and v11.0), and rtx (`include/` of the
TensorRT-RTX SDK). Without it, those of TensorRT are downloaded; where that is impossible, the test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.pages import REPOSITORY

pytestmark = pytest.mark.cpp

TAGS = {"10.3": "v10.3.0", "10.16": "v10.16", "11.0": "v11.0"}
SOURCE = "https://raw.githubusercontent.com/NVIDIA/TensorRT/{tag}/include/{file}"
#: NvInferRuntime.h and those that it includes.
FILES = ["Runtime", "RuntimeBase", "RuntimeCommon", "RuntimePlugin", "PluginBase", "Impl", "LegacyDims", "Version"]


@pytest.fixture(scope="session")
def cuda_headers(tmp_path_factory) -> list[Path]:
    """Return the include folders of an installed CUDA toolkit, or of NVIDIA's wheels."""
    for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root and (Path(root) / "include" / "cuda_runtime_api.h").is_file():
            return [Path(root) / "include"]
    folder = tmp_path_factory.mktemp("cuda")
    download = ["download", "--quiet", "--no-deps", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-crt==13.0.*"]
    done = subprocess.run([sys.executable, "-m", "pip", *download], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"CUDA's headers cannot be had: set CUDA_HOME to a toolkit ({done.stderr.strip()[-200:]})")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return [header.parent for header in folder.rglob("cuda_runtime_api.h")]


@pytest.fixture(scope="session")
def nvidia_headers(tmp_path_factory) -> Path:
    """Return a folder with TensorRT's headers by version."""
    given = os.environ.get("M2H_TENSORRT_HEADERS")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("tensorrt")
    for version, tag in TAGS.items():
        (folder / version).mkdir()
        for name in FILES:
            if (version, name) == ("10.3", "PluginBase"):  # it came with 10.6
                continue
            file = f"NvInfer{name}.h"
            try:
                with urllib.request.urlopen(SOURCE.format(tag=tag, file=file), timeout=10) as response:
                    (folder / version / file).write_bytes(response.read())
            except OSError as error:
                pytest.skip(f"NVIDIA's headers cannot be downloaded ({error}): give them in M2H_TENSORRT_HEADERS")
    return folder


@pytest.mark.parametrize("version", [*TAGS, "rtx"])
def test_the_backend_compiles_against_nvidias_headers(nvidia_headers, cuda_headers, version):
    headers = nvidia_headers / version
    if not headers.is_dir():
        pytest.skip(f"there are no headers of {version} in {nvidia_headers}")
    product = "tensorrt-rtx" if version == "rtx" else "tensorrt"
    own = [f"-I{REPOSITORY / 'cpp' / folder}" for folder in ("include", "src")]
    theirs = [word for folder in (headers, *cuda_headers) for word in ("-isystem", str(folder))]
    command = ["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wshadow", "-Werror", *own, *theirs]
    command += [f'-DM2H_TENSORRT="{product}"', str(REPOSITORY / "cpp" / "src" / "backend_tensorrt.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
