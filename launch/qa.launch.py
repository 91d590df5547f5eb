"""Start the node `vstream`, which watches cameras and answers questions about them.

    ros2 launch vstream_ros qa.launch.py model:=/models/Qwen2.5-VL-3B-Instruct image_topic:=/front/image_raw

An argument that is not given leaves the parameter file as it is.
"""

from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

NODE = "vstream"


def generate_launch_description() -> LaunchDescription:
    params_file = Path(get_package_share_directory("vstream_ros")) / "config" / "qa.yaml"
    arguments = {
        "params_file": (str(params_file), "YAML file with the node's parameters"),
        "model": ("", "hub id or folder of the model, instead of the parameter file's"),
        "image_topic": ("", "topic of the first camera, instead of the parameter file's"),
        "namespace": ("", "namespace of the node"),
        "log_level": ("info", "of the node's logger: debug, info, warn, error or fatal"),
    }
    declared = [DeclareLaunchArgument(k, default_value=v, description=text) for k, (v, text) in arguments.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start_node)])


def start_node(context: LaunchContext) -> list[LifecycleNode]:
    """Runs when the arguments are known: a default of theirs would otherwise override the parameter file."""
    given = {
        name: LaunchConfiguration(name).perform(context)
        for name in ("params_file", "model", "image_topic", "namespace", "log_level")
    }
    overrides = {}
    if given["model"]:
        overrides["model"] = text(given["model"])
    if given["image_topic"]:
        overrides[f"{first_camera(Path(given['params_file']))}.image_topic"] = text(given["image_topic"])
    logger = ".".join([*given["namespace"].strip("/").split("/"), NODE]).lstrip(".")
    node = LifecycleNode(
        package="vstream_ros",
        executable="qa_node",
        name=NODE,
        namespace=given["namespace"],
        parameters=[given["params_file"], *([overrides] if overrides else [])],
        ros_arguments=["--log-level", f"{logger}:={given['log_level']}"],
        output="screen",
    )
    return [node]


def text(value: str) -> ParameterValue:
    """A string stays one, even if it looks like a number."""
    return ParameterValue(value, value_type=str)


def first_camera(params_file: Path) -> str:
    """The first name of the parameter `cameras`; the node's own default where the file has none."""
    sections = yaml.safe_load(params_file.read_text()) or {}
    for name, section in sections.items():
        cameras = section.get("ros__parameters", {}).get("cameras")
        if cameras and name.endswith(("**", NODE)):
            return str(cameras[0])
    return "front"
