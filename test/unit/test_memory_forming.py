"""How frames become tubelets: pairs, gaps, cuts, and the odd frame that waits."""

from __future__ import annotations

import random

import numpy as np
import pytest

from support.managers import PERIOD, START, add, manager, stamps
from support.memory_frames import SECOND, flat, lively, scene

# --- forming and sealing ----------------------------------------------------------------------------------------------


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
    statuses = [memory.add_frame(lively(slot), START + slot * PERIOD) for slot in range(2)]
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


# --- the pending frame ------------------------------------------------------------------------------------------------


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
