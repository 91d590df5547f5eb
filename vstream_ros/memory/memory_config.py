"""Parameters of one camera's memory. Each default of the project's memory stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from vstream_ros.errors import ConfigError

SELECTION_METHODS = ("pixel", "semantic")


@dataclass(frozen=True)
class MemoryConfig:
    """Validated on construction; raises ``ConfigError`` naming the parameter and the value."""

    star_memory_size: int = 30
    """Long-term frames at most (even: whole tubelets)."""
    stream_window_size: int = 10
    """Most recent frames that are always there (even). A tubelet that was sealed with one frame counts as two, as it
    does for the model."""
    stream_slide: int = 8
    """Tubelets that leave the stream window together; the window holds up to stream_slide - 1 tubelets more than
    stream_window_size, so that between slides the clip only grows at its end and the KV cache stays valid."""
    sample_rate_hz: float | None = None
    """Frames per second that are kept, on a fixed grid of the header stamps; None keeps every frame."""
    include_pending: bool = True
    """Hand out an odd last frame, padded by repetition as native inference pads it. A memory that holds nothing else
    hands it out in any case: a question after the first frame gets an answer."""
    selection_method: str = "pixel"
    """What motion is measured by: "pixel" (local change that is unusual for this camera) or "semantic". A memory alone
    takes the change of ``embed``'s vectors for that; an engine starts from pixels, and replaces a tubelet's importance
    by the novelty of its vision features as soon as they are there (``background_encoding`` "vision" or "full")."""
    motion_weight: float = 0.7
    """Importance is the weighted mean of motion and complexity; only the ratio of the two weights counts."""
    complexity_weight: float = 0.3
    scene_threshold: float = 0.3
    """Change between consecutive frames, in [0, 1], from which on a frame starts a new scene: (1 - SSIM) / 2 of coarse
    thumbnails, 0.33 to 0.5 at a hard cut."""
    time_jump_threshold_s: float = 1.0
    """A stamp that is older than the newest by more than this clears the camera's memory (a restarted bag)."""
    future_stamp_tolerance_s: float = 60.0
    """A frame that is further ahead of the newest one and of a running clock is rejected, until such stamps go on
    steadily. Without a clock it is kept on trial, and dropped again when the next one goes on where the others were."""

    archive_max_bytes: int = 0
    """Bytes of what memory has let go that are kept for questions about a time range, as JPEG; 0: none."""
    archive_folder: str = ""
    """Where they are kept, in a folder of this run that is deleted at its end; "": in RAM. A whole path."""
    archive_horizon_s: float = 3600.0
    """What is older than the newest archived tubelet by more is let go."""

    def __post_init__(self) -> None:
        for name in ("star_memory_size", "stream_window_size"):
            value = getattr(self, name)
            _require(value >= 2 and value % 2 == 0, f"{name} must be an even number of frames >= 2, got {value}")
        _require(self.stream_slide >= 1, f"stream_slide must be >= 1 tubelet, got {self.stream_slide}")
        _require(
            self.sample_rate_hz is None or 0.001 <= self.sample_rate_hz <= 1000.0,
            f"sample_rate_hz must be in [0.001, 1000], got {self.sample_rate_hz}",
        )
        _require(
            self.selection_method in SELECTION_METHODS,
            f"selection_method must be one of {SELECTION_METHODS}, got {self.selection_method!r}",
        )
        for name in ("motion_weight", "complexity_weight"):
            value = getattr(self, name)
            _require(0.0 <= value < inf, f"{name} must be >= 0 and finite, got {value}")
        _require(
            self.motion_weight + self.complexity_weight > 0.0, "motion_weight + complexity_weight must be > 0, got 0"
        )
        _require(0.0 < self.scene_threshold <= 1.0, f"scene_threshold must be in (0, 1], got {self.scene_threshold}")
        _require(self.archive_max_bytes >= 0, f"archive_max_bytes must be >= 0, got {self.archive_max_bytes}")
        _require(
            self.archive_folder == "" or (self.archive_folder.startswith("/") and "\0" not in self.archive_folder),
            f"archive_folder must be a whole path, such as /var/tmp, or empty, got {self.archive_folder!r}",
        )
        for name in ("time_jump_threshold_s", "future_stamp_tolerance_s", "archive_horizon_s"):
            value = getattr(self, name)
            _require(0.0 < value < inf, f"{name} must be > 0 and finite, got {value}")

    def max_tubelets(self, temporal_patch_size: int) -> int:
        """Most tubelets that a clip can have: star, window, those that wait for the next slide, a provisional one."""
        return (self.star_memory_size + self.stream_window_size) // temporal_patch_size + self.stream_slide


@dataclass(frozen=True)
class MaxTubelets:
    """Most tubelets that a question can be about."""

    total: int
    star: int
    """Of these, star's, whose frames may be smaller."""

    @classmethod
    def of(cls, configs: Iterable[MemoryConfig], temporal_patch_size: int) -> MaxTubelets:
        """Of memories with these configurations together."""
        configs = list(configs)
        star = sum(config.star_memory_size // temporal_patch_size for config in configs)
        return cls(sum(config.max_tubelets(temporal_patch_size) for config in configs), star)


def _require(valid: bool, message: str) -> None:
    if not valid:
        raise ConfigError(message)
