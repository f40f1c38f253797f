"""Choosing nodes of a graph by the paper's blocks."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from m2h_deploy.blocks import UNKNOWN, block_of, matches
from m2h_deploy.errors import M2HError

__all__ = ["UNKNOWN", "block_of", "blocks_in", "check_patterns", "matches"]


def blocks_in(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Blocks of a graph, in the order of the forward pass."""
    return tuple(dict.fromkeys(block_of(node.name) for node in proto.graph.node))


def check_patterns(proto: onnx.ModelProto, patterns: Sequence[str], source: str) -> None:
    """Raises M2HError where a pattern matches no node: a misspelt name must not pass for a policy."""
    for pattern in patterns:
        if not any(matches(node.name, [pattern]) for node in proto.graph.node):
            raise M2HError(
                f"{source}: '{pattern}' matches nothing in the graph; its blocks are {', '.join(blocks_in(proto))}"
            )
