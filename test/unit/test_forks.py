"""Questions about parts of memory: few forks, none that memory has forgotten, none where the part is all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.engines import answerer_of, feed
from support.equality import compare, generated, native_answer, recorded_choices
from vstream_ros import errors
from vstream_ros.engine import DelayedBatchInferenceEngine, EngineConfig, Question
from vstream_ros.memory import MemoryConfig

MEMORY = MemoryConfig(star_memory_size=4, stream_window_size=8, stream_slide=2, scene_threshold=1.0)
HALF_SECOND = 500_000_000


@pytest.fixture
def engine(loaded: tuple[Any, Any]) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory=MEMORY, max_pixels=84 * 84, max_new_tokens=2, max_forks=3
    ) as made:
        yield made


@pytest.fixture
def two_cameras(loaded: tuple[Any, Any]) -> Iterator[DelayedBatchInferenceEngine]:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory={"front": MEMORY, "rear": MEMORY}, max_pixels=84 * 84, max_new_tokens=2
    ) as made:
        feed(made, 6, camera="front")
        feed(made, 6, camera="rear")
        made.ask("warm up")
        yield made


def forks_of(engine: DelayedBatchInferenceEngine) -> int:
    return len(answerer_of(engine).timelines._forks)


def test_however_many_parts_are_asked_about_few_forks_are_kept(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 12)
    engine.ask("warm up")
    answerer = answerer_of(engine)
    for start in range(1, 60):
        engine.ask("then?", start_ns=start * HALF_SECOND // 10)
        assert forks_of(engine) <= 3
        answerer.timelines.check_integrity()
    assert forks_of(engine) == 3
    for start in (59, 58, 57):  # those that were used last
        assert engine.ask("then?", start_ns=start * HALF_SECOND // 10)[1]["cache_hit"] is True
    assert engine.ask("and now?")[1]["cache_hit"] is True


def test_without_forks_a_part_is_answered_all_the_same(loaded: tuple[Any, Any]) -> None:
    with DelayedBatchInferenceEngine(
        *loaded, "cpu", memory=MEMORY, max_pixels=84 * 84, max_new_tokens=4, max_forks=0
    ) as engine:
        feed(engine, 8)
        engine.ask("warm up")
        answerer, question = answerer_of(engine), Question("then?", start_ns=1, max_new_tokens=4)
        with recorded_choices(answerer) as recorded:
            answer = engine.submit(question).future.result(timeout=60)
        native = native_answer(answerer, engine.clips(question), question)
        assert compare(generated(answer.token_ids, recorded[0]), native).equal
        assert forks_of(engine) == 0
        assert engine.ask("and now?")[1]["cache_hit"] is True


def test_the_number_of_forks_is_a_parameter_with_a_range() -> None:
    assert EngineConfig().max_forks == 8
    for name in ("max_forks", "max_question_bytes"):
        with pytest.raises(errors.ConfigError, match=f"{name} must be"):
            EngineConfig(**{name: -1})  # type: ignore[arg-type]


def test_a_fork_goes_when_memory_has_forgotten_what_it_holds(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine, 16)
    engine.ask("then?", start_ns=11 * HALF_SECOND, end_ns=11 * HALF_SECOND)
    assert forks_of(engine) == 1
    held = next(iter(answerer_of(engine).timelines._forks.values())).tubelet_ids
    k = 16
    while held[0] in {t.id for clip in engine.clips() for t in clip.tubelets}:
        feed(engine, 2, start=k)
        k += 2
    engine.ask("and now?")
    assert forks_of(engine) == 0


def test_naming_every_camera_is_asking_about_all_of_memory(two_cameras: DelayedBatchInferenceEngine) -> None:
    held = two_cameras.device_memory()[0].kv_cache
    for cameras in (("front", "rear"), ("rear", "front")):
        assert two_cameras.ask("and now?", cameras=cameras)[1]["cache_hit"] is True
        assert forks_of(two_cameras) == 0
    feed(two_cameras, 2, start=6, camera="rear")
    two_cameras.ask("and now?", cameras=("rear", "front"))
    assert two_cameras.ask("and now?")[1]["cache_hit"] is True
    assert forks_of(two_cameras) == 0
    assert two_cameras.device_memory()[0].kv_cache < 2 * held


def test_a_part_that_is_all_of_memory_needs_no_fork(two_cameras: DelayedBatchInferenceEngine) -> None:
    assert two_cameras.ask("and now?", start_ns=0, end_ns=10**18)[1]["cache_hit"] is True
    assert forks_of(two_cameras) == 0
    two_cameras.clear("test", camera="rear")
    two_cameras.ask("about the only one with frames", cameras=("front",))
    assert forks_of(two_cameras) == 0
    assert two_cameras.ask("and now?")[1]["cache_hit"] is True
    two_cameras.ask("a part", start_ns=2 * HALF_SECOND)
    assert forks_of(two_cameras) == 1


def test_the_order_of_named_cameras_makes_no_other_part(loaded: tuple[Any, Any]) -> None:
    memory = dict.fromkeys(("front", "left", "rear"), MEMORY)
    with DelayedBatchInferenceEngine(*loaded, "cpu", memory=memory, max_pixels=84 * 84, max_new_tokens=2) as engine:
        for camera in memory:
            feed(engine, 2, camera=camera)
        engine.ask("two of three", cameras=("front", "rear"))
        assert engine.ask("two of three", cameras=("rear", "front"))[1]["cache_hit"] is True
        assert forks_of(engine) == 1
