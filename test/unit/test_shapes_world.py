"""The shapes world: what the log says is what the pixels show, and a seed is a scene."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vstream_ros.synthetic.shapes_world import (
    COLOURS,
    COUNTABLE,
    DIRECTIONS,
    MAX_TOGETHER,
    MAX_VISITS,
    SHAPES,
    Scene,
    Visit,
    place_of,
)

SIZE = (480, 640)


def objects_by_pixels(frame: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(colour, mask) of each object, largest first, found by colour alone: the background is dull."""
    smooth = cv2.GaussianBlur(frame, (0, 0), 2.0).astype(np.float32)
    vivid = smooth.max(2) - smooth.min(2) > 70
    count, regions = cv2.connectedComponents(vivid.astype(np.uint8))
    found = []
    for k in range(1, count):
        mask = regions == k
        if mask.sum() < 300:
            continue
        core = cv2.erode(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        mean = smooth[core if core.any() else mask].mean(0)
        names = list(COLOURS)
        chroma = np.array([COLOURS[name] for name in names], dtype=float)
        cosines = chroma @ mean / np.linalg.norm(chroma, axis=1) / np.linalg.norm(mean)
        found.append((names[int(np.argmax(cosines))], mask))
    return sorted(found, key=lambda item: -item[1].sum())


def shape_by_pixels(mask: np.ndarray) -> str:
    """By how much of its hull and of its tightest rectangle an object fills."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    area = cv2.contourArea(contour)
    if area / cv2.contourArea(cv2.convexHull(contour)) < 0.85:
        return "cross"
    _, (width, height), _ = cv2.minAreaRect(contour)
    fill = area / (width * height)
    return "square" if fill > 0.89 else "circle" if fill > 0.65 else "triangle"


def whole(scene: Scene, time_s: float) -> list[Visit]:
    return [visit for visit in scene.visits if visit.visible(time_s, scene.height) == 1.0]


def traces(scene: Scene, time_s: float) -> list[Visit]:
    return [visit for visit in scene.visits if visit.visible(time_s, scene.height) > 0.0]


def test_what_is_drawn_is_what_the_scene_says():
    rng = np.random.default_rng(0)
    checked = 0
    for seed in range(200):
        scene = Scene(seed, 20.0, gap_s=3.0)
        time_s = float(rng.uniform(0, 19.5))
        if not traces(scene, time_s) or whole(scene, time_s) != traces(scene, time_s):
            continue
        found = objects_by_pixels(scene.frame(time_s, SIZE))
        expected = whole(scene, time_s)
        assert len(found) == len(expected), f"scene {seed} at {time_s:.2f} s"
        for colour, mask in found:
            y, x = np.argwhere(mask).mean(0)
            centre = (x / SIZE[1], y / SIZE[1])
            visit = min(expected, key=lambda v: np.hypot(*np.subtract(v.centre(time_s), centre)))
            assert np.hypot(*np.subtract(visit.centre(time_s), centre)) < 0.025
            assert (colour, shape_by_pixels(mask)) == (visit.colour, visit.shape), f"scene {seed} at {time_s:.2f} s"
            checked += 1
        if checked >= 24:
            break
    assert checked >= 24


def test_events_are_on_the_pixels():
    """Around each event the image changes as the log says: who comes, stops, goes on and leaves, and which way."""
    counts = dict.fromkeys(("enter", "stop", "go", "leave"), 0)
    for seed in range(8):
        scene = Scene(100 + seed, 40.0, gap_s=12.0)
        for event in scene.events:
            visit = scene.visits[event.visit]
            pause = 0.6 if event.what in ("enter", "leave") else 0.1
            before, after = event.time_s - pause, event.time_s + pause
            others = [v for v in scene.visits if v != visit]
            if before < 0 or any(v.visible(t, scene.height) for v in others for t in (before, after)):
                continue  # only where it is alone
            masks = [[m for _, m in objects_by_pixels(scene.frame(t, SIZE))] for t in (before, after)]
            if event.what == "enter":
                assert (len(masks[0]), len(masks[1])) == (0, 1)
            elif event.what == "leave":
                assert (len(masks[0]), len(masks[1])) == (1, 0)
            else:
                step = 0.3
                moving, still = (after, before) if event.what == "go" else (before, after)
                away = 1 if event.what == "go" else -1
                if visit.visible(moving + away * step, scene.height) < 1.0:
                    continue
                if visit.centre(still - away * step) != visit.centre(still):
                    continue  # a very short stop
                times = (moving, moving + away * step, still, still - away * step)
                found = [objects_by_pixels(scene.frame(t, SIZE)) for t in times]
                if any(len(f) != 1 for f in found):
                    continue
                (a, b, c, d) = (np.argwhere(f[0][1]).mean(0)[::-1] / SIZE[1] for f in found)
                way = away * (b - a)
                assert float(way @ np.array(DIRECTIONS[event.direction])) > 0.6 * step * 0.17
                assert np.abs(d - c).max() < 0.01
            assert place_of(visit.legs[0].x) in ("left", "middle", "right")
            counts[event.what] += 1
    assert min(counts.values()) >= 3, counts


def test_same_seed_same_bytes():
    times = [0.0, 3.3, 7.5, 12.0]
    one, other = Scene(5, 15.0), Scene(5, 15.0)
    forwards = [one.frame(t, (84, 112)) for t in times]
    backwards = [other.frame(t, (84, 112)) for t in reversed(times)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert one.events == other.events
    assert not np.array_equal(Scene(6, 15.0).frame(3.3, (84, 112)), forwards[1])


@pytest.mark.parametrize("duration_s", [2.0, 60.0, 600.0])
def test_scenes_of_all_lengths(duration_s):
    for seed in range(3):
        scene = Scene(seed, duration_s)
        assert len({visit.name for visit in scene.visits}) == len(scene.visits)
        assert scene.events == tuple(sorted(scene.events, key=lambda e: (e.time_s, e.visit)))
        assert all(0.0 <= event.time_s < duration_s for event in scene.events)
        for time_s in np.arange(0.0, duration_s, 0.5):
            assert len(traces(scene, float(time_s))) <= MAX_TOGETHER
        assert scene.frame(duration_s - 0.5, (96, 96)).shape == (96, 96, 3)


def test_objects_move_far_enough_to_be_seen_moving():
    for seed in range(10):
        for visit in Scene(seed, 30.0).visits:
            assert visit.shape in SHAPES
            for leg in visit.legs:
                assert leg.direction is None or 0.5 * leg.speed >= 0.08


def test_durations_out_of_range_are_refused():
    with pytest.raises(ValueError, match="duration_s must be in"):
        Scene(0, 1.0)
    with pytest.raises(ValueError, match="aspect must be in"):
        Scene(0, 10.0, aspect=9.0)
    with pytest.raises(ValueError, match="visits must be in"):
        Scene(0, 10.0, visits=COUNTABLE + 1)


def test_a_scene_has_as_many_visits_as_it_is_told():
    for visits in (1, MAX_VISITS, COUNTABLE):
        assert max(len(Scene(seed, 120.0, gap_s=3.0, visits=visits).visits) for seed in range(5)) == visits
    assert max(len(Scene(seed, 120.0, gap_s=3.0).visits) for seed in range(5)) == MAX_VISITS
