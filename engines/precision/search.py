"""Find which layers can be INT8 with every gate held: what each part costs alone, then the order to give them back.

Quantization is simulated on the float32 graph with Q/DQ around layers, on ONNX Runtime's CPU, which takes seconds
instead of the minutes of a full build. The layers of a network are grouped into parts, such as
`/heads.edges/upsample1/*`: a part is quantized or given back as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from engines.precision.quantization import QuantPolicy
from m2h_deploy.blocks import block_of
from m2h_deploy.errors import M2HError

Losses = dict[str, float]
"""Share of its limit that each gate uses up; above 1 it fails."""

#: Smaller parts, by their share of the MACs, are joined with the other small ones of their block.
SMALL_PART = 0.01

#: The chosen policy may use up this share of a gate's limit on the search's frames: others are a little worse.
MARGIN = 0.7


@dataclass(frozen=True)
class Part:
    """Layers that are quantized together."""

    patterns: tuple[str, ...]
    layers: tuple[str, ...]
    macs: int

    @property
    def name(self) -> str:
        """The first pattern, and how many others there are."""
        more = len(self.patterns) - 1
        return self.patterns[0] + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class Step:
    """A measured policy: the number of parts that were given back, and what the rest costs."""

    given_back: int
    share: float
    """Share of the MACs of quantizable layers in INT8."""
    losses: Losses

    @property
    def worst(self) -> tuple[str, float]:
        """The gate that uses up most of its limit, and how much."""
        return max(self.losses.items(), key=lambda item: item[1])


@dataclass(frozen=True)
class SearchResult:
    """The parts of the network in the order in which they return to float, and the policies that were measured."""

    order: tuple[Part, ...]
    alone: dict[str, Losses]
    """Losses of each part when it alone is INT8, by its name."""
    steps: tuple[Step, ...]
    """In the order of the number of parts that are given back."""
    chosen: Step | None
    """The step with the most MACs in INT8 whose losses are all within `MARGIN`; None without one."""

    def policy(self, step: Step) -> QuantPolicy:
        """Return the policy of a step."""
        kept = [pattern for part in self.order[step.given_back :] for pattern in part.patterns]
        return QuantPolicy(quantize=tuple(sorted(kept)), keep=())

    @property
    def pareto(self) -> tuple[Step, ...]:
        """The steps that no other beats in both the share in INT8 and the worst gate."""
        return tuple(
            step
            for step in self.steps
            if not any(other.share >= step.share and other.worst[1] < step.worst[1] for other in self.steps)
        )


def parts_of(layers: Sequence[str], macs: Mapping[str, int]) -> tuple[Part, ...]:
    """Group layers into parts, in graph order."""
    groups: dict[str, list[str]] = {}
    for name in layers:
        pieces = name.split("/")
        pattern = f"/{pieces[1]}/{pieces[2]}/*" if len(pieces) > 3 else name
        groups.setdefault(pattern, []).append(name)
    total = sum(macs.get(name, 0) for name in layers) or 1
    joined: dict[str, list[tuple[str, list[str]]]] = {}
    for pattern, names in groups.items():
        small = sum(macs.get(name, 0) for name in names) < SMALL_PART * total
        joined.setdefault(block_of(names[0]) if small else pattern, []).append((pattern, names))
    return tuple(
        Part(
            tuple(pattern for pattern, _ in group),
            tuple(name for _, names in group for name in names),
            sum(macs.get(name, 0) for _, names in group for name in names),
        )
        for group in joined.values()
    )


def search(
    parts: Sequence[Part],
    measure: Callable[[Sequence[str]], Losses],
    progress: Callable[[str, float], None] | None = None,
) -> SearchResult:
    """Measure each part alone, order the parts by harm per MAC, and find how many parts must return to float.

    `measure` returns the losses with the given layers in INT8. A binary search finds the number of parts that return to
    float. It assumes that more parts in float never increase a loss.

    Raises:
        M2HError: There is nothing to quantize.
    """
    if not parts:
        raise M2HError("no layer of the graph can be INT8: it has no Conv, MatMul or Gemm with constant weights")
    tell = progress or (lambda what, share: None)
    alone: dict[str, Losses] = {}
    for index, part in enumerate(parts):
        tell(f"INT8 in {part.name} alone", index / len(parts))
        alone[part.name] = measure(part.layers)
    order = tuple(sorted(parts, key=lambda part: (-_harm(alone[part.name]) / max(part.macs, 1), part.name)))
    total = sum(part.macs for part in parts) or 1
    steps: dict[int, Step] = {}

    def step(given_back: int) -> Step:
        if given_back not in steps:
            rest = order[given_back:]
            tell(f"INT8 in {len(rest)} of {len(order)} parts", 1.0)
            losses = measure([name for part in rest for name in part.layers])
            steps[given_back] = Step(given_back, sum(part.macs for part in rest) / total, losses)
        return steps[given_back]

    low, high = 0, len(order) - 1  # at least one part stays in INT8
    if step(0).worst[1] > MARGIN:
        while low < high:
            middle = (low + high) // 2
            if step(middle).worst[1] <= MARGIN:
                high = middle
            else:
                low = middle + 1
        step(low)
    measured = tuple(steps[key] for key in sorted(steps))
    held = [found for found in measured if found.worst[1] <= MARGIN]
    return SearchResult(order, alone, measured, max(held, key=lambda found: found.share, default=None))


def _harm(losses: Losses) -> float:
    """Return what a part costs: the gate that it hurts most. A figure that got better by chance counts as 0."""
    return max(max(losses.values()), 0.0)


def macs_by_layer(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of each node of a graph by its name."""
    from m2h_deploy.profiling.costs import node_costs

    return {cost.name: cost.macs or 0 for cost in node_costs(proto)}
