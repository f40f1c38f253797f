"""Launch a USB camera and the perception node: depth, labels and a labeled point cloud.

ros2 launch examples/ros2/camera.launch.py bundle:=/path/to/bundle [device:=/dev/video0]

Needs ROS's package v4l2_camera and this project's m2h_perception (docs/ros2.md). Points need a calibrated camera:
the parameter camera_info_url of v4l2_camera.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

#: Parameters of the perception node that differ from its defaults.
PERCEPTION = {
    "image_topic": "/camera/image_raw",
    "camera_info_topic": "/camera/camera_info",
    "image_depth_topic": "/perception/depth",
    "label_ids_topic": "/perception/labels",
    "points_topic": "/perception/points",
    "points_decimation": 2,
    "rectify": True,
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and both nodes, as ros2 launch expects."""
    camera = Node(
        package="v4l2_camera",
        executable="v4l2_camera_node",
        namespace="camera",
        parameters=[{"video_device": LaunchConfiguration("device"), "image_size": [640, 480]}],
    )
    perception = Node(
        package="m2h_perception",
        executable="perception_node",
        name="m2h_perception",
        output="screen",
        parameters=[{**PERCEPTION, "bundle": LaunchConfiguration("bundle")}],
    )
    arguments = [
        DeclareLaunchArgument("bundle", description="Folder of the bundle."),
        DeclareLaunchArgument("device", default_value="/dev/video0", description="The camera's device."),
    ]
    return LaunchDescription([*arguments, camera, perception])
