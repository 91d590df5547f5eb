"""vstream-tiny before it has learnt anything: model, tokenizer and processor, and the checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from training.tiny_config import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, TEMPORAL_PATCH, TEXT, VISION
from vstream_ros.synthetic.random_model import QWEN2_TEMPLATE, SPECIAL_TOKENS, vision_token_ids
from vstream_ros.synthetic.shapes_questions import corpus

VOCABULARY = 640
"""At most, without the special tokens: bytes, words of the shapes world and of the template. An answer of one word is
one token, with and without a space before it."""
END, PAD = "<|im_end|>", "<|endoftext|>"


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer class and special tokens over all bytes and the words of this world: any text tokenises."""
    base = Qwen2Tokenizer(vocab={token: k for k, token in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    words = Tokenizer(BPE())
    words.normalizer = base.backend_tokenizer.normalizer
    words.pre_tokenizer = base.backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    template = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 50
    words.train_from_iterator([*template, *corpus()], trainer)
    merges = [line.split(" ") for line in _merges(words)]
    vocab = words.get_vocab()
    for token in SPECIAL_TOKENS:
        vocab[token] = len(vocab)
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[(a, b) for a, b in merges], eos_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    return tokenizer


def _merges(words: Tokenizer) -> list[str]:
    import json

    merges = json.loads(words.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """The processor with the sizes that the model was trained on."""
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    patches = {"patch_size": PATCH, "temporal_patch_size": TEMPORAL_PATCH, "merge_size": MERGE, "size": size}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=QWEN2_TEMPLATE,
    )


def make_model(seed: int = 0) -> tuple[Any, Qwen2_5_VLProcessor]:
    """An untrained model (float32, CPU, evaluation mode) and its processor; the random state is left alone."""
    tokenizer = make_tokenizer()
    ids = vision_token_ids(tokenizer)
    end, pad = tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(PAD)
    text = {**TEXT, "vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad}
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config=text, vision_config=VISION, tie_word_embeddings=True, **ids
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    return model, make_processor(tokenizer)


def write_checkpoint(model: Any, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Write the folder that ``AutoProcessor`` and ``AutoModelForImageTextToText`` load; weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    half = AutoModelForImageTextToText.from_config(model.config, dtype=torch.float16)
    half.load_state_dict({name: value.to(torch.float16) for name, value in model.state_dict().items()})
    half.generation_config = model.generation_config
    half.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_weights(model: Any, folder: Path) -> None:
    """Give ``model`` the weights of a checkpoint of the same architecture. Raises ``RuntimeError`` for another."""
    stored = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.load_state_dict(stored.state_dict())
