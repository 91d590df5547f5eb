"""The timeline ahead of the question: built in steps of one tubelet, beside the current one, within its bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.engines import SLIDING_MEMORY
from support.equality import cached_answer, compare, native_answer
from support.frames import random_frame
from vstream_ros.engine import EngineConfig, Question
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.memory import Clip, SmartFrameManager
from vstream_ros.models.qwen.video_model import QwenVideoModel

QUESTION = Question("what?", max_new_tokens=4)


@pytest.fixture
def model(models: dict[str, QwenVideoModel]) -> QwenVideoModel:
    return models["qwen2_5_vl"]


class Stream:
    """A memory that is fed one tubelet at a time."""

    def __init__(self, model: QwenVideoModel) -> None:
        self.memory = SmartFrameManager(SLIDING_MEMORY)
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
