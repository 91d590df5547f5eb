"""Between the project's plain data and ROS messages. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from builtin_interfaces.msg import Duration, Time

from vstream_ros.engine import Answer, DeviceMemory, EngineStatus, Question
from vstream_ros.errors import InvalidRequestError, VStreamError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.msg import CacheStatus, CameraStatus, VramStatus
from vstream_ros.srv import AskVideo


def to_ns(stamp: Time | Duration) -> int:
    """Nanoseconds of a stamp or a duration."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def to_time(stamp_ns: int) -> Time:
    """A stamp of nanoseconds; what ROS can't hold (before 1970 is possible, after 2038 is not) is clamped."""
    sec, nanosec = divmod(stamp_ns, NANOSECONDS)
    return Time(sec=max(-(2**31), min(sec, 2**31 - 1)), nanosec=nanosec)


def ros_text(text: str) -> str:
    """``text`` as a ROS string can carry it: no lone surrogates, which raise, and no NUL, which would end it."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def to_question(request: Any, *, max_new_tokens: int, timeout_s: float) -> Question:
    """A request of the service or a goal of the action, with the node's defaults where it names nothing.

    Raises ``InvalidRequestError`` for what no engine could make sense of.
    """
    timeout_ns = _checked_ns("timeout", request.timeout, zero="the parameter timeout_s")
    return Question(
        text=request.question,
        cameras=tuple(request.cameras),
        start_ns=_checked_ns("start_time", request.start_time, zero="unbounded"),
        end_ns=_checked_ns("end_time", request.end_time, zero="unbounded"),
        choices=tuple(request.choices),
        max_new_tokens=int(request.max_new_tokens) or max_new_tokens,
        temperature=float(request.temperature),
        seed=int(request.seed),
        timeout_s=timeout_ns / NANOSECONDS or timeout_s,
        json_schema=request.json_schema,
    )


def _checked_ns(name: str, value: Time | Duration, zero: str) -> int:
    if not (value.sec >= 0 and value.nanosec < NANOSECONDS):
        raise InvalidRequestError(
            f"{name} must be >= 0 s (0: {zero}) with nanosec below {NANOSECONDS}, got sec {value.sec}, nanosec "
            f"{value.nanosec}"
        )
    return to_ns(value)


def fill_answer(response: Any, answer: Answer) -> None:
    """Fill a response of the service or a result of the action."""
    response.answer = ros_text(answer.text)
    response.choice_index = int(answer.choice_index)
    response.probabilities = [float(p) for p in answer.probabilities]
    response.confidence = float(answer.confidence)
    response.frame_cameras = list(answer.frame_cameras)
    response.frame_stamps = [to_time(stamp_ns) for stamp_ns in answer.frame_stamps_ns]
    copy_fields(vars(answer.metrics), response.metrics)
    response.error_code = AskVideo.Response.NONE
    response.success = True


def fill_error(response: Any, error: BaseException) -> None:
    """The same for a failed question. ``error.code`` names the constant; anything unexpected is INTERNAL."""
    response.success = False
    if isinstance(error, VStreamError):
        response.error_code = getattr(AskVideo.Response, error.code)
        response.message = ros_text(str(error))
        response.answer = ros_text(error.answer)
    else:
        response.error_code = AskVideo.Response.INTERNAL
        response.message = ros_text(
            f"{type(error).__name__}: {error}; this is a defect, the node's log has the traceback"
        )


def copy_fields(values: Mapping[str, Any], message: Any) -> None:
    """Set the fields of ``message`` that ``values`` names, each in the type that the message already holds."""
    for name in message.get_fields_and_field_types():
        if name in values:
            value = type(getattr(message, name))(values[name])
            setattr(message, name, ros_text(value) if isinstance(value, str) else value)


@dataclasses.dataclass(frozen=True)
class CameraCounts:
    """What only the subscription knows of a camera."""

    topic: str
    received: int
    lost: int


def cache_status(status: EngineStatus | None, counts: Mapping[str, CameraCounts], stamp: Time) -> CacheStatus:
    """``~/cache_status``; ``status`` is None while the node is not configured."""
    message = CacheStatus()
    message.header.stamp = stamp
    if status is None:
        return message
    values = vars(status)
    copy_fields({name: value for name, value in values.items() if name != "cameras"}, message)
    for camera in status.cameras:
        entry = CameraStatus()
        copy_fields(vars(camera), entry)
        entry.name = camera.camera
        entry.frames_received = camera.frames_offered
        entry.oldest_stamp = to_time(camera.oldest_stamp_ns)
        entry.newest_stamp = to_time(camera.newest_stamp_ns)
        if camera.camera in counts:
            entry.topic = counts[camera.camera].topic
            entry.frames_received = counts[camera.camera].received
            entry.frames_lost = counts[camera.camera].lost
        message.cameras.append(entry)
    return message


def vram_statuses(devices: Iterable[DeviceMemory], stamp: Time) -> list[VramStatus]:
    """``~/vram_status``: one message per device."""
    messages = []
    for device in devices:
        message = VramStatus()
        message.header.stamp = stamp
        copy_fields(vars(device), message)
        messages.append(message)
    return messages
