"""The m2h-deploy command: parses, calls one function, prints. Results on stdout, everything else on stderr.

One file a command; each registers itself with the app when it is imported, and imports what it needs when it is called.
"""
# ruff: noqa: I001 - the order of the imports is the order of the commands in --help

from cli import (
    export,
    build,
    tune,
    verify,
    calibrate,
    bench,
    run,
    map,
    serve,
    package,
    inspect,
    rooms,
    train,
    quickstart,
)
from cli.app import app, main

__all__ = [
    "app",
    "bench",
    "build",
    "calibrate",
    "export",
    "inspect",
    "main",
    "map",
    "package",
    "quickstart",
    "rooms",
    "run",
    "serve",
    "train",
    "tune",
    "verify",
]
