"""Read a node's parameters into `Settings`."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node

from m2h_perception.settings import LISTS, Settings, defaults, unknown_parameters


def read_settings(node: Node) -> Settings:
    """Declare the parameters and read them, once: setting one later is rejected.

    Raises:
        M2HError: A value is out of range.
        ParameterException: A value has another type.
    """
    values = {name: _declare(node, name, value) for name, value in defaults().items()}
    # Before the settings are checked: a misspelled name is often why one is missing. rclpy has no public list of
    # the given parameters; those that it declares itself, such as use_sim_time, are known.
    given = getattr(node, "_parameter_overrides", {})
    for line in unknown_parameters(name for name in given if not node.has_parameter(name)):
        node.get_logger().warning(line)
    return Settings(**values)


def _declare(node: Node, name: str, default: Any) -> Any:
    # ROS reads 5 as an integer and rejects it if the default is 5.0.
    dynamic = isinstance(default, float) or name in LISTS
    descriptor = ParameterDescriptor(dynamic_typing=dynamic, read_only=True)
    return node.declare_parameter(name, default, descriptor).value
