"""What memory lets go is kept for longer: bounded, thinned by value, and handed out as what it is."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest

from support.memory_frames import HEIGHT, SECOND, WIDTH, noisy, scene
from vstream_ros.errors import ConfigError
from vstream_ros.memory import Archive, Clip, MemoryConfig, SmartFrameManager, Tubelet
from vstream_ros.memory.archive import INDEX_BYTES
from vstream_ros.memory.store import values
from vstream_ros.memory.thinning import Thinning, most_valuable

NOTHING = Clip((), 1.0)
TINY = np.stack([scene(k, 0, 16, 16) for k in range(64)])


def tubelet(k: int, *, importance: float = 0.0, frames: np.ndarray | None = None, stamps: int = 2) -> Tubelet:
    """The one of second ``k``: two frames half a second apart, or one that is repeated."""
    pixels = TINY[[k % 64, (k + 1) % 64]] if frames is None else frames
    stamps_ns = (k * SECOND + 1, k * SECOND + SECOND // 2)[:stamps]
    return Tubelet(k, "camera", pixels, stamps_ns, time_ns=k * SECOND, importance=importance)


def filled(archive: Archive, tubelets: Iterator[Tubelet] | list[Tubelet]) -> Archive:
    for one in tubelets:
        archive.add(one)
        archive.store_one()
    return archive


def seconds(clip: Clip) -> list[int]:
    return [one.stamps_ns[0] // SECOND for one in clip.tubelets]


def everything(archive: Archive) -> Clip:
    return archive.joined(NOTHING, 1, 0, most=10**9)


def test_100_000_tubelets_stay_within_bytes_and_cover_the_last_hour() -> None:
    rng = np.random.default_rng(0)
    limit = 400 * (1000 + INDEX_BYTES)
    archive = Archive(limit)
    for k in range(100_000):
        archive.add(tubelet(k, importance=0.02 * rng.random()))
        archive.store_one()
        assert archive.status.archive_bytes <= limit
        if k % 20_000 == 0:
            archive.check_integrity()
    archive.check_integrity()
    assert archive.status.archive_bytes > 0.99 * limit
    held = np.array(seconds(everything(archive)))
    assert len(held) > 200
    assert held[0] >= 99_999 - 3600
    gaps = np.diff([99_999 - 3600, *held, 99_999])
    assert gaps.max() <= 5 * 3600 / len(held)


def test_what_is_counted_covers_what_is_held() -> None:
    tubelets = [tubelet(k) for k in range(3000)]
    filled(Archive(1 << 30), tubelets[:100])  # OpenCV's own first allocations
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        archive = filled(Archive(1 << 30), (replace(one) for one in tubelets))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert archive.status.archive_frames == 6000
    assert 0.5 * archive.status.archive_bytes < grown <= archive.status.archive_bytes


def test_events_outlive_the_quiet_between_them() -> None:
    events = set(range(100, 3500, 200))
    archive = Archive(60 * (1000 + INDEX_BYTES))
    filled(archive, (tubelet(k, importance=0.3 if k in events else 0.0) for k in range(3600)))
    assert events <= set(seconds(everything(archive)))
    assert len(everything(archive)) < 150
    within = archive.joined(NOTHING, 1000 * SECOND, 2000 * SECOND, most=5)
    assert seconds(within) == sorted(event for event in events if 1000 <= event <= 2000)


def test_thinning_goes_by_stars_own_value() -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.integers(1, 9, 60)).tolist()
    left = [tubelet(k, importance=float(rng.random())) for k in times]
    chosen = most_valuable(left, [], 20)
    while len(left) > 20:
        worth = values(left, left[-1].time_ns + (left[-1].time_ns - left[-2].time_ns))
        first_gap = left[1].time_ns - left[0].time_ns
        worth[0] = left[0].importance * (first_gap / 2) ** 0.5
        del left[int(np.argmin(worth))]
    assert [one.id for one in chosen] == [one.id for one in left]


def test_thinning_holds_together_under_random_changes() -> None:
    rng = np.random.default_rng(2)
    thinning = Thinning()
    for _ in range(3000):
        stamp = int(rng.integers(1, 200))
        if stamp in thinning:
            thinning.remove(stamp if rng.random() < 0.5 else thinning.least())
        else:
            thinning.add(stamp, stamp * 7, float(rng.choice([0.1, 0.5, 0.9])))
        thinning.check_integrity()


def test_a_range_gets_what_memory_holds_and_the_best_of_the_rest_in_time_order() -> None:
    archive = filled(Archive(1 << 20), [tubelet(k, importance=0.5 if k == 13 else 0.1) for k in range(40)])
    memory = Clip((tubelet(12), tubelet(20, stamps=1)), 1.0)
    joined = archive.joined(memory, 10 * SECOND, 25 * SECOND, most=6)
    assert len(joined) == 6
    assert seconds(joined) == sorted(seconds(joined))
    assert {12, 13, 20} <= set(seconds(joined))
    assert [one for one in joined.tubelets if one.stamps_ns[0] // SECOND in (12, 20)] == list(memory.tubelets)
    assert all(one.is_within(10 * SECOND, 25 * SECOND) for one in joined.tubelets)
    assert archive.joined(memory, 10 * SECOND, 25 * SECOND, most=2) is memory
    assert archive.joined(memory, 900 * SECOND, 0, most=9) is memory


def test_no_tubelet_has_an_earlier_time_than_the_one_before() -> None:
    """A key tubelet stands at its own stamp; its neighbour's time is snapped to the grid, up to half a slot earlier."""
    archive = filled(Archive(1 << 20), [replace(tubelet(5), time_ns=4 * SECOND)])
    key = replace(tubelet(4), time_ns=4 * SECOND + SECOND // 2)
    joined = archive.joined(Clip((key,), 1.0), 1, 0, most=9)
    assert [one.time_ns for one in joined.tubelets] == [key.time_ns, key.time_ns]


def test_pixels_are_the_jpegs_own_under_an_id_of_their_own() -> None:
    frame = noisy(scene(3), 1)
    original = tubelet(7, frames=np.stack([frame, frame]), stamps=1)
    ids = itertools.count(100)
    archive = filled(Archive(1 << 20, ids=ids), [original])
    (decoded,) = everything(archive).tubelets
    _, jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    expected = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decoded.frames, np.stack([expected, expected]))
    assert not np.array_equal(decoded.frames[0], frame)
    assert np.abs(decoded.frames[0].astype(int) - frame).mean() < 12
    assert decoded.id == 100
    assert replace(decoded, id=7, frames=original.frames).__dict__ == original.__dict__
    assert not decoded.frames.flags.writeable


def test_a_decoded_tubelet_keeps_its_id_and_pixels_until_it_is_let_go() -> None:
    archive = filled(Archive(1 << 20), [tubelet(k) for k in range(9)])
    first = {one.stamps_ns: one for one in everything(archive).tubelets}
    archive.joined(NOTHING, 1, SECOND // 2, most=9)  # what was handed out last is another range
    again = {one.stamps_ns: one for one in everything(archive).tubelets}
    assert {stamps: one.id for stamps, one in first.items()} == {stamps: one.id for stamps, one in again.items()}
    assert all(np.array_equal(first[stamps].frames, again[stamps].frames) for stamps in first)
    assert archive.ids() == {one.id for one in first.values()}
    archive.forget()
    archive.settle()
    assert archive.ids() == set()
    assert archive.status.archive_bytes == archive.status.archive_frames == archive.status.archive_ram_bytes == 0


def test_scaling_gives_the_wanted_size_and_new_ids() -> None:
    archive = filled(Archive(1 << 20), [tubelet(k) for k in range(3)])
    before = archive.ids() | {one.id for one in everything(archive).tubelets}
    archive.resize((28, 56))
    clip = everything(archive)
    assert {one.frames.shape for one in clip.tubelets} == {(2, 28, 56, 3)}
    assert before.isdisjoint(one.id for one in clip.tubelets)
    archive.check_integrity()


def manager(archive: Archive, **config: object) -> SmartFrameManager:
    sizes = {"star_memory_size": 4, "stream_window_size": 4, "stream_slide": 2, "scene_threshold": 1.0}
    return SmartFrameManager(MemoryConfig(**{**sizes, **config}), archive=archive)  # type: ignore[arg-type]


def play(memory: SmartFrameManager, archive: Archive, start: int, count: int) -> None:
    for k in range(start, start + count):
        memory.add_frame(scene(k), k * SECOND // 2)
        archive.store_one()


def stamps_of(clip: Clip) -> list[int]:
    return [stamp for one in clip.tubelets for stamp in one.stamps_ns]


def test_memory_and_archive_hold_every_frame_once() -> None:
    archive = Archive(1 << 24)
    memory = manager(archive)
    play(memory, archive, 0, 101)
    memory.update_star_memory([(scene(900), 10 * SECOND + 7), (scene(901), 70 * SECOND)])
    joined = archive.joined(memory.clip(), 1, 0, most=10**9)
    assert sorted(stamps_of(joined)) == sorted(
        [*(k * SECOND // 2 for k in range(101)), 10 * SECOND + 7, 70 * SECOND]
    )
    archive.check_integrity()


def test_what_happens_to_the_memory_happens_to_the_archive() -> None:
    archive = Archive(1 << 24)
    memory = manager(archive)
    play(memory, archive, 0, 60)
    assert memory.resize(lambda height, width: (28, 28))
    assert {one.frames.shape for one in archive.joined(memory.clip(), 1, 0, 10**9).tubelets} == {(2, 28, 28, 3)}
    memory.clear("at will")
    assert archive.joined(memory.clip(), 1, 0, 10**9) == memory.clip()
    play(memory, archive, 0, 60)
    assert {one.frames.shape for one in everything(archive).tubelets} == {(2, HEIGHT, WIDTH, 3)}
    memory.add_frame(scene(1), 2 * SECOND)  # back in time
    assert everything(archive) is NOTHING
    play(memory, archive, 20, 60)
    memory.regroup(1, "another model")
    play(memory, archive, 80, 60)
    assert {len(one.frames) for one in everything(archive).tubelets} == {1}


def test_frames_with_a_false_stamp_leave_the_archive_too() -> None:
    archive = Archive(1 << 24, horizon_s=1e9)
    memory = manager(archive)
    play(memory, archive, 0, 60)
    true = set(stamps_of(everything(archive)))
    far = 10**6 * SECOND
    memory.update_star_memory([(scene(k), far + k * SECOND) for k in range(12)])
    archive.settle()
    assert max(stamps_of(everything(archive))) > far
    play(memory, archive, 60, 1)  # goes on where the others were
    assert max(stamps_of(everything(archive))) < far
    assert true <= set(stamps_of(everything(archive)))
    play(memory, archive, 61, 30)
    assert stamps_of(archive.joined(memory.clip(), 1, 0, 10**9)) == [k * SECOND // 2 for k in range(91)]
    archive.check_integrity()


@pytest.mark.parametrize(
    ("field", "value"),
    [("archive_max_bytes", -1), ("archive_horizon_s", 0.0), ("archive_folder", "a/b"), ("archive_folder", "/a\0b")],
)
def test_impossible_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        MemoryConfig(**{field: value})  # type: ignore[arg-type]
