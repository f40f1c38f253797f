"""Subscriptions of the temporal filter's poses. The packages that they need are imported only when the filter is on."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time

from m2h_deploy.errors import M2HError
from m2h_perception.poses import OdometryPoses, Poses, TfPoses
from m2h_perception.settings import Settings

#: Messages of odometry that may wait for the executor.
_QUEUE = 100


def open_poses(node: Node, settings: Settings) -> tuple[Poses, str]:
    """Subscribe to the poses that the settings name; return them, and where they come from in words.

    Raises:
        M2HError: The ROS package that has their message is not installed.
    """
    return _odometry(node, settings) if settings.temporal_pose_source == "odometry" else _tf(node, settings)


def _odometry(node: Node, settings: Settings) -> tuple[Poses, str]:
    try:
        from nav_msgs.msg import Odometry
    except ImportError:
        raise M2HError(
            "temporal_pose_source odometry needs the ROS package nav_msgs, which is not installed: "
            "apt install ros-DISTRO-nav-msgs, or pip install ros-nav-msgs"
        ) from None
    poses = OdometryPoses(
        settings.odom_topic,
        timeout=settings.tf_timeout,
        cache=settings.tf_buffer_size,
        camera_frame=settings.camera_frame,
        camera_in_body=settings.camera_pose,
    )
    profile = QoSProfile(depth=_QUEUE, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(Odometry, settings.odom_topic, poses.put, profile)
    return poses, f"odometry on {settings.odom_topic}"


def _tf(node: Node, settings: Settings) -> tuple[Poses, str]:
    try:
        import tf2_ros
    except ImportError:
        raise M2HError(
            "temporal_pose_source tf needs the ROS package tf2_ros_py, which is not installed and has no wheel: "
            "apt install ros-DISTRO-tf2-ros-py, or set temporal_pose_source to odometry"
        ) from None
    # Without the node, because then the buffer offers no service, and does not clear itself when /clock jumps back.
    buffer = tf2_ros.Buffer(cache_time=Duration(seconds=settings.tf_buffer_size))
    buffer.listener = tf2_ros.TransformListener(buffer, node)  # must live as long as the buffer
    poses = TfPoses(
        buffer,
        tf2_ros,
        lambda stamp: Time(nanoseconds=stamp),
        fixed_frame=settings.fixed_frame,
        camera_frame=settings.camera_frame,
        timeout=settings.tf_timeout,
    )
    return poses, f"tf, in {settings.fixed_frame}"
