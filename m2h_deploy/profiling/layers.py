"""Measure time by layer with the engines' own profilers, summed up by the paper's blocks.

A profiled run is slower than a plain one, since every layer is timed: the blocks' shares are more reliable than their
milliseconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from m2h_deploy.backends import BackendOptions, profile_engine
from m2h_deploy.backends.base import LayerTime, Run
from m2h_deploy.blocks import UNKNOWN, block_of
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.profiling.roofline import Roofline

#: Number of profiled runs, and of warm-up runs before them.
RUNS, WARM_UP = 10, 2


@dataclass(frozen=True)
class BlockCost:
    """Operations and bytes of a block per frame."""

    macs: int
    nbytes: int


@dataclass(frozen=True)
class BlockTime:
    """Times of one block of the paper: medians over the profiled runs."""

    block: str
    milliseconds: float
    share: float
    """Share of the time of all layers, 0 to 1."""
    layers: int
    macs: int | None
    """Multiply-accumulates; None if there was no graph to count them in."""
    nbytes: int | None
    least_ms: float | None
    """Least milliseconds that the roofline allows."""
    of_roofline: float | None
    """`least_ms` over `milliseconds`; 1 is the fastest possible on this machine."""


@dataclass(frozen=True)
class LayerProfile:
    """Time of an engine by block and by layer."""

    subject: str
    runs: int
    blocks: tuple[BlockTime, ...]
    """In the order of execution."""
    total_ms: float
    slowest: tuple[LayerTime, ...]
    """The ten slowest layers, medians over the runs."""


def profile_layers(bundle: Bundle, options: BackendOptions) -> list[Run]:
    """Measure the layers of `RUNS` runs of a bundle's engine on an image of zeros, in the order of execution.

    Raises:
        M2HError: The engine cannot run.
    """
    return profile_engine(bundle, options, RUNS + WARM_UP)[WARM_UP:]


def blocks_of_run(run: Run) -> list[str]:
    """Return the block of every layer of a run.

    Layers that an engine inserts (a layout change, a reshape) have names of its own; they count to the block whose map
    they change, which is that of the previous layer. Leading unnamed layers count to the first named block.
    """
    named = [block_of(layer.name) for layer in run]
    current = next((block for block in named if block != UNKNOWN), UNKNOWN)
    blocks = []
    for block in named:
        current = current if block == UNKNOWN else block
        blocks.append(current)
    return blocks


def summarize_layers(
    subject: str,
    runs: Sequence[Run],
    costs: Mapping[str, BlockCost] | None = None,
    roofline: Roofline | None = None,
) -> LayerProfile:
    """Return medians over `runs` by block, with each block's cost and the roofline's limit."""
    sums = [_sum_by_block(run) for run in runs]
    order = list(dict.fromkeys(block for total in sums for block in total))
    times = {block: statistics.median(total.get(block, 0.0) for total in sums) for block in order}
    whole = sum(times.values())
    counts = blocks_of_run(runs[-1])
    blocks = []
    for block in order:
        cost = (costs or {}).get(block)
        least = roofline.least_ms(cost.macs, cost.nbytes) if cost is not None and roofline is not None else None
        blocks.append(
            BlockTime(
                block=block,
                milliseconds=times[block],
                share=times[block] / whole if whole else 0.0,
                layers=counts.count(block),
                macs=cost.macs if cost else None,
                nbytes=cost.nbytes if cost else None,
                least_ms=least,
                of_roofline=least / times[block] if least is not None and times[block] > 0 else None,
            )
        )
    return LayerProfile(subject, len(runs), tuple(blocks), whole, _slowest(runs))


def _sum_by_block(run: Run) -> dict[str, float]:
    total: dict[str, float] = {}
    for layer, block in zip(run, blocks_of_run(run), strict=True):
        total[block] = total.get(block, 0.0) + layer.milliseconds
    return total


def _slowest(runs: Sequence[Run]) -> tuple[LayerTime, ...]:
    times: dict[tuple[str, str], list[float]] = {}
    for layer in _flatten(runs):
        times.setdefault((layer.name, layer.kind), []).append(layer.milliseconds)
    medians = [LayerTime(name, kind, statistics.median(values)) for (name, kind), values in times.items()]
    return tuple(sorted(medians, key=lambda layer: -layer.milliseconds)[:10])


def _flatten(runs: Iterable[Run]) -> Iterable[LayerTime]:
    return (layer for run in runs for layer in run)
