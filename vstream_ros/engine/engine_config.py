"""Parameters of the engine. Each default of the project's inference stands here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vstream_ros.errors import ConfigError
from vstream_ros.memory.memory_config import MemoryConfig
from vstream_ros.models.base import TEXT_POSITIONS

DEFAULT_CAMERA = "camera"
TIME_POSITIONS = ("true", "index")
BACKGROUND_ENCODING = ("off", "vision", "full")
TORCH_DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTN_IMPLEMENTATIONS = ("sdpa", "eager", "flash_attention_2")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
FEATURES_DEVICES = ("device", "cpu")
QUANTIZATIONS = ("none", "bitsandbytes-8bit", "bitsandbytes-4bit")
DRAFTS = ("on", "off")
DECODE_GRAPHS = ("auto", "off")
KV_CACHES = ("full", "fp8", "quanto", "hqq")


@dataclass(frozen=True)
class EngineConfig:
    """Validated on construction; raises ``ConfigError`` naming the parameter and the value."""

    device: str = "auto"
    """"auto" (CUDA when there is one), "cpu", "cuda", "cuda:1" ..."""
    vision_device: str = ""
    """Where the vision encoder is, if not with the language model on ``device``: "cuda:1", "cpu" ... Needs the package
    accelerate."""
    device_map: str | Mapping[str, str | int] = ""
    """transformers' own ``device_map`` instead of the two above: one of ``DEVICE_MAPS``, or a mapping of module to
    device such as {"model.visual": "cuda:1", "": "cuda:0"}, as JSON too. Needs the package accelerate."""
    torch_dtype: str = "auto"
    """"auto" (bfloat16 on CUDA, float32 on the CPU), "float32", "bfloat16" or "float16"."""
    attn_implementation: str = "sdpa"
    """"sdpa", "eager" or "flash_attention_2" (CUDA, bfloat16 or float16, and the package flash-attn)."""
    quantization: str = "none"
    """Weights of the language model's layers in 8 or 4 bits, by transformers' own integration: "bitsandbytes-8bit" or
    "bitsandbytes-4bit" (NF4). Needs the packages bitsandbytes and accelerate, which are not installed with this one.
    Less memory, another model: answers are not those of the full weights, nor is equality promised."""
    kv_cache: str = "full"
    """"full", or one of transformers' quantized caches: "fp8", "quanto" (4 bits; needs optimum-quanto) or "hqq" (4
    bits; needs hqq). Those can't be rolled back: every question prefills the whole clip again (vision features are
    still reused) and answers are not promised to be native's."""
    local_files_only: bool = False
    """Never ask a model hub; for robots without a network."""
    max_pixels: int = 4 * 224 * 224
    """Pixels of one frame at most, after scaling with its aspect ratio kept."""
    min_pixels: int = 56 * 56
    star_max_pixels: int = 0
    """Pixels of one star frame at most: the past in smaller frames than the window, so that as many tokens show more of
    it. A clip is then two video blocks, one of each size. 0: star's frames are as large as the others."""
    time_positions: str = "true"
    """"true": temporal positions from the stamps, also over the gaps that eviction leaves; "index": by order alone."""
    text_positions: str = "checkpoint"
    """Where the text behind a video goes on in Qwen2-VL and Qwen2.5-VL. "checkpoint": at the video's greatest position
    + 1, time included, as these were trained; "transformers": as the installed transformers has it, without the time.
    Qwen3-VL knows one rule only."""
    camera_block_s: float = 10.0
    """A question over several cameras alternates between them in video blocks of this many seconds."""
    prefill_chunk_tubelets: int = 8
    """Tubelets encoded and prefilled in one step: bounds the activation memory."""
    features_max_bytes: int = 1 << 30
    """Vision features kept at most; the least recently used go first."""
    features_device: str = "device"
    """Where they are kept: "device" (the language model's) or "cpu" (copied there and back, for little VRAM)."""
    max_new_tokens: int = 128
    timeout_s: float = 60.0
    """A question's wall time, queue included, when it does not bring its own."""
    max_queued_questions: int = 64
    max_parallel_questions: int = 8
    """Questions answered at the same time at most: those about the same clip share each pass of the model."""
    drafts: str = "on"
    """"on": what the last answer to a question said is tried first and counts where the model says it again; "off"."""
    decode_graphs: str = "auto"
    """"auto": on CUDA, passes over few tokens are captured graphs, on a copy of the KV cache; "off": little VRAM."""
    max_question_bytes: int = 16384
    """UTF-8 bytes of a question's text, cameras, choices and JSON schema together at most; a longer one is refused
    unread."""
    max_forks: int = 8
    """KV caches of questions about a part of memory kept at most; the least recently used go first."""
    forks_max_bytes: int = 2 << 30
    """KV caches beside the current one at most: those of questions about a part of memory, and the one built ahead."""
    background_encoding: str = "off"
    """What is computed while nobody asks. "off": nothing; "vision": features; "full": features and KV cache, also the
    one that memory's next slide will need. In steps of one tubelet, so that a question waits for one step at most."""
    background_duty: float = 1.0
    """Part of the time that background work may take of the device, in (0, 1]."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("time_positions", TIME_POSITIONS),
            ("text_positions", TEXT_POSITIONS),
            ("background_encoding", BACKGROUND_ENCODING),
            ("torch_dtype", TORCH_DTYPES),
            ("attn_implementation", ATTN_IMPLEMENTATIONS),
            ("features_device", FEATURES_DEVICES),
            ("quantization", QUANTIZATIONS),
            ("kv_cache", KV_CACHES),
            ("drafts", DRAFTS),
            ("decode_graphs", DECODE_GRAPHS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.kv_cache != "full" and self.background_encoding == "full":
            raise ConfigError(
                f"background_encoding 'full' needs kv_cache 'full', got {self.kv_cache!r}: a quantized cache can't be "
                "rolled back after a question, so nothing can be prefilled ahead; use background_encoding 'vision'"
            )
        if self.device_map and (self.vision_device or self.device != "auto"):
            raise ConfigError("device_map says where everything is: leave device at auto and vision_device empty")
        self.parsed_device_map()
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in (
            "max_pixels",
            "min_pixels",
            "prefill_chunk_tubelets",
            "max_new_tokens",
            "max_queued_questions",
            "max_parallel_questions",
            "max_question_bytes",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels must be <= max_pixels ({self.max_pixels}), got {self.min_pixels}")
        if self.star_max_pixels and self.star_max_pixels < self.min_pixels:
            raise ConfigError(
                f"star_max_pixels must be 0 (off) or >= min_pixels ({self.min_pixels}), got {self.star_max_pixels}"
            )
        for name in ("features_max_bytes", "max_forks", "forks_max_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0.0 < self.background_duty <= 1.0:
            raise ConfigError(f"background_duty must be in (0, 1], got {self.background_duty}")
        for name in ("timeout_s", "camera_block_s"):
            if getattr(self, name) <= 0.0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")

    def parsed_device_map(self) -> str | dict[str, str | int] | None:
        """``device_map`` as transformers takes it; None where it is not set. Raises ``ConfigError``."""
        wanted = self.device_map
        if not wanted:
            return None
        if wanted in DEVICE_MAPS:
            return str(wanted)
        try:
            parsed = json.loads(wanted) if isinstance(wanted, str) else dict(wanted)
            if isinstance(parsed, dict) and parsed and all(type(v) in (str, int) for v in parsed.values()):
                return parsed
        except ValueError:
            pass
        raise ConfigError(
            f"device_map must be one of {DEVICE_MAPS} or a mapping of module to device such as "
            f'{{"model.visual": "cuda:1", "": "cuda:0"}}, got {wanted!r}'
        )


def field_names(config: type) -> set[str]:
    """The names of a config dataclass' fields."""
    return {field.name for field in dataclasses.fields(config)}


def with_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """``config`` with those of ``overrides`` that are its fields."""
    return dataclasses.replace(config, **{k: v for k, v in overrides.items() if k in field_names(type(config))})


def parted_configs(
    config: EngineConfig | None, memory: MemoryConfig | Mapping[str, MemoryConfig] | None, overrides: Mapping[str, Any]
) -> tuple[EngineConfig, dict[str, MemoryConfig]]:
    """The engine's configuration and every camera's memory's, each with those of ``overrides`` that are its fields.

    Raises ``ConfigError`` where one of them is nobody's.
    """
    if unknown := overrides.keys() - field_names(EngineConfig) - field_names(MemoryConfig):
        raise ConfigError(f"unknown parameters: {', '.join(sorted(unknown))}")
    cameras = memory if isinstance(memory, Mapping) else {DEFAULT_CAMERA: memory or MemoryConfig()}
    memories = {name: with_overrides(camera, overrides) for name, camera in cameras.items()}
    return with_overrides(config or EngineConfig(), overrides), memories
