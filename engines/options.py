"""The base of the options that an engine kind is built with."""

from __future__ import annotations

from dataclasses import dataclass

from m2h_deploy.backends import BackendOptions


@dataclass(frozen=True)
class EngineOptions:
    """What `build_bundle` takes as `options`: each engine kind has a subclass of its own."""

    def to_open(self) -> BackendOptions:
        """Return how to open the engine that was built, for its self-test."""
        return BackendOptions()
