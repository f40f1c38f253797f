"""Test the managed node over DDS: `make test-ros2`."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ros2


def test_a_managed_node_works_only_while_it_is_active_and_can_be_configured_again(ros, tiny_bundle):
    parameters = {"points_topic": "/test/points", "output_reliability": "best_effort"}
    with ros.node(tiny_bundle, module="m2h_perception.lifecycle", ready="unconfigured", **parameters) as node:
        result = ros.peer("managed")
        assert ros.interrupt(node) == 0, ros.log()
    turn = ["activate: True, active", "answers: True", "deactivate: True, inactive", "unsubscribed: True"]
    assert result["steps"] == [
        "configure: True, inactive",
        "subscriptions while inactive: 0",
        *turn,
        *turn,
        "cleanup: True, unconfigured",
        "topics removed: True",
        "configure: True, inactive",
        "activate: True, active",
        "answers: True",
    ]
    assert result["reliability"] == ["BEST_EFFORT"]
    assert "Traceback" not in ros.log()


def test_a_bundle_that_cannot_be_used_leaves_the_managed_node_unconfigured(ros, tmp_path):
    with ros.node(tmp_path, module="m2h_perception.lifecycle", ready="unconfigured") as node:
        assert ros.peer("refused")["steps"] == ["configure: False, unconfigured"] * 2
        assert ros.interrupt(node) == 0, ros.log()
    assert "is not a bundle" in ros.log()
    assert "Traceback" not in ros.log()
