"""Models of the true dimensions of what robots run, with random weights that are drawn on the device.

No checkpoint is fetched: what a pass costs depends on the dimensions alone. The words mean nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from benchmarks.latency import WORDS
from vstream_ros.models.loader import wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import byte_tokenizer, offline_processor, random_weights, vision_token_ids

MAX_PIXELS = 4 * 224 * 224
"""The engine's default."""


@dataclass(frozen=True)
class Geometry:
    """The numbers of a checkpoint's ``config.json`` that its cost depends on."""

    name: str
    family: str
    text: dict[str, Any] = field(hash=False)
    vision: dict[str, Any] = field(hash=False)


QWEN2_5_VL_3B = Geometry(
    "Qwen2.5-VL-3B",
    "qwen2_5_vl",
    text={
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    vision={
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    },
)  # fmt: skip
QWEN3_VL_4B = Geometry(
    "Qwen3-VL-4B",
    "qwen3_vl",
    text={
        "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
        },
    },
    vision={
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
        "patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
    },
)  # fmt: skip
GEOMETRIES = (QWEN2_5_VL_3B, QWEN3_VL_4B)


def tiny(geometry: Geometry) -> Geometry:
    """The same architecture at a size for a dry run on a CPU."""
    text = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
    }  # fmt: skip
    rope = {**geometry.text["rope_parameters"], "mrope_section": [4, 2, 2]}
    if "head_dim" in geometry.text:
        text["head_dim"] = 16
    vision: dict[str, Any] = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    smaller = {"fullatt_block_indexes": [2], "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    vision |= {key: value for key, value in smaller.items() if key in geometry.vision}
    return Geometry(
        f"{geometry.name} (tiny)",
        geometry.family,
        text={**geometry.text, **text, "rope_parameters": rope, "initializer_range": 0.2},
        vision={**geometry.vision, **vision, "out_hidden_size": text["hidden_size"], "initializer_range": 0.2},
    )


def model_config(geometry: Geometry, tokenizer: Any, layers: int | None = None) -> PreTrainedConfig:
    """transformers' configuration, with the token ids of ``byte_tokenizer``; ``layers``: of the language model."""
    depth = {} if layers is None else {"num_hidden_layers": min(layers, geometry.text["num_hidden_layers"])}
    return AutoConfig.for_model(
        geometry.family,
        text_config={
            "initializer_range": 0.02,
            **geometry.text,
            **depth,
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        },
        vision_config={"initializer_range": 0.02, "spatial_merge_size": 2, "temporal_patch_size": 2, **geometry.vision},
        tie_word_embeddings=True,  # as the checkpoints have it
        **vision_token_ids(tokenizer),
    )


def make_model(
    geometry: Geometry, device: torch.device, dtype: torch.dtype, *, layers: int | None = None
) -> QwenVideoModel:
    """Random weights of these dimensions; arguments as of ``model_config`` and ``random_weights``."""
    tokenizer = byte_tokenizer()
    config = model_config(geometry, tokenizer, layers)
    model = random_weights(config, tokenizer, device=device, dtype=dtype)
    processor = offline_processor(geometry.family, tokenizer)
    tokenizer.add_tokens(list(WORDS))
    return wrap_model(model, processor, name=geometry.name, min_pixels=56 * 56, max_pixels=MAX_PIXELS)


def in_float32(model: QwenVideoModel) -> QwenVideoModel:
    """The same weights, computed with in float32: what the rounded computation is an approximation of."""
    wide = copy.deepcopy(model.model).float()
    return wrap_model(wide, model.processor, name=f"{model.name}, float32", min_pixels=56 * 56, max_pixels=MAX_PIXELS)


def bytes_per_token(model: QwenVideoModel) -> int:
    """Weights that decoding one token must read: the layers, the last norm and the head."""
    language = model.model.model.language_model
    read = [*language.layers.parameters(), *language.norm.parameters(), model.model.lm_head.weight]
    return sum(tensor.numel() * tensor.element_size() for tensor in read)
