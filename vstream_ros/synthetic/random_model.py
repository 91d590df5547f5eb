"""Small random-weight checkpoints of the supported families, complete enough to load like any other.

Their words mean nothing. They have the real architecture, a byte-level tokenizer with Qwen's special tokens, the
real processor classes and a chat template of the family's form, so everything but the meaning can be tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The form of Qwen2-VL's and Qwen2.5-VL's template: a default system turn, one vision block per image or video.
QWEN2_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# Qwen3-VL has no default system turn.
_QWEN3_TEMPLATE = QWEN2_TEMPLATE.replace("You are a helpful assistant.", "").replace(
    "{{- '<|im_start|>system\\n<|im_end|>\\n' -}}", ""
)


def byte_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer class over single bytes (256 of them) and Qwen's special tokens."""
    vocab = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    for token in SPECIAL_TOKENS:
        vocab[token] = len(vocab)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    return tokenizer


def vision_token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """The token ids that a Qwen-VL's configuration names."""
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }


def _text_config(family: str, tokenizer: Qwen2Tokenizer, size: dict[str, int]) -> dict[str, Any]:
    head_dim = size["hidden_size"] // size["heads"]
    quarter = head_dim // 8
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [head_dim // 2 - 2 * quarter, quarter, quarter]}
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
    return {
        "vocab_size": size["vocab_size"] or len(tokenizer),
        "hidden_size": size["hidden_size"],
        "intermediate_size": size["intermediate_size"] or 2 * size["hidden_size"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "max_position_embeddings": size["context"],
        "rope_parameters": {**rope, "rope_theta": 1e6},
        "initializer_range": 0.2,  # wide enough that wrong positions or features show in the logits
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **({"head_dim": head_dim} if family == "qwen3_vl" else {}),
    }


def _vision_config(family: str, size: dict[str, int]) -> dict[str, Any]:
    hidden, depth = size["vision_hidden_size"], size["vision_depth"]
    common = {
        "depth": depth,
        "num_heads": size["vision_heads"],
        "patch_size": 16 if family == "qwen3_vl" else 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.2,
    }
    if family == "qwen2_vl":
        return {**common, "embed_dim": hidden, "hidden_size": size["hidden_size"], "mlp_ratio": 2}
    common |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "out_hidden_size": size["hidden_size"]}
    if family == "qwen3_vl":
        return {**common, "num_position_embeddings": 256, "deepstack_visual_indexes": list(range(min(2, depth)))}
    return {
        **common,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [depth - 1],
    }


def offline_processor(family: str, tokenizer: Qwen2Tokenizer) -> Any:
    """The real processor classes of a family around a tokenizer, without a file from anywhere."""
    template = _QWEN3_TEMPLATE if family == "qwen3_vl" else QWEN2_TEMPLATE
    patch = 16 if family == "qwen3_vl" else 14
    size = {"shortest_edge": 4 * patch * patch, "longest_edge": 1024 * 4 * patch * patch}
    image_processor = Qwen2VLImageProcessor(patch_size=patch, temporal_patch_size=2, merge_size=2, size=size)
    video_class = Qwen3VLVideoProcessor if family == "qwen3_vl" else Qwen2VLVideoProcessor
    video_processor = video_class(patch_size=patch, temporal_patch_size=2, merge_size=2, size=size)
    make: dict[str, Callable[..., Any]] = {
        "qwen2_vl": Qwen2VLProcessor,
        "qwen2_5_vl": Qwen2_5_VLProcessor,
        "qwen3_vl": Qwen3VLProcessor,
    }
    return make[family](
        image_processor=image_processor, tokenizer=tokenizer, video_processor=video_processor, chat_template=template
    )


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def random_model(family: str = "qwen2_5_vl", seed: int = 0, **size: int) -> tuple[PreTrainedModel, Any]:
    """A random-weight model in evaluation mode (float32, CPU) and its processor.

    Args:
        family: one of ``FAMILIES``.
        seed: of the weights; the caller's random state is left alone.
        size: any of hidden_size, intermediate_size (0: twice the hidden size), layers, heads, kv_heads, vocab_size
            (0: the tokenizer's), context, vision_hidden_size, vision_depth, vision_heads.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}, got {family!r}")
    defaults = {
        "hidden_size": 64,
        "intermediate_size": 0,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "vocab_size": 0,
        "context": 32768,
        "vision_hidden_size": 32,
        "vision_depth": 2,
        "vision_heads": 2,
    }
    if unknown := set(size) - set(defaults):
        raise ValueError(f"unknown sizes {sorted(unknown)}; known: {sorted(defaults)}")
    size = {**defaults, **size}
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        family,
        text_config=_text_config(family, tokenizer, size),
        vision_config=_vision_config(family, size),
        **vision_token_ids(tokenizer),
    )
    return random_weights(config, tokenizer, seed), offline_processor(family, tokenizer)


def random_weights(
    config: PreTrainedConfig,
    tokenizer: Qwen2Tokenizer,
    seed: int = 0,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model of that configuration in evaluation mode, its weights drawn where they will be.

    Args:
        config: of one of ``FAMILIES``, whose token ids are ``tokenizer``'s.
        tokenizer: whose end tokens end an answer.
        seed: of the weights; the caller's random state is left alone.
        device: draws other numbers than another kind of device.
        dtype: of the weights.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")],
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    return model


def write_random_checkpoint(folder: str | Path, family: str = "qwen2_5_vl", seed: int = 0, **size: int) -> Path:
    """Write such a model as a checkpoint folder that ``AutoProcessor`` and ``AutoModelForImageTextToText`` load.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    model, processor = random_model(family, seed, **size)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
