"""Render results as self-contained HTML pages, from the templates of this package."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from m2h_deploy.errors import missing_extra
from m2h_deploy.version import __version__


@dataclass(frozen=True)
class Cell:
    """A table cell with a style or a drawing; a plain cell is a str."""

    text: str = ""
    style: str = ""
    """Class of the style sheet: pass, fail, unsure, code."""
    drawing: str = ""
    """Markup below the text, made by this program."""


def check_jinja() -> None:
    """Raise M2HError, naming the extra, if jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise missing_extra("jinja2", "report", "the HTML page", error=error) from None


def render_page(template: str, **values: Any) -> bytes:
    """Render a template to UTF-8; `version` is this package's. Raises M2HError if jinja2 is not installed."""
    check_jinja()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m2h_deploy"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["sentence"] = lambda text: f"{text[:1].upper()}{text[1:]}."
    environment.globals["cell"] = _cell
    return environment.get_template(template).render(version=__version__, **values).encode()


def _cell(value: Cell | str) -> dict[str, str]:
    """Return a cell for the template; an interval in brackets goes to a separate line, to keep tables narrow."""
    whole = value if isinstance(value, Cell) else Cell(value)
    text, bracket, rest = whole.text.partition(" (")
    apart = bool(bracket) and " to " in rest
    return {
        "text": text if apart else whole.text,
        "interval": f"({rest}" if apart else "",
        "style": whole.style,
        "drawing": whole.drawing,
    }


def data_url(kind: str, content: bytes) -> str:
    """Return a picture as a data URL for embedding in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
