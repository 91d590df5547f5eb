"""The node's parameters as plain data: names, defaults, ranges, and what they add up to. No rclpy.

Defaults of the memory and the engine come from ``MemoryConfig`` and ``EngineConfig``; here stands only what a node
does differently, and what only a node has. ``config/qa.yaml`` explains the same list to users; a test compares them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vstream_ros import DEFAULT_MODEL
from vstream_ros.engine import EngineConfig
from vstream_ros.engine.feature_importance import cameras_by_features
from vstream_ros.errors import ConfigError
from vstream_ros.memory.memory_config import MemoryConfig

TRANSPORTS = ("raw", "compressed")
RELIABILITIES = ("auto", "reliable", "best_effort")
INT_MAX = 2**31 - 1

YAML_WORDS = {
    "time_positions": {True: "true"},
    "background_encoding": {False: "off"},
    "drafts": {True: "on", False: "off"},
    "decode_graphs": {False: "off"},
}
"""By parameter: unquoted, these values of it are booleans in YAML and on the command line."""

Value = bool | int | float | str | list[str]


@dataclass(frozen=True)
class Spec:
    """One parameter. Its type is its default's; whole numbers are accepted where the default is a float."""

    name: str
    default: Value
    description: str
    low: float | None = None
    high: float | None = None
    fixed: str = "configured"
    """When its value is fixed: "never", "configured" (from configure to cleanup) or "started"."""


# (description, lowest, highest) of every field; a field that is missing here fails the unit tests.
_Row = tuple[str, float | None, float | None]
_ENGINE: dict[str, _Row] = {
    "device": ("auto (CUDA where there is one), cpu, cuda, cuda:1 ...", None, None),
    "vision_device": ("device of the vision encoder; empty: the same; needs accelerate", None, None),
    "device_map": ("transformers' device_map (auto ... or JSON) instead of both; needs accelerate", None, None),
    "torch_dtype": ("auto (bfloat16 on CUDA, float32 on the CPU), float32, bfloat16 or float16", None, None),
    "attn_implementation": ("attention of transformers: sdpa, eager or flash_attention_2", None, None),
    "quantization": ("weights: none, bitsandbytes-8bit or bitsandbytes-4bit; needs bitsandbytes", None, None),
    "kv_cache": ("full, or quantized and cold at every question: fp8, quanto or hqq", None, None),
    "local_files_only": ("never ask a model hub, for robots without a network", None, None),
    "max_pixels": ("pixels of one frame at most; larger images are scaled down", 1, INT_MAX),
    "min_pixels": ("pixels of one frame at least; smaller images are scaled up", 1, INT_MAX),
    "star_max_pixels": ("pixels of one long-term frame at most; 0: as the others", 0, INT_MAX),
    "time_positions": ("true: temporal positions from the stamps; index: from the order alone", None, None),
    "text_positions": ("where text goes on behind a video: checkpoint (as trained) or transformers", None, None),
    "camera_block_s": ("seconds of one camera's video in a row, in a question over several cameras", 0.0, 1e9),
    "prefill_chunk_tubelets": ("tubelets (2 frames each) encoded in one step", 1, INT_MAX),
    "features_max_bytes": ("bytes of vision features kept at most", 0, 2**62),
    "features_device": ("where they are kept: device or cpu", None, None),
    "max_new_tokens": ("tokens of an answer at most, where the request names none", 1, INT_MAX),
    "timeout_s": ("seconds that a question may take, queue included, where the request names none", 0.0, 1e9),
    "max_queued_questions": ("questions waiting or running at most; further ones are told BUSY", 1, INT_MAX),
    "max_parallel_questions": ("questions answered at the same time at most", 1, 1024),
    "drafts": ("try first what the last answer to a question said: on or off", None, None),
    "decode_graphs": ("passes over few tokens as captured CUDA graphs: auto or off", None, None),
    "max_question_bytes": ("bytes of a question's texts at most; a longer one is refused", 1, INT_MAX),
    "max_forks": ("KV caches of questions about a part of memory kept at most", 0, INT_MAX),
    "forks_max_bytes": ("bytes of KV caches beside the current one at most", 0, 2**62),
    "background_encoding": ("what is computed while nobody asks: off, vision or full", None, None),
    "background_duty": ("part of the time that background work may take of the device", 0.0, 1.0),
}
_MEMORY: dict[str, _Row] = {
    "star_memory_size": ("long-term key frames per camera at most, even", 2, INT_MAX),
    "stream_window_size": ("most recent frames per camera that are always kept, even", 2, INT_MAX),
    "stream_slide": ("tubelets that leave the window together", 1, INT_MAX),
    "sample_rate_hz": ("frames per second that are kept, by header stamp; 0 keeps every frame", 0.0, 1000.0),
    "include_pending": ("show a question also an odd last frame, at the cost of encoding it twice", None, None),
    "selection_method": ("how the importance of a frame is measured: pixel or semantic", None, None),
    "motion_weight": ("weight of motion in a frame's importance", 0.0, 1e9),
    "complexity_weight": ("weight of texture in a frame's importance", 0.0, 1e9),
    "scene_threshold": ("change between frames, 0 to 1, that starts a new scene", 0.0, 1.0),
    "time_jump_threshold_s": ("seconds that stamps or the clock may go back before the memory is cleared", 0.0, 1e9),
    "future_stamp_tolerance_s": ("seconds that a stamp may be ahead of the newest and of the clock", 0.0, 1e9),
    "archive_max_bytes": ("bytes of JPEG per camera, of frames that memory has let go; 0: none", 0, 2**62),
    "archive_folder": ("an existing folder below which they are kept; empty: in RAM", None, None),
    "archive_horizon_s": ("seconds from the newest archived frame back to the oldest", 0.0, 1e9),
}
# Applied at the next question, load or check, so that they may change at any time.
_CHANGEABLE = {"max_new_tokens", "timeout_s"}
# A node samples a live camera, and spares itself the encoding of half a tubelet.
_NODE_DEFAULTS: dict[str, Value] = {"sample_rate_hz": 2.0, "include_pending": False}


def _config_specs(config: type, rows: Mapping[str, _Row]) -> list[Spec]:
    specs = []
    for field in dataclasses.fields(config):
        description, low, high = rows[field.name]
        default: Any = _NODE_DEFAULTS.get(field.name, field.default)
        fixed = "never" if field.name in _CHANGEABLE else "configured"
        specs.append(Spec(field.name, default, description, low, high, fixed))
    return specs


def global_specs() -> list[Spec]:
    """Every parameter that does not belong to one camera."""
    return [
        Spec("autostart", True, "configure and activate at the start, without a lifecycle manager", fixed="started"),
        Spec("cameras", ["front"], "names of the cameras, in the order of the prompt", fixed="started"),
        Spec("model", DEFAULT_MODEL, "hub id or folder; a change is loaded by ~/reload_model", fixed="never"),
        *_config_specs(EngineConfig, _ENGINE),
        *_config_specs(MemoryConfig, _MEMORY),
        Spec("memory_folder", "", "folder of ~/save_memory and ~/load_memory, absolute; empty: refused", fixed="never"),
        Spec("save_memory_at_shutdown", False, "save the memory as `memory` when the node ends", fixed="never"),
        Spec("restore_memory_at_start", False, "load the saved memory `memory` when the node is first configured"),
        Spec("qos_reliability", "auto", f"of the image subscriptions: {', '.join(RELIABILITIES)}", fixed="never"),
        Spec("silent_camera_timeout_s", 5.0, "seconds without an image until diagnostics warn", 0.0, 1e9, "never"),
        Spec(
            "max_questions_per_client", 16, "open questions of one client at most; 0: no bound", 0, INT_MAX, "never"
        ),
    ]


def camera_specs(camera: str) -> list[Spec]:
    """The parameters of one camera. Raises ``ConfigError`` for an impossible name."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", camera):
        raise ConfigError(f"cameras: {camera!r} can't be a camera's name, use letters, digits and _, a letter first")
    same = "0: as the parameter of that name without the camera"
    return [
        Spec(f"{camera}.image_topic", f"{camera}/image_raw", "topic of the images; raw also for compressed"),
        Spec(f"{camera}.image_transport", "raw", f"what is subscribed: {' or '.join(TRANSPORTS)}"),
        Spec(f"{camera}.star_memory_size", 0, f"long-term key frames; {same}", 0, INT_MAX),
        Spec(f"{camera}.stream_window_size", 0, f"most recent frames; {same}", 0, INT_MAX),
    ]


def checked_cameras(cameras: Iterable[str]) -> tuple[str, ...]:
    """The names of the cameras; raises ``ConfigError`` where there is none, or one twice."""
    names = tuple(cameras)
    if not names:
        raise ConfigError("cameras must name at least one camera, got an empty list")
    if len(set(names)) != len(names):
        raise ConfigError(f"cameras names one camera twice: {', '.join(names)}")
    taken = {spec.name.partition(".")[0] for spec in global_specs()} | {"qos_overrides"}
    if wrong := taken & set(names):
        raise ConfigError(f"cameras: {', '.join(sorted(wrong))} is the name of a parameter, choose another")
    return names


@dataclass(frozen=True)
class CameraSettings:
    """Where one camera's images come from."""

    name: str
    topic: str
    """As subscribed, before remapping: image_transport's ``/compressed`` is appended."""
    compressed: bool


@dataclass(frozen=True)
class Settings:
    """All parameters, validated together."""

    autostart: bool
    model: str
    cameras: tuple[CameraSettings, ...]
    engine: EngineConfig
    memory: dict[str, MemoryConfig]
    memory_folder: str
    """Absolute, or "": there is none."""
    save_memory_at_shutdown: bool
    restore_memory_at_start: bool
    qos_reliability: str
    silent_camera_timeout_s: float
    max_questions_per_client: int


def build_settings(values: Mapping[str, Any]) -> Settings:
    """Parameter values by name, as ROS holds them, to settings. Raises ``ConfigError`` naming parameter and value."""
    cameras = checked_cameras(values["cameras"] or ())
    specs = global_specs() + [spec for camera in cameras for spec in camera_specs(camera)]
    checked = {spec.name: _checked(spec, values[spec.name]) for spec in specs}
    if not checked["model"]:
        raise ConfigError("model must name a hub id or a folder, got an empty text")
    _require_one_of("qos_reliability", checked["qos_reliability"], RELIABILITIES)
    memory = {field.name: checked[field.name] for field in dataclasses.fields(MemoryConfig)}
    memory["sample_rate_hz"] = memory["sample_rate_hz"] or None
    engine = EngineConfig(**{field.name: checked[field.name] for field in dataclasses.fields(EngineConfig)})
    memories = {name: _camera_memory(name, memory, checked) for name in cameras}
    cameras_by_features(engine, memories)  # refuses what does not fit together
    return Settings(
        autostart=checked["autostart"],
        model=checked["model"],
        cameras=tuple(_camera(name, checked) for name in cameras),
        engine=engine,
        memory=memories,
        memory_folder=_memory_folder(checked),
        save_memory_at_shutdown=checked["save_memory_at_shutdown"],
        restore_memory_at_start=checked["restore_memory_at_start"],
        qos_reliability=checked["qos_reliability"],
        silent_camera_timeout_s=checked["silent_camera_timeout_s"],
        max_questions_per_client=checked["max_questions_per_client"],
    )


def _memory_folder(values: Mapping[str, Any]) -> str:
    folder = os.path.expanduser(values["memory_folder"])
    if folder and not os.path.isabs(folder):
        raise ConfigError(f"memory_folder must be an absolute path (or begin with ~/), got {folder!r}")
    wanted = [name for name in ("save_memory_at_shutdown", "restore_memory_at_start") if values[name]]
    if wanted and not folder:
        raise ConfigError(f"memory_folder must name a folder where {wanted[0]} is true, got an empty text")
    return folder


def _camera(name: str, values: Mapping[str, Any]) -> CameraSettings:
    topic, transport = values[f"{name}.image_topic"], values[f"{name}.image_transport"]
    _require_one_of(f"{name}.image_transport", transport, TRANSPORTS)
    if not topic:
        raise ConfigError(f"{name}.image_topic must name a topic, got an empty text")
    compressed = transport == "compressed"
    if compressed and not topic.endswith("/compressed"):
        topic += "/compressed"
    return CameraSettings(name, topic, compressed)


def _camera_memory(name: str, memory: Mapping[str, Any], values: Mapping[str, Any]) -> MemoryConfig:
    own = {size: values[f"{name}.{size}"] for size in ("star_memory_size", "stream_window_size")}
    try:
        return MemoryConfig(**{**memory, **{size: frames for size, frames in own.items() if frames}})
    except ConfigError as error:
        raise ConfigError(f"{error} (camera {name})" if any(own.values()) else str(error)) from None


def _checked(spec: Spec, value: Any) -> Any:
    """The value in the spec's type, within its range."""
    if isinstance(spec.default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{spec.name} must be a number, got {value!r}")
        value = float(value)
    elif isinstance(spec.default, list):
        return list(value)
    elif isinstance(value, bool) and value in YAML_WORDS.get(spec.name, {}):
        value = YAML_WORDS[spec.name][value]
    elif type(value) is not type(spec.default):
        raise ConfigError(f"{spec.name} must be of type {type(spec.default).__name__}, got {value!r}")
    if spec.low is not None and spec.high is not None and not spec.low <= value <= spec.high:
        raise ConfigError(f"{spec.name} must be in [{spec.low:g}, {spec.high:g}], got {value}")
    return value


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
