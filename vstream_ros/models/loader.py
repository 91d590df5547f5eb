"""From a hub id or a folder to a model that is ready to answer."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch

from vstream_ros.errors import ConfigError, ModelFailedError
from vstream_ros.models.checkpoint_folder import EMBEDDED
from vstream_ros.models.frame_spec import capped_pixels
from vstream_ros.models.qwen.qwen2_5_vl import Qwen25VideoModel
from vstream_ros.models.qwen.qwen2_vl import Qwen2VideoModel
from vstream_ros.models.qwen.qwen3_vl import Qwen3VideoModel
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.models.weights import check_loaded_weights

FAMILIES: dict[str, type[QwenVideoModel]] = {
    "qwen2_vl": Qwen2VideoModel,
    "qwen2_5_vl": Qwen25VideoModel,
    "qwen3_vl": Qwen3VideoModel,
}
DeviceMap = str | dict[str, str | int] | None
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
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    if resolved.type == "meta":
        raise ConfigError("device must be auto, cpu, cuda or cuda:N, got 'meta'")
    return resolved


def resolve_placement(
    device: str, vision_device: str, device_map: DeviceMap
) -> tuple[torch.device, str | dict[str, torch.device] | None]:
    """Where the language model is, and what transformers takes as ``device_map`` (None: all of it is there).

    Raises ``ConfigError`` for a device that does not exist.
    """
    if isinstance(device_map, dict):
        placed = {
            module: resolve_device(f"cuda:{where}" if isinstance(where, int) else where)
            for module, where in device_map.items()
        }
        language = "model.language_model.embed_tokens"
        return placed[max(placed, key=lambda module: (language.startswith(module), len(module)))], placed
    where = resolve_device(device)
    if device_map is not None or not vision_device:
        return where, device_map
    vision = resolve_device(vision_device)
    return where, None if vision == where else {"model.visual": vision, "model.language_model": where, "lm_head": where}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on CUDA (the checkpoints' own) and float32 on the CPU; raises ``ConfigError``."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"torch_dtype must be auto or one of {sorted(DTYPES)}, got {name!r}")
    return DTYPES[name]


def require_package(package: str, module: str, what: str) -> None:
    """Raise ``ModelFailedError`` unless an optional package is installed; ``what`` needs it."""
    if importlib.util.find_spec(module) is None:
        raise ModelFailedError(f"{what} needs the package {package}, which is not installed: pip install {package}")


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ``ConfigError`` or ``ModelFailedError`` where an attention implementation can't run; a wrong name is
    transformers' to refuse."""
    if name != "flash_attention_2":
        return
    if device.type != "cuda" or dtype is torch.float32:
        raise ConfigError(
            f"attn_implementation {name!r} needs CUDA and bfloat16 or float16, got {device.type} and "
            f"{str(dtype).removeprefix('torch.')}; use sdpa"
        )
    require_package("flash-attn", "flash_attn", f"attn_implementation {name!r}")


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """transformers' configuration for 8- or 4-bit weights, None for "none"; raises ``ConfigError``,
    ``ModelFailedError``."""
    if name == "none":
        return None
    if name not in ("bitsandbytes-8bit", "bitsandbytes-4bit"):
        raise ConfigError(f"quantization must be none, bitsandbytes-8bit or bitsandbytes-4bit, got {name!r}")
    require_package("bitsandbytes", "bitsandbytes", f"quantization {name!r}")
    from transformers import BitsAndBytesConfig

    # It would say in every layer of every forward pass that activations are cast to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # The vision encoder stays whole: it is small, sees every pixel, and has widths that 4-bit blocks don't divide.
    whole = ["model.visual", "lm_head"]
    if name == "bitsandbytes-8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=whole
    )


def wrap_model(
    model: Any, processor: Any, *, name: str, min_pixels: int, max_pixels: int, kv_cache: str = "full"
) -> QwenVideoModel:
    """The family's interface around a loaded transformers model and its processor."""
    family = getattr(model.config, "model_type", None)
    if family not in FAMILIES:
        raise ModelFailedError(f"{name} is of the family {family!r}; supported are {sorted(FAMILIES)}")
    return FAMILIES[family](
        model.eval(), processor, name=name, min_pixels=min_pixels, max_pixels=max_pixels, kv_cache=kv_cache
    )


def load_model(
    model_id: str,
    *,
    device: str = "auto",
    vision_device: str = "",
    device_map: DeviceMap = None,
    torch_dtype: str = "auto",
    attn_implementation: str = "sdpa",
    quantization: str = "none",
    kv_cache: str = "full",
    local_files_only: bool = False,
    min_pixels: int,
    max_pixels: int,
) -> QwenVideoModel:
    """Load a checkpoint's processor and weights (safetensors only, no remote code).

    Blocks for as long as that takes, with a download even minutes. The parameters are ``EngineConfig``'s. Raises
    ``ConfigError`` for a device or dtype that can't be, ``ModelFailedError`` with one sentence for everything else;
    the cause is chained.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    where, placement = resolve_placement(device, vision_device, device_map)
    dtype = resolve_dtype(torch_dtype, where)
    check_attention(attn_implementation, where, dtype)
    quantized = quantization_config(quantization, dtype)
    if placement is not None or quantized is not None:
        require_package("accelerate", "accelerate", "device_map, vision_device or quantization")
        placement = placement or {"": where}  # quantized weights are made on their device
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
        model, loading_info = AutoModelForImageTextToText.from_pretrained(
            model_id,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            device_map=placement,
            quantization_config=quantized,
            ignore_mismatched_sizes=True,  # refused below, in a sentence that names them
            output_loading_info=True,
            **local,
        )
        model = model.to(where) if placement is None else model
        check_loaded_weights(model, loading_info, model_id)
        min_pixels, max_pixels = capped_pixels(min_pixels, max_pixels, dict(processor.video_processor.size))
        return wrap_model(
            model, processor, name=name, min_pixels=min_pixels, max_pixels=max_pixels, kv_cache=kv_cache
        )
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
