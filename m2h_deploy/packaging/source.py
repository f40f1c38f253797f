"""The ONNX file that a package is made from."""

from __future__ import annotations

import logging
from pathlib import Path

from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.info import GraphInfo

_log = logging.getLogger("m2h_deploy.packaging.source")


def onnx_file_of(source: Path, user: str) -> tuple[Path, Bundle | None]:
    """Return the ONNX file at `source`, or of the bundle at `source`, and the bundle.

    Args:
        source: A file or a bundle.
        user: Why it must be ONNX, for the error.

    Raises:
        M2HError: The bundle has an engine of another form.
    """
    if not source.is_dir():
        return source, None
    bundle = load_bundle(source)
    if bundle.engine_file.suffix != ".onnx":
        raise M2HError(
            f"{source} is a bundle of {bundle.manifest.engine.kind}, and {user}: give the file that m2h-deploy export "
            "wrote"
        )
    return bundle.engine_file, bundle


def warn_of_full_resolution(info: GraphInfo, path: Path, node: str) -> None:
    """Warn if the graph's labels are to be computed at the image's resolution, which `node` does not do."""
    if info.label_resolution == "full":
        _log.warning(
            "%s was exported with --labels full-resolution, which %s ignores: its labels have the network's resolution",
            path,
            node,
        )
