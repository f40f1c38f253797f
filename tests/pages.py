"""Read the documentation's pages and run their commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.commands import COMMAND

REPOSITORY = Path(__file__).parents[1]


class Page:
    """A page of docs/: its text, its code blocks, and a shell that runs this checkout's `m2h-deploy`."""

    def __init__(self, name: str) -> None:
        self.text = (REPOSITORY / "docs" / name).read_text()

    def blocks(self, language: str) -> list[str]:
        """Return the code blocks of a language, from top to bottom."""
        return re.findall(rf"```{language}\n(.*?)```", self.text, re.DOTALL)

    def run(self, folder: Path, *, count: int, change: Callable[[str], str] = lambda commands: commands) -> None:
        """Run every `bash` block in `folder`, after `change`; there must be `count` of them."""
        environment = shell_environment(folder)
        blocks = self.blocks("bash")
        assert len(blocks) == count
        for block in blocks:
            done = subprocess.run(
                ["bash", "-e", "-c", change(block)], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def shell_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which `folder`/bin provides this checkout's `m2h-deploy` and this interpreter."""
    programs = folder / "bin"
    programs.mkdir()
    for name, words in (("m2h-deploy", f'-c "{COMMAND[2]}"'), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}


@dataclass(frozen=True)
class Block:
    """A code block of a page, and the reason why it is not run, from an HTML comment right above it."""

    language: str
    text: str
    reason: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the code blocks of a page, from top to bottom."""
    pattern = r"(?:^<!-- not run: ([^>]+) -->\n)?^( *)```(\S*)\n(.*?)^\2```$"
    found = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    return [Block(language, block, reason or None) for reason, _, language, block in found]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the lines of every code block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def m2h_commands(block: str) -> list[list[str]]:
    """Return the arguments of every `m2h-deploy` command of a shell block, without comments."""
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|[\s/])m2h-deploy\s+(.*)", line.split("  # ")[0])
        if found and not line.lstrip().startswith("#") and "pip " not in line:
            # In docs/runtime.md two spaces separate a command from its description.
            commands.append(shlex.split(re.split(r"\s{2,}", re.sub(r"\s{2,}(?=-)", " ", found[1]))[0]))
    return commands
