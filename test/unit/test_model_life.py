"""The model's life: what was announced and what is there, a reload that fails, the end of the engine."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState, Question
from vstream_ros.engine.device_memory import read_device_memory, reset_peak
from vstream_ros.engine.model_host import ModelHost, why_not_beside
from vstream_ros.models import checkpoint_size, loader
from vstream_ros.models.checkpoint_size import checkpoint_bytes
from vstream_ros.synthetic.random_model import random_model, write_random_checkpoint

GIB = 1 << 30


class Loader:
    """Stands in for ``load_model``: any name but "broken" is a model; ``before`` runs at each load's beginning."""

    def __init__(self) -> None:
        self.parts = random_model()
        self.loads: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        self.size: int | None = 1000
        self.most_at_a_time = 0
        self._at_work = 0

    def load(self, name: str, *, min_pixels: int, max_pixels: int, **_: Any) -> Any:
        self.loads.append(name)
        self._at_work += 1
        self.most_at_a_time = max(self.most_at_a_time, self._at_work)
        try:
            self.before(name)
            if name == "broken":
                raise errors.ModelFailedError("broken is damaged")
            return loader.wrap_model(*self.parts, name=name, min_pixels=min_pixels, max_pixels=max_pixels)
        finally:
            self._at_work -= 1


@pytest.fixture
def models_by_name(monkeypatch: pytest.MonkeyPatch) -> Loader:
    stand_in = Loader()
    monkeypatch.setattr(loader, "load_model", stand_in.load)
    monkeypatch.setattr(checkpoint_size, "checkpoint_bytes", lambda name, dtype: stand_in.size)
    return stand_in


@pytest.fixture
def engine(models_by_name: Loader) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84, max_new_tokens=2) as made:
        yield made


def feed(engine: DelayedBatchInferenceEngine, count: int = 2) -> None:
    rng = np.random.default_rng(0)
    for k in range(count):
        engine.add_frame(random_frame(rng, 56, 84), k / 2)


def hold_thread(engine: DelayedBatchInferenceEngine) -> threading.Event:
    """Keeps the model's thread busy until the event is set; returns when it is."""
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(60)

    engine._thread.run(wait)
    assert begun.wait(60)
    return go_on


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
    engine: DelayedBatchInferenceEngine, models_by_name: Loader
) -> None:
    later = once_while_the_model_is_put_in_place(engine, lambda: engine.load("B"))
    with pytest.raises(errors.CanceledError, match="A: overtaken"):
        engine.load().result(timeout=60)
    assert later[0].result(timeout=60) == "B"
    assert models_by_name.loads == ["A", "B"]
    status = engine.status()
    assert (status.model, status.model_state) == ("B", ModelState.READY)
    feed(engine)
    assert engine.ask("what?")[1]["model"] == "B"


def test_an_unload_that_is_announced_while_a_load_ends_leaves_no_model(engine: DelayedBatchInferenceEngine) -> None:
    later = once_while_the_model_is_put_in_place(engine, engine.unload)
    with pytest.raises(errors.CanceledError):
        engine.load().result(timeout=60)
    later[0].result(timeout=60)
    assert engine.status().model_state is ModelState.UNLOADED
    assert engine._host.answerer is None
    feed(engine)
    with pytest.raises(errors.NotReadyError):
        engine.submit(Question("what?")).future.result(timeout=60)


def test_what_is_announced_later_wins_whatever_is_carried_out_first(models_by_name: Loader) -> None:
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


def test_a_load_loads_what_its_ticket_names(engine: DelayedBatchInferenceEngine, models_by_name: Loader) -> None:
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


def test_a_reload_that_fails_keeps_the_model(engine: DelayedBatchInferenceEngine, models_by_name: Loader) -> None:
    feed(engine)
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
    models_by_name: Loader,
    caplog: pytest.LogCaptureFixture,
    size: int | None,
    says: str,
) -> None:
    engine.load().result(timeout=60)
    answerer = engine._host.answerer
    assert answerer is not None
    old = weakref.ref(answerer.model)
    del answerer
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
    engine: DelayedBatchInferenceEngine, models_by_name: Loader
) -> None:
    engine.load().result(timeout=60)
    answerer = engine._host.answerer
    assert answerer is not None
    old = weakref.ref(answerer.model)
    del answerer
    alive: list[bool] = []
    models_by_name.before = lambda name: alive.append(old() is not None)
    engine.load("B").result(timeout=60)
    assert alive == [True]
    assert old() is None


def test_a_model_that_does_not_suit_is_let_go_and_the_old_one_kept(
    engine: DelayedBatchInferenceEngine, models_by_name: Loader
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


# -- the end ----------------------------------------------------------------------------------------------------------


def test_after_close_nothing_is_waited_for(engine: DelayedBatchInferenceEngine) -> None:
    engine.load().result(timeout=60)
    feed(engine)
    engine.close()
    for future in (engine.submit(Question("what?")).future, engine.load("B"), engine.unload()):
        with pytest.raises(errors.NotReadyError, match="make another one"):
            future.result(timeout=10)
    with pytest.raises(errors.NotReadyError, match="make another one"):
        engine.ask("what?")
    feed(engine)
    engine.clear()
    status = engine.status()
    assert (status.model_state, status.clip_frames) == (ModelState.UNLOADED, 0)
    assert engine.close().done()


def test_close_ends_what_waits_though_the_thread_is_busy(engine: DelayedBatchInferenceEngine) -> None:
    engine.load().result(timeout=60)
    feed(engine)
    go_on = hold_thread(engine)
    try:
        waiting: list[Future[Any]] = [engine.submit(Question("what?")).future, engine._thread.run(lambda: None)]
        waiting.append(engine.load("B"))
        ended = engine.close("it is late", wait_s=0.0)
        assert all(future.done() for future in waiting)
        for future in waiting:
            with pytest.raises(errors.CanceledError, match="it is late"):
                future.result()
        assert not ended.done()
    finally:
        go_on.set()
    ended.result(timeout=60)
    assert engine.status().queued_questions == 0


def test_close_frees_the_weights(engine: DelayedBatchInferenceEngine) -> None:
    engine.load().result(timeout=60)
    answerer = engine._host.answerer
    assert answerer is not None
    model = weakref.ref(answerer.model)
    del answerer
    engine.close().result(timeout=60)
    assert model() is None
    assert engine.device_memory()[0].model == 0


def test_engines_one_after_another_load_one_at_a_time(models_by_name: Loader) -> None:
    """As configure, cleanup, configure, cleanup, configure during a slow load."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(name: str) -> None:
        begun.set()
        assert go_on.wait(60)

    models_by_name.before = slow
    freed: Future[None] | None = None
    for _ in range(2):
        engine = DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84, after=freed)
        engine.load()
        assert begun.wait(60)
        freed = engine.close("cleaned up", wait_s=0.2)
        assert not freed.done()  # the second's end is the first's too
    with DelayedBatchInferenceEngine("C", device="cpu", max_pixels=84 * 84, after=freed) as last:
        loading = last.load()
        assert last.status().model_state is ModelState.LOADING
        go_on.set()
        assert loading.result(timeout=60) == "C"
    assert models_by_name.loads == ["A", "C"]
    assert freed is not None
    assert freed.done()


def test_engines_side_by_side_load_one_at_a_time(models_by_name: Loader) -> None:
    engines = [DelayedBatchInferenceEngine("A", device="cpu", max_pixels=84 * 84) for _ in range(3)]
    try:
        # Each load lasts until every other engine's thread has taken its load out of the inbox.
        announced = threading.Event()
        models_by_name.before = lambda name: wait_until_taken(announced, engines)
        loads = [engine.load() for engine in engines]
        announced.set()
        for loading in loads:
            loading.result(timeout=60)
        assert models_by_name.most_at_a_time == 1
    finally:
        for engine in engines:
            engine.close()


def wait_until_taken(announced: threading.Event, engines: list[DelayedBatchInferenceEngine]) -> None:
    assert announced.wait(60)
    while not all(engine._thread._inbox.empty() for engine in engines):
        threading.Event().wait(0.005)


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
