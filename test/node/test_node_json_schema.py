"""An answer in JSON, asked for over the real service and the real action."""

from __future__ import annotations

import json

import pytest

from support.json_answers import SIGHTING, fault
from support.ros_client import code_name, image, wait_for_result
from vstream_ros.synthetic.random_model import write_random_checkpoint

FRAMES = 4


@pytest.fixture
def watching(start, planner, tmp_path):
    """A node that has seen some frames, with a model that can end its answers."""
    node = start(model=str(write_random_checkpoint(tmp_path / "model")))
    planner.publish(*map(image, range(FRAMES)))
    node.wait_kept(FRAMES)
    node.wait_ready()
    return node


def test_json_over_the_service_and_the_action(watching, planner):
    schema = json.dumps(SIGHTING)
    response = planner.ask("What is there?", json_schema=schema, max_new_tokens=80)
    assert code_name(response) == "NONE", response.message
    assert not fault(response.answer, SIGHTING)
    goal = planner.send_goal("What is there?", json_schema=schema, max_new_tokens=80)
    assert wait_for_result(goal.get_result_async(), "the goal's result").result.answer == response.answer

    cut = planner.ask("What is there?", json_schema=schema, max_new_tokens=5)
    assert code_name(cut) == "INCOMPLETE"
    assert not cut.success
    assert "max_new_tokens" in cut.message
    assert response.answer.startswith(cut.answer)
    assert cut.answer


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"json_schema": "no JSON"}, "JSON"),
        ({"json_schema": '{"type": "array", "contains": {}}'}, "contains"),
        ({"json_schema": '{"$ref": "#"}'}, "without end"),
        ({"json_schema": "{}", "choices": ["yes", "no"]}, "choices"),
    ],
)
def test_a_bad_schema_says_why(watching, planner, fields, says):
    response = planner.ask("What is there?", **fields)
    assert code_name(response) == "INVALID_REQUEST"
    assert says in response.message
    assert code_name(planner.ask("What is there?")) == "NONE"  # and nothing was harmed
