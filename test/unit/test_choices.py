"""One of several given answers: its probability is native's, whatever the tree, the passes and the company."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support.choices import TOLERANCE, largest_difference, native_scores, scored
from support.frames import random_frame
from vstream_ros.engine import clip_batch
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.choices import BANNED, MAX_NODES, Choices
from vstream_ros.engine.continuation import Interrupts, NewRows
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.errors import CanceledError, InvalidRequestError
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager
from vstream_ros.models.base import Rows
from vstream_ros.models.qwen.video_model import QwenVideoModel

SEEN = 1e-2
"""A difference of log-probabilities that no rounding makes."""
MIXED = (
    "yes", "yes, two", "yes, three men", "no", "n", "à gauche", "一", "<|im_end|>", "a red circle",
)  # fmt: skip
"""Shared beginnings, choices that others begin with, one token, what looks like a control token."""


def clips_for(model: QwenVideoModel, frames: int = 8) -> tuple[Clip, ...]:
    rng = np.random.default_rng(frames)
    memory = SmartFrameManager(MemoryConfig(scene_threshold=1.0))
    size = model.frame_spec.fit(56, 84)
    for k in range(frames):
        memory.add_frame(random_frame(rng, *size), k * 500_000_000)
    return (memory.clip(),)


def answerer_for(model: QwenVideoModel, **config: object) -> ClipAnswerer:
    return ClipAnswerer(model, EngineConfig(**config), ["camera"])  # type: ignore[arg-type]


def asking(*choices: str, text: str = "what is it?", **fields: Any) -> Question:
    return Question(text, choices=choices, **{"max_new_tokens": 8, **fields})


def random_choices(rng: np.random.Generator, count: int, longest: int) -> tuple[str, ...]:
    """Texts over three letters: most begin as others do, and many are the beginning of another."""
    made: dict[str, None] = {}
    while len(made) < count:
        made["".join(rng.choice(list("abc"), int(rng.integers(1, longest + 1))))] = None
    return tuple(made)


@pytest.fixture
def own_config(any_model: QwenVideoModel) -> Iterator[Any]:
    """The model's generation config, to be changed."""
    saved = any_model.model.generation_config
    any_model.model.generation_config = copy.deepcopy(saved)
    yield any_model.model.generation_config
    any_model.model.generation_config = saved


@pytest.mark.parametrize("text_positions", ["checkpoint", "transformers"])
def test_the_probabilities_are_natives(any_model: QwenVideoModel, text_positions: str) -> None:
    answerer, clips = answerer_for(any_model, text_positions=text_positions), clips_for(any_model)
    question = asking(*MIXED)
    for _ in range(2):  # cold, and from the cache
        answer, logs = scored(answerer, clips, question)
        native = native_scores(answerer, clips, question)
        assert largest_difference(logs, native) <= TOLERANCE
        shares = np.exp([sum(parts) for parts in native])
        assert answer.probabilities == pytest.approx(shares / shares.sum(), rel=1e-3)
        assert sum(answer.probabilities) == pytest.approx(1.0)
        best = int(np.argmax([sum(parts) for parts in native]))
        assert (answer.choice_index, answer.text) == (best, MIXED[best])
        assert answer.confidence == answer.probabilities[best]
        assert answer.metrics.passes == 1
    assert answer.metrics.cache_hit
    assert answer.metrics.new_tokens == 0


def test_a_choice_that_sees_its_siblings_is_seen(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer, clips, question = answerer_for(any_model), clips_for(any_model), asking(*MIXED)
    native = native_scores(answerer, clips, question)
    monkeypatch.setattr(NewRows, "ancestors", lambda self: np.tri(len(self), dtype=bool))
    assert largest_difference(scored(answerer, clips, question)[1], native) > SEEN


def test_penalties_bans_and_end_tokens_of_the_checkpoint_count(any_model: QwenVideoModel, own_config: Any) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    question = asking(*MIXED, "again again again", text="again and again?")
    plain = scored(answerer, clips, question)[1]
    own_config.repetition_penalty, own_config.no_repeat_ngram_size = 3.0, 3
    own_config.min_new_tokens = 3
    answer, logs = scored(answerer, clips, question)
    native = native_scores(answerer, clips, question)
    assert largest_difference(plain, native) > SEEN  # or nothing would be tested
    assert largest_difference(logs, native) <= TOLERANCE
    assert all(math.isfinite(p) for p in answer.probabilities)
    banned = MIXED.index("n")  # one token, where an answer has three at least
    assert logs[banned][-1] == BANNED
    assert answer.probabilities[banned] == 0.0


def test_the_end_is_any_of_the_end_tokens_and_no_part_of_a_choice(any_model: QwenVideoModel, own_config: Any) -> None:
    answerer, clips, question = answerer_for(any_model), clips_for(any_model), asking("up", "down")
    both = scored(answerer, clips, question)[1]
    ends = own_config.eos_token_id
    apart = []
    for end in ends:
        own_config.eos_token_id = [end]
        apart.append([parts[-1] for parts in scored(answerer, clips, question)[1]])
    assert np.exp([parts[-1] for parts in both]) == pytest.approx(np.exp(apart).sum(0), rel=1e-4)
    own_config.eos_token_id = [*ends, any_model.tokenize("w")[0]]
    with pytest.raises(InvalidRequestError, match="ends an answer"):
        scored(answerer, clips, question)
    assert answerer.running == 0
    own_config.eos_token_id = ends
    assert largest_difference(scored(answerer, clips, question)[1], both) <= TOLERANCE


@pytest.mark.parametrize("ends", [None, [10**6]])
def test_without_an_end_the_tokens_decide(any_model: QwenVideoModel, own_config: Any, ends: list[int] | None) -> None:
    answerer, clips, question = answerer_for(any_model), clips_for(any_model), asking("up", "down", "do")
    logs = scored(answerer, clips, question)[1]
    own_config.eos_token_id = ends
    answer, endless = scored(answerer, clips, question)
    assert largest_difference([parts[:-1] for parts in endless], [parts[:-1] for parts in logs]) <= TOLERANCE
    assert [parts[-1] for parts in endless] == [BANNED] * 3
    shares = np.exp([sum(parts[:-1]) for parts in logs])
    assert answer.probabilities == pytest.approx(shares / shares.sum(), rel=1e-3)


def test_nothing_of_free_text_matters(any_model: QwenVideoModel, own_config: Any) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    _, plain = scored(answerer, clips, asking(*MIXED))
    for fields in ({"max_new_tokens": 1}, {"temperature": 5.0}, {"temperature": 1.0, "seed": 3}):
        answer, logs = scored(answerer, clips, asking(*MIXED, **fields))
        assert largest_difference(logs, plain) <= TOLERANCE
        assert answer.metrics.seed == 0
    own_config.forced_eos_token_id = own_config.eos_token_id[0]  # at the greatest length
    assert largest_difference(scored(answerer, clips, asking(*MIXED))[1], plain) <= TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 100])
def test_one_to_a_hundred_choices(any_model: QwenVideoModel, count: int) -> None:
    rng = np.random.default_rng(count)
    choices = random_choices(rng, count, 12)
    answerer, clips, question = answerer_for(any_model), clips_for(any_model), asking(*choices)
    answer, logs = scored(answerer, clips, question)
    few = sorted(rng.choice(count, min(count, 8), replace=False))
    native = native_scores(answerer, clips, asking(*(choices[k] for k in few)))
    assert largest_difference([logs[k] for k in few], native) <= TOLERANCE
    assert len(answer.probabilities) == count
    assert sum(answer.probabilities) == pytest.approx(1.0)
    if count == 1:
        assert answer.probabilities == (1.0,)


def test_the_order_of_the_choices_changes_nothing(any_model: QwenVideoModel) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    one = scored(answerer, clips, asking(*MIXED))[0]
    other = scored(answerer, clips, asking(*reversed(MIXED)))[0]
    assert other.probabilities == pytest.approx(one.probabilities[::-1], rel=1e-4)
    assert other.text == one.text


def test_long_choices_take_several_passes(any_model: QwenVideoModel) -> None:
    start = "the man in the red coat by the door " * 4
    choices = (start, f"{start}went", f"{start}came back {'in' * 40}", "nobody", "no " * 50)
    answerer, clips, question = answerer_for(any_model), clips_for(any_model), asking(*choices)
    answer, logs = scored(answerer, clips, question)
    assert largest_difference(logs, native_scores(answerer, clips, question)) <= TOLERANCE
    nodes = sum(len({c[: k + 1] for c in map(str.strip, choices) if len(c) > k}) for k in range(300))
    assert nodes > 5 * MAX_NODES
    assert answer.metrics.passes <= math.ceil(nodes / MAX_NODES) + 4  # little is computed twice


@pytest.mark.parametrize("seed", range(12))
def test_any_cut_into_passes_gives_the_same(models: dict[str, QwenVideoModel], seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = models["qwen2_5_vl"]
    answerer, clips = answerer_for(model), clips_for(model)
    choices = random_choices(rng, int(rng.integers(2, 60)), int(rng.integers(2, 40)))
    question = asking(*choices)
    _, whole = scored(answerer, clips, question)
    running = answerer.begin(clips, question)
    batch = answerer._batches[0]
    continuation = running.continuation
    most = int(rng.choice([1, 3, 20, 80]))
    batch._choose_rows = lambda: (  # type: ignore[method-assign]
        [continuation], [continuation.rows(int(rng.integers(1, most + 1)), 0)],
    )
    outcome: Any = None
    while outcome is None:
        if rng.random() < 0.02:
            answerer.drop_caches()  # it begins again where it was
        outcome = dict(answerer.step()).get(running)
    assert isinstance(outcome, Answer), outcome
    assert isinstance(continuation, Choices)
    assert largest_difference(continuation.token_log_probabilities, whole) <= TOLERANCE
    answerer.timelines.check_integrity()
    assert largest_difference(scored(answerer, clips, question)[1], whole) <= TOLERANCE  # the clip is untouched


def test_a_model_that_takes_no_masks(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    long = "a" * 100
    question = asking(*MIXED, long, f"{long}b", f"{long[:50]}c")
    whole = scored(answerer, clips, question)[1]
    forward, shapes = any_model.forward, []

    def unmasked(rows: Rows, *args: Any) -> Any:
        assert rows.visible is None
        shapes.append(len(rows))
        return forward(rows, *args)

    monkeypatch.setattr(any_model, "takes_masks", False)
    monkeypatch.setattr(any_model, "forward", unmasked)
    assert largest_difference(scored(answerer, clips, question)[1], whole) <= TOLERANCE
    assert len(shapes) > len(MIXED)
    answerer.timelines.check_integrity()
    monkeypatch.setattr(any_model, "cache_rolls_back", False)
    with pytest.raises(InvalidRequestError, match="attn_implementation: sdpa"):
        answerer.begin(clips, question)


@pytest.mark.parametrize("pass_rows", [4, 48])
def test_choices_and_free_text_in_one_batch(
    any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch, pass_rows: int
) -> None:
    monkeypatch.setitem(clip_batch.PASS_ROWS, "cpu", pass_rows)
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    questions = [
        asking(*MIXED), Question("and then?", max_new_tokens=12), asking("left", "right", text="which way?"),
        Question("why?", max_new_tokens=5), asking(*random_choices(np.random.default_rng(3), 40, 9), text="which?"),
    ]
    alone = [answerer.answer(clips, question) for question in questions]
    native = [native_scores(answerer, clips, q) if q.choices else None for q in questions[:3]]
    running = []
    ended: dict[Any, Any] = {}
    for question in questions:  # each joins one step after the one before
        running.append(answerer.begin(clips, question))
        ended |= dict(answerer.step())
    while len(ended) < len(questions):
        ended |= dict(answerer.step())
    for one, before in zip(running, alone, strict=True):
        answer = ended[one]
        assert isinstance(answer, Answer), answer
        assert (answer.text, answer.token_ids) == (before.text, before.token_ids)
        assert answer.probabilities == pytest.approx(before.probabilities, rel=1e-3)
    for one, expected in zip(running, native, strict=False):
        if expected is not None:
            assert isinstance(one.continuation, Choices)
            assert largest_difference(one.continuation.token_log_probabilities, expected) <= TOLERANCE


def test_the_winner_is_the_free_text_where_that_is_more_likely_than_not(any_model: QwenVideoModel) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    ends = any_model.model.generation_config.eos_token_id
    agreed = 0
    for number in range(30):
        text = f"question {number}?"
        free = answerer.answer(clips, Question(text, max_new_tokens=1))
        word = free.text.strip()
        if free.token_ids[-1] in ends or any_model.tokenize(word) != list(free.token_ids) or word in ("x", "yy"):
            continue  # it could not be written as a choice
        answer, logs = scored(answerer, clips, asking("x", word, "yy", text=text))
        assert logs[1][0] == pytest.approx(math.log(free.confidence), abs=1e-3)
        if sum(logs[1]) > math.log(0.5):
            assert answer.text == word
        assert logs[1][0] >= max(logs[0][0], logs[2][0]) - TOLERANCE  # no other begins with a likelier token
        agreed += answer.text == word
    assert agreed


def test_a_choice_is_returned_verbatim_and_scored_without_white_space_around_it(any_model: QwenVideoModel) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    bare = scored(answerer, clips, asking("up", "down"))[0]
    wide = scored(answerer, clips, asking(" up\n", "\tdown "))[0]
    assert wide.probabilities == pytest.approx(bare.probabilities, rel=1e-4)
    assert wide.text == (" up\n", "\tdown ")[wide.choice_index]


def test_choices_that_the_tokenizer_cannot_tell_apart(
    any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    composed, decomposed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"
    with pytest.raises(InvalidRequestError, match="the same to"):
        answerer.begin(clips, asking(composed, "tea", decomposed))
    tokenize = any_model.tokenize
    monkeypatch.setattr(any_model, "tokenize", lambda text: [] if text == "-" else tokenize(text))
    with pytest.raises(InvalidRequestError, match="'-' of choices is no token"):
        answerer.begin(clips, asking("yes", "-"))
    monkeypatch.undo()
    assert answerer.answer(clips, asking("yes", "-")).choice_index in (0, 1)


def test_a_choice_that_exceeds_the_context(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    held = len(answerer.prompt(clips, "what is it?"))
    monkeypatch.setattr(any_model, "context_length", held + 20)
    assert answerer.answer(clips, asking("x" * 20, "y", max_new_tokens=4000)).choice_index in (0, 1)
    with pytest.raises(InvalidRequestError, match="the longest of choices, 21, exceed"):
        answerer.begin(clips, asking("y", "x" * 21))
    assert answerer.running == 0


def test_a_question_with_choices_can_be_ended_between_passes(any_model: QwenVideoModel) -> None:
    answerer, clips = answerer_for(any_model), clips_for(any_model)
    question = asking(*random_choices(np.random.default_rng(0), 100, 20))
    whole = scored(answerer, clips, question)[1]
    checks = iter([None, None, CanceledError("the caller went away")])
    with pytest.raises(CanceledError) as caught:
        answerer.answer(clips, question, interrupts=Interrupts(lambda: next(checks, None)))
    assert caught.value.answer == ""
    answerer.timelines.check_integrity()
    assert largest_difference(scored(answerer, clips, question)[1], whole) <= TOLERANCE
