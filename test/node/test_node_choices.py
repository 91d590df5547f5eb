"""Choices over the real service and the real action."""

from __future__ import annotations

import pytest
from action_msgs.msg import GoalStatus

from support.ros_client import code_name, wait_for_result


def check_choice(response, choices):
    assert code_name(response) == "NONE"
    assert response.success
    assert len(response.probabilities) == len(choices)
    assert sum(response.probabilities) == pytest.approx(1.0, abs=1e-5)
    assert response.confidence == max(response.probabilities) == response.probabilities[response.choice_index]
    assert response.answer == choices[response.choice_index]
    assert response.metrics.new_tokens == 0
    assert response.metrics.passes >= 1
    assert response.metrics.seed == 0


def test_choices_are_answered_with_their_probabilities(watching, planner):
    few, many = ["yes", "no", "cannot tell"], [f"number {k}" for k in range(100)]
    for choices in (few, many, ["only"]):
        check_choice(planner.ask(choices=choices), choices)
        feedback: list = []
        handle = planner.send_goal(feedback=feedback, choices=choices, temperature=1.0, seed=5)
        outcome = wait_for_result(handle.get_result_async(), "the result")
        assert outcome.status == GoalStatus.STATUS_SUCCEEDED
        check_choice(outcome.result, choices)
        assert not feedback
    free = planner.ask()
    assert (free.choice_index, list(free.probabilities)) == (-1, [])


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (["yes", "no", "yes"], "'yes' twice"),
        (["yes", "no", "no "], "'no' twice"),
        (["yes", ""], "choices is empty"),
        (["yes", " \n"], "choices is empty"),
        ([str(k) for k in range(101)], "101 texts"),
        (["\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"], "the same to"),
    ],
)
def test_choices_that_cannot_be_told_apart(watching, planner, choices, says):
    goal = wait_for_result(planner.send_goal(choices=choices).get_result_async(), "the result")
    assert goal.status == GoalStatus.STATUS_ABORTED
    for response in (planner.ask(choices=choices), goal.result):
        assert code_name(response) == "INVALID_REQUEST"
        assert says in response.message
        assert (response.answer, response.choice_index, list(response.probabilities)) == ("", -1, [])
    check_choice(planner.ask(choices=["yes", "no"]), ["yes", "no"])  # and nothing was harmed
