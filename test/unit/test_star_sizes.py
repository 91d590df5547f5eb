"""Star in smaller frames than the window: which twins are handed out, when, and at which sizes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from support.memory_frames import SECOND, noisy, scene
from vstream_ros.engine import EngineConfig
from vstream_ros.engine.camera_memories import CameraMemories
from vstream_ros.engine.segments import clip_segments
from vstream_ros.errors import ConfigError
from vstream_ros.images import resize_rgb
from vstream_ros.memory import Clip, MemoryConfig, SmartFrameManager, Tubelet
from vstream_ros.memory.memory_config import MaxTubelets
from vstream_ros.models.frame_spec import FrameSpec

PERIOD = SECOND // 2
LARGE, SMALL = (56, 112), (28, 56)
SPEC = FrameSpec()
MEMORY = MemoryConfig(
    sample_rate_hz=2.0, star_memory_size=8, stream_window_size=8, stream_slide=3, include_pending=False,
    scene_threshold=1.0,
)  # fmt: skip


def as_it_is(height: int, width: int) -> tuple[int, int]:
    return height, width


def star_fit(max_pixels: int) -> Callable[[int, int], tuple[int, int]]:
    return functools.partial(SPEC.shrink, max_pixels=max_pixels)


class Twins:
    """Two memories that see the same frames: one with its star in ``SMALL``, one without."""

    def __init__(self) -> None:
        self.small, self.plain = SmartFrameManager(MEMORY), SmartFrameManager(MEMORY)
        self.small.resize(as_it_is, star_fit(SMALL[0] * SMALL[1]))
        self._count = 0

    def add(self, frames: int = 1) -> None:
        for _ in range(frames):
            picture = noisy(scene(self._count // 5, 0, *LARGE), self._count)
            for memory in (self.small, self.plain):
                memory.add_frame(picture, self._count * PERIOD)
                memory.check_integrity()
            self._count += 1

    def insert(self, stamp_ns: int) -> None:
        picture = scene(stamp_ns % 97, 0, *LARGE)
        for memory in (self.small, self.plain):
            memory.update_star_memory([(picture, stamp_ns)])
            memory.check_integrity()


def star_count(memory: SmartFrameManager) -> int:
    return len(memory._held._store.star)


def ids(clip: Clip | None) -> list[int]:
    return [tubelet.id for tubelet in clip.tubelets] if clip else []


def assert_stands_for(small: Tubelet, plain: Tubelet) -> None:
    """All of a tubelet but its pixels and its id."""
    for name in ("camera", "stamps_ns", "time_ns", "importance", "scene_change", "key", "provisional"):
        assert getattr(small, name) == getattr(plain, name)


def test_star_is_handed_out_small_and_the_window_as_it_is() -> None:
    twins = Twins()
    seen: dict[int, bytes] = {}
    for _ in range(120):
        twins.add()
        star = star_count(twins.small)
        clip, plain = twins.small.clip().tubelets, twins.plain.clip().tubelets
        assert star == star_count(twins.plain)
        for k, (one, other) in enumerate(zip(clip, plain, strict=True)):
            assert_stands_for(one, other)
            assert one.frames.shape[1:3] == (SMALL if k < star else LARGE)
            assert np.array_equal(one.frames, np.stack([resize_rgb(f, one.frames.shape[1:3]) for f in other.frames]))
            assert not one.frames.flags.writeable
            assert seen.setdefault(one.id, one.frames.tobytes()) == one.frames.tobytes(), "equal ids, equal pixels"
        assert len(set(ids(twins.small.clip()))) == len(clip)
    assert star == 4, "or nothing of star was seen"


def test_what_was_told_of_the_next_slide_is_what_it_leaves() -> None:
    """Ids and all, whatever was asked before and however often, and with key frames in between."""
    twins = Twins()
    told: list[int] = []
    slides = 0
    for k in range(120):
        oldest = twins.small._held._store.stream[:1]
        twins.add()
        now = ids(twins.small.clip())
        if twins.small._held._store.stream[:1] != oldest and told:
            slides += 1
            assert now[: len(told)] == told
        if k % 31 == 30:
            twins.insert((k - k % 20) * PERIOD + 7)  # in the window or in star
        told = ids(twins.small.next_clip())
        assert ids(twins.small.next_clip()) == told
    assert slides > 10


def test_a_twin_that_was_told_before_its_tubelet_became_a_key_frame_knows_it() -> None:
    twins = Twins()
    twins.add(2 * 7)
    first = twins.small.next_clip()
    assert first is not None
    told = first.tubelets[0]
    twins.small.update_star_memory([(scene(0, 0, *LARGE), told.stamps_ns[0])])
    again = twins.small.next_clip()
    assert again is not None
    assert (again.tubelets[0].id, again.tubelets[0].key, told.key) == (told.id, True, False)


def test_twins_are_counted_and_go_with_their_tubelets() -> None:
    twins = Twins()
    pair = 2 * SMALL[0] * SMALL[1] * 3
    for _ in range(200):
        twins.add()
        twins.small.clip(), twins.small.next_clip()
        extra = twins.small.status().nbytes - twins.plain.status().nbytes
        assert extra % pair == 0
        assert 0 <= extra // pair <= 4 + 3, "of star, and of what will leave the window"
    assert extra > 0
    twins.small.clear("a test")
    assert twins.small.status().nbytes == 0


def test_frames_that_are_small_already_stand_for_themselves() -> None:
    memory, other = SmartFrameManager(MEMORY), SmartFrameManager(MEMORY)
    memory.resize(as_it_is, star_fit(LARGE[0] * LARGE[1]))
    for k in range(40):
        for one in (memory, other):
            one.add_frame(scene(k // 5, 0, *LARGE), k * PERIOD)
    assert star_count(memory) == 4
    assert ids(memory.clip()) == ids(other.clip()), "no tubelet was made anew"
    assert memory.status().nbytes == other.status().nbytes


def test_another_model_changes_both_sizes_and_says_so_once() -> None:
    twins = Twins()
    twins.add(40)
    memory, epoch = twins.small, twins.small.epoch
    before = memory.clip()
    assert memory.resize(as_it_is, star_fit(SMALL[0] * SMALL[1])) == 0, "the same model again"
    assert memory.clip() is before
    assert memory.resize(as_it_is, star_fit(28 * 28)) > 0, "only star changes"
    assert memory.epoch == epoch + 1
    sizes = [t.frames.shape[1:3] for t in memory.clip().tubelets]
    assert sizes[:4] == [(28, 28)] * 4 == [SPEC.shrink(*LARGE, max_pixels=28 * 28)] * 4
    assert set(sizes[4:]) == {LARGE}
    assert set(ids(memory.clip())[:4]).isdisjoint(ids(before)[:4])
    assert ids(memory.clip())[4:] == ids(before)[4:]
    assert memory.resize(lambda height, width: (64, 128), star_fit(32 * 64)) > 0
    assert memory.epoch == epoch + 2
    assert len({t.frames.shape for t in memory.clip().tubelets}) == 2
    assert memory.resize(as_it_is) > 0
    assert {t.frames.shape[1:3] for t in memory.clip().tubelets} == {(64, 128)}
    memory.check_integrity()


def test_tubelets_of_another_length_keep_the_rule() -> None:
    twins = Twins()
    twins.small.regroup(4, "a test")
    twins.add(80)
    assert {t.frames.shape[1:3] for t in twins.small.clip().tubelets} == {LARGE, SMALL}


def test_the_window_alone_has_one_size_and_a_resolution_change_clears_as_before() -> None:
    twins = Twins()
    twins.add(40)
    status = twins.small.add_frame(scene(1, 0, 84, 84), 1000 * PERIOD)
    assert status.cleared
    assert twins.small.clip().tubelets == twins.small.clip().tubelets
    assert twins.small.status().stream_frames == 1


# ---- the rule ----


@pytest.mark.parametrize("factor", [28, 32])
def test_shrinking_stays_on_the_grid_within_the_pixels_and_does_nothing_twice(factor: int) -> None:
    spec = FrameSpec(factor=factor)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        held = spec.fit(*(int(side) for side in np.exp(rng.uniform(3, 8, 2))))
        pixels = int(np.exp(rng.uniform(6, 13)))
        size = spec.shrink(*held, max_pixels=pixels)
        assert size[0] % factor == size[1] % factor == 0
        assert size[0] <= held[0]
        assert size[1] <= held[1]
        assert size[0] * size[1] <= pixels or size == held
        assert spec.shrink(*size, max_pixels=pixels) == size


def test_a_strip_that_cannot_be_smaller_stays() -> None:
    assert SPEC.shrink(28, 6328, max_pixels=100_000) == (28, 6328), "rounding gave it a ratio that no rule takes"
    assert SPEC.shrink(28, 1400, max_pixels=1000) == (28, 1400)


# ---- all cameras ----


def test_the_memories_of_an_engine_get_the_rule_of_each_model() -> None:
    memories = CameraMemories({"front": MEMORY, "rear": MEMORY}, SPEC, star_max_pixels=3136)
    for name in memories.names:
        for k in range(40):
            memories.keep(memories.offer(k * PERIOD, name), scene(k // 5, 0, 112, 168))
    for spec in (SPEC, FrameSpec(factor=32), FrameSpec(max_pixels=2 * 3136), SPEC):
        memories.use_frame_spec(spec, "another model")
        for clip in memories.take().clips:
            large, small = spec.fit(112, 168), spec.shrink(*spec.fit(112, 168), max_pixels=3136)
            assert small != large
            assert [t.frames.shape[1:3] for t in clip.tubelets] == [small] * 4 + [large] * (len(clip) - 4)
    assert memories.max_tubelets == MaxTubelets(total=2 * (4 + 4 + 3), star=2 * 4)


def test_what_is_computed_ahead_of_a_slide_is_of_tubelets_that_are_held() -> None:
    memories = CameraMemories({"front": MEMORY}, SPEC, star_max_pixels=3136)
    for k in range(12):
        memories.keep(memories.offer(k * PERIOD, "front"), scene(k // 5, 0, 112, 168))
    ahead = {t.id for clip in memories.clips_ahead()[1] for t in clip.tubelets}
    assert ahead - {t.id for clip in memories.take().clips for t in clip.tubelets}, "or nothing is tested"
    assert ahead <= memories.held_tubelets(), "what was computed of them is not to be forgotten"


# ---- the prompt's blocks ----


def clip_of(sizes: list[tuple[int, int]], camera: str = "camera", every_s: float = 1.0) -> Clip:
    numbers = itertools.count()
    return Clip(
        tuple(
            Tubelet(next(numbers), camera, np.zeros((2, *size, 3), np.uint8), (k,), round(k * every_s * SECOND), 0.0)
            for k, size in enumerate(sizes)
        ),
        second_per_grid=1.0,
    )


def test_one_camera_in_two_sizes_is_two_blocks_and_the_second_tells_the_time() -> None:
    clip = clip_of([SMALL] * 3 + [LARGE] * 2, every_s=2.5)
    first, second = clip_segments([clip], ["camera"], 10.0)
    assert (first.tubelets, first.label) == (clip.tubelets[:3], "")
    assert (second.tubelets, second.label) == (clip.tubelets[3:], "From second 7.5:")
    assert first.origin_ns == second.origin_ns == 0
    (only,) = clip_segments([clip_of([LARGE] * 3)], ["camera"], 10.0)
    assert only.label == ""


def test_several_cameras_part_a_block_where_sizes_part() -> None:
    clips = [clip_of([SMALL] * 3 + [LARGE] * 3, "front"), clip_of([LARGE] * 6, "rear")]
    blocks = clip_segments(clips, ["front", "rear"], 2.0)
    shown = [(b.label, len(b.tubelets), b.tubelets[0].frames.shape[1:3]) for b in blocks]
    assert shown == [
        ("front camera, from second 0:", 2, SMALL),
        ("rear camera, from second 0:", 2, LARGE),
        ("front camera, from second 2:", 1, SMALL),
        ("front camera, from second 2:", 1, LARGE),
        ("rear camera, from second 2:", 2, LARGE),
        ("front camera, from second 4:", 2, LARGE),
        ("rear camera, from second 4:", 2, LARGE),
    ]


# ---- the parameter ----


@pytest.mark.parametrize("pixels", [-1, 1, 3135])
def test_a_star_that_no_frame_fits_is_refused(pixels: int) -> None:
    with pytest.raises(ConfigError, match=rf"star_max_pixels must be 0 .*3136.* got {pixels}"):
        EngineConfig(star_max_pixels=pixels)


def test_off_by_default_and_no_harm_where_it_is_larger_than_the_others() -> None:
    assert EngineConfig().star_max_pixels == 0
    assert EngineConfig(star_max_pixels=10**6).star_max_pixels == 10**6
