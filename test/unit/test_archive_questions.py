"""A question about a time range in the past sees archived frames, and its answer is native's over exactly those."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.engines import Gate, answerer_of, fails_with, wait_until
from support.equality import Generated, compare, generated, native_answer, recorded_choices
from support.frames import random_frame
from vstream_ros import errors
from vstream_ros.engine import Answer, DelayedBatchInferenceEngine, Question
from vstream_ros.engine.answerer import tubelet_ids
from vstream_ros.memory import Clip, MemoryConfig

SECOND = 1_000_000_000
FRAMES = 80
"""Half a second apart, from second 1 on: 40 tubelets, of which memory holds 6 to 7."""
SIZES = {"star_memory_size": 6, "stream_window_size": 6, "stream_slide": 2, "scene_threshold": 1.0}
MEMORY = MemoryConfig(**SIZES, archive_max_bytes=1 << 20)  # type: ignore[arg-type]
RANGES = [(5, 9), (1, 12), (20, 37), (10, 0), (6, 6)]
"""Seconds; 0: unbounded."""


@pytest.fixture
def engine(
    request: pytest.FixtureRequest, loaded: tuple[Any, Any], tmp_path: Path
) -> Iterator[DelayedBatchInferenceEngine]:
    options = {"memory": MEMORY, "max_pixels": 84 * 84, "max_new_tokens": 4, **getattr(request, "param", {})}
    if options.pop("on_disk", False):
        options["archive_folder"] = str(tmp_path)
    with DelayedBatchInferenceEngine(*loaded, "cpu", **options) as made:
        yield made
    assert list(tmp_path.iterdir()) == []


def feed(engine: DelayedBatchInferenceEngine, count: int = FRAMES, start: int = 0) -> dict[int, np.ndarray]:
    """Random frames by stamp."""
    rng = np.random.default_rng(start)
    shown = {SECOND + k * SECOND // 2: random_frame(rng, 84, 84) for k in range(start, start + count)}
    for stamp_ns, frame in shown.items():
        engine.add_frame(frame, stamp_ns=stamp_ns)
    return shown


def about(start_s: float, end_s: float, text: str = "what was there?") -> Question:
    return Question(text, start_ns=round(start_s * SECOND), end_ns=round(end_s * SECOND), max_new_tokens=6)


def asked(engine: DelayedBatchInferenceEngine, question: Question) -> tuple[Answer, Generated]:
    with recorded_choices(answerer_of(engine)) as recorded:
        answer = engine.submit(question).future.result(timeout=60)
    return answer, generated(answer.token_ids, recorded[0])


def raw(clips: tuple[Clip, ...], shown: dict[int, np.ndarray]) -> tuple[Clip, ...]:
    """The clips with the frames as they were shown, not as the JPEGs have them."""
    return tuple(
        replace(
            clip, tubelets=tuple(replace(t, frames=np.stack([shown[s] for s in t.stamps_ns])) for t in clip.tubelets)
        )
        for clip in clips
    )


@pytest.mark.parametrize("engine", [{}, {"on_disk": True}, {"background_encoding": "full"}], indirect=True)
def test_answers_about_ranges_are_natives_over_the_frames_handed_out(engine: DelayedBatchInferenceEngine) -> None:
    shown = feed(engine)
    engine.ask("warm up")
    held = tubelet_ids(engine.clips())
    for start_s, end_s in RANGES:
        question = about(start_s, end_s)
        clips = engine.clips(question)
        archived = tubelet_ids(clips) - held
        assert archived or len(tubelet_ids(clips)) == 6  # what memory holds itself may leave no room
        answer, cached = asked(engine, question)
        assert compare(cached, native_answer(answerer_of(engine), clips, question)).equal
        if archived:
            assert not compare(cached, native_answer(answerer_of(engine), raw(clips, shown), question)).equal
        stamps = answer.frame_stamps_ns
        assert stamps == tuple(s for clip in clips for t in clip.tubelets for s in t.stamps_ns)
        assert list(stamps) == sorted(stamps)
        assert set(stamps) <= set(shown)
        assert len(stamps) <= 12  # as many as star and window hold
        again, cached = asked(engine, replace(question, text="who else?"))
        assert again.metrics.cache_hit
        assert compare(cached, native_answer(answerer_of(engine), clips, replace(question, text="who else?"))).equal
        answerer_of(engine).timelines.check_integrity()
    assert not tubelet_ids(engine.clips(about(5, 9))) & tubelet_ids(engine.clips(about(20, 30)))


def test_another_tubelets_features_would_be_seen(engine: DelayedBatchInferenceEngine) -> None:
    """The control: had two archived tubelets shared an identity, the comparison would tell."""
    feed(engine)
    engine.ask("warm up")
    question = about(5, 9)
    clips = engine.clips(question)
    vision = answerer_of(engine).vision
    one, other = clips[0].tubelets[:2]
    vision.features([other])
    vision._features[one.id] = vision._features[other.id]
    _, cached = asked(engine, question)
    assert not compare(cached, native_answer(answerer_of(engine), clips, question)).equal


def test_a_range_that_memory_covers_gets_its_tubelets_and_the_archived_between_them(
    engine: DelayedBatchInferenceEngine,
) -> None:
    feed(engine)
    held = engine.clips()[0].tubelets
    for start_s, end_s in RANGES:
        question = about(start_s, end_s)
        within = [one for one in held if one.is_within(question.start_ns, question.end_ns)]
        handed_out = engine.clips(question)[0].tubelets
        assert [one for one in handed_out if one in held] == within


def test_questions_about_all_of_memory_see_nothing_of_it(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine)
    with_archive = engine.clips()[0]
    engine.ask("warm up")
    current = answerer_of(engine).timelines.current.tubelet_ids
    assert current == tuple(one.id for one in with_archive.tubelets)
    engine.ask(about(5, 9))
    engine.ask(about(1, 0))  # all of memory and more: a part, not the whole
    assert answerer_of(engine).timelines.current.tubelet_ids == current
    assert engine.ask("and now?")[1]["cache_hit"]
    with DelayedBatchInferenceEngine(memory=replace(MEMORY, archive_max_bytes=0), max_pixels=84 * 84) as plain:
        feed(plain)
        without = plain.clips()[0]
        assert [t.stamps_ns for t in without.tubelets] == [t.stamps_ns for t in with_archive.tubelets]
        assert plain.status().cameras[0].archive_bytes == 0


@pytest.mark.parametrize(
    "engine", [{}, {"background_encoding": "vision"}, {"background_encoding": "full"}], indirect=True
)
def test_features_and_fork_outlive_frames_and_work_ahead(engine: DelayedBatchInferenceEngine) -> None:
    """Frames come, but nothing of that range leaves star: the second question is a hit."""
    feed(engine)
    engine.ask("warm up")
    question = about(5, 9)
    before = tubelet_ids(engine.clips(question))
    engine.ask(question)
    feed(engine, 1, start=FRAMES)
    engine.ask("and now?")
    if engine.config.background_encoding == "full":  # but for the odd last frame, which is never cached
        wait_until(lambda: engine.status().pending_tubelets <= 1 and not engine.status().ahead_pending_tubelets)
    assert tubelet_ids(engine.clips(question)) == before
    assert before <= set(answerer_of(engine).vision._features)
    assert engine.ask(replace(question, text="who?"))[1]["cache_hit"]


def test_what_is_let_go_is_forgotten_by_the_caches(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine)
    engine.ask("warm up")
    question = about(5, 9)
    engine.ask(question)
    ids = tubelet_ids(engine.clips(question))
    engine.clear()
    engine._thread.run(lambda: None).result(timeout=60)
    assert not ids & set(answerer_of(engine).vision._features)
    assert len(answerer_of(engine).timelines._forks) == 0
    status = engine.status().cameras[0]
    assert (status.archive_frames, status.archive_bytes) == (0, 0)
    feed(engine, 4)
    assert ids.isdisjoint(tubelet_ids(engine.clips(question)))


def test_a_clear_cancels_a_question_about_archived_frames(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine)
    engine.ask("warm up")
    question = about(5, 6)
    assert not tubelet_ids(engine.clips(question)) & tubelet_ids(engine.clips())  # the archive's alone
    gate = Gate()
    pending = engine.submit(question, on_text=gate)
    assert gate.reached.wait(60)
    engine.clear()
    gate.open()
    fails_with(pending.future, errors.CanceledError)
    fails_with(engine.submit(question).future, errors.NoFramesError)


def test_each_camera_has_its_own(loaded: tuple[Any, Any]) -> None:
    cameras = {"front": MEMORY, "rear": replace(MEMORY, archive_max_bytes=0)}
    with DelayedBatchInferenceEngine(*loaded, "cpu", memory=cameras, max_pixels=84 * 84) as engine:
        rng = np.random.default_rng(0)
        for k in range(FRAMES):
            for name in cameras:
                engine.add_frame(random_frame(rng, 84, 84), stamp_ns=SECOND + k * SECOND // 2, camera=name)
        question = about(5, 9)
        counts = {clip.tubelets[0].camera: len(clip) for clip in engine.clips(question)}
        assert counts["front"] > counts.get("rear", 0)
        answer, cached = asked(engine, question)
        assert compare(cached, native_answer(answerer_of(engine), engine.clips(question), question)).equal
        assert set(answer.frame_cameras) == set(counts)


def test_bytes_are_told(engine: DelayedBatchInferenceEngine) -> None:
    feed(engine)
    frames = engine.device_memory()[-1].frames
    status = engine.status().cameras[0]
    assert status.archive_frames == FRAMES - status.star_frames - status.stream_frames
    assert 0 < status.archive_bytes == status.archive_ram_bytes <= MEMORY.archive_max_bytes
    assert frames == status.nbytes + status.archive_ram_bytes
