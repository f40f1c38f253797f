"""The messages that docs/troubleshooting.md explains are those of the source."""

from __future__ import annotations

import ast
import re

import pytest

from tests.pages import REPOSITORY, Page

MESSAGES = [
    cell
    for cell in re.findall(r"^\| `([^`|]+)` \|", Page("troubleshooting.md").text, re.MULTILINE)
    if not cell.startswith("-")
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Return every string of one line of the packages, with `{}` for what is formatted into it."""
    found = []
    for package in ("m2h_deploy", "export", "engines", "cli"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return [text for text in found if "\n" not in text]


def test_the_page_explains_many_messages():
    assert len(MESSAGES) == len(set(MESSAGES)) > 50


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_exists_in_the_source(message, texts):
    parts = [part for part in message.split("...") if part.strip()]
    assert max(map(len, parts)) >= 4, "too little text to be found by"
    pattern = re.compile(".*".join(map(re.escape, parts)))
    assert any(pattern.search(text) for text in texts)
