"""ROS parameters: declared from ``settings``, validated together, changed at run time where that is possible."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import (
    InvalidParameterException,
    InvalidParameterTypeException,
    InvalidParameterValueException,
    InvalidTopicNameException,
    ParameterUninitializedException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from vstream_ros.errors import ConfigError
from vstream_ros.node.settings import (
    YAML_WORDS,
    CameraSettings,
    Settings,
    Spec,
    build_settings,
    camera_specs,
    checked_cameras,
    global_specs,
)

_REFUSALS = (InvalidParameterTypeException, InvalidParameterValueException, InvalidParameterException)
# Declared by rclpy itself, or read by it without being declared.
_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides.")


class Parameters:
    """The node's parameters. ``settings`` is always valid, and replaced as a whole when a value changes."""

    def __init__(self, node: Node, is_configured: Callable[[], bool]) -> None:
        """Declare everything. Raises ``ConfigError`` with one line for a value that can't be.

        ``is_configured``: whether the engine exists, which most values are built into.
        """
        self._node = node
        self._is_configured = is_configured
        self._specs = {spec.name: spec for spec in global_specs()}
        self._declare(global_specs())
        for camera in checked_cameras(self._value("cameras") or ()):
            specs = camera_specs(camera)
            self._specs.update({spec.name: spec for spec in specs})
            self._declare(specs)
        self.settings = build_settings({name: self._value(name) for name in self._specs})
        for settings in self.settings.cameras:
            self._check_topic(settings)
        node.add_on_set_parameters_callback(self._on_set)
        self._warn_of_unknown()

    def _declare(self, specs: list[Spec]) -> None:
        for spec in specs:
            try:
                self._node.declare_parameter(spec.name, spec.default, _descriptor(spec))
            except _REFUSALS as error:  # noqa: PERF203
                raise ConfigError(_one_line(error)) from error

    def _value(self, name: str) -> Any:
        try:
            return self._node.get_parameter(name).value
        except ParameterUninitializedException:  # an empty list in a YAML file has no type
            return None

    def _check_topic(self, camera: CameraSettings) -> None:
        try:
            self._node.resolve_topic_name(camera.topic)
        except (InvalidTopicNameException, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{camera.name}.image_topic is no valid topic name, got {camera.topic!r}: {_one_line(error)}"
            ) from error

    def _warn_of_unknown(self) -> None:
        """A misspelt parameter is silently ignored by ROS, and its default runs the robot."""
        for name in getattr(self._node, "_parameter_overrides", {}):
            if name in self._specs or name.startswith(_FOREIGN):
                continue
            close = difflib.get_close_matches(name, self._specs, n=1)
            hint = f": do you mean {close[0]}?" if close else ""
            self._node.get_logger().warning(f"parameter {name} is not known and has no effect{hint}")

    def _on_set(self, changed: list[Parameter]) -> SetParametersResult:
        try:
            self.settings = self._changed(changed)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:  # noqa: BLE001 -- raised here it would end spin()
            return SetParametersResult(successful=False, reason=f"{type(error).__name__}: {error}")
        return SetParametersResult(successful=True)

    def _changed(self, changed: list[Parameter]) -> Settings:
        values = {name: self._value(name) for name in self._specs}
        for parameter in changed:
            spec = self._specs.get(parameter.name)
            if spec is None:
                continue  # rclpy's own
            if parameter.value is None:
                raise ConfigError(f"{parameter.name} can't be removed")
            if parameter.value != values[parameter.name]:
                self._require_changeable(spec)
            values[parameter.name] = parameter.value
        settings = build_settings(values)
        for camera in settings.cameras:
            self._check_topic(camera)
        return settings

    def _require_changeable(self, spec: Spec) -> None:
        if spec.fixed == "started":
            raise ConfigError(f"{spec.name} can't change while the node runs: set it in the YAML file and restart")
        if spec.fixed == "configured" and self._is_configured():
            raise ConfigError(
                f"{spec.name} can't change while the node is configured: deactivate and clean it up first "
                "(ros2 lifecycle set), or set it in the YAML file and restart"
            )


def _descriptor(spec: Spec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.description, read_only=False)
    if spec.fixed != "never":
        descriptor.additional_constraints = f"can't change once the node is {spec.fixed}"
    # To ROS `timeout_s: 5` is an integer and `time_positions: true` a boolean. Only a parameter of dynamic type takes
    # them; build_settings checks the type.
    number = isinstance(spec.default, float)
    descriptor.dynamic_typing = number or spec.name in YAML_WORDS
    if spec.low is not None and spec.high is not None:
        low, high = spec.low, spec.high
        if number:
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
