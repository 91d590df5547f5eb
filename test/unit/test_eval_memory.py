"""The evaluation of memory tells one that keeps nothing from one that keeps all; its report is as promised."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from benchmarks import eval_memory, memory_plots, memory_report
from benchmarks.memory_interface import Oracle, Sizes
from benchmarks.memory_recall import ANSWER_KINDS, PAST_KINDS, RATE_HZ, WORLDS, make_scene, play, score, view_of
from benchmarks.memory_rivals import local_difference
from benchmarks.memory_strategies import STRATEGIES, make_strategies
from benchmarks.memory_streams import EVENT_AT_S, EVENT_S, SIZE, STREAMS, EventStream
from benchmarks.result_cache import ResultCache, code_of, weights_of
from support.intervals import bootstrap
from vstream_ros.memory import NANOSECONDS, MemoryConfig, Tubelet
from vstream_ros.synthetic.shapes_world import Scene
from vstream_ros.synthetic.sightings import sightings

SEED = 8_500_000_000
CONFIG = MemoryConfig()


def shown_views(scene):
    stamps = scene.stamps_s(RATE_HZ)
    return [sightings(scene, *pair) for pair in zip(stamps[::2], stamps[1::2], strict=True)]


def share(marks):
    listed = list(marks)
    return sum(listed) / len(listed)


@pytest.fixture(scope="module")
def scenes():
    """Views of 60 s with some visits each."""
    return [shown_views(Scene(SEED + k, 60.0, gap_s=8.0)) for k in range(6)]


def test_a_memory_that_keeps_everything_is_always_right(scenes):
    for seed, views in enumerate(scenes):
        full = score(views, [], views, seed)
        assert all(right for _, right, _ in full.past)
        assert all(kept for kept, _ in full.visits)
        assert full.now in (True, None)
        assert {kind for kind, *_ in full.past} <= set(PAST_KINDS)
        assert len(full.past) >= 3


def test_a_memory_that_keeps_nothing_is_wrong_but_where_nothing_is_the_answer(scenes):
    scores = [score([], [], views, seed) for seed, views in enumerate(scenes)]
    assert not any(kept for one in scores for kept, _ in one.visits)
    known = [right for one in scores for kind, right, _ in one.past if kind not in ("ever", "before", "after")]
    assert known
    assert not any(known)
    assert not any(right for one in scores for kind, right, _ in one.past if kind in ("before", "after"))


def test_what_is_forgotten_is_told_by_its_age(scenes):
    """The later half alone: what was last seen in it is known, what was only there before is not."""
    for seed, views in enumerate(scenes):
        half = len(views) // 2
        for kept, age in score(views[half:], [], views, seed).visits:
            assert kept == (age < len(views) - half)


def test_questions_do_not_depend_on_what_was_kept(scenes):
    for seed, views in enumerate(scenes):
        everything, little = score(views, [], views, seed), score(views[-3:], [], views, seed)
        assert [(kind, age) for kind, _, age in everything.past] == [(kind, age) for kind, _, age in little.past]


def test_empty_star_leaves_the_first_one_out(scenes):
    views = scenes[0]
    shows = next(view for view in views if any(s.glimpsed for s in view))
    one = score(views, [(), (), shows, ()], views, 0)
    assert (one.empty, one.star) == (2, 3)
    assert (score(views, [], views, 0).empty, score(views, [], views, 0).star) == (0, 0)


@pytest.mark.parametrize("world", WORLDS)
def test_worlds_follow_from_the_seed(world):
    one, other = make_scene(world, 2, SEED), make_scene(world, 2, SEED)
    assert np.array_equal(one.frame(40.0, (42, 56)), other.frame(40.0, (42, 56)))
    assert shown_views(one) == shown_views(other)
    assert one.visits
    with pytest.raises(ValueError, match="world must be one of"):
        make_scene("flat", 2, SEED)


def flat_tubelets(count):
    """Dull ones, each with another grey, each tenth with a bright patch."""
    rng = np.random.default_rng(3)
    for k in range(count):
        frames = np.full((2, 24, 32, 3), rng.integers(60, 90), np.uint8)
        frames += rng.integers(0, 6, frames.shape, dtype=np.uint8)
        if k % 10 == 5:
            frames[:, 4 + k % 12 : 12 + k % 12, 8:16, k % 3] = 230
        stamps = (k * NANOSECONDS, k * NANOSECONDS + NANOSECONDS // 2)
        yield Tubelet(k, "camera", frames, stamps, stamps[0], importance=0.0)


def test_strategies_are_bounded_and_in_time_order_at_every_moment():
    most = CONFIG.max_tubelets(2)
    oracle = Oracle(300, lambda tubelet: float(tubelet.id % 10 == 5) + 0.02)
    memories = make_strategies(list(STRATEGIES), oracle, 1, CONFIG)
    assert "ours" in memories
    for tubelet in flat_tubelets(300):
        for name, memory in memories.items():
            memory.add(tubelet)
            kept = memory.kept()
            times = [held.stamps_ns[0] for held in kept.tubelets]
            assert times == sorted(set(times)), name
            assert len(times) <= most, name
            if name != "uniform":  # it waits for the moments that it wants
                assert times[-1] == tubelet.stamps_ns[0], name
    assert memories["uniform"].kept().tubelets[-1].id == 299
    sizes = Sizes.of(CONFIG)
    assert len(memories["last_n"].kept().tubelets) == sizes.total
    assert len(memories["last_4"].kept().tubelets) == 2
    for name in ("ours", "clusters", "novelty", "merging", "true_importance"):
        assert len(memories[name].kept().star) == sizes.star, name


def test_strategies_keep_what_they_say():
    oracle = Oracle(300, lambda tubelet: float(tubelet.id % 10 == 5) + 0.02)
    memories = make_strategies(list(STRATEGIES), oracle, 1, CONFIG)
    for tubelet in flat_tubelets(300):
        for memory in memories.values():
            memory.add(tubelet)
    kept = {name: [tubelet.id for tubelet in memory.kept().tubelets] for name, memory in memories.items()}
    assert kept["last_4"] == [298, 299]
    assert np.ptp(np.diff(kept["uniform"])) <= 1
    strides = np.diff(kept["streaming_uniform"][:-1])
    assert set(strides) == {16}
    assert all(k % 10 == 5 for k in [t.id for t in memories["true_importance"].kept().star][1:])
    bright = [t.id % 10 == 5 for t in memories["novelty"].kept().star]
    assert sum(bright) >= 7, "what differs is novel"
    early = [k for k in kept["reservoir"] if k < 150]
    assert 5 <= len(early) <= 22


def test_a_small_object_is_a_local_difference():
    layout = np.ones((9, 12, 3))
    noisy, changed = layout + 0.02, layout.copy()
    changed[3:5, 4:7] += 0.5
    assert local_difference(layout, changed) > 10 * local_difference(layout, noisy) > 0.0


def test_ours_is_played_through_its_public_api():
    scene = make_scene("plain", 2, SEED + 3)
    views, kept = play(scene, ["ours", "last_n"], CONFIG, size=(42, 56))
    assert len(views) == 120
    assert {t.id for t in kept["last_n"].tubelets} == set(range(120 - Sizes.of(CONFIG).total, 120))
    newest = kept["ours"].tubelets[-1]
    assert view_of(scene, newest) == views[-1]
    assert kept["ours"].star[0].stamps_ns[0] == 0


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_follow_from_the_seed_and_show_the_event_alone(kind):
    one, other = EventStream(kind, SEED, 10.0), EventStream(kind, SEED, 2.0)
    for time_s in (EVENT_AT_S + 0.5, 20.0, 0.0):
        frame = one.frame(time_s)
        assert frame.shape == (*SIZE, 3)
        assert np.array_equal(frame, other.frame(time_s))
    assert not np.array_equal(one.frame(0.0), EventStream(kind, SEED + 1, 2.0).frame(0.0))

    def vivid(time_s):
        frame = one.frame(time_s).astype(float) / max(1e-9, one._light(time_s, np.random.default_rng(0)).max())
        return (np.ptp(frame, axis=2) > 90).mean()

    if kind not in ("exposure", "flicker"):  # there the test can't undo the light
        assert vivid(EVENT_AT_S + EVENT_S / 2) > 0.005 > vivid(EVENT_AT_S - 10.0)
    shown = [time_s for time_s in np.arange(299.0, 303.0, 0.5) if one.shows_event(float(time_s))]
    assert len(shown) == 3


def test_streams_are_as_adverse_as_they_say():
    def change(kind):
        frames = [EventStream(kind, SEED, 2.0).frame(10.0 + 0.5 * k).astype(float) for k in range(8)]
        return np.mean([np.abs(b - a).mean() for a, b in itertools.pairwise(frames)])

    still = change("still")
    assert change("shake10") > change("shake3") > 1.1 * still
    assert change("flicker") > 2 * still
    day = EventStream("day_night", SEED, 2.0)
    assert day.frame(900.0).mean() < 0.2 * day.frame(0.0).mean()
    gains = [EventStream("exposure", SEED, 2.0).frame(t).mean() for t in np.arange(0.0, 600.0, 10.0)]
    assert max(gains) > 1.5 * min(gains)
    with pytest.raises(ValueError, match="kind must be one of"):
        EventStream("rain", SEED, 2.0)
    with pytest.raises(ValueError, match="duration_s must be"):
        EventStream("still", SEED, 2.0, 100.0)


def test_bootstrap():
    assert bootstrap([]) == (0.0, 1.0)
    assert bootstrap([(3, 4)]) == (0.0, 1.0), "one scene tells nothing of the spread"
    assert bootstrap([(2, 2)] * 10) == (1.0, 1.0)
    low, high = bootstrap([(k % 2, 1) for k in range(100)])
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62
    apart = bootstrap([(4 * (k % 2), 4) for k in range(25)])
    assert apart[1] - apart[0] > 1.5 * (high - low), "100 questions of 25 scenes are not 100 scenes"


def test_a_cached_result_is_as_good_as_its_code(tmp_path):
    cache = ResultCache(tmp_path)
    assert cache.get("recall/a", "ours", "1") is None
    cache.put("recall/a", {"ours": {"x": 1}, "last_n": None}, {"ours": "1", "last_n": "7"})
    cache.put("recall/a", {"novelty": 2}, {"novelty": "7"})
    assert (cache.get("recall/a", "ours", "1"), cache.get("recall/a", "novelty", "7")) == ({"x": 1}, 2)
    assert cache.get("recall/a", "ours", "2") is None
    (tmp_path / "recall" / "a.json").write_text('{"ours": ')
    assert cache.get("recall/a", "ours", "1") is None
    assert code_of(["benchmarks/intervals.py"]) != code_of(["benchmarks/result_cache.py"])
    assert code_of(["vstream_ros/memory"]) == code_of(["vstream_ros/memory"])
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = weights_of(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert before != weights_of(str(tmp_path)) != weights_of("vstream-tiny") != weights_of("some/hub-id") == ""


def test_report_has_the_promised_form_and_a_second_run_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(eval_memory, "recall", spy := Counted(eval_memory.recall))
    monkeypatch.setattr(eval_memory, "DURATION_S", 310.0)
    arguments = [
        "--minutes", "2", "--worlds", "plain", "busy", "--strategies", "ours", "last_n", "--scenes", "2", "--streams",
        "still", "--hz", "2", "--events", "1", "--answers", "0", "--processes", "0", "--cache", str(tmp_path / "cache"),
        "--out", str(tmp_path / "report.json"),
    ]
    assert eval_memory.main(arguments) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(r["world"], r["strategy"]) for r in report["rows"]] == [
        ("plain", "ours"), ("plain", "last_n"), ("busy", "ours"), ("busy", "last_n")
    ]
    for row in report["rows"]:
        assert set(row) == {
            "strategy", "minutes", "world", "past", "visits", "now", "empty_star", "ci95", "n", "scenes"
        }
        assert (row["minutes"], row["scenes"], set(row["ci95"]), set(row["n"])) == (
            2, 2, {"past", "visits"}, {"past", "visits"}
        )
        assert all(0.0 <= row[name] <= 1.0 for name in ("past", "visits", "now", "empty_star"))
        assert all(row["ci95"][name][0] <= row[name] <= row["ci95"][name][1] for name in ("past", "visits"))
    (event,) = report["events"]
    assert set(event) == {"stream", "hz", "kept", "of", "false_cuts_per_1000"}
    assert (event["stream"], event["hz"], event["of"], event["kept"]) == ("still", 2, 1, 1), "it is seconds old"
    assert report["answers"] == []
    assert {row["age"] for row in report["ages"]} <= {name for name, _ in memory_report.AGES}
    by_age = sum(r["n"]["visits"] for r in report["ages"] if (r["world"], r["strategy"]) == ("busy", "ours"))
    assert by_age == next(r["n"]["visits"] for r in report["rows"] if r["world"] == "busy")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"recall.png", "ages.png", "events.png"}
    assert spy.calls == 4
    assert eval_memory.main(arguments) == 0
    assert spy.calls == 4
    assert json.loads((tmp_path / "report.json").read_text()) == report


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def test_answers_are_scored_by_everything_shown(tmp_path):
    from benchmarks.memory_answers import answers

    given = answers("vstream-tiny", SEED, ["last_n", "last_4"], minutes=0.25)
    rows = memory_report.answer_rows("last_n", ANSWER_KINDS, given["last_n"])
    assert [row["kind"] for row in rows] == list(ANSWER_KINDS)
    assert sum(row["n"] for row in rows) == len(given["last_n"]) >= 4
    assert set(rows[0]) == {"strategy", "kind", "n", "right", "ci95"}
    # The scene is short: the last n tubelets are all of it, and the model knows such clips.
    assert sum(row["right"] for row in rows) >= len(given["last_n"]) - 1
    assert [a["question"] for a in given["last_4"]] == [a["question"] for a in given["last_n"]]
    assert [a["truth"] for a in given["last_4"]] == [a["truth"] for a in given["last_n"]]
    (picture,) = memory_plots.draw({"rows": [], "ages": [], "events": [], "answers": rows}, tmp_path)
    assert picture.stat().st_size > 1000


def test_held_out_scenes_are_no_scenes_for_tuning():
    spans = {name: range(first, first + 10**9) for name, first in eval_memory.FIRST_SEEDS.items()}
    assert spans["tuning"].stop <= spans["held-out"].start
    assert eval_memory.parse(["--quick"]).seeds == "held-out"
    with pytest.raises(SystemExit):
        eval_memory.parse(["--annotations", "a.json"])
