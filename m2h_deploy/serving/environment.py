"""Check the requirements of nvidia-pytriton's server on this interpreter."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from m2h_deploy.errors import M2HError, install_extra

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

#: Remedy for all of the problems.
ADVICE = (
    "make an environment of the distribution's own Python: apt install python3-venv libpython3-dev, "
    f"/usr/bin/python3 -m venv serving, . serving/bin/activate; {install_extra('serve,onnxruntime')}"
)


def check_environment() -> None:
    """Raise M2HError, with the reason, if nvidia-pytriton is missing or its server cannot run this interpreter.

    The server runs Python in its own program, linked against libpython. It fails to load a model if libpython is
    missing, or has another patch version than the interpreter, whose standard library it loads.
    """
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise M2HError(f"serve needs nvidia-pytriton, which is not installed: {ADVICE}")
    package = Path(spec.origin).parent
    stub = package / "tritonserver" / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise M2HError(f"nvidia-pytriton has no server for Python {_VERSION}: {ADVICE}")
    problem = _libpython_problem(stub, package.parent / "nvidia_pytriton.libs")
    if problem is not None:
        raise M2HError(f"{sys.executable} cannot serve: {problem}; {ADVICE}")


def _libpython_problem(stub: Path, libraries: Path) -> str | None:
    """Return the problem with the libpython that the server would load; None if there is none or it is unknown."""
    ldd = shutil.which("ldd")
    if ldd is None:
        return None
    paths = os.pathsep.join(filter(None, (os.environ.get("LD_LIBRARY_PATH"), str(libraries))))
    listed = subprocess.run([ldd, stub], env={**os.environ, "LD_LIBRARY_PATH": paths}, capture_output=True, text=True)
    found = re.search(r"(libpython\S+) => (not found|\S+)", listed.stdout)
    if found is None:
        return None
    name, path = found.groups()
    if path == "not found":
        return f"there is no {name}"
    version = _version_of(path)
    if version is not None and version != platform.python_version():
        return f"it is Python {platform.python_version()}, and the server would load {path} of {version}"
    return None


def _version_of(library: str) -> str | None:
    """Return the version of a libpython, read in a separate process: two in one process conflict."""
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.Py_GetVersion.restype = ctypes.c_char_p; "
        "print(library.Py_GetVersion().decode().split()[0])"
    )
    asked = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True)
    return asked.stdout.strip() or None if asked.returncode == 0 else None
