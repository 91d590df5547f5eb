"""Start the node `vstream`, which watches cameras and answers questions about them.

    ros2 launch vstream_ros qa.launch.py model:=/models/Qwen2.5-VL-3B-Instruct image_topic:=/front/image_raw

An argument that is not given leaves the parameter files as they are.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from vstream_ros.ros_arguments import MAIN_FILE, NODE, first_camera, parameter_files, preset_parameters

CONFIG = Path(get_package_share_directory("vstream_ros")) / "config"
ARGUMENTS = {
    "params_file": (str(CONFIG / MAIN_FILE), "YAML files with the node's parameters, with commas between them"),
    "preset": ("", "parameters that apply after params_file: low_vram, low_latency, long_video or high_quality"),
    "model": ("", "hub id or folder of the model, instead of the parameter file's"),
    "image_topic": ("", "topic of the first camera, instead of the parameter file's"),
    "namespace": ("", "namespace of the node"),
    "log_level": ("info", "of the node's logger: debug, info, warn, error or fatal"),
    "use_sim_time": ("", "true: time is what /clock says; false; empty: the parameter file's"),
}

CHOICES = {"use_sim_time": ["", "true", "false"]}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text, choices=CHOICES.get(name))
        for name, (value, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_node)])


def start_node(context: LaunchContext) -> list[LifecycleNode]:
    """Runs when the arguments are known: a default of theirs would otherwise override the parameter file."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    files = parameter_files(given["params_file"])
    preset = preset_parameters(given["preset"], CONFIG)
    overrides = {name: text(value) if isinstance(value, str) else value for name, value in preset.items()}
    if given["model"]:
        overrides["model"] = text(given["model"])
    if given["image_topic"]:
        overrides[f"{first_camera(files)}.image_topic"] = text(given["image_topic"])
    if given["use_sim_time"]:
        overrides["use_sim_time"] = given["use_sim_time"] == "true"
    logger = ".".join([*given["namespace"].strip("/").split("/"), NODE]).lstrip(".")
    node = LifecycleNode(
        package="vstream_ros",
        executable="qa_node",
        name=NODE,
        namespace=given["namespace"],
        parameters=[*map(str, files), *([overrides] if overrides else [])],
        ros_arguments=["--log-level", f"{logger}:={given['log_level']}"],
        output="screen",
    )
    return [node]


def text(value: str) -> ParameterValue:
    """A string stays one, even if it looks like a number."""
    return ParameterValue(value, value_type=str)
