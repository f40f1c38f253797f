"""Find the interpreters of other environments, which the Makefile's targets create."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.pages import REPOSITORY


def interpreter(variable: str, code: str) -> str:
    """Return the interpreter that an environment variable names, or else this one.

    Fail the test where it cannot run `code`.
    """
    python = os.environ.get(variable) or sys.executable
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment)
    except OSError as error:
        pytest.fail(f"{variable}: cannot start {python}: {error.strerror}")
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it fails"])[-1]
        pytest.fail(f"{python} does not fit: {reason}; name another one in {variable}")
    return python
