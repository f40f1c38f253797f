"""Versions of this project and of the packages that are installed."""

import importlib.metadata

__version__ = "0.1.0"


def installed_version(distribution: str) -> str | None:
    """Return the version of a Python distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
