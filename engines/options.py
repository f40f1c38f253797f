"""Base class of the options of an engine kind."""

from __future__ import annotations

from dataclasses import dataclass

from m2h_deploy.backends import BackendOptions


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of `build_bundle`; each engine kind has its own subclass."""

    def to_open(self) -> BackendOptions:
        """Return the options for opening the engine that was built, for its self-test."""
        return BackendOptions()
