"""Determine the paper's block from the name of a graph's node or an engine's layer.

The exporter names a node after the module it comes from, `/heads.depth/upsample1/conv1/Conv`, so the first part of a
name is the block: `backbone`, `mstr`, `msf.<task>`, `wmca`, `context` or `context.<task>` (GGFM), `heads.<task>`, and
`network` for nodes between blocks. Only this module knows that rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    import onnx

#: Block of a node whose name contains no block.
UNKNOWN = "unknown"

#: Layers that stay in float with INT8 by default, as patterns of `matches`; the reasons are given in
#: `engines.precision.quantization.QuantPolicy`. Quantization-aware fine-tuning keeps the same layers in float.
KEPT_IN_FLOAT = (
    "/backbone/patch_embed/*",
    "/heads.*/final/*",
    "*/gate/*",
    "*/gate.*/*",
    "*/squeeze/*",
    "*/squeeze.*/*",
    "*/excite/*",
    "/heads.*/aspp/pooled*",
    "mstr",
    "wmca",
    # The deploy form: heads end in `end`, or in a product of the last two layers and a parallel residual.
    "/heads.*/end/*",
    "/heads.depth/refine/taps/*",
    "/heads.*/upsample2/MatMul*",
    "/heads.*/upsample2/residual/*",
    "/heads.edges/upsample1/trunk/conv1.*",
    "/context.*/gates.*/*",
    "*/mean/*",
    "*_mean/*",
    # The corresponding layers of the network as published.
    "/heads.*/spatial/*",
    "/heads.edges/upsample1/conv1/*",
    "/heads.edges/upsample1/norm1/*",  # the convolution before it, once the exporter has folded the two
    "/heads.normals/upsample2/refine/*",
    "/heads.edges/upsample2/refine/*",
)


def block_of(name: str) -> str:
    """Return the paper's block of a node name: `/msf.edges/blocks.0/Conv` gives `msf.edges`."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "" and parts[1] else UNKNOWN


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a node name matches any of the patterns.

    A pattern with a slash is a glob over the whole name (`/heads.*/final/*`), one without is a glob over the block
    (`heads.*`, `wmca`).
    """
    return any(fnmatchcase(name if "/" in pattern else block_of(name), pattern) for pattern in patterns)


def blocks_in(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the blocks of a graph, in the order of the forward pass."""
    return tuple(dict.fromkeys(block_of(node.name) for node in proto.graph.node))


def check_patterns(proto: onnx.ModelProto, patterns: Sequence[str], source: str) -> None:
    """Raise M2HError if a pattern matches no node, so that a misspelled name is not silently ignored."""
    for pattern in patterns:
        if not any(matches(node.name, [pattern]) for node in proto.graph.node):
            raise M2HError(
                f"{source}: '{pattern}' matches nothing in the graph; its blocks are {', '.join(blocks_in(proto))}"
            )
