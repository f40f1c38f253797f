"""Hook of MkDocs: show files outside of docs/ that pages link to as pages of the site.

A page links to `../examples/FILE` relative to itself, which a Git host follows. The site has no such file, so each
linked file becomes a page `files/FILE` that shows its text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

REPOSITORY = Path(__file__).parents[1]

#: A link of a page to a file outside of docs/: its path in the repository. An anchor is dropped, because the page of a
#: file shows its text and has no headings of its own.
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(?:#[^)\s]*)?\)")

#: Pygments' names of the languages of files whose endings are not such names.
LANGUAGES = {".cff": "yaml", ".md": "markdown", ".txt": "text", ".hpp": "cpp", ".h": "c", "": "text"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside of docs/ that a page links to."""
    outside = set()
    for file in files.documentation_pages():
        outside |= set(OUTSIDE.findall(file.content_string))
    for path in sorted(outside):
        source = REPOSITORY / path
        if source.is_file():
            files.append(File.generated(config, f"files/{path}.md", content=page_of(path, source),
                                        inclusion=InclusionLevel.NOT_IN_NAV))  # fmt: skip
    return files


def page_of(path: str, source: Path) -> str:
    """Return a page that shows a text file."""
    language = LANGUAGES.get(source.suffix, source.suffix[1:])
    text = source.read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to files outside of docs/ by links to their pages; those to missing files stay and are reported."""
    return OUTSIDE.sub(lambda link: f"](files/{link[1]}.md)" if (REPOSITORY / link[1]).is_file() else link[0], markdown)
