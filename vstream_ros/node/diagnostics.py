"""What is wrong, if anything, and what to do about it: REP-107 levels from plain values, without a node.

The names of the levels are those of ``diagnostic_msgs/DiagnosticStatus``; ``to_array`` makes the message.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vstream_ros.engine import BackgroundState, DeviceMemory, EngineStatus, ModelState

RECENT_S = 10.0
"""For how long a rejected image keeps its camera at WARN."""
FULL_FRACTION = 0.05
"""Free memory of a device, as a fraction, below which diagnostics warn."""


class Level(enum.IntEnum):
    """Values of ``diagnostic_msgs/DiagnosticStatus.level``."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Diagnostic:
    """One entry of /diagnostics."""

    name: str
    level: Level
    message: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CameraReport:
    """What a camera's subscription knows."""

    name: str
    topic: str
    msg_type: str
    active: bool
    reliability: str
    publishers: int
    foreign_types: tuple[str, ...]
    """Types other than ``msg_type`` that are published on the topic."""
    incompatible_qos: str
    """The QoS policy that keeps a publisher from reaching us, "" where there is none."""
    received: int
    silent_s: float
    """Seconds since the last image, or since the subscription where none came."""
    seen: bool
    """Whether any image came since the subscription."""
    rejections: dict[str, int]
    rejected_s_ago: float | None
    last_rejection: str


def model(status: EngineStatus | None, lifecycle: str) -> Diagnostic:
    """The model's state. ``status`` is None where the node is not configured, ``lifecycle`` its state's label."""
    values: dict[str, Any] = {"lifecycle state": lifecycle}
    if status is None:
        return Diagnostic("model", Level.STALE, f"no model: the node is {lifecycle}; configure it", values)
    values |= {"model": status.model, "model state": status.model_state.name, "model error": status.model_error}
    if status.model_state is ModelState.FAILED:
        message = f"{status.model_error}; call ~/reload_model when that is mended"
        return Diagnostic("model", Level.ERROR, message, values)
    if status.model_state is ModelState.LOADING:
        return Diagnostic("model", Level.WARN, f"loading {status.model}", values)
    if status.model_state is ModelState.UNLOADED:
        return Diagnostic("model", Level.WARN, "no model is loaded; call ~/reload_model", values)
    if status.model_error:
        message = f"{status.model_error}; call ~/reload_model when that is mended"
        return Diagnostic("model", Level.WARN, message, values)
    return Diagnostic("model", Level.OK, f"{status.model} is ready, the node is {lifecycle}", values)


def camera(report: CameraReport, status: EngineStatus | None, silent_timeout_s: float) -> Diagnostic:
    """One camera: the first of its faults, from those that can't heal by themselves down."""
    values: dict[str, Any] = {
        "topic": report.topic,
        "type": report.msg_type,
        "reliability": report.reliability,
        "publishers": report.publishers,
        "images received": report.received,
        "seconds since the last image": f"{report.silent_s:.1f}" if report.seen else "never",
    }
    for memory in status.cameras if status is not None else ():
        if memory.camera == report.name:
            values |= {
                "frames kept": memory.frames_kept,
                "frames rejected": memory.frames_rejected,
                "star frames": f"{memory.star_frames} of {memory.star_capacity}",
                "stream frames": f"{memory.stream_frames} of {memory.stream_capacity}",
            }
            values |= {f"cleared: {reason}": count for reason, count in memory.clears.items()}
            values |= {"quarantine": memory.quarantine} if memory.quarantine else {}
    values |= {f"rejected: {reason}": count for reason, count in report.rejections.items()}
    level, message = _camera_state(report, silent_timeout_s)
    return Diagnostic(f"camera {report.name}", level, message, values)


def _camera_state(report: CameraReport, silent_timeout_s: float) -> tuple[Level, str]:
    if not report.active:
        return Level.STALE, "not watched: the node is not active"
    if report.foreign_types and report.publishers and not report.seen:
        found = ", ".join(report.foreign_types)
        hint = f"; set {report.name}.image_transport: compressed" if found.endswith("/CompressedImage") else ""
        return Level.ERROR, f"{report.topic} carries {found}, not {report.msg_type}{hint}"
    if report.incompatible_qos:
        return Level.ERROR, (
            f"a publisher on {report.topic} can't reach a {report.reliability} subscription "
            f"({report.incompatible_qos}); set qos_reliability: auto"
        )
    if report.publishers == 0:
        return Level.WARN, f"no publisher on {report.topic}; start the camera or correct {report.name}.image_topic"
    if report.silent_s > silent_timeout_s:
        since = "came" if not report.seen else f"for {report.silent_s:.0f} s"
        return Level.WARN, f"no image {since} on {report.topic}, which has a publisher; check the camera driver"
    if report.rejected_s_ago is not None and report.rejected_s_ago <= RECENT_S:
        return Level.WARN, f"images are rejected: {report.last_rejection}"
    return Level.OK, "images arrive" if report.seen else "waiting for the first image"


def questions(status: EngineStatus | None, max_queued: int) -> Diagnostic:
    """The queue, and how the questions so far ended."""
    if status is None:
        return Diagnostic("questions", Level.STALE, "no questions are taken: the node is not configured")
    values = {
        "queued": status.queued_questions,
        "running": int(status.running_question),
        "queue capacity": max_queued,
        "answered": status.answers,
        "failed": status.failures,
        "last failure": status.last_failure,
        "cache hits": status.cache_hits,
        "cache misses": status.cache_misses,
        "prompt tokens reused": status.tokens_reused,
        "prompt tokens computed": status.tokens_computed,
    }
    if status.queued_questions + status.running_question >= max_queued:
        return Diagnostic("questions", Level.WARN, "the queue is full; further questions are told BUSY", values)
    return Diagnostic("questions", Level.OK, f"{status.answers} answered, {status.failures} failed", values)


def memory(status: EngineStatus | None, devices: Sequence[DeviceMemory]) -> Diagnostic:
    """The frames and the KV cache, and what is left of each device."""
    if status is None:
        return Diagnostic("memory", Level.STALE, "no memory: the node is not configured")
    values: dict[str, Any] = {
        "clip frames": status.clip_frames,
        "timeline tubelets": status.timeline_tubelets,
        "timeline tokens": status.timeline_tokens,
        "timeline bytes": status.timeline_bytes,
        "tubelets not in the KV cache": status.pending_tubelets,
        "tubelets not built ahead": status.ahead_pending_tubelets,
        "memory epoch": status.memory_epoch,
        "work ahead": status.background_state.value,
        "work ahead, failures in a row": status.background_failures,
        "work ahead, last failure": status.background_error,
    }
    values |= {f"clearing {i + 1}": text for i, text in enumerate(status.announcements)}
    for device in devices:
        values |= {f"{device.device} {name}": value for name, value in vars(device).items() if name != "device"}
    full = [d.device for d in devices if d.total and d.free < FULL_FRACTION * d.total]
    if full:
        message = f"{', '.join(full)} is nearly full; lower max_pixels, star_memory_size or stream_window_size"
        return Diagnostic("memory", Level.WARN, message, values)
    if status.background_failures:
        stopped = status.background_state is BackgroundState.STOPPED
        what_next = "rests until a question is answered or the model is loaded again" if stopped else "pauses"
        message = f"work ahead of questions failed {status.background_failures} times in a row and {what_next}"
        return Diagnostic("memory", Level.WARN, f"{message}: {status.background_error}", values)
    return Diagnostic("memory", Level.OK, f"{status.clip_frames} frames in the clip", values)


def to_array(diagnostics: Iterable[Diagnostic], node_name: str, stamp: Any) -> Any:
    """A ``DiagnosticArray``; entries are named ``NODE: NAME``, as diagnostic_updater names them."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    array = DiagnosticArray()
    array.header.stamp = stamp
    for diagnostic in diagnostics:
        array.status.append(
            DiagnosticStatus(
                level=bytes([diagnostic.level]),
                name=f"{node_name}: {diagnostic.name}",
                message=diagnostic.message,
                hardware_id=node_name,
                values=[KeyValue(key=key, value=str(value)) for key, value in diagnostic.values.items()],
            )
        )
    return array
