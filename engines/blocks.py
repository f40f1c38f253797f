"""Names of the paper's blocks, read off the names of a graph's nodes.

The exporter names a node after the module it comes from, `/heads.depth/upsample1/conv1/Conv`, so the first part of a
name is the block: `backbone`, `mstr`, `msf.<task>`, `wmca`, `context` (GGFM), `heads.<task>`, and `network` for what
stands between blocks. This is the one place that knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import onnx

from m2h_deploy.errors import M2HError

#: Block of a node whose name says none.
UNKNOWN = "unknown"


def block_of(name: str) -> str:
    """The paper's block of a node name: `/msf.edges/blocks.0/Conv` gives `msf.edges`."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "" and parts[1] else UNKNOWN


def blocks_in(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Blocks of a graph, in the order of the forward pass."""
    return tuple(dict.fromkeys(block_of(node.name) for node in proto.graph.node))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True where a node name matches any pattern.

    A pattern with a slash is a glob over the whole name (`/heads.*/final/*`), one without is a glob over the block
    (`heads.*`, `wmca`).
    """
    return any(fnmatchcase(name if "/" in pattern else block_of(name), pattern) for pattern in patterns)


def check_patterns(proto: onnx.ModelProto, patterns: Sequence[str], source: str) -> None:
    """Raises M2HError where a pattern matches no node: a misspelt name must not pass for a policy."""
    for pattern in patterns:
        if not any(matches(node.name, [pattern]) for node in proto.graph.node):
            raise M2HError(
                f"{source}: '{pattern}' matches nothing in the graph; its blocks are {', '.join(blocks_in(proto))}"
            )
