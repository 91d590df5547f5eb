"""What memory holds can be seen: the snapshot with its reasons, and the contact sheet."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.memory import NANOSECONDS, MemoryConfig, MemorySnapshot, SmartFrameManager, Tubelet, draw_contact_sheet
from vstream_ros.memory.contact_sheet import COLUMNS, MAX_ROWS, STAR, STREAM, WIDTH, moment, span

SECOND = NANOSECONDS


def scene(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(30, 220, (6, 8, 3), np.uint8).repeat(14, 0).repeat(14, 1)


ROOM = scene(0)


def with_disc(frame: np.ndarray) -> np.ndarray:
    frame = frame.copy()
    frame[34:50, 40:60] = (220, 30, 30)
    return frame


def tubelet(index: int, *, size=(84, 112), stamps: int = 2, **fields) -> Tubelet:
    frames = np.random.default_rng(index).integers(0, 256, (2, *size, 3), np.uint8)
    stamps_ns = tuple(index * SECOND + k * SECOND // 2 for k in range(stamps))
    given = {"camera": "front", "time_ns": index * SECOND, "importance": 0.1, **fields}
    return Tubelet(id=index, frames=frames, stamps_ns=stamps_ns, **given)


def snapshot(star: int, stream: int, camera: str = "front", **fields) -> MemorySnapshot:
    tubelets = tuple(tubelet(k, **fields) for k in range(star + stream))
    values = (math.inf, *(0.1,) * (star - 1)) if star else ()
    return MemorySnapshot(camera, tubelets[:star], values, tubelets[star:], second_per_grid=1.0)


def pixels_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(-1).sum())


def bordered(sheet: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many cells have a border of that colour, by their upper left corners, 12 pixels across and 2 down."""
    is_it = (sheet[30:] == colour).all(-1)  # beneath the legend
    row = np.logical_and.reduce([is_it[:-12, k : WIDTH - 12 + k] for k in range(12)])
    down = np.logical_and.reduce([is_it[k : len(is_it) - 12 + k, : WIDTH - 12] for k in range(12)])
    # The corner itself, two pixels wide, is counted once: nothing of the colour is left of it or above it.
    left, above = np.roll(is_it, 1, 1)[:-12, : WIDTH - 12], np.roll(is_it, 1, 0)[:-12, : WIDTH - 12]
    return int((row & down & ~left & ~above).sum())


@pytest.fixture
def memory() -> SmartFrameManager:
    """A still room at 2 Hz; an object at 60 to 62 s, another scene at 90 s, 120 s in all."""
    memory = SmartFrameManager(MemoryConfig(star_memory_size=12), camera="front")
    noise = np.random.default_rng(1)
    for k in range(240):
        frame = scene(2) if k >= 180 else with_disc(ROOM) if 120 <= k < 124 else ROOM
        frame = np.clip(frame + noise.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)
        memory.add_frame(frame, k * SECOND // 2)
    return memory


def test_a_snapshot_says_what_is_held_and_why(memory):
    before = memory.clip().tubelets
    shot = memory.snapshot()
    assert [t.id for t in shot.tubelets] == [t.id for t in before] == [t.id for t in memory.clip().tubelets]
    assert sum(len(t.stamps_ns) for t in shot.star) == memory.status().star_frames
    assert len(shot.values) == len(shot.star)
    assert shot.values[0] == math.inf
    assert all(0 < value < 100 for value in shot.values[1:])  # of seconds, not of nanoseconds
    reasons = {t.stamps_ns[0] // SECOND: shot.reason(index) for index, t in enumerate(shot.tubelets)}
    assert reasons[0] == "first"
    assert reasons[60] == "motion"
    assert reasons[90] == "scene change"
    assert reasons[119] == "recent"
    assert "spread" in reasons.values()
    for index, t in enumerate(shot.star):
        assert shot.reason(index) != "spread" or t.importance <= 0.005


def test_what_was_handed_over_is_a_key_frame(memory):
    memory.update_star_memory([(ROOM, 30 * SECOND + 1), (ROOM, 117 * SECOND + 1)])
    shot = memory.snapshot()
    reasons = {t.stamps_ns[0]: shot.reason(index) for index, t in enumerate(shot.tubelets)}
    assert reasons[30 * SECOND + 1] == "key frame"
    assert reasons[117 * SECOND + 1] == "recent, key frame"


def test_a_lonely_first_frame_is_there_to_see():
    memory = SmartFrameManager(MemoryConfig(include_pending=False), camera="front")
    assert memory.snapshot().tubelets == ()
    memory.add_frame(ROOM, SECOND)
    memory.add_frame(ROOM, 2 * SECOND)
    memory.add_frame(ROOM, 3 * SECOND)
    shot = memory.snapshot()
    assert [t.provisional for t in shot.stream] == [False, True]
    assert shot.reason(1) == "recent"
    memory.check_integrity()


def test_star_and_stream_are_told_apart():
    sheet = draw_contact_sheet([snapshot(7, 4)])
    assert sheet.dtype == np.uint8
    assert sheet.shape[1:] == (WIDTH, 3)
    assert (bordered(sheet, STAR), bordered(sheet, STREAM)) == (7, 4)


def test_thumbnails_stand_in_time_order():
    shot = snapshot(3, 2)
    greys = [40 * (k + 1) for k in range(5)]
    tubelets = [replace(t, frames=np.full_like(t.frames, g)) for t, g in zip(shot.tubelets, greys, strict=True)]
    sheet = draw_contact_sheet([replace(shot, star=tuple(tubelets[:3]), stream=tuple(tubelets[3:]))])
    places = [np.argwhere((sheet == grey).all(-1)).mean(0) for grey in greys]
    assert len({round(y) for y, _ in places}) == 1
    assert [round(x * COLUMNS / WIDTH - 0.5) for _, x in places] == [0, 1, 2, 3, 4]


def test_each_frame_of_a_tubelet_is_shown_and_a_repetition_is_not():
    frames = np.stack([np.full((84, 112, 3), 40, np.uint8), np.full((84, 112, 3), 200, np.uint8)])
    pair, alone = (replace(tubelet(0, stamps=stamps), frames=frames) for stamps in (2, 1))
    for held, both in ((pair, True), (alone, False)):
        sheet = draw_contact_sheet([MemorySnapshot("front", (), (), (held,), 1.0)])
        assert pixels_of(sheet, (40, 40, 40)) > 5000
        assert (pixels_of(sheet, (200, 200, 200)) > 5000) == both


def gap_paper(sheet: np.ndarray, column: int, row: slice) -> bool:
    cell = WIDTH // COLUMNS
    return pixels_of(sheet[row, column * cell : column * cell + 18], (226, 226, 226)) > 500


def test_gaps_are_seen_where_there_are_some():
    late = [replace(tubelet(k), time_ns=(k + 130) * SECOND, stamps_ns=((k + 130) * SECOND,)) for k in (2, 3)]
    shot = MemorySnapshot("front", (tubelet(0), tubelet(1), *late), (math.inf, 1.0, 1.0, 1.0), (), 1.0)
    sheet = draw_contact_sheet([shot])
    assert [gap_paper(sheet, column, slice(62, None)) for column in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(("star", "stream"), [(0, 0), (0, 1), (1, 1)])
def test_little_is_drawn_too(star, stream):
    sheet = draw_contact_sheet([snapshot(star, stream)])
    assert sheet.shape[1] == WIDTH
    assert (bordered(sheet, STAR), bordered(sheet, STREAM)) == (star, stream)
    assert sheet.shape[0] < 250


def test_no_camera_at_all():
    assert draw_contact_sheet([]).shape[1] == WIDTH


def test_a_thousand_tubelets_are_bounded_and_the_ends_are_there():
    shot = snapshot(900, 100, size=(56, 56))
    first, last = np.full((2, 56, 56, 3), 11, np.uint8), np.full((2, 56, 56, 3), 22, np.uint8)
    star = (replace(shot.star[0], frames=first), *shot.star[1:])
    stream = (*shot.stream[:-1], replace(shot.stream[-1], frames=last))
    sheet = draw_contact_sheet([replace(shot, star=star, stream=stream)])
    assert sheet.shape[0] < 3700
    cells = bordered(sheet, STAR) + bordered(sheet, STREAM)
    assert cells == MAX_ROWS * COLUMNS
    assert min(pixels_of(sheet, (11, 11, 11)), pixels_of(sheet, (22, 22, 22))) > 5000
    assert gap_paper(sheet, 1, slice(62, 240))  # what is left out is said


@pytest.mark.parametrize("cameras", [2, 7, 300])
def test_many_cameras_are_bounded_and_stacked(cameras):
    sheet = draw_contact_sheet([snapshot(60, 10, f"camera {k}", size=(56, 56)) for k in range(cameras)])
    assert sheet.shape[0] < 3700
    assert bordered(sheet, STAR) + bordered(sheet, STREAM) == (MAX_ROWS // min(cameras, MAX_ROWS)) * min(
        cameras, MAX_ROWS
    ) * COLUMNS


@pytest.mark.parametrize("name", ["", "\x1b[31m\n\0", "Kamera β ☃ 前", "x" * 100_000, "%s{}[/red]\\", "\ud800"])
def test_hostile_names_are_only_names(name):
    harmless = draw_contact_sheet([snapshot(2, 2, "front")])
    sheet = draw_contact_sheet([snapshot(2, 2, name)])
    assert sheet.shape == harmless.shape
    assert np.array_equal(sheet[60:], harmless[60:])  # beneath the heading


@pytest.mark.parametrize("size", [(84, 112), (280, 644), (112, 84), (28, 28), (28, 2800), (2800, 28), (1, 1)])
def test_frames_of_every_shape_keep_it(size):
    frames = np.full((2, *size, 3), (10, 200, 90), np.uint8)
    sheet = draw_contact_sheet([MemorySnapshot("front", (), (), (replace(tubelet(0), frames=frames),), 1.0)])
    assert sheet.shape[0] < 300
    ys, xs = np.nonzero((sheet == (10, 200, 90)).all(-1))
    height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
    assert (width - 2) / 2 / height == pytest.approx(size[1] / size[0], rel=0.05) or min(height, width - 3) <= 5


def test_the_longest_words_stay_in_their_cells():
    """What lies right of a cell does not depend on what is written in it."""
    usual, long = snapshot(2, 0), snapshot(2, 0, importance=1.2345e-300, scene_change=True)
    long = replace(long, values=(math.inf, 1.2345e-300))
    one, other = draw_contact_sheet([usual]), draw_contact_sheet([long])
    cell = WIDTH // COLUMNS
    assert np.array_equal(one[60:, 2 * cell :], other[60:, 2 * cell :])
    assert np.array_equal(one[60:, cell : cell + 20], other[60:, cell : cell + 20])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (3.5, "3.5 s"), (59.94, "59.9 s"), (59.96, "1 min"), (130, "2 min 10 s"), (3600, "1 h"),
        (3903, "1 h 5 min"), (86400 + 7200, "1 d 2 h"), (3600 * 24 * 400, "400 d"),
    ],
)  # fmt: skip
def test_lengths_of_time_are_read_easily(seconds, words):
    assert span(round(seconds * SECOND)) == words


@pytest.mark.parametrize(
    ("stamp_ns", "words"),
    [
        (0, "t = 0.0 s"), (12_560_000_000, "t = 12.5 s"), (-1_500_000_000, "t = -1.5 s"),
        (1_700_000_000_260_000_000, "2023-11-14 22:13:20.2"), (2**63 - 1, "2262-04-11 23:47:16.8"),
        (-(2**63) + 1, "t = -9223372036.9 s"),
    ],
)  # fmt: skip
def test_moments_of_every_clock_are_named(stamp_ns, words):
    assert moment(stamp_ns) == words


def test_an_engine_hands_out_all_cameras_of_one_moment():
    config = MemoryConfig()
    with DelayedBatchInferenceEngine(memory={"front": config, "rear": config}) as engine:
        for k in range(6):
            engine.add_frame(ROOM, camera="front", stamp_ns=k * SECOND)
        front, rear = engine.snapshots()
        assert (front.camera, rear.camera) == ("front", "rear")
        assert (len(front.stream), len(rear.stream)) == (3, 0)
        assert bordered(draw_contact_sheet([front, rear]), STREAM) == 3
