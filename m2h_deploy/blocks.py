"""Names of the paper's blocks, read off the names of a graph's nodes or an engine's layers.

The exporter names a node after the module it comes from, `/heads.depth/upsample1/conv1/Conv`, so the first part of a
name is the block: `backbone`, `mstr`, `msf.<task>`, `wmca`, `context` or `context.<task>` (GGFM), `heads.<task>`, and
`network` for what is between blocks. This is the one place that knows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    import onnx

#: Block of a node whose name says none.
UNKNOWN = "unknown"

#: What INT8 leaves in float by default, as patterns of `matches`; `engines.precision.quantization.QuantPolicy` gives
#: the reasons. Quantization-aware fine-tuning leaves the same in float.
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
    # The deploy form: heads end in `end`, or in a product made of the last two layers and the residual beside it.
    "/heads.*/end/*",
    "/heads.*/upsample2/MatMul*",
    "/heads.*/upsample2/residual/*",
    "/heads.edges/upsample1/trunk/conv1.*",
    "/context.*/gates.*/*",
    "*/mean/*",
    "*_mean/*",
    # Their layers in the network as published.
    "/heads.*/spatial/*",
    "/heads.edges/upsample1/conv1/*",
    "/heads.edges/upsample1/norm1/*",  # the convolution before it, once the exporter has folded the two
    "/heads.normals/upsample2/refine/*",
    "/heads.edges/upsample2/refine/*",
)


def block_of(name: str) -> str:
    """The paper's block of a node name: `/msf.edges/blocks.0/Conv` gives `msf.edges`."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "" and parts[1] else UNKNOWN


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True where a node name matches any pattern.

    A pattern with a slash is a glob over the whole name (`/heads.*/final/*`), one without is a glob over the block
    (`heads.*`, `wmca`).
    """
    return any(fnmatchcase(name if "/" in pattern else block_of(name), pattern) for pattern in patterns)


def blocks_in(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Blocks of a graph, in the order of the forward pass."""
    return tuple(dict.fromkeys(block_of(node.name) for node in proto.graph.node))


def check_patterns(proto: onnx.ModelProto, patterns: Sequence[str], source: str) -> None:
    """Raises M2HError where a pattern matches no node: a misspelled name must not pass for a policy."""
    for pattern in patterns:
        if not any(matches(node.name, [pattern]) for node in proto.graph.node):
            raise M2HError(
                f"{source}: '{pattern}' matches nothing in the graph; its blocks are {', '.join(blocks_in(proto))}"
            )
