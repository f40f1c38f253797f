"""Names of the paper's blocks, read off the names of a graph's nodes or an engine's layers.

The exporter names a node after the module it comes from, `/heads.depth/upsample1/conv1/Conv`, so the first part of a
name is the block: `backbone`, `mstr`, `msf.<task>`, `wmca`, `context` or `context.<task>` (GGFM), `heads.<task>`, and
`network` for what stands between blocks. This is the one place that knows it.
"""

from __future__ import annotations

#: Block of a node whose name says none.
UNKNOWN = "unknown"


def block_of(name: str) -> str:
    """The paper's block of a node name: `/msf.edges/blocks.0/Conv` gives `msf.edges`."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "" and parts[1] else UNKNOWN
