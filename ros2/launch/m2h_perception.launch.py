"""Launch the perception node.

ros2 launch m2h_perception m2h_perception.launch.py bundle:=/opt/bundle [image_topic:=...] [params_file:=...]
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

#: Launch arguments that override the parameter of the same name in `params_file`.
OVERRIDES = {
    "bundle": "Folder of the bundle.",
    "image_topic": "The camera's images.",
    "camera_info_topic": "The camera's CameraInfo.",
    "label_remap": "YAML file of a label remap.",
}


def perception(context: LaunchContext) -> list[Node]:
    """Make the node with the launch arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    overrides = {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    node = Node(
        package="m2h_perception",
        executable="perception_node",
        name="m2h_perception",
        output="screen",
        parameters=[LaunchConfiguration("params_file"), {**overrides, "use_sim_time": sim_time}],
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    """Declare the launch arguments and the node, as ros2 launch expects."""
    params = str(Path(get_package_share_directory("m2h_perception"), "config", "m2h_perception.yaml"))
    arguments = [DeclareLaunchArgument(name, default_value="", description=what) for name, what in OVERRIDES.items()]
    arguments += [
        DeclareLaunchArgument("params_file", default_value=params, description="Parameters as YAML."),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="Take the time of /clock."),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=perception)])
