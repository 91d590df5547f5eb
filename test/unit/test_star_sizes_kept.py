"""Star in smaller frames beside what else happens to tubelets: archived, saved, restored, withdrawn, reweighed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.engines import answerer_of, feed, wait_until
from support.equality import compare, native_answer
from support.memory_frames import SECOND, noisy, scene
from vstream_ros.engine import DelayedBatchInferenceEngine, Question
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.memory_files import load_memories, save_memories
from vstream_ros.memory import Archive, Clip, MemoryConfig, Tubelet
from vstream_ros.models.frame_spec import FrameSpec
from vstream_ros.synthetic.random_model import random_model

PERIOD = SECOND // 2
LARGE, SMALL = (112, 168), (28, 56)
SPEC, OTHER = FrameSpec(), FrameSpec(factor=32)
MEMORY = MemoryConfig(
    sample_rate_hz=2.0, star_memory_size=8, stream_window_size=8, stream_slide=3, include_pending=False,
    scene_threshold=1.0, archive_max_bytes=1 << 20,
)  # fmt: skip
TUBELETS_IN_STAR = 4


def cameras(star_max_pixels: int = 56 * 56, archive_max_bytes: int = 1 << 20) -> CameraMemories:
    memory = MemoryConfig(**{**vars(MEMORY), "archive_max_bytes": archive_max_bytes})
    return CameraMemories({"front": memory}, SPEC, star_max_pixels=star_max_pixels)


def fill(memories: CameraMemories, frames: int = 80, start: int = 0) -> None:
    for k in range(start, start + frames):
        memories.keep(memories.offer(k * PERIOD, "front"), noisy(scene(k // 5, 0, *LARGE), k))
        memories._memories["front"].check_integrity()


def whole(memories: CameraMemories) -> Clip:
    return memories.take().clips[0]


def sizes(clip: Clip) -> list[tuple[int, int]]:
    return [(t.frames.shape[1], t.frames.shape[2]) for t in clip.tubelets]


def pixels(clip: Clip) -> list[bytes]:
    return [tubelet.frames.tobytes() for tubelet in clip.tubelets]


# ---- the archive ----


def test_what_was_archived_comes_out_in_stars_size_of_each_model() -> None:
    """So a question about a time range never takes more tokens than the context was checked for."""
    memories = cameras()
    fill(memories)
    seen: dict[int, tuple[int, int]] = {}
    for spec in (SPEC, OTHER, SPEC):
        memories.use_frame_spec(spec, "another model")
        ranged = memories.take((), 1, 40 * PERIOD).clips[0]
        held = {tubelet.id for tubelet in whole(memories).tubelets}
        small = spec.shrink(*spec.fit(*LARGE), max_pixels=56 * 56)
        assert small != spec.fit(*LARGE)
        archived = [t for t in ranged.tubelets if t.id not in held]
        assert len(archived) >= 3
        for tubelet in archived:
            assert tubelet.frames.shape[1:3] == small
            assert seen.setdefault(tubelet.id, small) == small, "another size, another id"
        assert {t.id for t in archived} <= memories.held_tubelets()
        again = memories.take((), 1, 40 * PERIOD).clips[0]
        assert [t.id for t in again.tubelets] == [t.id for t in ranged.tubelets]
    assert len(seen) > len(archived)


def test_the_rule_outlives_what_the_archive_forgets_and_ends_when_it_is_taken_back() -> None:
    numbers = itertools.count()
    archive = Archive(1 << 20, ids=numbers)
    memories = cameras(star_max_pixels=0, archive_max_bytes=0)
    fill(memories, 8)
    clip = whole(memories)
    archive.shrink(lambda height, width: (height // 2, width // 2))
    archive.add(clip.tubelets[0])
    archive.forget()

    def handed_out() -> list[tuple[int, int]]:
        empty = Clip((), clip.second_per_grid)
        return [t.frames.shape[1:3] for t in archive.joined(empty, 0, 0, 10).tubelets]

    assert handed_out() == []
    archive.add(clip.tubelets[1])
    assert handed_out() == [(56, 84)]
    archive.resize((28, 56))
    assert handed_out() == [(14, 28)]
    archive.shrink(None)
    assert handed_out() == [(28, 56)]
    archive.check_integrity()


# ---- saving ----


@pytest.mark.parametrize("again", [cameras, None])
def test_full_frames_are_saved_and_star_is_small_after_a_restore(
    tmp_path: Path, again: Callable[[], CameraMemories] | None
) -> None:
    before = cameras()
    fill(before, 60)
    for state in before.saved_states():
        assert {t.frames.shape[1:3] for t in state.held.star + state.held.stream} == {LARGE}
    clip = whole(before)
    before.clips_ahead()  # makes twins of the tubelets that leave next
    save_memories(before, tmp_path / "memory.npz")
    after = again() if again is not None else before
    fill(after, 33, start=1000)
    old, twins_of = {t.id for t in whole(after).tubelets}, after._memories["front"]._held.star_frames
    loaded = load_memories(after, tmp_path / "memory.npz")
    assert "scaled" not in loaded.summary
    assert twins_of.nbytes == 0, "of tubelets that are gone"
    restored = whole(after)
    assert pixels(restored) == pixels(clip)
    assert sizes(restored) == [SMALL] * TUBELETS_IN_STAR + [LARGE] * (len(clip) - TUBELETS_IN_STAR)
    assert old.isdisjoint(t.id for t in restored.tubelets)
    fill(after, 20, start=60)
    unsaved = cameras()
    fill(unsaved, 80)
    assert sizes(whole(after)) == sizes(whole(unsaved))


@pytest.mark.parametrize(("written_with", "read_with"), [(3136, 0), (0, 3136), (3136, 2 * 3136)])
def test_the_reader_decides_about_stars_size(tmp_path: Path, written_with: int, read_with: int) -> None:
    before, after, plain = cameras(written_with), cameras(read_with), cameras(read_with)
    fill(before, 60)
    fill(plain, 60)
    save_memories(before, tmp_path / "memory.npz")
    load_memories(after, tmp_path / "memory.npz")
    assert pixels(whole(after)) == pixels(whole(plain))


# ---- frames that are withdrawn, importance that comes later ----


def test_frames_on_trial_that_are_withdrawn_leave_the_clip_as_it_was() -> None:
    memories, steady = cameras(), cameras()
    for one in (memories, steady):
        fill(one, 45)
        one.clips_ahead()
    for k in range(2):  # an hour ahead, refuted by the next frame
        memories.keep(memories.offer(7200 * SECOND + k * PERIOD, "front"), scene(7, 0, *LARGE))
        memories.clips_ahead()
    for one in (memories, steady):
        fill(one, 6, start=45)
    assert pixels(whole(memories)) == pixels(whole(steady))
    memories.clips_ahead(), steady.clips_ahead()
    assert memories.status()[0].nbytes == steady.status()[0].nbytes


def test_a_twin_hands_its_importance_to_the_tubelet_that_it_stands_for() -> None:
    memories = cameras()
    fill(memories, 60)
    twin, later = whole(memories).tubelets[1], memories.clips_ahead()[1][0].tubelets
    assert memories.reweigh("front", twin.id, 7.5)
    changed = whole(memories).tubelets[1]
    assert (changed.id, changed.importance, changed.reweighed) == (twin.id, 7.5, True)
    assert not memories.reweigh("front", twin.id, 1.0), "once"
    told = next(t for t in memories.clips_ahead()[1][0].tubelets if t.id == twin.id)
    assert told.importance == 7.5
    # A twin of a tubelet that is still in the window, encoded ahead of the slide: once as well.
    held = {t.id for t in whole(memories).tubelets}
    ahead = next(t for t in later if t.id not in held)
    assert ahead.frames.shape[1:3] == SMALL
    in_window = next(t for t in whole(memories).tubelets if t.stamps_ns == ahead.stamps_ns)
    assert memories.reweigh("front", ahead.id, 3.0)
    assert not memories.reweigh("front", in_window.id, 4.0)
    assert next(t for t in whole(memories).tubelets if t.id == in_window.id).importance == 3.0


# ---- through the engine ----


@pytest.mark.parametrize("selection", ["pixel", "semantic"])
def test_twins_of_the_next_slide_are_encoded_ahead_and_an_archive_answers_as_native(selection: str) -> None:
    made, processor = random_model("qwen2_5_vl")
    with DelayedBatchInferenceEngine(
        made, processor, "cpu", memory=MEMORY, max_pixels=112 * 168, star_max_pixels=56 * 56,
        background_encoding="vision", selection_method=selection, max_new_tokens=4,
    ) as engine:  # fmt: skip
        for k in range(0, 60, 4):
            feed(engine, 4, start=k)
        answerer = answerer_of(engine)

        def all_encoded() -> bool:
            clips_now, clips_next = engine._cameras.clips_ahead()
            wanted = {t.id for clip in (*clips_now, *clips_next) for t in clip.tubelets}
            twins = wanted - {t.id for clip in clips_now for t in clip.tubelets}
            return bool(twins) and engine._thread.run(lambda: all(t in answerer.vision for t in wanted)).result(60)

        wait_until(all_encoded)
        question = Question("then?", start_ns=1, end_ns=20 * SECOND)
        clips = engine.clips(question)
        in_memory = sum(t.is_within(1, 20 * SECOND) for t in engine.clips()[0].tubelets)
        assert len(clips[0]) > in_memory, "of the archive, too"
        assert len({t.frames.shape for t in clips[0].tubelets}) <= 2
        answer = engine.submit(question).future.result(timeout=60)
        asked = Question("then?", max_new_tokens=4)
        native = engine._thread.run(lambda: native_answer(answerer, clips, asked)).result(timeout=60)
        assert list(answer.token_ids) == native.tokens
        brighter = (Clip(tuple(_negative(t) for t in clips[0].tubelets), clips[0].second_per_grid),)
        other = engine._thread.run(lambda: native_answer(answerer, brighter, asked)).result(timeout=60)
        assert compare(native, other).logit_difference > 0.01, "a control"


def _negative(tubelet: Tubelet) -> Tubelet:
    return dataclasses.replace(tubelet, frames=np.ascontiguousarray(255 - tubelet.frames))
