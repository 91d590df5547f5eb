"""A saved memory: what is written comes back, and the memory goes on from there as if nothing had happened."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.memory_frames import SECOND, flat, noisy, scene
from vstream_ros.errors import MemoryFileError
from vstream_ros.memory import SmartFrameManager, Verdict
from vstream_ros.memory.saved import read_memory, write_memory

FRAME_BYTES = 1 << 20


def saved(*memories: SmartFrameManager) -> io.BytesIO:
    file = io.BytesIO()
    write_memory(file, [memory.saved_state() for memory in memories])
    return file


def load(file: io.BytesIO, memory: SmartFrameManager) -> None:
    (snapshot,), _ = read_memory(file, {memory.camera: memory.capacity}, FRAME_BYTES)
    memory.restore(snapshot, memory.scorer_after(snapshot))
    memory.check_integrity()


def assert_same_clip(one: SmartFrameManager, other: SmartFrameManager) -> None:
    assert one.clip().second_per_grid == other.clip().second_per_grid
    assert len(one.clip()) == len(other.clip())
    for a, b in zip(one.clip().tubelets, other.clip().tubelets, strict=True):
        assert (a.camera, a.stamps_ns, a.time_ns, a.importance) == (b.camera, b.stamps_ns, b.time_ns, b.importance)
        assert (a.scene_change, a.key, a.provisional) == (b.scene_change, b.key, b.provisional)
        assert np.array_equal(a.frames, b.frames)
        assert not b.frames.flags.writeable
        assert b.frames.base is None, "a tubelet would keep another one's bytes"


def grown(rng: np.random.Generator, rounds: int, memory: SmartFrameManager) -> SmartFrameManager:
    """Frames with jitter, gaps, cuts and steps back, important ones in between, now and then a jump."""
    now_ns = int(rng.integers(-5, 5)) * SECOND
    for _ in range(rounds):
        now_ns += int(rng.choice([SECOND // 2, SECOND // 2 + 7, SECOND // 10, 5 * SECOND, -SECOND // 3]))
        memory.add_frame(scene(int(rng.integers(3)), int(rng.integers(20))), now_ns)
        if rng.random() < 0.1:
            stamps = np.unique(now_ns + rng.integers(-20 * SECOND, SECOND, 3))
            memory.update_star_memory((noisy(scene(9), int(stamp) % 99), int(stamp)) for stamp in stamps)
    return memory


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rounds=st.integers(0, 60),
    rate_hz=st.sampled_from([None, 2.0, 3.0]),
    pending=st.booleans(),
    sizes=st.tuples(st.sampled_from([4, 8]), st.sampled_from([4, 12]), st.integers(1, 4)),
    patch=st.sampled_from([1, 2, 4]),
)
def test_what_is_saved_comes_back_and_goes_on(seed, rounds, rate_hz, pending, sizes, patch) -> None:
    parameters = {
        "star_memory_size": sizes[0], "stream_window_size": sizes[1], "stream_slide": sizes[2],
        "sample_rate_hz": rate_hz, "include_pending": pending, "temporal_patch_size": patch,
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    before = grown(rng, rounds, SmartFrameManager(**parameters))
    file = saved(before)
    after = grown(rng, int(rng.integers(10)), SmartFrameManager(ids=itertools.count(1_000), **parameters))
    epoch, ids = after.epoch, {tubelet.id for tubelet in after.clip().tubelets}
    load(file, after)
    assert_same_clip(before, after)
    assert saved(after).getvalue() == file.getvalue()  # star, stream, pending frames, grid: all of it
    assert after.epoch == epoch + 1
    assert all(tubelet.id > max(ids, default=999) for tubelet in after.clip().tubelets)

    newest = before.status().newest_stamp_ns
    for step in (SECOND // 10, SECOND // 2, SECOND, 2 * SECOND, 2 * SECOND, SECOND, 9 * SECOND):
        newest += step
        one, other = (memory.add_frame(flat(90), newest) for memory in (before, after))
        fills = [(status.verdict, status.stream_frames, status.star_frames) for status in (one, other)]
        assert fills[0] == fills[1]
        after.check_integrity()
    assert [t.stamps_ns for t in before.clip().tubelets][-3:] == [t.stamps_ns for t in after.clip().tubelets][-3:]


def filled(frames: int = 45, **overrides) -> SmartFrameManager:
    memory = SmartFrameManager(**{"sample_rate_hz": 2.0, "stream_slide": 2, **overrides})
    for k in range(frames):
        memory.add_frame(noisy(scene(k // 20), k), k * SECOND // 2)
    return memory


def test_numpy_reads_it() -> None:
    memory = filled()
    file = saved(memory)
    file.seek(0)
    arrays = np.load(file, allow_pickle=False)
    header = json.loads(arrays["header.json"])
    assert (header["format"], header["version"]) == ("vstream_ros memory", 1)
    (camera,) = header["cameras"]
    assert camera["star"] + camera["stream"] == memory.status().tubelets
    stamps = [stamp for t in memory.clip().tubelets for stamp in t.stamps_ns]
    assert arrays["camera0_stamps_ns"].tolist() == stamps
    assert arrays["camera0_frames"].shape == (len(stamps), 48, 64, 3)


def test_the_next_frame_is_scored_as_if_the_camera_had_gone_on() -> None:
    """A scorer that had seen nothing would find neither motion nor a cut."""
    with_object = scene(2)
    with_object[20:32, 30:42] = (250, 30, 30)
    for view, is_cut, moves in ((scene(2), False, False), (with_object, False, True), (scene(7), True, False)):
        memory = SmartFrameManager(sample_rate_hz=2.0, stream_slide=2)
        load(saved(filled()), memory)
        first = memory.add_frame(noisy(view, 99), 45 * SECOND // 2)
        assert first.scene_change == is_cut
        assert (first.importance > 0.1) == moves


def test_a_jump_back_follows_the_usual_rule() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0, stream_slide=2)
    load(saved(filled()), memory)
    newest = memory.status().newest_stamp_ns
    assert memory.add_frame(scene(2), newest - SECOND // 2).verdict is Verdict.BACKWARD
    jumped = memory.add_frame(scene(2), newest - 5 * SECOND)
    assert "stamps jumped back" in jumped.cleared
    assert memory.status().tubelets == 0


def test_a_far_later_start_is_on_trial_where_no_clock_runs_and_can_be_undone() -> None:
    memory = SmartFrameManager(sample_rate_hz=2.0, stream_slide=2)
    load(saved(filled()), memory)
    newest = memory.status().newest_stamp_ns
    assert memory.add_frame(scene(2), newest + 3600 * SECOND).kept
    assert memory.add_frame(scene(2), newest + SECOND).kept  # time goes on where the file ended after all
    assert memory.status().newest_stamp_ns == newest + SECOND
    for k in range(4):
        assert memory.add_frame(scene(2), newest + 3600 * SECOND + k * SECOND).kept
    assert memory.status().newest_stamp_ns == newest + 3603 * SECOND
    memory.check_integrity()


def test_a_longer_window_takes_the_newest_of_star() -> None:
    before = filled(star_memory_size=8, stream_window_size=4)
    after = SmartFrameManager(sample_rate_hz=2.0, stream_slide=2, star_memory_size=8, stream_window_size=12)
    load(saved(before), after)
    assert [t.stamps_ns for t in after.clip().tubelets] == [t.stamps_ns for t in before.clip().tubelets]
    for k in range(45, 90):
        assert after.add_frame(noisy(scene(3), k), k * SECOND // 2).kept
        after.check_integrity()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"star_memory_size": 2}, "raise star_memory_size"),
        ({"stream_window_size": 2, "stream_slide": 1}, "raise stream_window_size or stream_slide"),
        ({"temporal_patch_size": 4, "star_memory_size": 40, "stream_window_size": 40}, "a model of the same family"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(overrides, says) -> None:
    memory = SmartFrameManager(**overrides)
    with pytest.raises(MemoryFileError, match=says):
        load(saved(filled()), memory)


def test_frames_that_are_far_too_large_are_refused() -> None:
    memory = filled()
    with pytest.raises(MemoryFileError, match="raise max_pixels"):
        read_memory(saved(memory), {"camera": memory.capacity}, 48 * 64 * 3 - 1)


def test_several_cameras_and_those_that_nobody_has() -> None:
    front, rear, empty = filled(camera="front"), filled(9, camera="rear"), filled(0, camera="empty")
    file = saved(front, rear, empty)
    snapshots, others = read_memory(file, {"rear": rear.capacity, "empty": empty.capacity}, FRAME_BYTES)
    assert [snapshot.camera for snapshot in snapshots] == ["rear", "empty"]
    assert others == ["front"]
    memory = filled(camera="empty")
    memory.restore(snapshots[1], memory.scorer_after(snapshots[1]))
    assert memory.status().tubelets == 0
    assert memory.add_frame(scene(1), 0).kept


def test_a_quarantine_and_the_counters_stay() -> None:
    memory = filled()
    counted = memory.status()
    load(saved(memory), memory)
    now = memory.status()
    assert (now.frames_offered, now.frames_kept, now.clears) == (counted.frames_offered, counted.frames_kept, {})


def test_a_frame_on_its_way_is_judged_again() -> None:
    memory, other = filled(10), filled()
    early = memory.offer(12 * SECOND // 2)
    late = memory.offer(60 * SECOND // 2)
    load(saved(other), memory)
    assert memory.keep(early, scene(1)).verdict is Verdict.BACKWARD
    assert memory.keep(late, scene(1)).kept
    memory.check_integrity()


def test_too_many_cameras_are_refused_at_saving() -> None:
    names = [f"{k:03}" + 1000 * "x" for k in range(70)]
    with pytest.raises(MemoryFileError, match="too large"):
        saved(*(SmartFrameManager(camera=name) for name in names))
