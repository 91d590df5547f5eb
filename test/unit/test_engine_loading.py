"""The engine loads a model by its name: what it can't load is one sentence, and it can be told another name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.engines import fails_with, feed
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState, Question
from vstream_ros.synthetic.random_model import write_random_checkpoint


def test_loading_failing_and_loading_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu", max_pixels=84 * 84, max_new_tokens=2) as engine:
        feed(engine, 2)
        with pytest.raises(errors.ModelFailedError, match="does not exist"):
            engine.load().result(timeout=60)
        assert engine.status().model_state is ModelState.FAILED
        assert "does not exist" in str(fails_with(engine.submit(Question("a")).future, errors.ModelFailedError))

        write_random_checkpoint(folder)
        loading = engine.load()
        assert engine.status().model_state in (ModelState.LOADING, ModelState.READY)
        loading.result(timeout=120)
        assert engine.status().model_state is ModelState.READY
        assert engine.ask("what?")[1]["frames"] == 2

        engine.unload().result(timeout=60)
        assert engine.status().model_state is ModelState.UNLOADED
        assert engine.device_memory()[0].model == 0
        fails_with(engine.submit(Question("a")).future, errors.NotReadyError)
        assert engine.ask("what?")[1]["cache_hit"] is False  # ask loads what is named


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["missing", "corrupt"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: str, how: str) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint")
    if how == "missing":
        (folder / damage).unlink()
    else:
        (folder / damage).write_bytes(b"\x00\x01 not what it was")
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu", local_files_only=True) as engine:
        with pytest.raises(errors.ModelFailedError) as caught:
            engine.load().result(timeout=120)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_unload_overtakes_a_load(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint")
    with DelayedBatchInferenceEngine(model=str(folder), device="cpu") as engine:
        engine.load()
        engine.unload().result(timeout=120)
        assert engine.status().model_state is ModelState.UNLOADED
        assert engine._host.answerer is None


def test_cuda_asked_for_without_cuda(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with (
        DelayedBatchInferenceEngine(model=str(tmp_path), device="cuda") as engine,
        pytest.raises(errors.ConfigError, match="no CUDA"),
    ):
        engine.load().result(timeout=60)


def test_another_familys_frame_size_scales_what_was_kept(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "checkpoint", "qwen3_vl")
    with DelayedBatchInferenceEngine(device="cpu", max_pixels=112 * 112) as engine:
        assert engine.frame_size(112, 112) == (112, 112)
        feed(engine, 4)
        engine.load(str(folder)).result(timeout=120)
        assert engine.frame_size(112, 112) == (96, 96)  # multiples of 32 instead of 28
        assert engine.status().clip_frames == 4
        assert engine.status().announcements == ()
