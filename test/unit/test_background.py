"""Work ahead of the question: the next question finds it done, and never waits for more than one step of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from support.engines import wait_until
from support.equality import cached_answer, compare, native_answer
from support.frames import random_frame
from vstream_ros.engine import (
    BackgroundState,
    DelayedBatchInferenceEngine,
    EngineConfig,
    PendingAnswer,
    Question,
    background,
)
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.background import FIRST_PAUSE_S, MAX_FAILURES, WorkAhead
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.synthetic.random_model import random_model

QUESTION = Question("what?", max_new_tokens=4)
MEMORY = MemoryConfig(star_memory_size=8, stream_window_size=12, stream_slide=4, scene_threshold=1.0)


@pytest.fixture
def model(models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    return models["qwen2_5_vl"]


class Stream:
    """A memory that is fed one tubelet at a time."""

    def __init__(self, model: QwenVideoModel) -> None:
        self.memory = SmartFrameManager(MEMORY)
        self._rng = np.random.default_rng(0)
        self._size = model.frame_spec.fit(56, 84)
        self._count = 0

    def add_tubelet(self) -> None:
        for _ in range(2):
            self.memory.add_frame(random_frame(self._rng, *self._size), self._count * 500_000_000)
            self._count += 1

    def clips(self) -> tuple[Clip, ...]:
        return (self.memory.clip(),)

    def next_clips(self) -> tuple[Clip, ...]:
        clip = self.memory.next_clip()
        return () if clip is None else (clip,)


def test_the_next_clip_is_what_the_slide_leaves(model: QwenVideoModel) -> None:
    stream = Stream(model)
    slides = 0
    told: tuple[int, ...] = ()
    for _ in range(60):
        before = [t.id for t in stream.memory.clip().tubelets]
        stream.add_tubelet()
        after = [t.id for t in stream.memory.clip().tubelets]
        if after[: len(before)] != before:
            slides += 1
            assert told
            assert tuple(after[:-1]) == told
        told = tuple(t.id for clip in stream.next_clips() for t in clip.tubelets)
    assert slides > 5


def test_in_step_with_memory_a_question_prefills_nothing_and_a_slide_only_what_is_new(model: QwenVideoModel) -> None:
    stream = Stream(model)
    answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
    prefilled = []
    for _ in range(40):
        stream.add_tubelet()
        prompt = answerer.prompt(stream.clips(), "")
        timeline = answerer.timelines.for_memory(prompt)
        prefilled.append(
            len(stream.memory.clip()) - sum(span[1] <= timeline.common_prefix(prompt) for span in prompt.spans)
        )
        while answerer.prefill_ahead(stream.clips(), stream.next_clips()):
            answerer.timelines.check_integrity()
        answer = answerer.answer(stream.clips(), QUESTION)
        assert answer.metrics.cache_hit
    assert set(prefilled) == {1}  # also where memory slid: the timeline built ahead took over
    cached, native = (f(answerer, stream.clips(), QUESTION) for f in (cached_answer, native_answer))
    assert compare(cached, native).equal


def test_each_step_is_at_most_one_tubelet(model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(model)
    for _ in range(13):
        stream.add_tubelet()
    answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
    sizes: list[int] = []
    prefill = model.prefill

    def counted(prompt: Any, end: int, features: Any, cache: Any) -> None:
        sizes.append(len(features))
        prefill(prompt, end, features, cache)

    monkeypatch.setattr(model, "prefill", counted)
    steps = 0
    while answerer.prefill_ahead(stream.clips(), stream.next_clips()):
        steps += 1
        assert sizes == [1] * steps
    assert steps > 13


def test_without_room_for_forks_nothing_is_built_ahead_and_it_ends(model: QwenVideoModel) -> None:
    stream = Stream(model)
    for _ in range(13):
        stream.add_tubelet()
    answerer = ClipAnswerer(model, EngineConfig(forks_max_bytes=0), ["camera"])
    steps = 0
    while answerer.prefill_ahead(stream.clips(), stream.next_clips()):
        steps += 1
        assert steps <= 13
    assert answerer.timelines.ahead is None
    answerer.timelines.check_integrity()


def test_a_provisional_tubelet_is_left_to_the_question(model: QwenVideoModel) -> None:
    stream = Stream(model)
    stream.add_tubelet()
    stream.memory.add_frame(random_frame(np.random.default_rng(9), *model.frame_spec.fit(56, 84)), 10**9)
    answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
    while answerer.prefill_ahead(stream.clips(), stream.next_clips()):
        pass
    assert len(answerer.timelines.current.tubelet_ids) == 1
    assert answerer.answer(stream.clips(), QUESTION).metrics.tubelets == 2


def test_forks_keep_within_their_bytes_and_never_crop_the_current_timeline(model: QwenVideoModel) -> None:
    stream = Stream(model)
    for _ in range(6):
        stream.add_tubelet()
    answerer = ClipAnswerer(model, EngineConfig(), ["camera"])
    answerer.answer(stream.clips(), QUESTION)
    warm = answerer.timelines.current.tubelet_ids
    whole = stream.clips()[0]
    one_fork = answerer.timelines.current.nbytes
    for limit in (4 * one_fork, one_fork, 0):
        answerer.timelines._max_bytes = limit
        for first in (1, 2, 3, 1):
            part = (type(whole)(whole.tubelets[first:], whole.second_per_grid),)
            answer = answerer.answer(part, QUESTION, part=first)
            answerer.timelines.check_integrity()
            assert answer.metrics.tubelets == 6 - first
            assert answerer.timelines.current.tubelet_ids == warm
        again = answerer.answer(part, QUESTION, part=1)
        assert again.metrics.cache_hit is (limit > 0)
    assert answerer.answer(stream.clips(), QUESTION).metrics.cache_hit


# -- through the engine -----------------------------------------------------------------------------------------------


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[DelayedBatchInferenceEngine]:
    made, processor = random_model("qwen2_5_vl")
    with DelayedBatchInferenceEngine(
        made, processor, "cpu", memory=MEMORY, max_pixels=84 * 84, max_new_tokens=4, **getattr(request, "param", {})
    ) as engine:
        yield engine


def feed(engine: DelayedBatchInferenceEngine, tubelets: int, start: int = 0) -> None:
    rng = np.random.default_rng(start)
    for k in range(2 * start, 2 * (start + tubelets)):
        engine.add_frame(random_frame(rng, 84, 84), k / 2)


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_full_makes_the_first_question_a_cache_hit(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 15)
    wait_until(lambda: engine.status().valid and engine.status().ahead_pending_tubelets == 0)
    _, metrics = engine.ask("what?")
    assert metrics["cache_hit"] is True
    assert "encoding_latency" not in metrics
    feed(engine, 1, start=15)
    wait_until(lambda: engine.status().valid)
    assert engine.ask("what now?")[1]["cache_hit"] is True
    engine.clear()
    assert engine.status().valid is False


@pytest.mark.parametrize("engine", [{"background_encoding": "vision"}], indirect=True)
def test_vision_leaves_only_the_prefill(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 6)
    wait_until(lambda: engine._host.answerer is not None and len(engine._host.answerer.vision) == 6)
    _, metrics = engine.ask("what?")
    assert metrics["tubelets_reused"] == 6
    assert metrics["cache_hit"] is False


def test_off_computes_nothing_ahead(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    pokes: list[None] = []
    monkeypatch.setattr(engine._thread, "poke", lambda: pokes.append(None))
    feed(engine, 4)
    assert not pokes  # the frames did not wake the thread
    steps: list[float | None] = []
    stepped = threading.Event()

    def watched() -> float | None:
        steps.append(engine._work_ahead.step())
        stepped.set()
        return steps[-1]

    engine._thread._background = watched
    engine._thread.run(lambda: None).result(timeout=60)
    assert stepped.wait(60)
    assert steps == [None]  # awake, it finds nothing to do, and waits for whatever comes next
    assert len(answerer.vision) == 0
    assert len(answerer.timelines.current) == 0


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_a_question_waits_for_one_step_at_most(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    in_step, go_on = threading.Event(), threading.Event()
    log: list[str] = []
    step, begin = answerer.prefill_ahead, answerer.begin

    def slow_step(*args: Any) -> bool:
        log.append("step")
        in_step.set()
        assert go_on.wait(60)
        return step(*args)

    def logged_begin(*args: Any, **kwargs: Any) -> Any:
        log.append("answer")
        return begin(*args, **kwargs)

    monkeypatch.setattr(answerer, "prefill_ahead", slow_step)
    monkeypatch.setattr(answerer, "begin", logged_begin)
    feed(engine, 6)
    assert in_step.wait(60)
    pending = engine.submit(QUESTION)
    go_on.set()
    pending.future.result(timeout=60)
    assert log[: log.index("answer")] == ["step"]


@pytest.mark.parametrize("engine", [{"background_encoding": "full", "background_duty": 0.25}], indirect=True)
def test_the_duty_cycle_leaves_the_device_to_others(engine: DelayedBatchInferenceEngine) -> None:
    engine._thread.close("the test takes the steps itself")
    feed(engine, 3)
    started = time.monotonic()
    pause_s = engine._work_ahead.step()
    took_s = time.monotonic() - started
    assert pause_s is not None
    assert 0.0 < pause_s <= 3.0 * took_s
    while engine._work_ahead.step() is not None:
        pass
    assert engine.status().valid


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def work_of(engine: DelayedBatchInferenceEngine, clock: Clock) -> WorkAhead:
    """The engine's work ahead, on ``clock``; the test takes the steps itself."""
    engine._thread.close("the test takes the steps itself")
    engine._work_ahead = WorkAhead(engine.config, engine._cameras, engine._host, engine._board, clock)
    engine._loads._ahead = engine._work_ahead
    return engine._work_ahead


def steps_until_pause(work: WorkAhead) -> float | None:
    """What the thread does while nothing else comes in: the first pause, None where nothing is left."""
    while (pause_s := work.step()) == 0.0:
        pass
    return pause_s


def refuse_the_fifth(
    answerer: ClipAnswerer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> list[int]:
    """The fifth tubelet can't be prefilled; the tubelets of every try appear in the list."""
    tries: list[int] = []
    prefill = answerer.model.prefill

    def limited(prompt: Any, end: int, features: Any, cache: Any) -> None:
        tries.append(sum(span[1] <= end for span in prompt.spans))
        prefill(prompt, end, features, cache)
        if tries[-1] == 5:
            raise error

    monkeypatch.setattr(answerer.model, "prefill", limited)
    return tries


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_work_that_does_not_fit_pauses_ends_and_begins_again_with_an_answer(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    work = work_of(engine, clock)
    answerer = engine._host.answerer
    assert answerer is not None
    with monkeypatch.context() as patch:
        tries = refuse_the_fifth(answerer, patch, torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nand more"))
        feed(engine, 4)
        assert steps_until_pause(work) is None
        assert engine.status().background_state is BackgroundState.ON
        pauses = []
        for count in range(MAX_FAILURES - 1):
            feed(engine, 1, start=4 + count)
            pauses.append(steps_until_pause(work))
            assert len(tries) == 5 + count
            clock.now_s += 0.25
            assert work.step() == pauses[-1] - 0.25  # a frame wakes it too early
            status = engine.status()
            assert (status.background_state, status.background_failures) == (BackgroundState.PAUSED, count + 1)
            assert status.background_error == "OutOfMemoryError: CUDA out of memory. Tried 2 GiB"
            assert status.timeline_tubelets == 4  # what was prefilled before stays
            answerer.timelines.check_integrity()
            clock.now_s += pauses[-1]
        assert pauses == [FIRST_PAUSE_S * 2**k for k in range(MAX_FAILURES - 1)]
        feed(engine, 1, start=20)
        assert work.step() is None
        status = engine.status()
        assert (status.background_state, status.background_failures) == (BackgroundState.STOPPED, MAX_FAILURES)
        for k in range(20):
            clock.now_s += 1e6
            feed(engine, 1, start=21 + k)
            assert work.step() is None
        assert tries == [1, 2, 3, 4] + [5] * MAX_FAILURES
    engine._desk.begin(PendingAnswer(QUESTION, deadline=float("inf"), arrived_at=0.0))
    while engine._desk.running:
        engine._desk.step()
    status = engine.status()
    assert (status.background_state, status.background_failures, status.background_error) == (BackgroundState.ON, 0, "")
    assert steps_until_pause(work) is None
    assert engine.status().valid
    assert engine.status().ahead_pending_tubelets == 0


@pytest.mark.parametrize("change", ["clear", "load"])
@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_any_failure_counts_and_a_change_begins_anew(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    clock = Clock()
    work = work_of(engine, clock)
    answerer = engine._host.answerer
    assert answerer is not None
    feed(engine, 6)
    with monkeypatch.context() as patch:
        tries = refuse_the_fifth(answerer, patch, KeyError("boom"))
        while (pause_s := steps_until_pause(work)) is not None:
            assert len(answerer.timelines.current) == 0  # nobody knows what it left behind
            clock.now_s += pause_s
        assert tries == [1, 2, 3, 4, 5] * MAX_FAILURES  # steps that succeed on the way don't end the row
    assert engine.status().background_error == "KeyError: 'boom'"
    if change == "clear":
        engine._forget_cleared()
    else:
        engine._loads.use(answerer.model, engine._host.announce_load(None))
    assert engine.status().background_state is BackgroundState.ON
    assert steps_until_pause(work) is None
    assert engine.status().valid


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_the_thread_tries_again_by_itself_and_ends(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 1e-3)
    tries: list[None] = []

    def fail(*args: Any) -> bool:
        tries.append(None)
        raise KeyError("boom")

    monkeypatch.setattr(answerer, "prefill_ahead", fail)
    feed(engine, 3)
    wait_until(lambda: engine.status().background_state is BackgroundState.STOPPED)
    feed(engine, 3, start=3)
    engine._thread.run(lambda: None).result(timeout=60)
    assert len(tries) == MAX_FAILURES
    assert engine.ask("what?")[1]["tubelets"] == 6


@pytest.mark.parametrize("engine", [{"background_encoding": "full"}], indirect=True)
def test_a_failing_step_is_logged_and_the_question_is_answered(
    engine: DelayedBatchInferenceEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answerer = engine._host.answerer
    assert answerer is not None

    def fail(*args: Any) -> bool:
        raise KeyError("boom")

    monkeypatch.setattr(answerer, "prefill_ahead", fail)
    feed(engine, 3)
    wait_until(lambda: "background work failed" in caplog.text)
    assert engine.ask("what?")[1]["tubelets"] == 3


def test_questions_that_waited_together_share_one_prefill(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 3)
    reached, go_on = threading.Event(), threading.Event()

    def hold(text: str, tokens: int) -> None:
        reached.set()
        assert go_on.wait(60)

    first = engine.submit(QUESTION, on_text=hold)
    assert reached.wait(60)
    feed(engine, 2, start=3)
    waiting = [engine.submit(QUESTION) for _ in range(3)]
    # Memory moves on while they are being answered; they are about what it held when the first of them began.
    waiting[0].on_text = lambda text, tokens: feed(engine, 1, start=5) if tokens == 1 else None
    go_on.set()
    first.future.result(timeout=60)
    answers = [pending.future.result(timeout=60) for pending in waiting]
    assert [a.metrics.tubelets for a in answers] == [5, 5, 5]
    assert [a.metrics.cache_hit for a in answers] == [False, True, True]
    assert engine.submit(QUESTION).future.result(timeout=60).metrics.tubelets == 6
