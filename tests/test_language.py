"""Check spelling and wording of code, messages and pages against a list of words that are always wrong here."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.pages import REPOSITORY

SUFFIXES = {".py", ".md", ".html", ".h", ".hpp", ".cpp", ".toml"}
SKIPPED = ("CHANGELOG.md", "tests/golden/", "tests/test_language.py")

#: British spellings and metaphors that also occur in identifiers.
BRITISH = [
    *("knock", "vouch"),
    *("normalis", "quantis", "optimis", "initialis", "organis", "recognis", "minimis", "maximis", "summaris"),
    *("synchronis", "visualis", "serialis", "colour", "flavour", "neighbour", "behaviour", "favour", "artefact"),
    *("labelled", "cancelled", "travelled", "modelled", "licence", "catalogue"),
    *(r"\bcentred?\b", r"(?:\b|_|kilo|milli|centi)metres?(?:\b|_)", r"\bgrey", r"\banalys(?:e[ds]?|ing)\b"),
]

#: Metaphors, and negations used as nouns, in text (comments, docstrings, messages, pages).
WORDING = [
    *(r"\bears?\b", r"\bnobody\b", "harmless to call", "means nothing", "stands? between"),
    *("not yours", "whole or not at all", "no numbers", "numbers part", "tell the truth", "told so"),
    r"(?<![Tt]here )\b(?:is|are|was|were) none\b",
    r"(?<![Tt]here )(?<!where )\b(?:is|are|was|were) no "
    r"(?!longer|more than|less than|better|worse|slower|faster|larger|smaller)[a-z0-9]",
]

#: A file that is named so is a picture: the word is looked for in file names.
ALLOWED = {"m2h_deploy/files/images.py": {"colour"}, "tests/data/test_classes.py": {"colour"}}
NAMES = re.compile(r"UAV-Centre-ITC|\.cancelled\(")


def tracked() -> list[str]:
    names = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if names.returncode:
        pytest.skip("not a git work tree")
    return [
        name for name in names.stdout.splitlines() if Path(name).suffix in SUFFIXES and not name.startswith(SKIPPED)
    ]


def text_of(name: str, source: str) -> list[tuple[int, str]]:
    """Return the line numbers and the lines of text: comments and strings of Python code, else all lines."""
    if not name.endswith(".py"):
        return list(enumerate(source.splitlines(), 1))
    lines = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
            lines += list(enumerate(token.string.splitlines(), token.start[0]))
    return lines


def hits(name: str, source: str) -> list[str]:
    """Return file, line and word of each hit."""
    found = []
    for patterns, lines in ((BRITISH, list(enumerate(source.splitlines(), 1))), (WORDING, text_of(name, source))):
        pattern = re.compile("|".join(patterns), re.IGNORECASE if patterns is BRITISH else 0)
        for number, line in lines:
            for match in pattern.finditer(NAMES.sub("", line)):
                if match[0].lower() not in ALLOWED.get(name, ()):
                    found.append(f"{name}:{number}: {match[0]}")
    return found


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("a.py", "colour = 1\nself.colours = normalise(x)\n", 3),
        ("a.py", "if value is None:  # there is none\n    pass\n", 0),
        ("a.py", '"""Closes it. Idempotent."""\n"a size that is none"\n_knock()  # it vouches\n', 3),
        ("a.md", "The UAV-Centre-ITC has meters; 3 metres.\nThere is no file, and x is no file.\n", 2),
        ("a.md", "It is no longer slow and is no slower than before. There are none.\n", 0),
    ],
)
def test_the_list_finds_wrong_words(name, source, count):
    assert len(hits(name, source)) == count


def test_no_file_contains_a_word_of_the_list():
    assert [hit for name in tracked() for hit in hits(name, (REPOSITORY / name).read_text())] == []
