"""Whatever fails on the way to an answer, the next answer is native's, and what can't be damaged is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from support.engines import feed
from support.equality import compare, generated, native_answer, recorded_choices
from support.faults import fault_at
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.memory import MemoryConfig
from vstream_ros.synthetic.random_model import FAMILIES, random_model

MEMORY = MemoryConfig(star_memory_size=4, stream_window_size=6, stream_slide=2, scene_threshold=1.0)
FAULTS = (RuntimeError, KeyError, torch.OutOfMemoryError, errors.ModelFailedError)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_fault_in_any_call_of_the_model_the_next_answer_is_natives(family: str) -> None:
    rng = np.random.default_rng(FAMILIES.index(family))
    model, processor = random_model(family)
    with DelayedBatchInferenceEngine(
        model, processor, "cpu", memory=MEMORY, max_pixels=64 * 64, max_new_tokens=4, prefill_chunk_tubelets=2
    ) as engine:
        answerer = engine._host.answerer
        assert answerer is not None
        fired: list[str] = []
        fed = 0
        for _ in range(30):
            count = int(rng.integers(1, 5))
            feed(engine, count, start=fed)
            fed += count
            first_ns = engine.clips()[0].tubelets[0].stamps_ns[0]
            question = Question("what?", max_new_tokens=4, start_ns=int(rng.choice([0, 0, first_ns + 1])))
            with fault_at(model, int(rng.integers(1, 300)), FAULTS[int(rng.integers(len(FAULTS)))]) as raised:
                failed = engine.submit(question).future.exception(timeout=60)
            assert bool(raised) == (failed is not None)
            fired += raised
            answerer.timelines.check_integrity()
            answerer.vision.check_integrity()
            asked = [question, Question("all of it?", max_new_tokens=4)]
            rng.shuffle(asked)
            for again in asked:
                with recorded_choices(answerer) as recorded:
                    answer = engine.submit(again).future.result(timeout=60)
                native = native_answer(answerer, engine.clips(again), again)
                assert compare(generated(answer.token_ids, recorded[0]), native).equal
        assert len(fired) >= 10
        assert len(set(fired)) >= 4, "the faults were all of one kind"


def test_a_fault_drops_only_what_it_may_have_damaged() -> None:
    model, processor = random_model("qwen2_5_vl")
    with DelayedBatchInferenceEngine(
        model, processor, "cpu", memory=MEMORY, max_pixels=84 * 84, max_new_tokens=2
    ) as engine:
        feed(engine, 8)
        engine.ask("warm up")
        engine.ask("warm up", start_ns=500_000_001)
        with fault_at(model, 3, RuntimeError) as raised:
            failed = engine.submit(Question("what?", start_ns=500_000_001)).future.exception(timeout=60)
        assert raised
        assert isinstance(failed, errors.VStreamError)
        metrics = engine.ask("and now?", start_ns=500_000_001)[1]
        assert metrics["cache_hit"] is False  # what a failing call leaves in its own cache is not trusted
        assert metrics["tubelets_reused"] == metrics["tubelets"]
        assert engine.ask("and now?")[1]["cache_hit"] is True
        with fault_at(model, 3, RuntimeError):
            assert engine.submit(Question("what?")).future.exception(timeout=60)
        assert engine.ask("and now?", start_ns=500_000_001)[1]["cache_hit"] is True
        metrics = engine.ask("and now?")[1]
        assert metrics["tubelets_reused"] == metrics["tubelets"]
