"""SmartFrameManager: frames in, a bounded clip out, whatever the stream does."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.managers import PERIOD, START, add, manager, stamps
from support.memory_frames import HEIGHT, SECOND, WIDTH, flat, scene
from vstream_ros.errors import ConfigError, FrameError
from vstream_ros.memory import MemoryConfig, SmartFrameManager, Verdict

# --- construction -----------------------------------------------------------------------------------------------------


def test_the_references_call_works() -> None:
    memory = SmartFrameManager(star_memory_size=20, stream_window_size=20, selection_method="pixel")
    assert memory.config == MemoryConfig(star_memory_size=20, stream_window_size=20)
    assert SmartFrameManager().config == MemoryConfig(star_memory_size=30, stream_window_size=10)
    assert memory.clip().tubelets == ()
    assert memory.status().frames_kept == 0


def test_overrides_replace_fields_of_the_config() -> None:
    memory = SmartFrameManager(MemoryConfig(stream_slide=3, star_memory_size=4), star_memory_size=6)
    assert (memory.config.star_memory_size, memory.config.stream_slide) == (6, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"star_memory_size": 0}, "star_memory_size .*got 0"),
        ({"stream_window_size": 7}, "stream_window_size .*even.*got 7"),
        ({"stream_slide": 0}, "stream_slide .*got 0"),
        ({"sample_rate_hz": 0.0}, r"sample_rate_hz .*got 0\.0"),
        ({"sample_rate_hz": float("nan")}, "sample_rate_hz .*got nan"),
        ({"selection_method": "random"}, "selection_method .*'random'"),
        ({"selection_method": "semantic"}, "embed"),
        ({"motion_weight": -1.0}, r"motion_weight .*got -1\.0"),
        ({"complexity_weight": float("inf")}, "complexity_weight .*got inf"),
        ({"motion_weight": 0.0, "complexity_weight": 0.0}, "must be > 0"),
        ({"scene_threshold": 1.1}, r"scene_threshold .*got 1\.1"),
        ({"time_jump_threshold_s": 0.0}, r"time_jump_threshold_s .*got 0\.0"),
        ({"temporal_patch_size": 0}, "temporal_patch_size .*got 0"),
        ({"temporal_patch_size": 8, "star_memory_size": 6}, "star_memory_size .*8 frames.*got 6"),
    ],
)
def test_a_bad_parameter_is_named_with_its_value(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SmartFrameManager(**overrides)


# --- star and stream, through the front door --------------------------------------------------------------------------


@pytest.mark.parametrize(("star", "window", "slide"), [(20, 20, 8), (4, 6, 1), (2, 2, 3)])
def test_the_clip_grows_at_its_end_slides_in_blocks_and_keeps_the_first(star: int, window: int, slide: int) -> None:
    memory = manager(star_memory_size=star, stream_window_size=window, stream_slide=slide, include_pending=False)
    before: list[int] = []
    slides = 0
    for slot in range(240):
        add(memory, 1, slot)
        memory.check_integrity()
        clip = memory.clip()
        now = [t.id for t in clip.tubelets if not t.provisional]
        if now[: len(before)] != before:
            slides += 1
        before = now
        assert stamps(clip)[0][0] == 0, "the first frame is gone"
        held = {s for group in stamps(clip) for s in group}
        complete = (slot + 1) // 2 * 2
        assert set(range(max(0, complete - window), complete)) <= held, "a recent frame is missing"
        assert len(held) <= star + window + 2 * slide
    assert slides <= (120 - window // 2) // slide


def test_a_scene_that_is_long_gone_is_remembered_by_its_cut() -> None:
    memory = manager(star_memory_size=20, stream_window_size=20, stream_slide=4)
    cuts = [40 * i for i in range(6)]
    for slot in range(240):
        memory.add_frame(scene(slot // 40), START + slot * PERIOD)
    assert set(cuts) <= {s for group in stamps(memory.clip()) for s in group}


def test_100_frames_become_few_in_time_order_without_duplicates() -> None:
    memory = SmartFrameManager(star_memory_size=10, stream_window_size=20)
    rng = random.Random(6)
    for i in range(100):
        memory.add_frame(scene(i // 13, rng.randint(0, 3)), i * PERIOD)
    clip = memory.clip()
    seen = [stamp for t in clip.tubelets for stamp in t.stamps_ns]
    assert seen == sorted(set(seen))
    assert len({t.id for t in clip.tubelets}) == len(clip)
    assert 20 <= clip.frame_count <= 10 + 20 + 2 * 8


def test_status_counts_real_frames_and_real_bytes() -> None:
    memory = manager(star_memory_size=4, stream_window_size=4, stream_slide=2)
    frame_bytes = HEIGHT * WIDTH * 3
    for slot in range(60):
        status = memory.add_frame(scene(slot // 7), START + slot * PERIOD)
        clip, state = memory.clip(), memory.status()
        stored = [t for t in clip.tubelets if not t.provisional]
        pending = sum(len(t.stamps_ns) for t in clip.tubelets if t.provisional)
        assert state.nbytes == sum(t.frames.nbytes for t in stored) + pending * frame_bytes
        assert state.tubelets == len(stored)
        assert state.star_frames + state.stream_frames == clip.frame_count
        assert state.star_frames <= state.star_capacity == 4
        assert 0 < state.stream_frames <= state.stream_capacity == 7
        assert (state.oldest_stamp_ns, state.newest_stamp_ns) == (START, START + slot * PERIOD)
        assert (status.star_frames, status.stream_frames) == (state.star_frames, state.stream_frames)
    memory.clear("requested")
    state = memory.status()
    assert (state.nbytes, state.tubelets, state.oldest_stamp_ns, state.newest_stamp_ns) == (0, 0, 0, 0)
    assert (state.frames_kept, state.clears) == (60, {"requested": 1})


# --- frames that misbehave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4), np.uint8), "RGB"),
        (np.zeros((4, 4, 1), np.uint8), "RGB"),
        (np.zeros((4, 4, 4), np.uint8), "RGB"),
        (np.zeros((1, 4, 4, 3), np.uint8), "height"),
        (np.zeros((0, 0, 3), np.uint8), "empty"),
        (None, "NoneType"),
    ],
)
def test_a_bad_frame_is_refused_counted_and_costs_nothing(frame: Any, words: str) -> None:
    memory = manager()
    add(memory, 3)
    before = memory.clip()
    for stamp in (START + 3 * PERIOD, START - 3600 * SECOND):  # a jump back with a bad frame clears nothing
        with pytest.raises(FrameError, match=words):
            memory.add_frame(frame, stamp)
    assert memory.clip() is before
    assert memory.status().frames_rejected == 2
    assert memory.status().clears == {}
    assert add(memory, 1, 3)[0].verdict is Verdict.KEEP, "the bad frame must not take the slot"


def test_frames_are_copied_and_read_only() -> None:
    memory = manager()
    source = np.asfortranarray(scene(1))
    for slot in range(3):
        memory.add_frame(source[:, ::-1], START + slot * PERIOD)
    source[:] = 0
    for tubelet in memory.clip().tubelets:
        assert tubelet.frames.any()
        assert tubelet.frames.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            tubelet.frames[0, 0, 0, 0] = 1


@pytest.mark.parametrize("held", [1, 2, 30])
def test_another_resolution_clears_and_says_so(held: int) -> None:
    memory = manager()
    add(memory, held)
    status = memory.add_frame(flat(1, 20, 30), START + held * PERIOD)
    assert status.verdict is Verdict.KEEP
    assert status.cleared == f"resolution changed from {WIDTH}x{HEIGHT} to 30x20"
    assert "memory cleared: resolution changed" in str(status)
    assert (status.importance, status.scene_change) == (0.0, False), "nothing is left to compare with"
    assert memory.status().clears == {"resolution change": 1}
    assert memory.clip().frame_count == 1
    memory.check_integrity()


def test_reasons_do_not_pile_up() -> None:
    memory = manager()
    for i in range(100):
        memory.clear(f"reason {i}")
    clears = memory.status().clears
    assert sum(clears.values()) == 100
    assert len(clears) <= 17


def test_semantic_selection_through_the_manager() -> None:
    calls = []

    def embed(frame: np.ndarray) -> np.ndarray:
        calls.append(frame.flags.writeable)
        return np.array([1.0, 0.0]) if frame[0, 0, 0] == 100 else np.array([0.0, 1.0])

    memory = manager(selection_method="semantic", embed=embed)
    quiet = add(memory, 2)[1]
    moved = add(memory, 1, first=2, value=130)[0]
    memory.add_frame(flat(130), START + 2 * PERIOD + 1)
    assert calls == [False] * 3, "read-only frames, and only those that are kept"
    assert quiet.importance == 0.0
    assert moved.importance == pytest.approx(0.7)


# --- anything at all --------------------------------------------------------------------------------------------------


EVENTS = st.one_of(
    st.tuples(st.just("frame"), st.integers(-1_500, 2_500), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("frame"), st.sampled_from([0, 1, 499, 500, 501, 1_000]), st.just(0), st.just(False)),
    st.tuples(st.just("clear"), st.just(0), st.just(0), st.just(False)),
)


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(EVENTS, max_size=80),
    star=st.sampled_from([2, 4, 8]),
    window=st.sampled_from([2, 4, 8]),
    slide=st.integers(1, 4),
    rate_hz=st.sampled_from([None, 2.0]),
    pending=st.booleans(),
)
def test_no_stream_breaks_the_invariants(
    events: list[tuple[str, int, int, bool]], star: int, window: int, slide: int, rate_hz: float | None, pending: bool
) -> None:
    memory = SmartFrameManager(
        MemoryConfig(star, window, slide, rate_hz, pending), ids=itertools.count(), temporal_patch_size=2
    )
    stamp, kept, first = START, 0, None
    for kind, step_ms, seed, small in events:
        if kind == "clear":
            memory.clear("requested")
            first = None
        else:
            stamp += step_ms * 1_000_000
            status = memory.add_frame(scene(seed, 0, 24 if small else 48), stamp)
            kept += status.kept
            first = stamp if first is None or status.cleared else first
        memory.check_integrity()
        clip, state = memory.clip(), memory.status()
        assert dataclasses.asdict(state)["frames_kept"] == kept
        assert [t.id for t in clip.tubelets] == sorted({t.id for t in clip.tubelets})
        if first is None:
            assert clip.tubelets == ()
            continue
        assert clip.tubelets[0].stamps_ns[0] == first, "the first frame since the last clear is gone"
        assert sum(t.provisional for t in clip.tubelets) <= 1
        assert len(clip) <= (star + window) // 2 + slide
        assert state.newest_stamp_ns <= max(stamp, state.newest_stamp_ns)
