"""Questions in one batch: each gets the answer that it would get alone, whoever comes, goes or fails beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from support.asking import TEXTS, Asking, part_of, questions, siblings_seen
from support.controls import CONTROL_THRESHOLD
from support.decoding import prompt_of, timeline_of
from vstream_ros.engine import clip_batch, decoder
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.continuation import Interrupts, NewRows
from vstream_ros.engine.decoder import Decoder
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.memory.clip import Clip
from vstream_ros.models.base import Rows
from vstream_ros.models.qwen.video_model import QwenVideoModel
from vstream_ros.models.tail import CacheTail

pytestmark = pytest.mark.usefixtures("full_length")


# -- what a row sees ---------------------------------------------------------------------------------------------------


class Held:
    """A continuation of which only that counts which the cache holds."""

    def __init__(self, *cached: int) -> None:
        self.cached = list(cached)


def rows_of(*parents: int) -> NewRows:
    count = len(parents)
    return NewRows(np.zeros(count, np.int64), np.zeros((4, count), np.int64), np.array(parents), np.arange(count))


def test_a_row_sees_its_own_tokens_and_its_ancestors(answerer: ClipAnswerer) -> None:
    tree = rows_of(-1, 0, 0, 1)
    assert not tree.is_chain
    assert rows_of(-1, 0, 1).is_chain
    one = Decoder(CacheTail(answerer.model, None))
    one._tail.length = 4  # the third is dead
    visible = one._visible([Held(0, 3), Held(1)], [tree, rows_of(-1, 0)], 0)  # type: ignore[list-item]
    assert visible is not None
    assert visible.astype(int).tolist() == [
        [1, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 1, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 1, 1],
    ]
    one._tail.length = 0
    visible = one._visible([Held(), Held()], [rows_of(-1), rows_of(-1)], 2)  # type: ignore[list-item]
    assert visible is not None
    # The clip's own last tokens see one another in their order, and every question sees them.
    assert visible.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert one._visible([Held()], [rows_of(-1, 0)], 2) is None  # type: ignore[list-item]


def test_a_row_that_sees_its_sibling_is_noticed(desk: Asking, clips: tuple[Clip, ...]) -> None:
    with siblings_seen():
        for question in questions(2):
            desk.begin(clips, question)
        desk.finish()
    assert desk.compare(1).logit_difference > CONTROL_THRESHOLD


@pytest.mark.parametrize("seed", range(6))
def test_whoever_comes_when_every_answer_is_natives(
    desk: Asking, clips: tuple[Clip, ...], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drafts that are right, wrong, or right at first, sampled ones, and parts, in batches of any size."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(decoder, "MAX_DEAD_ROWS", int(rng.integers(0, 20)))
    monkeypatch.setitem(clip_batch.PASS_ROWS, "cpu", int(rng.choice([5, 16, 48])))
    for _ in range(7):
        desk.step(int(rng.integers(0, 4)))
        if not desk.answerer.has_room():
            desk.step(20)
        question = Question(str(rng.choice(TEXTS)), max_new_tokens=int(rng.integers(1, 9)))
        if rng.random() < 0.2:
            question = replace(question, temperature=1.0, seed=7)
        draft = rng.integers(0, 250, 9).tolist()
        if desk.ended and rng.random() < 0.7:
            said = list(desk.answer(desk.ended[-1]).token_ids)
            draft = [*said[: int(rng.integers(0, 9))], *draft]
        if rng.random() < 0.5:
            desk.answerer._book.remember(question.text, draft)
        if rng.random() < 0.3:
            desk.begin(part_of(clips), question, part="part")
        else:
            desk.begin(clips, question)
    desk.finish()
    for number in range(7):
        assert desk.compare(number).equal


def test_choices_beside_other_questions_are_what_they_are_alone(
    desk: Asking, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", [2, 3])
    question = Question("where?", choices=("left", "left of it", "right", "nowhere at all"), max_new_tokens=8)
    alone = ClipAnswerer(any_model, EngineConfig(), ["camera"]).answer(clips, question)
    desk.begin(clips, Question("what?", max_new_tokens=6))
    desk.step(4)
    number = desk.begin(clips, question)
    desk.begin(clips, Question("who?", max_new_tokens=6))
    desk.finish()
    assert desk.answer(number).probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert desk.answer(number).text == alone.text
    assert all(desk.compare(other).equal for other in (0, 2))


def test_where_rows_cannot_be_hidden_choices_come_one_after_another(
    desk: Asking, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", [2, 3])
    question = Question("where?", choices=("left", "left of it", "right", "nowhere at all"), max_new_tokens=8)
    together = ClipAnswerer(any_model, EngineConfig(), ["camera"]).answer(clips, question)
    monkeypatch.setattr(any_model, "takes_masks", False)
    forward = any_model.forward

    def without_mask(rows: Rows, *args: Any) -> torch.Tensor:
        assert rows.visible is None
        return forward(rows, *args)

    monkeypatch.setattr(any_model, "forward", without_mask)
    desk.begin(clips, question)
    desk.finish()
    assert desk.answer(0).probabilities == pytest.approx(together.probabilities, abs=1e-5)


# -- what is dead ------------------------------------------------------------------------------------------------------


def test_rejected_and_ended_tokens_are_hidden_and_then_let_go(
    desk: Asking, clips: tuple[Clip, ...], any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One question ends early and the drafts of the others are wrong: their rows lie before those that go on."""
    monkeypatch.setattr(decoder, "MAX_DEAD_ROWS", 6)
    moved: list[int] = []
    keep_rows = any_model.keep_rows

    def counted(cache: Any, start: int, kept: np.ndarray) -> None:
        moved.append(bool(len(kept)) and int(kept[-1]) != len(kept) - 1)
        keep_rows(cache, start, kept)

    monkeypatch.setattr(any_model, "keep_rows", counted)
    for question in (Question(text, max_new_tokens=length) for text, length in zip(TEXTS, (2, 12, 12), strict=False)):
        desk.answerer._book.remember(question.text, list(range(20, 40)))
        desk.begin(clips, question)
    while desk.answerer.running:
        desk.step()
        for batch in desk.answerer._batches:
            behind = batch.timeline.cache.get_seq_length() - batch.prompt.prefix_length
            needed = sum(len(c.cached) for c in batch._running)
            assert batch._plan.chunks or behind == batch._decoder._tail.length <= needed + 6
    desk.finish()
    assert any(moved)
    assert all(desk.compare(number).equal for number in range(3))


def test_keep_rows_moves_keys_and_values_and_leaves_forks_alone(
    any_model: QwenVideoModel, clips: tuple[Clip, ...]
) -> None:
    timeline = timeline_of(any_model)
    timeline.sync(prompt_of(any_model, clips[0]))
    fork = timeline.fork(len(timeline))
    cache, start = timeline.cache, len(timeline) - 10
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    for kept in ([0, 1, 4, 5, 8], [0, 1, 2], [1], []):
        any_model.keep_rows(cache, start, np.array(kept, dtype=np.int64))
        columns = [*range(start), *(start + k for k in kept)]
        before = [(keys[:, :, columns], values[:, :, columns]) for keys, values in before]
        for layer, (keys, values) in zip(cache.layers, before, strict=True):
            assert layer.get_seq_length() == start + len(kept)
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
    fork.check_integrity()
    fresh = timeline_of(any_model)
    fresh.sync(prompt_of(any_model, clips[0]))
    for one, other in zip(fork.cache.layers, fresh.cache.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


# -- whose turn it is --------------------------------------------------------------------------------------------------


def test_a_question_about_a_part_does_not_wait_for_the_batch(desk: Asking, clips: tuple[Clip, ...]) -> None:
    desk.begin(clips, Question("what?", max_new_tokens=40))
    desk.step(5)
    part = desk.begin(part_of(clips), Question("who?", max_new_tokens=3), part="part")
    assert len(desk.answerer._batches) == 2
    desk.step(2 * 6)
    assert desk.ended == [part]
    said = len(desk.running(0).token_ids)
    desk.step(2)
    assert len(desk.running(0).token_ids) == said + 2
    desk.finish()
    assert desk.compare(0).equal
    assert desk.compare(part).equal


def test_first_tokens_come_in_the_order_of_arrival(
    desk: Asking, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(clip_batch.PASS_ROWS, "cpu", 16)  # about one question
    order: list[int] = []

    def hears(number: int) -> Interrupts:
        return Interrupts(on_text=lambda text, tokens: order.append(number) if tokens == 1 else None)

    for number, question in enumerate(questions(4, length=12)):
        assert desk.begin(clips, question, interrupts=hears(number)) == number
    desk.finish()
    assert order == [0, 1, 2, 3]
    assert all(isinstance(outcome, Answer) for outcome in desk.outcomes.values())
