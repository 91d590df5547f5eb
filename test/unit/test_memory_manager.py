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

from support.memory_frames import HEIGHT, SECOND, WIDTH, flat, scene
from vstream_ros.errors import ConfigError, FrameError
from vstream_ros.memory import Clip, FrameStatus, MemoryConfig, SmartFrameManager, Verdict

PERIOD = SECOND // 2
START = 1_700_000_000 * SECOND


def manager(**overrides: Any) -> SmartFrameManager:
    """Sampling at 2 Hz, as on a robot, unless told otherwise."""
    return SmartFrameManager(**{"sample_rate_hz": 2.0, **overrides})


def add(memory: SmartFrameManager, count: int, first: int = 0, value: int = 100) -> list[FrameStatus]:
    """``count`` equal frames on the 2 Hz grid, from slot ``first`` on."""
    return [memory.add_frame(flat(value), START + slot * PERIOD) for slot in range(first, first + count)]


def stamps(clip: Clip) -> list[tuple[int, ...]]:
    """The slots of each tubelet's real frames."""
    return [tuple((stamp - START) // PERIOD for stamp in tubelet.stamps_ns) for tubelet in clip.tubelets]


# --- construction ---------------------------------------------------------------------------------------------------


def test_the_references_call_works() -> None:
    memory = SmartFrameManager(star_memory_size=20, stream_window_size=20, selection_method="pixel")
    assert memory.config == MemoryConfig()
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


# --- forming and sealing --------------------------------------------------------------------------------------------


def test_two_consecutive_frames_are_one_tubelet_with_its_frames_and_times() -> None:
    memory = manager(camera="front")
    frames = [scene(1, shift) for shift in range(4)]
    for slot, frame in enumerate(frames):
        memory.add_frame(frame, START + slot * PERIOD + 7_000_000 * slot)
    first, second = memory.clip().tubelets
    assert (first.frames == np.stack(frames[:2])).all()
    assert (second.frames == np.stack(frames[2:])).all()
    assert second.stamps_ns == (START + 2 * PERIOD + 14_000_000, START + 3 * PERIOD + 21_000_000)
    assert second.time_ns == START + 2 * PERIOD
    assert (second.camera, second.provisional, second.scene_change) == ("front", False, False)
    assert first.id != second.id


def test_tubelets_are_never_regrouped() -> None:
    """Whatever is forgotten, an id keeps its pixels."""
    memory = manager(star_memory_size=4, stream_window_size=4, stream_slide=2)
    seen: dict[int, tuple[int, ...]] = {}
    for slot in range(100):
        add(memory, 1, slot)
        for tubelet in memory.clip().tubelets:
            if not tubelet.provisional:
                assert seen.setdefault(tubelet.id, tubelet.stamps_ns) == tubelet.stamps_ns
    assert len({stamp for s in seen.values() for stamp in s}) == 100


def test_the_importance_of_a_tubelet_is_its_best_frames() -> None:
    memory = manager()
    statuses = [memory.add_frame(scene(1, shift), START + slot * PERIOD) for slot, shift in enumerate((0, 5))]
    assert memory.clip().tubelets[0].importance == max(s.importance for s in statuses) > statuses[0].importance


@pytest.mark.parametrize("missing", [1, 7, 10**6])
def test_a_pair_that_a_gap_parts_is_sealed(missing: int) -> None:
    memory = manager()
    add(memory, 1)
    memory.add_frame(flat(40), START + (1 + missing) * PERIOD)
    memory.add_frame(flat(41), START + (2 + missing) * PERIOD)
    sealed, pair = memory.clip().tubelets
    assert stamps(memory.clip()) == [(0,), (1 + missing, 2 + missing)]
    assert (sealed.frames == 100).all()
    assert len(sealed.frames) == 2
    assert not sealed.provisional
    assert pair.time_ns == START + (1 + missing) * PERIOD
    memory.check_integrity()


def test_without_a_sampling_rate_no_gap_seals() -> None:
    memory = manager(sample_rate_hz=None)
    for stamp in (0, 1, 3600 * SECOND):
        memory.add_frame(flat(), stamp)
    assert [t.stamps_ns for t in memory.clip().tubelets] == [(0, 1), (3600 * SECOND,)]


def test_a_jittery_pair_is_not_sealed() -> None:
    memory = manager(include_pending=False)
    rng = random.Random(4)
    for slot in range(16):
        memory.add_frame(flat(), START + slot * PERIOD + rng.randint(-10_000_000, 10_000_000))
    assert [len(t.stamps_ns) for t in memory.clip().tubelets] == [2] * 8
    assert [t.time_ns - memory.clip().tubelets[0].time_ns for t in memory.clip().tubelets] == [
        i * SECOND for i in range(8)
    ]


@pytest.mark.parametrize("cut", [3, 4])
def test_a_pair_that_a_cut_parts_is_sealed_and_the_cut_opens_a_tubelet(cut: int) -> None:
    memory = manager(include_pending=False)
    for slot in range(8):
        status = memory.add_frame(scene(1 if slot < cut else 2), START + slot * PERIOD)
        assert status.scene_change == (slot == cut)
        memory.check_integrity()
    expected = [(0, 1), (2,), (3, 4), (5, 6)] if cut == 3 else [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert stamps(memory.clip()) == expected
    assert [t.scene_change for t in memory.clip().tubelets] == [cut in s for s in expected]


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_any_temporal_patch_size(patch: int) -> None:
    memory = manager(temporal_patch_size=patch, star_memory_size=12, stream_window_size=12)
    for slot in range(10):
        memory.add_frame(flat(slot), START + slot * PERIOD)
        memory.check_integrity()
    assert [s for group in stamps(memory.clip()) for s in group] == list(range(10))
    assert all(len(t.frames) == patch for t in memory.clip().tubelets)
    assert memory.clip().second_per_grid == patch * 0.5
    last = memory.clip().tubelets[-1]
    assert (last.frames[len(last.stamps_ns) - 1 :] == 9).all(), "padding repeats the last real frame"


# --- the pending frame ----------------------------------------------------------------------------------------------


def test_a_pending_frame_is_handed_out_padded_and_provisional() -> None:
    memory = manager()
    add(memory, 4)
    frame = scene(1)
    memory.add_frame(frame, START + 4 * PERIOD)
    pending = memory.clip().tubelets[-1]
    assert pending.provisional
    assert (pending.frames == frame).all()
    assert pending.stamps_ns == (START + 4 * PERIOD,)
    assert memory.clip().frame_count == 5
    assert memory.status().tubelets == 2


def test_a_provisional_id_is_never_used_again() -> None:
    memory = manager()
    provisional, final = set(), set()
    for slot in range(40):
        add(memory, 1, slot)
        for tubelet in memory.clip().tubelets:
            (provisional if tubelet.provisional else final).add(tubelet.id)
    assert len(provisional) == 20
    assert len(final) == 20
    assert not provisional & final


def test_pending_frames_can_be_left_out() -> None:
    memory = manager(include_pending=False)
    add(memory, 5)
    assert stamps(memory.clip()) == [(0, 1), (2, 3)]


def test_the_very_first_frame_is_handed_out_in_any_case() -> None:
    memory = manager(include_pending=False)
    add(memory, 1)
    assert [t.provisional for t in memory.clip().tubelets] == [True]
    add(memory, 1, 1)
    assert [t.provisional for t in memory.clip().tubelets] == [False]
    memory.clear("requested")
    add(memory, 1, 2)
    assert [t.provisional for t in memory.clip().tubelets] == [True]


# --- star and stream, through the front door ------------------------------------------------------------------------


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


# --- the clip -------------------------------------------------------------------------------------------------------


def test_the_clip_is_cached_until_something_changes() -> None:
    memory = manager()
    add(memory, 3)
    clip = memory.clip()
    assert memory.clip() is clip
    memory.add_frame(flat(), START + 2 * PERIOD + 1)  # between two slots
    assert memory.clip() is clip
    assert memory.clip(0, START + 2 * PERIOD).tubelets[-1] is clip.tubelets[-1], "one pending frame, one id"
    add(memory, 1, 3)
    assert memory.clip() is not clip
    assert len(clip) == 2, "a clip that was handed out does not change"
    memory.clear("requested")
    assert memory.clip().tubelets == ()


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 0, [(0, 1), (2, 3), (4, 5), (6,)]),
        (2, 0, [(2, 3), (4, 5), (6,)]),
        (3, 4, [(2, 3), (4, 5)]),
        (0, 2, [(0, 1), (2, 3)]),
        (6, 6, [(6,)]),
        (7, 0, []),
        (5, 3, []),
    ],
)
def test_a_time_range_is_inclusive_and_takes_whole_tubelets(
    start: int, end: int, expected: list[tuple[int, ...]]
) -> None:
    memory = manager()
    add(memory, 7)
    bounds = [START + slot * PERIOD if slot else 0 for slot in (start, end)]
    clip = memory.clip(*bounds)
    assert stamps(clip) == expected
    assert clip.second_per_grid == 1.0


def test_a_time_range_looks_at_stamps_and_not_at_slots_or_repetitions() -> None:
    memory = manager()
    memory.add_frame(flat(), START)
    memory.add_frame(flat(), START + 3 * PERIOD - 1_000_000)  # slot 3, a millisecond early
    assert stamps(memory.clip(START + 1, START + 3 * PERIOD - 1_000_001)) == []
    assert len(memory.clip(START + 3 * PERIOD - 1_000_000, 0)) == 1


def test_second_per_grid_is_pinned_and_not_measured() -> None:
    memory = manager(sample_rate_hz=None)
    spacing = []
    for stamp in (0, 40_000_000, 500_000_000, 2 * SECOND):
        memory.add_frame(flat(), stamp)
        spacing.append(memory.clip().second_per_grid)
    assert spacing == [1.0, 0.08, 0.08, 0.08]
    assert memory.period_s == 0.04
    memory.clear("requested")
    assert memory.period_s == 0.5


# --- stamps that misbehave ------------------------------------------------------------------------------------------


def test_small_steps_back_are_dropped_and_counted_and_never_clear() -> None:
    """As in a real video that gives every second frame the stamp of one long gone, up to 0.1 s back."""
    memory = SmartFrameManager()
    offsets_ms = [0, 101, 67, 134, 34]  # the first five stamps of that video
    for group, offset in itertools.product(range(100), offsets_ms):
        memory.add_frame(flat(), START + (group * 134 + offset) * 1_000_000)
        memory.check_integrity()
    state = memory.status()
    assert state.clears == {}
    assert state.frames_offered == 500
    assert state.frames_rejected == 500 - state.frames_kept > 231
    assert state.last_rejection == Verdict.BACKWARD.value


def test_a_jump_back_clears_once_says_why_and_starts_anew() -> None:
    memory = manager()
    add(memory, 21, first=100)
    status = memory.add_frame(flat(1), START)
    assert status.verdict is Verdict.JUMP
    assert status.kept
    assert "60.000 s" in status.cleared
    assert (status.importance, status.scene_change) == (0.0, False), "nothing is left to compare with"
    assert stamps(memory.clip()) == [(0,)]
    assert [s.cleared for s in add(memory, 10, first=1, value=1)] == [""] * 10
    assert [t.time_ns for t in memory.clip().tubelets[:2]] == [START, START + 2 * PERIOD]
    assert memory.status().clears == {"time jump": 1}
    memory.check_integrity()


def test_frames_that_share_one_stamp_keep_only_the_first() -> None:
    memory = SmartFrameManager()
    statuses = [memory.add_frame(flat(), 0) for _ in range(5)]
    assert [s.verdict for s in statuses] == [Verdict.KEEP] + [Verdict.BACKWARD] * 4
    assert "not newer" in str(statuses[1])
    assert memory.status().frames_rejected == 4


def test_stamps_may_be_negative_or_of_any_integer_type() -> None:
    memory = SmartFrameManager()
    for stamp in np.arange(-4, 4, dtype=np.int64):
        assert memory.add_frame(flat(), stamp).verdict is Verdict.KEEP
    assert [t.stamps_ns for t in memory.clip().tubelets] == [(-4, -3), (-2, -1), (0, 1), (2, 3)]


@pytest.mark.parametrize(
    "stamp",
    [4.5, float("nan"), float("inf"), True, np.True_, None, "7", 2**63, -(2**63), 10**5000],
    ids=lambda stamp: type(stamp).__name__,
)
def test_what_is_no_stamp_is_refused_and_counted(stamp: Any) -> None:
    memory = SmartFrameManager()
    with pytest.raises(FrameError, match="stamp"):
        memory.add_frame(flat(), stamp)
    with pytest.raises(FrameError, match="stamp"):
        memory.update_star_memory([(flat(), stamp)])
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (2, 0, 2)
    assert "stamp" in state.last_rejection
    assert memory.add_frame(flat(), 7).kept


def test_a_frame_is_counted_once_whatever_becomes_of_it() -> None:
    memory = manager()
    assert memory.offer(START + 7).verdict is Verdict.KEEP  # never heard of again
    kept = memory.offer(START)
    assert (kept.verdict, kept.reason) == (Verdict.KEEP, "")
    assert memory.keep(kept, flat()).kept
    assert memory.offer(START + 1).verdict is Verdict.SKIP
    memory.add_frame(flat(), START + PERIOD)
    backward = memory.offer(START)
    assert (backward.verdict, backward.reason) == (Verdict.BACKWARD, Verdict.BACKWARD.value)
    assert memory.keep(backward, flat()).verdict is Verdict.BACKWARD  # it need not be kept, and that changes nothing
    memory.reject(backward, "nobody counts this")
    unreadable = memory.offer(START + 2 * PERIOD)
    assert unreadable.wanted
    memory.reject(unreadable, "image of an unknown encoding")
    memory.reject_unstamped("no stamp")
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (7, 2, 3)
    assert state.last_rejection == "no stamp"


def test_what_came_between_offer_and_keep_is_looked_at_again() -> None:
    memory = manager()
    late, twice = memory.offer(START), memory.offer(START)
    assert memory.keep(memory.offer(START + PERIOD), flat()).kept
    assert memory.keep(late, flat()).verdict is Verdict.BACKWARD
    assert memory.status().frames_rejected == 1
    assert memory.keep(memory.offer(START + 60 * SECOND), flat()).kept
    assert memory.keep(twice, flat()).verdict is Verdict.BACKWARD, "it saw no jump, so it may not clear"
    ahead, same = memory.offer(START + 62 * SECOND), memory.offer(START + 62 * SECOND + 1)
    assert (memory.keep(ahead, flat()).kept, memory.keep(same, flat()).verdict) == (True, Verdict.SKIP)
    before = memory.offer(START + 63 * SECOND)
    memory.clear("requested")
    assert memory.keep(before, flat()).verdict is Verdict.OVERTAKEN
    assert memory.clip().tubelets == ()
    state = memory.status()
    assert (state.frames_offered, state.frames_kept, state.frames_rejected) == (7, 3, 3)
    assert memory.keep(memory.offer(START), flat()).kept
    memory.check_integrity()


def test_a_slot_tells_the_size_and_remembers_the_images_own() -> None:
    slot = manager().offer(START)
    assert slot.frame_size(480, 640) == (480, 640)
    slot.fit = lambda height, width: (height // 2, width // 2)
    assert slot.frame_size(480, 640) == (240, 320)
    assert (slot.source_size, slot.decoded_size) == ((480, 640), (240, 320))


# --- frames that misbehave ------------------------------------------------------------------------------------------


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


# --- anything at all ------------------------------------------------------------------------------------------------

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
