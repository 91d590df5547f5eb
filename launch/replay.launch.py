"""Play a bag's camera images to the node `vstream`: qa.launch.py and `bag_player` together.

    ros2 launch vstream_ros replay.launch.py bag:=/bags/drive image_topic:=/camera/image_raw

Takes the arguments of qa.launch.py too. The bag starts when the node has loaded its model.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node

from vstream_ros.ros_arguments import NODE


def generate_launch_description() -> LaunchDescription:
    qa = Path(get_package_share_directory("vstream_ros")) / "launch" / "qa.launch.py"
    given = LaunchConfiguration("use_sim_time", default="")
    sim_time = PythonExpression(["'true' if '", LaunchConfiguration("clock"), "' == 'true' else '", given, "'"])
    arguments = {"use_sim_time": sim_time}
    return LaunchDescription([
        DeclareLaunchArgument("bag", description="rosbag2 folder, .mcap or .db3 file"),
        DeclareLaunchArgument("rate", default_value="1.0", description="bag seconds per second"),
        flag("loop", "start over at the end"),
        flag("clock", "publish bag time on /clock, by which the node goes then (use_sim_time)"),
        DeclareLaunchArgument(
            "wait_ready", default_value="3600", description="seconds to wait at most for the model; 0: not at all"
        ),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(qa)), launch_arguments=arguments.items()),
        OpaqueFunction(function=start_player),
    ])


def flag(name: str, description: str) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(name, default_value="false", choices=["true", "false"], description=description)


def start_player(context: LaunchContext) -> list[Node]:
    """The player waits for the node's subscription and its model before its first frame."""
    flags = [f"--{name}" for name in ("loop", "clock") if LaunchConfiguration(name).perform(context) == "true"]
    namespace = LaunchConfiguration("namespace", default="").perform(context).strip("/")
    node = f"/{namespace}/{NODE}" if namespace else f"/{NODE}"
    return [
        Node(
            package="vstream_ros",
            executable="bag_player",
            arguments=[
                LaunchConfiguration("bag"), "--rate", LaunchConfiguration("rate"), "--wait-subscribers", "60",
                "--node", node, "--wait-ready", LaunchConfiguration("wait_ready"), *flags,
            ],
            output="screen",
        )
    ]
