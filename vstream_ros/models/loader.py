"""From a hub id or a folder to a model that is ready to answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vstream_ros.errors import ConfigError, ModelFailedError
from vstream_ros.models.qwen import QwenVideoModel
from vstream_ros.models.qwen2_5_vl import Qwen25VideoModel
from vstream_ros.models.qwen2_vl import Qwen2VideoModel
from vstream_ros.models.qwen3_vl import Qwen3VideoModel

FAMILIES: dict[str, type[QwenVideoModel]] = {
    "qwen2_vl": Qwen2VideoModel,
    "qwen2_5_vl": Qwen25VideoModel,
    "qwen3_vl": Qwen3VideoModel,
}
EMBEDDED = {"vstream-tiny": Path(__file__).parent / "vstream_tiny"}
"""Checkpoints that are part of this package, by the names that select them."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1" … to a device that exists; raises ``ConfigError``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but torch sees no CUDA device; use auto or cpu")
    return resolved


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on CUDA (the checkpoints' own) and float32 on the CPU; raises ``ConfigError``."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"torch_dtype must be auto or one of {sorted(DTYPES)}, got {name!r}")
    return DTYPES[name]


def wrap_model(model: Any, processor: Any, *, name: str, min_pixels: int, max_pixels: int) -> QwenVideoModel:
    """The family's interface around a loaded transformers model and its processor."""
    family = getattr(model.config, "model_type", None)
    if family not in FAMILIES:
        raise ModelFailedError(f"{name} is of the family {family!r}; supported are {sorted(FAMILIES)}")
    return FAMILIES[family](model.eval(), processor, name=name, min_pixels=min_pixels, max_pixels=max_pixels)


def load_model(
    model_id: str,
    *,
    device: str = "auto",
    torch_dtype: str = "auto",
    attn_implementation: str = "sdpa",
    local_files_only: bool = False,
    min_pixels: int,
    max_pixels: int,
) -> QwenVideoModel:
    """Load a checkpoint's processor and weights (safetensors only, no remote code).

    Blocks for as long as that takes, with a download even minutes. Raises ``ConfigError`` for a device or dtype that
    can't be, ``ModelFailedError`` with one sentence for everything else; the cause is chained.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    where = resolve_device(device)
    dtype = resolve_dtype(torch_dtype, where)
    name = model_id
    model_id = str(EMBEDDED.get(model_id, model_id))
    if _looks_like_path(model_id) and not Path(model_id).expanduser().is_dir():
        raise ModelFailedError(f"the model folder {model_id} does not exist; check the parameter model")
    model_id = str(Path(model_id).expanduser()) if _looks_like_path(model_id) else model_id
    local: dict[str, Any] = {"local_files_only": local_files_only, "trust_remote_code": False}
    try:
        family = AutoConfig.from_pretrained(model_id, **local).model_type
        if family not in FAMILIES:
            raise ModelFailedError(f"{model_id} is of the family {family!r}; supported are {sorted(FAMILIES)}")
        processor = AutoProcessor.from_pretrained(model_id, **local)
        model = AutoModelForImageTextToText.from_pretrained(
            model_id, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True, **local
        ).to(where)
        # A checkpoint's processor says how large a frame may be; far more would be far from what it was trained on.
        max_pixels = min(max_pixels, dict(processor.video_processor.size).get("longest_edge") or max_pixels)
        return wrap_model(model, processor, name=name, min_pixels=min(min_pixels, max_pixels), max_pixels=max_pixels)
    except (ConfigError, ModelFailedError):
        raise
    except torch.OutOfMemoryError as error:
        raise ModelFailedError(f"{model_id} does not fit on {where}; use a smaller model or another device") from error
    except Exception as error:  # hubs, files and model code fail in many ways; each is one clear state of the node
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFailedError(
            f"{model_id} could not be loaded: {reason} (check the path or the network, then reload the model)"
        ) from error


def _looks_like_path(model_id: str) -> bool:
    return model_id.startswith(("/", "~", ".")) or os.path.isdir(os.path.expanduser(model_id))
