"""Results as HTML pages that need no other file, from the templates beside this module."""

from __future__ import annotations

import base64
from typing import Any

from m2h_deploy import __version__
from m2h_deploy.errors import M2HError


def check_jinja() -> None:
    """Raises M2HError, naming the extra, where pages cannot be made."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError:
        raise M2HError("the HTML page needs jinja2: pip install 'm2h-deploy[report]'") from None


def render_page(template: str, **values: Any) -> bytes:
    """The page of a template, UTF-8; `version` is this package's. Raises M2HError where jinja2 is not installed."""
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
    return environment.get_template(template).render(version=__version__, **values).encode()


def data_url(kind: str, content: bytes) -> str:
    """A picture as part of a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
