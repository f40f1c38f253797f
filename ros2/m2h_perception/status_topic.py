"""Publish the node's diagnostics periodically."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher

from m2h_deploy.stream.health import Health
from m2h_perception.diagnostics import Monitor, Report
from m2h_perception.settings import Settings

try:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
except ImportError:  # then the status goes to the log
    DiagnosticArray = None


class StatusTopic:
    """Publishes the status of `monitor` on the diagnostics topic, or logs it without diagnostic_msgs."""

    def __init__(self, node: Node, settings: Settings, monitor: Monitor, health: Callable[[], Health]) -> None:
        """Start the timer; `health` returns the stream's counters."""
        self._node, self._settings, self._monitor, self._health = node, settings, monitor, health
        self._publisher: Publisher | None = None
        self._silent = False
        if DiagnosticArray is None:
            node.get_logger().warning("diagnostic_msgs is not installed: the log has the status instead")
        elif settings.diagnostics_topic:
            self._publisher = node.create_publisher(DiagnosticArray, settings.diagnostics_topic, 10)
        # With the clock of a paused recording the timer would never fire.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(settings.diagnostics_period_s, self.report, clock=steady)

    def close(self) -> None:
        """Stop the timer and remove the topic."""
        self._node.destroy_timer(self._timer)
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None

    def report(self) -> None:
        """Report the events since the last report."""
        report = self._monitor.report(self._health())
        silent = self._monitor.silent() is not None
        if silent != self._silent:
            self._silent = silent
            if silent:
                self._node.get_logger().error(report.message)
            else:
                self._node.get_logger().info(f"images on {self._settings.input_topic} again")
        if self._publisher is not None:
            self._publisher.publish(self._status(report))
        elif DiagnosticArray is None:
            self._node.get_logger().info(f"{report.message}; {report.values}")

    def _status(self, report: Report) -> Any:
        pairs = [KeyValue(key=key, value=value) for key, value in report.values.items()]
        status = DiagnosticStatus(
            level=bytes([report.level]),
            name=f"{self._node.get_name()}: perception",
            message=report.message,
            hardware_id=self._settings.image_topic,
            values=pairs,
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        return array
