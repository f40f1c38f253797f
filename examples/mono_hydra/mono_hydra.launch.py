"""Launch Mono-Hydra with this perception node in the place of its own.

ros2 launch mono_hydra.launch.py bundle:=/path/to/bundle [label_remap:=/path/to/remap.yaml] [stack:=FILE]

`stack` is one of the launch files of Mono-Hydra's package mono_hydra that have the argument use_perception.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

#: Arguments of Mono-Hydra's launch file: its own perception is off.
STACK = {"use_perception": "false"}

#: Launch arguments of the node, and their defaults: topics are those that Mono-Hydra's launch file expects.
NODE = {
    "bundle": "",
    "image_topic": "/camera/color/image_raw",
    "camera_info_topic": "/camera/color/camera_info",
    "label_remap": "",
    "use_sim_time": "true",
}


def include(package: str, file: str, arguments: dict[str, str]) -> IncludeLaunchDescription:
    """Include a launch file of a package."""
    path = str(Path(get_package_share_directory(package), "launch", file))
    return IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=arguments.items())


def both(context: LaunchContext) -> list[IncludeLaunchDescription]:
    """Include the node and Mono-Hydra."""
    given = {name: LaunchConfiguration(name).perform(context) for name in NODE}
    stack = LaunchConfiguration("stack").perform(context)
    return [include("m2h_perception", "m2h_perception.launch.py", given), include("mono_hydra", stack, STACK)]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and both parts, as ros2 launch expects."""
    arguments = [DeclareLaunchArgument(name, default_value=value) for name, value in NODE.items()]
    arguments.append(DeclareLaunchArgument("stack", default_value="mono_hydra_itc_rosbag.launch.py"))
    return LaunchDescription([*arguments, OpaqueFunction(function=both)])
