"""The managed node: the same work, started and stopped by the transitions of ROS 2's life cycle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rclpy.exceptions import NameValidationException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from m2h_deploy import M2HError
from m2h_perception.node import NAME, one_line, run
from m2h_perception.parameters import read_settings
from m2h_perception.perception import Perception, shut_down

_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class LifecyclePerceptionNode(LifecycleNode):
    """Run a bundle on a camera's topic while the node is active.

    configure opens the bundle, runs its self-test, and creates the topics of the results; activate subscribes to the
    camera; deactivate unsubscribes, and keeps the engine; cleanup and shutdown release it. A transition that fails logs
    why and leaves the state as it was.
    """

    def __init__(self) -> None:
        super().__init__(NAME)
        self.perception = Perception(self, read_settings(self), fail=lambda: shut_down(self))

    def start(self) -> None:
        """Wait for transitions."""
        self.get_logger().info("unconfigured: waiting for the transition configure")

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the bundle and the topics of the results."""
        return self._attempt(self.perception.open, self.perception.close)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take images."""
        return self._attempt(self.perception.start, self.perception.stop)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Take no more images."""
        self.perception.stop()
        return _SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the bundle."""
        self.perception.close()
        return _SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the bundle; the process stays until it is ended."""
        self.perception.close()
        return _SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the bundle after an unexpected error, so that the node can be configured again."""
        self.perception.close()
        return _SUCCESS

    def _attempt(self, action: Callable[[], None], undo: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            action()
        except (M2HError, NameValidationException) as error:
            self.get_logger().error(str(error) if isinstance(error, M2HError) else one_line(error))
            undo()
            return _FAILURE
        return _SUCCESS


def main(args: Sequence[str] | None = None) -> int:
    """Run the managed node; exit codes as the plain node's, but a failed transition does not end it."""
    return run(LifecyclePerceptionNode, args)


if __name__ == "__main__":
    sys.exit(main())
