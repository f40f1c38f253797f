"""ros2 launch m2h_perception m2h_perception.launch.py bundle:=/opt/bundle [params_file:=...] [image_topic:=...]"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    params = Path(get_package_share_directory("m2h_perception"), "config", "m2h_perception.yaml")
    arguments = {
        "bundle": ("Folder of the bundle.", str),
        "image_topic": ("The camera's images.", str),
        "camera_info_topic": ("The camera's CameraInfo.", str),
        "use_sim_time": ("Take the time of /clock, for a replayed recording.", bool),
    }
    usual = {
        "image_topic": "/camera/color/image_raw",
        "camera_info_topic": "/camera/color/camera_info",
        "use_sim_time": "false",
    }
    node = Node(
        package="m2h_perception",
        executable="perception_node",
        name="m2h_perception",
        output="screen",
        parameters=[
            LaunchConfiguration("params_file"),
            {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, (_, kind) in arguments.items()},
        ],
    )
    declared = [
        DeclareLaunchArgument(name, description=what, **({"default_value": usual[name]} if name in usual else {}))
        for name, (what, _) in arguments.items()
    ]
    file = DeclareLaunchArgument("params_file", default_value=str(params), description="Parameters as YAML.")
    return LaunchDescription([file, *declared, node])
