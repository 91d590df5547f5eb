"""Motion, complexity, scene changes: what they tell apart, and what a broken embedding costs."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from support.memory_frames import flat, noisy, scene
from vstream_ros.errors import ConfigError
from vstream_ros.memory import MemoryConfig
from vstream_ros.memory.importance import Embed, FrameScorer, Score, layout_change, texture


def scores(frames: list[np.ndarray], embed: Embed | None = None, **config: object) -> list[Score]:
    scorer = FrameScorer(MemoryConfig(**config), embed)  # type: ignore[arg-type]
    return [scorer.score(frame) for frame in frames]


def test_the_formula_is_the_references() -> None:
    for score in scores([scene(1, shift) for shift in range(0, 20, 5)]):
        assert score.importance == pytest.approx(0.7 * score.motion + 0.3 * score.complexity)


def test_weights_count_by_their_ratio_and_importance_stays_in_range() -> None:
    frames = [scene(1), scene(2)]
    doubled = scores(frames, motion_weight=1.4, complexity_weight=0.6)
    assert [s.importance for s in doubled] == pytest.approx([s.importance for s in scores(frames)])
    only_motion = scores(frames, motion_weight=5.0, complexity_weight=0.0)[1]
    assert only_motion.importance == pytest.approx(only_motion.motion)
    assert only_motion.importance <= 1.0


def test_the_first_frame_moves_by_nothing_and_cuts_nothing() -> None:
    first = scores([scene(1)])[0]
    assert (first.motion, first.change, first.scene_change) == (0.0, 0.0, False)


def test_motion_grows_with_movement_and_ignores_sensor_noise() -> None:
    views = [scene(1, shift, 252, 448) for shift in (0, 0, 4, 30)]
    still, slow, fast = (scores([views[0], noisy(view, 1)])[1].motion for view in views[1:])
    assert still < 0.1 < slow < fast <= 1.0


def test_complexity_is_texture() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (48, 64, 3))
    wall, shadow, room, noise = (
        scores([np.ascontiguousarray(f)])[0].complexity
        for f in (flat(90), ramp, scene(1), noisy(flat(128), 0, sigma=90.0))
    )
    assert wall == 0.0
    assert wall < shadow < room < noise <= 1.0
    assert texture(np.zeros((48, 48), np.uint8)) == 0.0


def test_hard_cuts_are_found_and_pans_noise_and_moving_objects_are_not() -> None:
    frames, cuts = [], []
    for seed in range(12):
        cuts.append(len(frames))
        frames += [noisy(scene(seed, shift), 100 * seed + shift) for shift in range(20)]
    for i, frame in enumerate(frames):  # one object crosses the picture all the time
        x = 3 * i % 50
        frame[20:34, x : x + 12] = (250, 30, 30)
    found = [i for i, score in enumerate(scores(frames)) if score.scene_change]
    assert found == cuts[1:]


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

    frames = [scene(1), scene(1, 4), scene(1, 8), scene(1, 12)]
    semantic = [s.motion for s in scores(frames, embed, selection_method="semantic")]
    pixel = [s.motion for s in scores(frames)]
    assert semantic[:3] == pixel[:3]
    assert semantic[3] == pytest.approx(0.0)


def test_failures_are_logged_with_their_traceback_but_do_not_flood(caplog: pytest.LogCaptureFixture) -> None:
    def embed(frame: np.ndarray) -> np.ndarray:
        raise RuntimeError("the encoder is gone")

    with caplog.at_level(logging.ERROR):
        scores([flat()] * 100, embed, selection_method="semantic")
    assert len(caplog.records) == 7  # the 1st, 2nd, 4th ... 64th
    assert "the encoder is gone" in str(caplog.records[0].exc_info)
