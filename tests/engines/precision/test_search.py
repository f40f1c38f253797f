"""Test the search for the layers that may be INT8: grouping, order, the number given back, Pareto, determinism."""

from __future__ import annotations

import pytest

from engines.precision.search import MARGIN, Part, parts_of, search
from tests.commands import refused

#: MACs and loss of each part when it alone is INT8; the losses of several parts add up.
PARTS = {
    "/backbone/blocks.0/*": (600, 0.10),
    "/backbone/blocks.1/*": (300, 0.20),
    "/heads.depth/end/*": (50, 0.45),
    "/heads.edges/end/*": (50, 0.90),
}


def parts() -> list[Part]:
    return [Part((name,), (name.replace("*", "Conv"),), macs) for name, (macs, _) in PARTS.items()]


def additive(layers):
    loss = sum(PARTS[name.replace("Conv", "*")][1] for name in layers)
    return {"depth.rmse_increase": loss, "edges.odsf_drop": -1.0}


def test_parts_with_most_harm_for_their_cost_are_given_back_first_until_the_gates_hold():
    result = search(parts(), additive)
    assert [part.name for part in result.order] == [
        "/heads.edges/end/*",
        "/heads.depth/end/*",
        "/backbone/blocks.1/*",
        "/backbone/blocks.0/*",
    ]
    assert result.chosen is not None
    # 0.1 + 0.2 + 0.45 is above the margin, 0.1 + 0.2 is not.
    assert result.chosen.given_back == 2
    assert result.chosen.share == pytest.approx(0.9)
    assert result.chosen.worst == ("depth.rmse_increase", pytest.approx(0.3))
    assert result.policy(result.chosen).quantize == ("/backbone/blocks.0/*", "/backbone/blocks.1/*")
    assert result.policy(result.chosen).keep == ()


def test_everything_stays_int8_where_nothing_is_lost():
    result = search(parts(), lambda layers: {"depth.psnr": 0.01 * len(layers)})
    assert result.chosen is not None
    assert (result.chosen.given_back, result.chosen.share) == (0, 1.0)
    assert len(result.steps) == 1


def test_a_search_that_cannot_hold_the_gates_says_so_and_keeps_what_it_measured():
    result = search(parts(), lambda layers: {"depth.psnr": 1.0 + len(layers)})
    assert result.chosen is None
    assert all(step.worst[1] > MARGIN for step in result.steps)
    nearest = min(result.steps, key=lambda step: step.worst[1])
    assert nearest in result.pareto


def test_every_pareto_step_is_better_than_the_others_in_something():
    result = search(parts(), additive)
    for step in result.pareto:
        for other in result.pareto:
            assert step is other or (step.share > other.share) == (step.worst[1] > other.worst[1])


def test_the_same_measurements_give_the_same_policy():
    first, second = search(parts(), additive), search(list(reversed(parts())), additive)
    assert first.policy(first.chosen) == second.policy(second.chosen)


def test_small_parts_of_a_block_are_joined():
    layers = ["/backbone/blocks.0/qkv/MatMul", "/backbone/blocks.0/fc1/MatMul", "/heads.depth/a/x/Conv",
              "/heads.depth/b/y/Conv", "/short/Conv"]  # fmt: skip
    macs = dict(zip(layers, (500, 480, 1, 2, 17), strict=True))
    found = parts_of(layers, macs)
    assert [(part.patterns, part.macs) for part in found] == [
        (("/backbone/blocks.0/*",), 980),
        (("/heads.depth/a/*", "/heads.depth/b/*"), 3),
        (("/short/Conv",), 17),
    ]
    assert found[1].name == "/heads.depth/a/* and 1 more"


def test_a_graph_without_layers_for_int8_is_refused():
    assert "Conv, MatMul or Gemm" in refused(search, [], additive)
