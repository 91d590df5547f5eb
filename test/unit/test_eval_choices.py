"""The evaluation of choices counts rightly, and its questions offer the truth once."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import choices
from benchmarks.choice_questions import KINDS, MANY_TOKENS, ONE_TOKEN, choices_for
from vstream_ros.synthetic.shapes_questions import QA


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        ("colour", "red"), ("count", "zero"), ("ever", "no"), ("where", "middle"), ("direction", "nowhere"),
        ("before", "nothing"), ("before", "a red circle"),
        ("now", "nothing"), ("now", "a red circle"), ("now", "a red circle, a blue square and a green cross"),
    ],
)
def test_the_truth_is_among_different_choices(kind, truth):
    places = set()
    for seed in range(20):
        offered = choices_for(QA(kind, "?", truth), np.random.default_rng(seed))
        assert offered.count(truth) == 1
        assert len(set(offered)) == len(offered) >= 2
        places.add(offered.index(truth))
    assert len(places) > 1
    if kind in ONE_TOKEN:
        assert set(offered) == set(ONE_TOKEN[kind])
    if kind == "now" and truth != "nothing":
        assert any(truth.startswith(other) or other.startswith(truth) for other in offered if other != truth)


def test_the_calibration_error_is_the_gap_weighed_by_the_answers():
    confidences = np.array([0.95] * 10 + [0.65] * 10 + [1.0] * 20)
    right = np.array([True] * 9 + [False] + [True] * 5 + [False] * 5 + [True] * 20)
    error, bins = choices.calibration(confidences, right)
    assert [(b["n"], b["right"]) for b in bins] == [(10, 5), (30, 29)]
    assert error == pytest.approx((10 * 0.15 + 30 * abs(29.5 / 30 - 29 / 30)) / 40)
    assert choices.calibration(np.ones(5), np.ones(5, bool))[0] == 0.0


def test_the_two_scores_differ_by_the_lengths():
    record = {"log_probabilities": [-3.0, -4.0], "lengths": [1, 4]}
    assert choices.shares(record, "sum") == pytest.approx(np.exp([0, -1]) / np.exp([0, -1]).sum())
    assert choices.shares(record, "mean").argmax() == 1


def test_where_the_truth_is_not_offered_the_others_share_all():
    sure = {"log_probabilities": [-0.1, -3.0, -9.0], "lengths": [2, 2, 2], "truth": 0}
    unsure = {"log_probabilities": [-0.1, -3.0, -3.1], "lengths": [2, 2, 2], "truth": 0}
    two = {"log_probabilities": [-0.1, -3.0], "lengths": [2, 2], "truth": 0}
    assert choices.without_truth([sure, unsure, two], "sum") == {"n": 2, "confident": 1}


def test_a_small_run_writes_report_and_plot_and_goes_on_where_it_was(tmp_path, capsys):
    arguments = ["--n", "1", "--out", str(tmp_path / "c.json"), "--cache", str(tmp_path / "cache")]
    assert choices.main(arguments) == 0
    report = json.loads((tmp_path / "c.json").read_text())
    assert set(report["kinds"]) == {*KINDS, "one token", "many tokens", "all"}
    for kind, row in report["kinds"].items():
        assert row["n"] >= 1
        for score in choices.SCORES:
            assert row[score]["from"][0] == {"confidence": 0.0, "n": row["n"], "right": row[score]["right"]}
            assert sum(b["n"] for b in row[score]["bins"]) == row["n"]
        if kind in ONE_TOKEN:  # of equal length, so that both scores have the same winner
            assert row["sum"]["right"] == row["mean"]["right"]
    assert report["kinds"]["all"]["free_text"]["accuracy"] > 0.5
    assert (tmp_path / "c.png").stat().st_size > 1000
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert choices.main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert json.loads((tmp_path / "c.json").read_text()) == report
    assert MANY_TOKENS[0] in capsys.readouterr().out
