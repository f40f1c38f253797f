"""Check for matplotlib, which draws charts, before long work."""

from __future__ import annotations

from m2h_deploy.errors import missing_extra


def check_matplotlib(user: str, extra: str = "report") -> None:
    """Raise M2HError, naming `extra`, if matplotlib is not installed; `user` is the feature that needs it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("matplotlib", extra, user, error=error) from None
