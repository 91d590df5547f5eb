"""The model's life: what was announced and what is there, a reload that fails, the peak of memory."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.engines import answerer_of, feed, hold_thread
from support.model_loads import StandInLoader
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState, Question
from vstream_ros.engine.device_memory import read_device_memory, reset_peak
from vstream_ros.engine.model_host import ModelHost, why_not_beside
from vstream_ros.models import loader
from vstream_ros.models.checkpoint_size import checkpoint_bytes
from vstream_ros.synthetic.random_model import random_model, write_random_checkpoint

GIB = 1 << 30


@pytest.fixture
def engine(models_by_name: StandInLoader) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84, max_new_tokens=2) as made:
        yield made


def once_while_the_model_is_put_in_place(engine: DelayedBatchInferenceEngine, what: Callable[[], Any]) -> list[Any]:
    """``what`` runs once, in the middle of the next load's last part; its result appears in the list."""
    results: list[Any] = []
    use = engine._cameras.use_frame_spec

    def interrupted(*args: Any) -> None:
        if not results:
            results.append(what())
        use(*args)

    engine._cameras.use_frame_spec = interrupted  # type: ignore[method-assign]
    return results


# -- announced and loaded ---------------------------------------------------------------------------------------------


def test_a_load_that_is_announced_while_another_ends_is_the_one_that_counts(
    engine: DelayedBatchInferenceEngine, models_by_name: StandInLoader
) -> None:
    later = once_while_the_model_is_put_in_place(engine, lambda: engine.load("B"))
    with pytest.raises(errors.CanceledError, match="A: overtaken"):
        engine.load().result(timeout=60)
    assert later[0].result(timeout=60) == "B"
    assert models_by_name.loads == ["A", "B"]
    status = engine.status()
    assert (status.model, status.model_state) == ("B", ModelState.READY)
    feed(engine, 2)
    assert engine.ask("what?")[1]["model"] == "B"


def test_an_unload_that_is_announced_while_a_load_ends_leaves_no_model(engine: DelayedBatchInferenceEngine) -> None:
    later = once_while_the_model_is_put_in_place(engine, engine.unload)
    with pytest.raises(errors.CanceledError):
        engine.load().result(timeout=60)
    later[0].result(timeout=60)
    assert engine.status().model_state is ModelState.UNLOADED
    assert engine._host.answerer is None
    feed(engine, 2)
    with pytest.raises(errors.NotReadyError):
        engine.submit(Question("what?")).future.result(timeout=60)


def test_what_is_announced_later_wins_whatever_is_carried_out_first(models_by_name: StandInLoader) -> None:
    """Between announcing and enqueueing another thread may come in between."""
    engine = DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84)
    with engine:
        host: ModelHost = engine._host
        unload, load = host.announce_unload(), host.announce_load("B")
        host.load(load)
        host.finish(load)
        with pytest.raises(errors.CanceledError):
            host.free(unload)
        assert host.require().model.name == "B"


def test_a_load_loads_what_its_ticket_names(engine: DelayedBatchInferenceEngine, models_by_name: StandInLoader) -> None:
    go_on = hold_thread(engine)
    first, second, third = engine.load("A"), engine.load("B"), engine.load()
    assert engine.status().model == "B"
    go_on.set()
    for overtaken in (first, second):
        with pytest.raises(errors.CanceledError, match="overtaken"):
            overtaken.result(timeout=60)
    assert third.result(timeout=60) == "B"
    assert models_by_name.loads == ["B"]


# -- a reload that fails ----------------------------------------------------------------------------------------------


def test_a_reload_that_fails_keeps_the_model(
    engine: DelayedBatchInferenceEngine, models_by_name: StandInLoader
) -> None:
    feed(engine, 2)
    before = engine.ask("what?")[0]
    answerer = engine._host.answerer

    def look(name: str) -> None:
        assert engine._host.answerer is answerer  # it is kept until the new one is there
        status = engine.status()
        assert (status.model, status.model_state) == ("broken", ModelState.LOADING)
        with pytest.raises(errors.NotReadyError, match="broken is still being loaded"):
            engine.submit(Question("what?")).future.result(timeout=60)

    models_by_name.before = look
    sentence = "reload of broken failed: broken is damaged; A still answers"
    with pytest.raises(errors.ModelFailedError, match=sentence):
        engine.load("broken").result(timeout=60)
    status = engine.status()
    assert (status.model, status.model_state, status.model_error) == ("A", ModelState.READY, sentence)
    answer, metrics = engine.ask("what?")
    assert answer == before
    assert metrics["cache_hit"] is True
    models_by_name.before = lambda name: None
    assert engine.load("A").result(timeout=60) == "A"
    assert engine.status().model_error == ""


@pytest.mark.parametrize(("size", "says"), [(None, "size is unknown"), (10**18, "GiB are free")])
def test_without_room_for_both_the_log_says_it_and_the_old_one_goes_first(
    engine: DelayedBatchInferenceEngine,
    models_by_name: StandInLoader,
    caplog: pytest.LogCaptureFixture,
    size: int | None,
    says: str,
) -> None:
    engine.load().result(timeout=60)
    old = weakref.ref(answerer_of(engine).model)
    models_by_name.size = size
    alive: list[bool] = []
    models_by_name.before = lambda name: alive.append(old() is not None)
    with caplog.at_level(logging.WARNING), pytest.raises(errors.ModelFailedError, match=r"^broken is damaged$"):
        engine.load("broken").result(timeout=60)
    assert alive == [False]
    assert says in caplog.text
    assert "A is freed first" in caplog.text
    assert engine.status().model_state is ModelState.FAILED
    with pytest.raises(errors.ModelFailedError):
        engine.submit(Question("what?")).future.result(timeout=60)


def test_a_reload_that_succeeds_lets_the_old_model_go(
    engine: DelayedBatchInferenceEngine, models_by_name: StandInLoader
) -> None:
    engine.load().result(timeout=60)
    old = weakref.ref(answerer_of(engine).model)
    alive: list[bool] = []
    models_by_name.before = lambda name: alive.append(old() is not None)
    engine.load("B").result(timeout=60)
    assert alive == [True]
    assert old() is None


def test_a_model_that_does_not_suit_is_let_go_and_the_old_one_kept(
    engine: DelayedBatchInferenceEngine, models_by_name: StandInLoader
) -> None:
    engine.load().result(timeout=60)
    models_by_name.parts = random_model(context=100)
    refused: list[weakref.ref[Any]] = []
    wrap = loader.wrap_model

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = wrap(*args, **kwargs)
        refused.append(weakref.ref(made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "wrap_model", noted)
        loading = engine.load("B")
        with pytest.raises(errors.ConfigError, match=r"reload of B failed: .* the 100 of B.*; A still answers"):
            loading.result(timeout=60)
    assert [ref() for ref in refused] == [None]  # though the future still holds the error
    assert engine.status().model == "A"


def test_the_estimate() -> None:
    assert why_not_beside(4 * GIB, 6 * GIB) == ""
    assert "about 5.0 GiB, and 5.0 GiB are free" in why_not_beside(4 * GIB, int(4.99 * GIB))
    assert "unknown" in why_not_beside(None, 100 * GIB)
    assert why_not_beside(0, GIB) == ""


def test_the_size_of_a_checkpoint_is_that_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_random_checkpoint(tmp_path / "whole")
    model, processor = random_model()
    weights = loader.wrap_model(model, processor, name="m", min_pixels=56 * 56, max_pixels=84 * 84).weight_bytes
    size = checkpoint_bytes(str(folder), torch.float32)
    assert size is not None
    assert 0.9 * weights < size <= weights  # buffers are not in it
    assert checkpoint_bytes(str(folder), torch.bfloat16) == size // 2
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    parts = sorted((tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 1
    assert checkpoint_bytes(str(tmp_path / "parts"), torch.float32) == size
    parts[0].unlink()
    (folder / "model.safetensors").write_bytes(b"not what it was")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for unknown in (tmp_path / "parts", folder, tmp_path / "nothing", "nobody/has-this", "a b/c"):
        assert checkpoint_bytes(str(unknown), torch.float32) is None
    assert checkpoint_bytes("vstream-tiny", torch.float32)


# -- the peak ---------------------------------------------------------------------------------------------------------


def test_the_peak_begins_anew_at_a_load(engine: DelayedBatchInferenceEngine) -> None:
    cpu = torch.device("cpu")
    reset_peak([cpu])
    ballast = np.ones(256 << 20, dtype=np.uint8)
    del ballast
    gc.collect()
    before = read_device_memory(cpu)
    if before.peak_allocated < before.allocated + (128 << 20):
        pytest.skip("this system keeps what was freed")
    engine.load().result(timeout=60)
    after = engine.device_memory()[0]
    assert after.allocated <= after.peak_allocated < before.peak_allocated
