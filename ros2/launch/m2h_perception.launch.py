"""Launch the perception node.

ros2 launch m2h_perception m2h_perception.launch.py bundle:=/opt/bundle [image_topic:=...] [params_file:=...]

With managed:=true the node waits for the transitions of a lifecycle manager, such as Nav2's.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

#: Launch arguments that override the parameter of the same name in `params_file`.
OVERRIDES = {
    "bundle": "Folder of the bundle.",
    "image_topic": "The camera's images.",
    "image_transport": "raw or compressed.",
    "camera_info_topic": "The camera's CameraInfo.",
    "points_topic": "PointCloud2 of all points.",
    "ground_topic": "PointCloud2 of the ground.",
    "obstacles_topic": "PointCloud2 of all points that are not ground.",
    "label_remap": "YAML file of a label remap.",
}


def perception(context: LaunchContext) -> list[Node]:
    """Make the node with the launch arguments that were given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    overrides = {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    managed = LaunchConfiguration("managed").perform(context).lower() == "true"
    kind, executable = (LifecycleNode, "perception_lifecycle_node") if managed else (Node, "perception_node")
    node = kind(
        package="m2h_perception",
        executable=executable,
        namespace="",
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
        DeclareLaunchArgument("managed", default_value="false", description="Start the managed node, unconfigured."),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=perception)])
