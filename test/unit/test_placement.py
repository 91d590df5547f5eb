"""Where the model's parts are, in how many bits, and what becomes of values that can't be.

Two devices can't be had on a CPU: what crosses between them is tested with accelerate's real hooks on one device.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from support.equality import cached_answer, compare, native_answer, recorded_choices
from support.frames import random_frame
from vstream_ros.engine import DelayedBatchInferenceEngine, EngineConfig, Question
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.errors import ConfigError, ModelFailedError
from vstream_ros.memory import Clip, SmartFrameManager
from vstream_ros.models.loader import load_model, resolve_placement, wrap_model
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import random_model, write_random_checkpoint

QUESTION = Question("what happened?", max_new_tokens=6)
needs_accelerate = pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="accelerate is optional")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random"))


def load(checkpoint: Path, **parameters: Any) -> QwenVideoModel:
    parameters = {"device": "cpu", "local_files_only": True, **parameters}
    return load_model(str(checkpoint), min_pixels=56 * 56, max_pixels=84 * 112, **parameters)


def clip_of(model: QwenVideoModel, frames: int = 8) -> Clip:
    rng = np.random.default_rng(1)
    memory = SmartFrameManager(scene_threshold=1.0)
    for k in range(frames):
        memory.add_frame(random_frame(rng, *model.frame_spec.fit(84, 112)), k * 500_000_000)
    return memory.clip()


def answers_like_native(model: QwenVideoModel, **config: Any) -> ClipAnswerer:
    answerer = ClipAnswerer(model, EngineConfig(**config), ["camera"])
    clips = (clip_of(model),)
    native = native_answer(answerer, clips, QUESTION)
    assert compare(cached_answer(answerer, clips, QUESTION), native).equal
    assert compare(cached_answer(answerer, clips, QUESTION), native).equal  # from the cache
    return answerer


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"torch_dtype": "float8"}, "torch_dtype must be one of .*'float8'"),
        ({"attn_implementation": "fast"}, "attn_implementation must be one of .*'fast'"),
        ({"quantization": "int3"}, "quantization must be one of .*'int3'"),
        ({"text_positions": "guess"}, "text_positions must be one of .*'guess'"),
        ({"kv_cache": "small"}, "kv_cache must be one of .*'small'"),
        ({"kv_cache": "fp8", "background_encoding": "full"}, "background_encoding 'full' needs kv_cache 'full'"),
        ({"features_device": "disk"}, "features_device must be one of .*'disk'"),
        ({"device_map": "everywhere"}, "device_map must be one of .*'everywhere'"),
        ({"device_map": "[1]"}, "device_map must be one of"),
        ({"device_map": '{"": null}'}, "device_map must be one of"),
        ({"device_map": {"": 1.5}}, "device_map must be one of"),
        ({"device_map": "auto", "device": "cpu"}, "leave device at auto"),
        ({"device_map": "auto", "vision_device": "cpu"}, "vision_device empty"),
    ],
)
def test_a_bad_value_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        EngineConfig(**values)


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        ("", None),
        ("balanced", "balanced"),
        ('{"model.visual": "cuda:1", "": 0}', {"model.visual": "cuda:1", "": 0}),
        ({"": "cpu"}, {"": "cpu"}),
    ],
)
def test_device_maps_as_text_and_as_transformers_takes_them(written: Any, parsed: Any) -> None:
    assert EngineConfig(device_map=written).parsed_device_map() == parsed


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
@pytest.mark.parametrize(
    "parameters",
    [{"device": "cuda"}, {"vision_device": "cuda:1"}, {"device_map": {"": "cpu", "model.visual": 0}, "device": "auto"}],
)
def test_cuda_without_cuda(checkpoint: Path, parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="torch sees no CUDA device; use auto or cpu"):
        load(checkpoint, **parameters)


@pytest.mark.parametrize("device", ["gpu", "disk", "meta", "cuda:x"])
def test_devices_that_are_none(checkpoint: Path, device: str) -> None:
    for parameters in ({"device": device}, {"vision_device": device}, {"device_map": {"": device}, "device": "auto"}):
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N"):
            load(checkpoint, **parameters)


def test_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torch's count of them is made up; nothing is loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    split = {"model.visual": second, "model.language_model": first, "lm_head": first}
    assert resolve_placement("cuda:0", "cuda:1", None) == (first, split)
    assert resolve_placement("cuda:1", "cuda:1", None) == (second, None)
    assert resolve_placement("auto", "", {"model.visual": 1, "": 0})[0] == first
    assert resolve_placement("auto", "", {"": 1, "model.language_model": 0})[0] == first
    assert resolve_placement("auto", "", "balanced")[1] == "balanced"
    with pytest.raises(ConfigError, match="sees 2 CUDA devices"):
        resolve_placement("cuda:0", "cuda:2", None)


def test_flash_attention_needs_cuda(checkpoint: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ConfigError, match=r"attn_implementation 'flash_attention_2' needs CUDA.*use sdpa"):
            load(checkpoint, attn_implementation="flash_attention_2", torch_dtype=dtype)


def test_a_loaded_model_brings_its_placement() -> None:
    model, processor = random_model()
    for parameters in ({"vision_device": "cpu"}, {"device_map": "auto"}, {"quantization": "bitsandbytes-8bit"}):
        with pytest.raises(ConfigError, match="load this one with transformers' own"):
            DelayedBatchInferenceEngine(model, processor, max_pixels=84 * 112, **parameters)


# -- placement and precision -------------------------------------------------------------------------------------------


@needs_accelerate
@pytest.mark.parametrize("device_map", [{"": "cpu"}, {"model.visual": "cpu", "": "cpu"}, "auto"])
def test_a_device_map_answers_like_native(
    checkpoint: Path, device_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one device the model does not show what it was given: transformers' own ``from_pretrained`` is asked."""
    load_pretrained, given = AutoModelForImageTextToText.from_pretrained, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs["device_map"])
        return load_pretrained(*args, **kwargs)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", watched)
    monkeypatch.setattr(PreTrainedModel, "to", lambda *_: pytest.fail("a placed model must stay where it is"))
    model = load(checkpoint, device="auto", device_map=device_map)
    monkeypatch.undo()
    placed = {module: torch.device(where) for module, where in dict(device_map).items()} if device_map != "auto" else {}
    assert given == [placed or "auto"]
    best = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    assert model.device == placed.get("", best)
    assert model.vision_device == placed.get("model.visual", model.device)
    answers_like_native(model)


@needs_accelerate
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_hooks_that_move_tensors_between_parts_change_nothing(family: str) -> None:
    from accelerate import dispatch_model

    model, processor = random_model(family)
    parts = {"model.visual": "cpu", "model.language_model": "cpu", "lm_head": "cpu"}
    dispatched = dispatch_model(model, parts, force_hooks=True, skip_keys="past_key_values")
    assert hasattr(dispatched.model.visual, "_hf_hook")
    wrapped = wrap_model(dispatched, processor, name=family, min_pixels=56 * 56, max_pixels=84 * 112)
    answers_like_native(wrapped)


@needs_accelerate
def test_offloaded_parts_are_refused() -> None:
    from accelerate import cpu_offload

    model, processor = random_model()
    cpu_offload(model.model.visual, execution_device=torch.device("cpu"))
    with pytest.raises(ModelFailedError, match="off every device"):
        wrap_model(model, processor, name="offloaded", min_pixels=56 * 56, max_pixels=84 * 112)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations(checkpoint: Path, attention: str) -> None:
    model = load(checkpoint, attn_implementation=attention)
    assert model.model.config.get_text_config()._attn_implementation == attention
    answers_like_native(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_answer_on_the_cpu(checkpoint: Path, dtype: str) -> None:
    model = load(checkpoint, torch_dtype=dtype)
    assert model.model.dtype == getattr(torch, dtype)
    answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
    answers = [answerer.answer((clip_of(model),), QUESTION) for _ in range(2)]
    assert all(answer.token_ids for answer in answers)
    assert answers[1].metrics.cache_hit
    cached, native = (made(answerer, (clip_of(model),), QUESTION) for made in (cached_answer, native_answer))
    assert torch.isfinite(cached.logits).all()
    assert compare(cached, native).logit_difference < 0.1 * native.logits.abs().max()


def test_features_on_the_host(checkpoint: Path) -> None:
    answerer = answers_like_native(load(checkpoint), features_device="cpu")
    assert answerer.vision.device == torch.device("cpu")
    assert answerer.vision.nbytes > 0
    answerer.vision.check_integrity()


def test_weights_are_counted_where_they_are(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert model.weight_bytes_by_device == {torch.device("cpu"): model.weight_bytes}
    with DelayedBatchInferenceEngine(str(checkpoint), device="cpu", max_pixels=84 * 112) as engine:
        engine.load().result(timeout=60)
        assert [(m.device, m.model) for m in engine.device_memory()] == [("cpu", model.weight_bytes)]


# -- weights in fewer bits ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(importlib.util.find_spec("bitsandbytes")), reason="about machines without bitsandbytes")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantization_without_its_package(checkpoint: Path, bits: int) -> None:
    with pytest.raises(ModelFailedError, match=r"needs the package bitsandbytes.*pip install bitsandbytes"):
        load(checkpoint, quantization=f"bitsandbytes-{bits}bit")


@needs_accelerate
@pytest.mark.parametrize(("bits", "error"), [(8, 0.25), (4, 1.0)])
def test_quantized_weights_answer(checkpoint: Path, bits: int, error: float) -> None:
    pytest.importorskip("bitsandbytes")
    full, model = load(checkpoint), load(checkpoint, quantization=f"bitsandbytes-{bits}bit")
    assert type(model.model.model.visual.blocks[0].attn.qkv) is torch.nn.Linear  # the vision encoder stays whole
    layers, full_layers = (
        sum(p.numel() * p.element_size() for p in each.model.model.language_model.layers.parameters())
        for each in (model, full)
    )
    assert layers < (0.3 if bits == 8 else 0.2) * full_layers
    clips = (clip_of(full),)
    answerers = [ClipAnswerer(m, EngineConfig(), ["camera"]) for m in (full, model)]
    reference, quantized = (cached_answer(answerer, clips, QUESTION) for answerer in answerers)
    difference = (quantized.logits[0] - reference.logits[0]).abs().max() / reference.logits[0].abs().max()
    assert 0.0 < difference < error
    assert answerers[1].answer(clips, QUESTION).metrics.cache_hit


# -- quantized KV cache ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["fp8", "quanto", "hqq"])
def quantized_cache(request: pytest.FixtureRequest) -> str:
    package = {"quanto": "optimum.quanto", "hqq": "hqq"}.get(request.param)
    if package is not None:
        pytest.importorskip(package)
    return str(request.param)


@pytest.fixture
def cold(loaded: tuple[Any, Any], quantized_cache: str) -> Iterator[DelayedBatchInferenceEngine]:
    model, processor = loaded
    with DelayedBatchInferenceEngine(
        model, processor, "cpu", kv_cache=quantized_cache, background_encoding="vision", max_pixels=84 * 112,
        max_new_tokens=6, scene_threshold=1.0, prefill_chunk_tubelets=2, include_pending=False,
    ) as engine:
        yield engine


def test_a_quantized_cache_is_cold_for_every_question_and_near_the_full_one(
    loaded: tuple[Any, Any], cold: DelayedBatchInferenceEngine
) -> None:
    rng = np.random.default_rng(0)
    for k in range(9):
        cold.add_frame(random_frame(rng, 60, 80), k / 2)
    answerer = cold._host.answerer
    assert answerer is not None
    whole, part = Question("what?", max_new_tokens=6), Question("what?", start_ns=1, end_ns=10**10, max_new_tokens=6)
    for question in (whole, part, whole):
        asked = [cold.submit(question).future.result(timeout=60) for _ in range(2)]
        assert asked[0].token_ids == asked[1].token_ids
        assert [(a.metrics.cache_hit, a.metrics.prompt_tokens_reused) for a in asked] == [(False, 0)] * 2
        assert asked[1].metrics.tubelets_reused == asked[1].metrics.tubelets  # vision features are kept
        answerer.timelines.check_integrity()
        assert [len(timeline) for timeline in answerer.timelines] == [0] * len(list(answerer.timelines))
    with recorded_choices(answerer) as recorded:
        cold.submit(whole).future.result(timeout=60)
    native = native_answer(answerer, cold.clips(), whole).logits[0]
    assert 0.0 < (recorded[0][0] - native).abs().max() < 0.2 * native.abs().max()


@pytest.mark.parametrize(
    ("cache", "module", "package"), [("quanto", "optimum", "optimum-quanto"), ("hqq", "hqq", "hqq")]
)
def test_a_cache_backend_that_is_not_installed(
    loaded: tuple[Any, Any], cache: str, module: str, package: str
) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ModelFailedError, match=f"kv_cache '{cache}' can't be used: .*pip install {package}"):
        DelayedBatchInferenceEngine(*loaded, kv_cache=cache, max_pixels=84 * 112)


def test_sliding_window_layers_are_refused(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    del config["text_config"]["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for cache in ("full", "fp8"):
        with pytest.raises(ModelFailedError, match=r"sliding-window .*rollback"):
            load(tmp_path, kv_cache=cache)
    with DelayedBatchInferenceEngine(str(tmp_path), device="cpu", max_pixels=84 * 112) as engine:
        with pytest.raises(ModelFailedError, match="sliding-window"):
            engine.load().result(timeout=60)
        assert "sliding-window" in engine.status().model_error
