"""Parameters of one camera's memory. Each default of the project's memory stands here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from vstream_ros.errors import ConfigError

SELECTION_METHODS = ("pixel", "semantic")


@dataclass(frozen=True)
class MemoryConfig:
    """Validated on construction; raises ``ConfigError`` naming the parameter and the value."""

    star_memory_size: int = 20
    """Long-term frames at most (even: whole tubelets)."""
    stream_window_size: int = 20
    """Most recent frames that are always there (even)."""
    stream_slide: int = 8
    """Tubelets that leave the stream window together; the window holds up to stream_slide - 1 tubelets more than
    stream_window_size, so that between slides the clip only grows at its end and the KV cache stays valid."""
    sample_rate_hz: float | None = None
    """Frames per second that are kept, on a fixed grid of the header stamps; None keeps every frame."""
    include_pending: bool = True
    """Hand out an odd last frame, padded by repetition as native inference pads it."""
    selection_method: str = "pixel"
    motion_weight: float = 0.7
    complexity_weight: float = 0.3
    scene_threshold: float = 0.3
    """Change between consecutive frames, in [0, 1], from which on a frame starts a new scene."""
    time_jump_threshold_s: float = 1.0
    """A stamp that is older than the newest by more than this clears the camera's memory (a restarted bag)."""

    def __post_init__(self) -> None:
        for name in ("star_memory_size", "stream_window_size"):
            value = getattr(self, name)
            if value < 2 or value % 2:
                raise ConfigError(f"{name} must be an even number of frames >= 2, got {value}")
        if self.stream_slide < 1:
            raise ConfigError(f"stream_slide must be >= 1 tubelet, got {self.stream_slide}")
        if self.sample_rate_hz is not None and not 0.0 < self.sample_rate_hz <= 1000.0:
            raise ConfigError(f"sample_rate_hz must be in (0, 1000], got {self.sample_rate_hz}")
        if self.selection_method not in SELECTION_METHODS:
            raise ConfigError(f"selection_method must be one of {SELECTION_METHODS}, got {self.selection_method!r}")
        for name in ("motion_weight", "complexity_weight"):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.motion_weight + self.complexity_weight == 0.0:
            raise ConfigError("motion_weight + complexity_weight must be > 0, got 0")
        if not 0.0 < self.scene_threshold <= 1.0:
            raise ConfigError(f"scene_threshold must be in (0, 1], got {self.scene_threshold}")
        if self.time_jump_threshold_s <= 0.0:
            raise ConfigError(f"time_jump_threshold_s must be > 0, got {self.time_jump_threshold_s}")
