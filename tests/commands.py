"""Run the command line, in this process or a separate one, and check its errors."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from m2h_deploy.errors import M2HError

ROOT = Path(__file__).parents[1]

#: `m2h-deploy` in this environment.
COMMAND = (sys.executable, "-c", "import cli; cli.main()")


def launch(*arguments: object) -> list[str]:
    """Return the arguments that launch a command."""
    return [*COMMAND, *map(str, arguments)]


def command_without(*modules: str) -> list[str]:
    """Return the start of a command that cannot import `modules`, installed or not."""
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in modules)
    return [sys.executable, "-c", f"import sys; {hidden}; {COMMAND[2]}"]


def run_here(*arguments: object) -> Result:
    """Run a command in this process, which is faster; an error is the result's `exception`."""
    from cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    """Run a command in this process that must succeed, and return what it printed."""
    result = run_here(*arguments)
    assert result.exception is None, result.exception
    return result.output


def mistake(*arguments: object) -> str:
    """Run a command in this process that must end with exit code 2 and print no result; return its one-line error."""
    result = run_here(*arguments)
    assert result.stdout == ""
    error = result.exception
    assert isinstance(error, M2HError), error
    assert error.exit_code == 2
    assert "\n" not in str(error)
    return str(error)


def refused(call: Callable[..., object], *arguments: object, **options: object) -> str:
    """Call a function that must raise M2HError with exit code 2, and return its one-line message."""
    with pytest.raises(M2HError) as caught:
        call(*arguments, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without the terminal width that readline sets for child processes."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    paths = (str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": os.pathsep.join(paths)} | changes


def m2h(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line; its output is bytes, because it need not be valid text."""
    command = [*COMMAND, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, cwd=cwd, env=env or environment(), check=False)


def m2h_text(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line like `m2h`, with its output as text."""
    return subprocess.run(launch(*arguments), capture_output=True, text=True, cwd=cwd, env=environment(), check=False)


def shell(script: str, *, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a script of bash in which `m2h` is the command line."""
    start = f'm2h() {{ {shlex.join(COMMAND)} "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", start + script], capture_output=True, cwd=cwd, env=env or environment(), check=False
    )


def shell_with_mounts(
    script: str, *, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a script like `shell`, with private mounts. Skips the test if the machine does not allow them."""
    if not _can_mount():
        pytest.skip("file systems of its own need root and unshare")
    start = f'm2h() {{ {shlex.join(COMMAND)} "$@"; }}\n'
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", start + script],
        capture_output=True,
        cwd=cwd,
        env=env or environment(),
        check=False,
    )


@functools.cache
def _can_mount() -> bool:
    try:
        command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs t /mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def as_user_without_passwd_entry() -> list[str]:
    """Return the start of a command for a user without a passwd entry. Skips the test if that is impossible."""
    start = ["unshare", "--user", "--map-user=4242", "--map-group=4242"]
    try:
        possible = subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("another user needs unshare and user namespaces")
    return start


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """Return the error of a command that ended with exit code 2, one line and no traceback."""
    said = result.stderr.decode(errors="replace")
    assert result.returncode == 2, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    return lines[0]
