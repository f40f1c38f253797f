"""Install a wheel into a clean environment of each Python, and run it: try_wheel.py WHEEL [PYTHON...].

Without names, every Python from 3.10 to 3.13 on the path or of pyenv is used. Each environment is in a temporary
folder, which needs up to 7 GB (PyPI's torch brings CUDA), and is removed again. The exit code is 1 if one of them
fails.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
EXTRA = "cpu"
SHOWN = ("torch", "numpy", "onnxruntime", "openvino")

#: Prints the versions, and fails if a package of the project comes from the checkout.
PROGRAM = f"""
import importlib.metadata, json, platform, sys
import cli, engines, export, m2h_deploy
for module in (cli, engines, export, m2h_deploy):
    assert module.__file__.startswith(sys.prefix), module.__file__
versions = [f"{{name}} {{importlib.metadata.version(name)}}" for name in {SHOWN}]
print(json.dumps([platform.python_version(), m2h_deploy.__version__, *versions]))
"""


def installed_pythons() -> list[str]:
    """Return one interpreter of each version that this machine has."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for version in VERSIONS:
        homes = sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")))
        candidates = (shutil.which(f"python{version}"), *homes)
        found += [one for one in candidates if one and starts(one)][:1]
    return found


def starts(python: str) -> bool:
    """Return whether an interpreter runs; the launchers of pyenv fail for versions that are not selected."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run(command: list[str], folder: Path) -> str:
    """Run a command in `folder`, without this process's Python settings, and return its stdout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def attempt(wheel: Path, python: str, folder: Path) -> str:
    """Install the wheel with its extra, run `doctor` and `quickstart`, and return a line about it."""
    begin = time.monotonic()
    run([python, "-m", "venv", str(folder / "venv")], folder)
    own = str(folder / "venv" / "bin" / "python")
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    run([own, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[{EXTRA}]"], folder)
    ready = time.monotonic()
    version, project, *packages = json.loads(run([own, "-c", PROGRAM], folder))
    program = str(folder / "venv" / "bin" / "m2h-deploy")
    run([program, "doctor"], folder)
    run([program, "quickstart", "--output", "demo"], folder)
    pictures = len(list((folder / "demo").rglob("*.png"))) + len(list((folder / "demo").rglob("*.jpg")))
    if not pictures:
        raise RuntimeError(f"quickstart wrote no picture to {folder / 'demo'}")
    end = time.monotonic()
    parts = [f"m2h-deploy {project}", *packages, f"installed in {ready - begin:.0f} s", f"ran in {end - ready:.0f} s"]
    return f"Python {version}: {', '.join(parts)}"


def main(wheel: str, *pythons: str) -> int:
    """Try the wheel with each Python, one after the other, and return the exit code."""
    failed = []
    chosen = pythons or tuple(installed_pythons())
    for python in chosen:
        with tempfile.TemporaryDirectory(prefix="m2h-wheel-") as folder:
            try:
                print(attempt(Path(wheel).resolve(), python, Path(folder)), flush=True)
            except (OSError, RuntimeError) as error:
                failed.append(python)
                print(f"error: {python}: {error}", file=sys.stderr, flush=True)
    if not chosen:
        print(f"error: found no Python of {', '.join(VERSIONS)}: name one", file=sys.stderr)
    return int(bool(failed) or not chosen)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
