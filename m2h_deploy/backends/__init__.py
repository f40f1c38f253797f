"""Run an engine file: one module per engine kind, imported only when a bundle needs it."""

from m2h_deploy.backends.base import Backend, BackendOptions, LayerTime
from m2h_deploy.backends.registry import KINDS, EngineKind, engine_kind, import_engine, open_backend, profile_engine

__all__ = [
    "KINDS",
    "Backend",
    "BackendOptions",
    "EngineKind",
    "LayerTime",
    "engine_kind",
    "import_engine",
    "open_backend",
    "profile_engine",
]
