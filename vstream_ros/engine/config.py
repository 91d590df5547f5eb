"""Parameters of the engine. Each default of the project's inference stands here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from vstream_ros.errors import ConfigError

TIME_POSITIONS = ("true", "index")
BACKGROUND_ENCODING = ("off", "vision", "full")


@dataclass(frozen=True)
class EngineConfig:
    """Validated on construction; raises ``ConfigError`` naming the parameter and the value."""

    device: str = "auto"
    """"auto" (CUDA when there is one), "cpu", "cuda", "cuda:1" ..."""
    torch_dtype: str = "auto"
    """"auto" (bfloat16 on CUDA, float32 on the CPU), "float32", "bfloat16" or "float16"."""
    attn_implementation: str = "sdpa"
    local_files_only: bool = False
    """Never ask a model hub; for robots without a network."""
    max_pixels: int = 4 * 224 * 224
    """Pixels of one frame at most, after scaling with its aspect ratio kept."""
    min_pixels: int = 56 * 56
    time_positions: str = "true"
    """"true": temporal positions from the stamps, also over the gaps that eviction leaves; "index": by order alone."""
    camera_block_s: float = 10.0
    """A question over several cameras alternates between them in video blocks of this many seconds."""
    prefill_chunk_tubelets: int = 8
    """Tubelets encoded and prefilled in one step: bounds the activation memory."""
    features_max_bytes: int = 1 << 30
    """Vision features kept on the device at most; the least recently used go first."""
    max_new_tokens: int = 128
    timeout_s: float = 60.0
    """A question's wall time, queue included, when it does not bring its own."""
    max_queued_questions: int = 64
    forks_max_bytes: int = 2 << 30
    """KV caches beside the current one at most: those of questions about a part of memory, and the one built ahead."""
    background_encoding: str = "off"
    """What is computed while nobody asks. "off": nothing; "vision": features; "full": features and KV cache, also the
    one that memory's next slide will need. In steps of one tubelet, so that a question waits for one step at most."""
    background_duty: float = 1.0
    """Part of the time that background work may take of the device, in (0, 1]."""

    def __post_init__(self) -> None:
        if self.time_positions not in TIME_POSITIONS:
            raise ConfigError(f"time_positions must be one of {TIME_POSITIONS}, got {self.time_positions!r}")
        if self.background_encoding not in BACKGROUND_ENCODING:
            raise ConfigError(
                f"background_encoding must be one of {BACKGROUND_ENCODING}, got {self.background_encoding!r}"
            )
        for name in ("max_pixels", "min_pixels", "prefill_chunk_tubelets", "max_new_tokens", "max_queued_questions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels must be <= max_pixels ({self.max_pixels}), got {self.min_pixels}")
        for name in ("features_max_bytes", "forks_max_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0.0 < self.background_duty <= 1.0:
            raise ConfigError(f"background_duty must be in (0, 1], got {self.background_duty}")
        for name in ("timeout_s", "camera_block_s"):
            if getattr(self, name) <= 0.0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")
