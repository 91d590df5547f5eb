"""Importance: its formula, texture, scene changes, and what a broken embedding costs."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from support.memory_frames import SECOND, flat, lit, noisy, scene, view, with_ball, world
from vstream_ros.errors import ConfigError
from vstream_ros.images.resize import resize_rgb
from vstream_ros.memory import MemoryConfig
from vstream_ros.memory.activity import THUMBNAIL
from vstream_ros.memory.importance import Embed, FrameScorer, Score, layout_change, texture


def scores(frames: list[np.ndarray], embed: Embed | None = None, hz: float = 2.0, **config: object) -> list[Score]:
    scorer = FrameScorer(MemoryConfig(**config), embed)  # type: ignore[arg-type]
    return [scorer.score(frame, round(i * SECOND / hz)) for i, frame in enumerate(frames)]


def passing(count: int, radius: int = 13) -> list[np.ndarray]:
    """A ball that crosses a still scene under a real sensor's noise, from the second frame on."""
    still = view(world(1), 0.0)
    balls = [with_ball(still, 60 + 40 * k, 120, radius) for k in range(count - 1)]
    return [noisy(frame, seed) for seed, frame in enumerate([still, *balls])]


def test_the_formula_is_the_references() -> None:
    for score in scores([*passing(5), scene(1, 0, 252, 448), scene(2, 0, 252, 448)])[1:]:
        assert score.importance == pytest.approx(0.7 * score.motion + 0.3 * score.complexity)
        assert score.importance > 0.01 or score.scene_change


def test_weights_count_by_their_ratio() -> None:
    frames = passing(4)
    importance = [s.importance for s in scores(frames)]
    doubled = scores(frames, motion_weight=1.4, complexity_weight=0.6)
    assert [s.importance for s in doubled] == pytest.approx(importance)
    assert max(importance) > 0.0
    for score in scores(frames, motion_weight=5.0, complexity_weight=0.0):
        assert score.importance == pytest.approx(score.motion)
    only_complexity = scores([flat(128), scene(1)], motion_weight=0.0, complexity_weight=5.0)[1]
    assert only_complexity.importance == pytest.approx(only_complexity.complexity) != 0.0


def test_importance_is_not_bounded_by_one() -> None:
    lamp = flat(40)
    lamp[:24, :32] = 160
    assert scores([flat(40), lamp])[1].importance > 1.0


def test_the_first_frame_is_worth_nothing_and_cuts_nothing() -> None:
    first = scores([scene(1)])[0]
    assert (first.importance, first.motion, first.complexity, first.change) == (0.0, 0.0, 0.0, 0.0)
    assert not first.scene_change


def test_motion_grows_with_the_object_and_ignores_sensor_noise_and_the_camera() -> None:
    still = [noisy(view(world(1), 0.0), seed) for seed in range(2)]
    panned = [noisy(view(world(1), x), 7) for x in (0.0, 4.0)]
    nothing, pan, *growing = (
        scores(frames)[1].motion for frames in (still, panned, *(passing(2, radius) for radius in (6, 13, 26)))
    )
    assert nothing < 0.002
    assert pan < growing[1] / 3
    assert 0.01 < growing[0] < growing[1] / 2 < growing[2] / 4


def test_texture_tells_walls_shadows_rooms_and_noise_apart() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (48, 64, 3))
    wall, shadow, room, noise = (
        texture(resize_rgb(np.ascontiguousarray(f), THUMBNAIL))
        for f in (flat(90), ramp, scene(1), noisy(flat(128), 0, sigma=90.0))
    )
    assert wall == 0.0
    assert wall < shadow < room < noise <= 1.0
    assert texture(np.zeros((48, 48, 3), np.uint8)) == 0.0
    assert texture(lit(scene(1), 0.5)) == pytest.approx(texture(scene(1)), rel=0.05), "light is no texture"


def test_complexity_is_texture_beyond_what_the_camera_usually_sees() -> None:
    wall, room = flat(128), scene(1)
    appears = [s.complexity for s in scores([wall] * 4 + [room] * 120)]
    assert appears[:4] == [0.0] * 4
    assert appears[4] == pytest.approx(texture(room))
    assert appears[4:] == sorted(appears[4:], reverse=True)
    assert appears[-1] < 0.01 * appears[4], "after a minute it is usual"
    assert [s.complexity for s in scores([room] * 4 + [wall] * 4)] == [0.0] * 8, "less than usual is nothing"


@pytest.mark.parametrize("hz", [2.0, 10.0, 25.0])
def test_hard_cuts_are_found_and_pans_noise_and_moving_objects_are_not(hz: float) -> None:
    frames, cuts = [], []
    for seed in range(12):
        cuts.append(len(frames))
        frames += [noisy(scene(seed, shift), 100 * seed + shift) for shift in range(20)]
    for i, frame in enumerate(frames):  # one object crosses the picture all the time
        x = 3 * i % 50
        frame[20:34, x : x + 12] = (250, 30, 30)
    found = [i for i, score in enumerate(scores(frames, hz=hz)) if score.scene_change]
    assert found == cuts[1:]


@pytest.mark.parametrize("hz", [2.0, 10.0, 25.0])
def test_shake_is_no_cut_and_hides_none(hz: float) -> None:
    """The camera shakes by up to 10 pixels of 224, as seen in 448."""
    rng = np.random.default_rng(1)
    worlds = [world(seed, width=560) for seed in range(3)]
    frames = [noisy(view(w, *(60.0 + rng.uniform(-20, 20, 2))), i) for i, w in enumerate(np.repeat(worlds, 40, axis=0))]
    found = scores(frames, hz=hz)
    assert [i for i, score in enumerate(found) if score.scene_change] == [40, 80]
    assert max(s.change for i, s in enumerate(found) if i not in (40, 80)) < 0.1


def test_auto_exposure_is_no_cut_but_the_light_going_out_is() -> None:
    room = scene(3)
    brighter = np.clip(room * 1.5, 0, 255).astype(np.uint8)
    assert not scores([room, brighter])[1].scene_change
    assert scores([room, flat(2)])[1].scene_change


def test_flat_frames_do_not_change_on_their_own() -> None:
    assert scores([flat(80), noisy(flat(80), 1)])[1].change < 0.01
    assert scores([flat(0), flat(255)])[1].scene_change
    red, blue = flat(), flat()
    red[..., 0], blue[..., 2] = 220, 220
    assert scores([red, blue])[1].scene_change


def test_change_is_a_symmetric_distance_in_range() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        a, b = rng.uniform(0.0, 255.0, (2, 432))
        assert layout_change(a, a) == pytest.approx(0.0, abs=1e-9)
        assert layout_change(a, b) == pytest.approx(layout_change(b, a))
        assert 0.0 <= layout_change(a, b) <= 1.0
    board = np.arange(432) % 2 * 255.0
    assert layout_change(board, 255.0 - board) == pytest.approx(1.0, abs=0.01)


def test_scene_threshold_is_the_change_from_which_on_a_scene_is_new() -> None:
    change = scores([scene(1), scene(2)])[1].change
    assert scores([scene(1), scene(2)], scene_threshold=change)[1].scene_change
    assert not scores([scene(1), scene(2)], scene_threshold=min(1.0, change + 1e-6))[1].scene_change


def test_a_new_scene_is_what_later_frames_are_compared_with() -> None:
    frames = [scene(1, 0, 252, 448)] * 4 + [scene(2, 0, 252, 448)] * 4
    found = scores(frames)
    assert [s.scene_change for s in found] == [False] * 4 + [True] + [False] * 3
    assert [s.importance for s in found[5:]] == [0.0] * 3


def test_semantic_motion_is_the_change_of_the_embedding() -> None:
    angles = iter([0.0, 0.0, math.pi / 3, math.pi / 3 + math.pi / 2, 0.0])

    def embed(frame: np.ndarray) -> np.ndarray:
        angle = next(angles)
        return 7.0 * np.array([math.cos(angle), math.sin(angle)], np.float32)

    semantic = scores([flat(10)] * 4, embed, selection_method="semantic")
    assert [s.motion for s in semantic] == pytest.approx([0.0, 0.0, 0.5, 1.0], abs=1e-6)
    assert [s.importance for s in semantic] == pytest.approx([0.0, 0.0, 0.35, 0.7], abs=1e-6)


def test_opposite_embeddings_saturate() -> None:
    vectors = iter([np.ones(4), -np.ones(4)])
    assert scores([flat()] * 2, lambda _: next(vectors), selection_method="semantic")[1].motion == 1.0


def test_semantic_without_embed_says_what_to_pass() -> None:
    with pytest.raises(ConfigError, match=r"embed.*function"):
        FrameScorer(MemoryConfig(selection_method="semantic"))


def test_pixel_never_calls_embed() -> None:
    calls: list[np.ndarray] = []

    def embed(frame: np.ndarray) -> np.ndarray:
        calls.append(frame)
        return np.ones(3)

    scores([flat()] * 2, embed)
    assert calls == []


BROKEN: list[object] = [
    RuntimeError("out of memory"), np.zeros(3), np.full(3, np.nan), np.full(3, np.inf), [], None, "text", np.ones(5),
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: f"{type(b).__name__}-{b}"[:24])
def test_a_broken_embedding_costs_its_score_and_not_the_stream(broken: object) -> None:
    """The frame, and the next one that would be compared with it, are compared by their pixels."""
    results = iter([np.ones(3), broken, np.ones(3), np.ones(3)])

    def embed(frame: np.ndarray) -> np.ndarray:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[return-value]

    frames = passing(4)
    semantic = [s.motion for s in scores(frames, embed, selection_method="semantic")]
    pixel = [s.motion for s in scores(frames)]
    assert semantic[:3] == pixel[:3]
    assert min(pixel[1:]) > 0.01
    assert semantic[3] == pytest.approx(0.0)


def test_failures_are_logged_with_their_traceback_but_do_not_flood(caplog: pytest.LogCaptureFixture) -> None:
    def embed(frame: np.ndarray) -> np.ndarray:
        raise RuntimeError("the encoder is gone")

    with caplog.at_level(logging.ERROR):
        scores([flat()] * 100, embed, selection_method="semantic")
    assert len(caplog.records) == 7  # the 1st, 2nd, 4th ... 64th
    assert "the encoder is gone" in str(caplog.records[0].exc_info)
