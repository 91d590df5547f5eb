"""Passes on the arena, uncaptured: they give native's answers, alone and together. Captured ones need a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from support.equality import compare, generated, native_answer, recorded_choices
from support.frames import random_frame
from vstream_ros.engine.answerer import ClipAnswerer
from vstream_ros.engine.answers import Answer, Question
from vstream_ros.engine.engine_config import EngineConfig
from vstream_ros.engine.recovery import recover_from_out_of_memory
from vstream_ros.memory.clip import NANOSECONDS, Clip, Tubelet
from vstream_ros.models.kernels import decode_graphs
from vstream_ros.models.kernels.attention import folded_sdpa
from vstream_ros.models.kernels.decode_graphs import DecodeGraphs, few_rows_attention
from vstream_ros.models.qwen.video_model import QwenVideoModel


@pytest.fixture
def answerer(any_model: QwenVideoModel, monkeypatch: pytest.MonkeyPatch) -> ClipAnswerer:
    graphs = DecodeGraphs(any_model.model, any_model.device)
    monkeypatch.setattr(any_model, "_decode_graphs", graphs)
    monkeypatch.setattr(any_model.model.generation_config, "eos_token_id", None)  # every answer has its full length
    monkeypatch.setattr(decode_graphs, "BLOCK", 64)
    return ClipAnswerer(any_model, EngineConfig(), ["camera"])


@pytest.fixture
def clips(any_model: QwenVideoModel) -> tuple[Clip, ...]:
    rng = np.random.default_rng(0)
    frames = [np.stack([random_frame(rng, *any_model.frame_spec.fit(56, 84))] * 2) for _ in range(3)]
    return (Clip(tuple(Tubelet(k, "camera", f, (k,), k * NANOSECONDS, 0.0) for k, f in enumerate(frames)), 1.0),)


def test_answers_on_the_arena_are_natives(
    answerer: ClipAnswerer, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vstream_ros.engine.clip_batch.ANSWER_TOKENS", 0)  # the arena grows in the middle
    questions = [Question(f"what {'was ' * k}there?", max_new_tokens=5 + 9 * k) for k in range(4)]
    for round_ in range(3):  # cold, from the cache, with drafts
        with recorded_choices(answerer) as recorded:
            running = [answerer.begin(clips, question) for question in questions]
            answers = answerer.finish(running)
        for answer, rows, question in zip(answers, recorded, questions, strict=True):
            assert compare(generated(answer.token_ids, rows), native_answer(answerer, clips, question)).equal
        answerer.timelines.check_integrity()
        model = answerer.model
        assert isinstance(model, QwenVideoModel)
        assert model.arena_bytes > 0
        assert model._decode_graphs is not None
        assert model._decode_graphs.owner is None
        if round_ == 1:
            answerer.config = dataclasses.replace(answerer.config, drafts="on")
        clips = (dataclasses.replace(clips[0], tubelets=clips[0].tubelets[: 3 - round_]),)


def test_two_clips_at_once_and_one_arena(answerer: ClipAnswerer, clips: tuple[Clip, ...]) -> None:
    part = (dataclasses.replace(clips[0], tubelets=clips[0].tubelets[1:]),)
    questions = [Question("what was there?", max_new_tokens=12), Question("and there?", max_new_tokens=12)]
    with recorded_choices(answerer) as recorded:
        running = [answerer.begin(clips, questions[0]), answerer.begin(part, questions[1], part="part")]
        answers = answerer.finish(running)
    for answer, asked, rows, question in zip(answers, (clips, part), recorded, questions, strict=True):
        assert compare(generated(answer.token_ids, rows), native_answer(answerer, asked, question)).equal


def test_the_arena_is_there_after_a_load_and_goes_where_memory_runs_out(
    answerer: ClipAnswerer, clips: tuple[Clip, ...]
) -> None:
    model = answerer.model
    model.prepare(1000)
    prepared = model.arena_bytes
    assert prepared > 0
    question = Question("what was there?", max_new_tokens=12)
    with recorded_choices(answerer) as recorded:
        running, outcomes = answerer.begin(clips, question), {}
        for _ in range(4):
            outcomes.update(answerer.step())
        assert model.arena_bytes == prepared
        recover_from_out_of_memory(answerer, keep_intact=False)  # of another question's step
        assert model.arena_bytes == 0
        while not outcomes:
            outcomes.update(answerer.step())
    answer = outcomes[running]
    assert isinstance(answer, Answer)
    assert compare(generated(answer.token_ids, recorded[0]), native_answer(answerer, clips, question)).equal


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_attention_over_few_rows(rows: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 8, rows, 16), torch.randn(1, 2, 64, 16), torch.randn(1, 2, 64, 16)
    mask = torch.zeros(1, 1, rows, 64).masked_fill_(torch.rand(1, 1, rows, 64) < 0.5, torch.finfo(torch.float32).min)
    ours, _ = few_rows_attention(torch.nn.Module(), query, key, value, mask, 0.3)
    torch.testing.assert_close(ours, folded_sdpa(query, key, value, mask, 0.3).transpose(1, 2))
    rounded, _ = few_rows_attention(torch.nn.Module(), query.bfloat16(), key.bfloat16(), value.bfloat16(), mask, 0.3)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - ours).abs().max() < 0.05
