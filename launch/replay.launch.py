"""Play a bag's camera images to the node `vstream`: qa.launch.py and `bag_player` together.

    ros2 launch vstream_ros replay.launch.py bag:=/bags/drive image_topic:=/camera/image_raw

Takes the arguments of qa.launch.py too.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    qa = Path(get_package_share_directory("vstream_ros")) / "launch" / "qa.launch.py"
    return LaunchDescription([
        DeclareLaunchArgument("bag", description="rosbag2 folder, .mcap or .db3 file"),
        DeclareLaunchArgument("rate", default_value="1.0", description="bag seconds per second"),
        flag("loop", "start over at the end"),
        flag("clock", "publish bag time on /clock"),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(qa))),
        OpaqueFunction(function=start_player),
    ])


def flag(name: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value="false", choices=["true", "false"], description=description)


def start_player(context: LaunchContext) -> list[Node]:
    """The player waits for the node's subscription before its first frame."""
    flags = [f"--{name}" for name in ("loop", "clock") if LaunchConfiguration(name).perform(context) == "true"]
    return [
        Node(
            package="vstream_ros",
            executable="bag_player",
            arguments=[
                LaunchConfiguration("bag"), "--rate", LaunchConfiguration("rate"), "--wait-subscribers", "60", *flags,
            ],
            output="screen",
        )
    ]
