"""A checkpoint that lacks weights, has others, or numbers that are none, is refused before it is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vstream_ros.errors import ModelFailedError
from vstream_ros.models.loader import EMBEDDED, load_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.models.weights import check_loaded_weights
from vstream_ros.synthetic.random_model import FAMILIES, random_model, write_random_checkpoint

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "random")


def load(checkpoint: Path, **parameters: Any) -> QwenVideoModel:
    parameters = {"device": "cpu", "local_files_only": True, **parameters}
    return load_model(str(checkpoint), min_pixels=56 * 56, max_pixels=84 * 112, **parameters)


def change(checkpoint: Path, edit: Callable[[Tensors], Tensors]) -> list[str]:
    """Rewrite the checkpoint's tensors; returns the names that it had."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    save_file(edit(dict(tensors)), file, metadata={"format": "pt"})
    return list(tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_loads(tmp_path: Path, family: str) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        assert load(write_random_checkpoint(tmp_path, family), torch_dtype=dtype).name == str(tmp_path)


def test_vstream_tiny_loads() -> None:
    assert load(EMBEDDED["vstream-tiny"]).weight_bytes > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tensor", [0, 7, -1])
def test_a_missing_tensor_is_named(tmp_path: Path, family: str, tensor: int) -> None:
    checkpoint = write_random_checkpoint(tmp_path, family)
    names = change(checkpoint, lambda tensors: tensors)
    change(checkpoint, lambda tensors: {k: v for k, v in tensors.items() if k != names[tensor]})
    with pytest.raises(ModelFailedError, match=r"1 of its weights are missing .*fetch the checkpoint again") as refused:
        load(checkpoint)
    assert names[tensor].removeprefix("model.") in str(refused.value)  # whose parts the file may name in another way
    assert "\n" not in str(refused.value)


def test_half_of_the_tensors(checkpoint: Path) -> None:
    names = change(checkpoint, lambda tensors: dict(list(tensors.items())[::2]))
    says = rf" {len(names) // 2} of its weights are missing .* and \d+ more\);"
    with pytest.raises(ModelFailedError, match=says) as refused:
        load(checkpoint)
    assert len(str(refused.value)) < 500


def test_weights_of_another_architecture(checkpoint: Path) -> None:
    change(checkpoint, lambda tensors: {**tensors, "model.adapter.weight": torch.zeros(2, 2)})
    with pytest.raises(ModelFailedError, match=r"1 of its weights are unknown to its arch.*model\.adapter\.weight"):
        load(checkpoint)


def test_a_weight_of_another_shape(checkpoint: Path) -> None:
    change(checkpoint, lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"][:5].clone()})
    with pytest.raises(ModelFailedError, match=r"1 of its weights have another shape.*lm_head\.weight"):
        load(checkpoint)


def test_a_tied_head_may_be_absent(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (checkpoint / "config.json").write_text(json.dumps(config))
    change(checkpoint, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    model = load(checkpoint).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_number_that_is_none_is_refused(checkpoint: Path, value: float, dtype: str) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors["model.norm.weight"][3] = value
        return tensors

    change(checkpoint, spoil)
    says = r"1 of its weights are not finite \(model\.language_model\.norm\.weight\).*torch_dtype"
    with pytest.raises(ModelFailedError, match=says):
        load(checkpoint, torch_dtype=dtype)


def test_weights_too_large_for_the_dtype(checkpoint: Path) -> None:
    def enlarge(tensors: Tensors) -> Tensors:
        tensors["model.norm.weight"][3] = 1e6
        return tensors

    change(checkpoint, enlarge)
    load(checkpoint, torch_dtype="bfloat16")
    with pytest.raises(ModelFailedError, match="not finite"):
        load(checkpoint, torch_dtype="float16")


def test_a_quantized_checkpoint_may_have_more_but_not_less() -> None:
    model, _ = random_model()
    model.config.quantization_config = {"quant_method": "any"}
    check_loaded_weights(model, {"unexpected_keys": {"lm_head.weight.scale"}}, "x")
    with pytest.raises(ModelFailedError, match=r"x can't be used: 1 of its weights are missing \(lm_head\.weight\)"):
        check_loaded_weights(model, {"missing_keys": {"lm_head.weight"}}, "x")
