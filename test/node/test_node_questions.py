"""Images in, questions asked over the real service and the real action."""

from __future__ import annotations

from collections import Counter

import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration, Time
from lifecycle_msgs.msg import Transition

from support.ros_client import (
    FRAMES,
    START_NS,
    TIMEOUT_S,
    Planner,
    code_name,
    image,
    seconds,
    wait_for_result,
    wait_until,
)
from vstream_ros.errors import VStreamError
from vstream_ros.node import reply_queue
from vstream_ros.srv import AskVideo

LONG = 3000
"""Tokens that take far longer than any test waits."""


def test_an_answer_with_its_metrics(watching, planner):
    response = planner.ask("What is there?")
    assert code_name(response) == "NONE"
    assert response.success
    assert response.message == ""
    assert response.answer
    assert 0.0 < response.confidence <= 1.0
    assert response.choice_index == -1
    metrics = response.metrics
    assert metrics.new_tokens == 8
    assert metrics.frames == FRAMES
    assert metrics.tubelets == FRAMES // 2
    assert metrics.visual_tokens > 0
    assert metrics.prompt_tokens > metrics.visual_tokens
    assert not metrics.cache_hit
    assert metrics.encoding_latency > 0.0
    assert 0.0 < metrics.first_token_latency <= metrics.total_latency
    assert metrics.model == watching.node.settings.model
    assert list(response.frame_cameras) == ["front"] * FRAMES
    stamps = [stamp.sec * 10**9 + stamp.nanosec for stamp in response.frame_stamps]
    assert stamps == [START_NS + i * 500_000_000 for i in range(FRAMES)]


def test_the_second_question_is_a_cache_hit_and_a_new_tubelet_ends_that(watching, planner):
    planner.ask("What is there?")
    second = planner.ask("And what else?")
    assert second.metrics.cache_hit
    assert second.metrics.encoding_latency == 0.0
    assert second.metrics.prompt_tokens_reused > second.metrics.visual_tokens
    planner.publish(image(FRAMES), image(FRAMES + 1))
    watching.wait_kept(FRAMES + 2)
    third = planner.ask("And now?")
    assert not third.metrics.cache_hit
    assert third.metrics.tubelets_reused == FRAMES // 2


def test_a_question_about_a_time_range_sees_only_that(watching, planner):
    end = START_NS + 1_600_000_000
    response = planner.ask(end_time=Time(sec=end // 10**9, nanosec=end % 10**9))
    assert code_name(response) == "NONE"
    assert response.metrics.frames == 4


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"question": ""}, "INVALID_REQUEST", "empty"),
        ({"question": " \n"}, "INVALID_REQUEST", "empty"),
        ({"cameras": ["rear"]}, "INVALID_REQUEST", "front"),
        ({"choices": ["yes", "yes"]}, "INVALID_REQUEST", "choices"),
        ({"temperature": float("nan")}, "INVALID_REQUEST", "temperature"),
        ({"timeout": seconds(-1.0)}, "INVALID_REQUEST", "timeout"),
        ({"timeout": Duration(sec=1, nanosec=10**9)}, "INVALID_REQUEST", "timeout"),
        ({"start_time": Time(sec=-1)}, "INVALID_REQUEST", "start_time"),
        ({"end_time": Time(sec=-5, nanosec=1)}, "INVALID_REQUEST", "end_time"),
        ({"end_time": Time(sec=1, nanosec=2**32 - 1)}, "INVALID_REQUEST", "end_time"),
        ({"start_time": Time(sec=2_000_000_000)}, "NO_FRAMES", "time"),
    ],
)
def test_a_request_that_cannot_succeed_says_what_to_do(watching, planner, fields, code, says):
    response = planner.ask(**fields)
    assert code_name(response) == code
    assert not response.success
    assert says in response.message
    assert response.answer == ""
    assert code_name(planner.ask()) == "NONE"  # and nothing was harmed


def test_no_frames_yet(start, planner):
    node = start()
    node.wait_ready()
    response = planner.ask()
    assert code_name(response) == "NO_FRAMES"
    assert "front" in response.message


def test_while_the_model_is_loading(start, planner, monkeypatch):
    from vstream_ros.engine import DelayedBatchInferenceEngine

    # Keeps the model's thread busy until the question was asked, however quick the machine.
    answered: list = []
    original = DelayedBatchInferenceEngine.load

    def slow_load(self, model=None):
        self._thread.run(lambda: wait_until(lambda: answered, "the question's answer"))
        return original(self, model)

    monkeypatch.setattr(DelayedBatchInferenceEngine, "load", slow_load)
    node = start()
    try:
        response = planner.ask()
    finally:
        answered.append(True)
    assert code_name(response) == "NOT_READY"
    assert "load" in response.message
    node.wait_ready()


def test_a_timeout_keeps_the_text_so_far(watching, planner):
    planner.ask()
    response = planner.ask(max_new_tokens=LONG, timeout=seconds(3.0))
    assert code_name(response) == "TIMEOUT"
    assert response.answer != ""


def test_the_parameters_are_the_defaults_of_a_request(watching, planner):
    from rclpy.parameter import Parameter

    assert planner.ask(max_new_tokens=0).metrics.new_tokens == 8
    watching.node.set_parameters([Parameter("max_new_tokens", value=3)])
    assert planner.ask(max_new_tokens=0).metrics.new_tokens == 3
    watching.node.set_parameters([Parameter("timeout_s", value=1)])
    assert code_name(planner.ask(max_new_tokens=LONG)) == "TIMEOUT"


def test_a_full_queue_says_busy(start, planner):
    node = start(max_queued_questions=2)
    planner.publish(*map(image, range(FRAMES)))
    node.wait_kept(FRAMES)
    node.wait_ready()
    waiting = [planner.ask_later(max_new_tokens=LONG) for _ in range(2)]
    wait_until(lambda: node.node.open_questions == 2, "two questions are taken")
    response = planner.ask()
    assert code_name(response) == "BUSY"
    node.node.engine.cancel_all("the test is over")
    assert {code_name(wait_for_result(future, "an end")) for future in waiting} == {"CANCELED"}
    assert code_name(planner.ask()) == "NONE"


def test_one_client_cannot_take_all_places(start, planner):
    node = start(max_queued_questions=4, max_questions_per_client=2)
    planner.publish(*map(image, range(FRAMES)))
    node.wait_kept(FRAMES)
    node.wait_ready()
    open_ones = [
        planner.ask_later(max_new_tokens=20_000),
        planner.send_goal(max_new_tokens=20_000).get_result_async(),
    ]
    wait_until(lambda: node.node.open_questions == 2, "two open questions of this client")
    refused = [planner.ask(), wait_for_result(planner.send_goal().get_result_async(), "the refusal").result]
    for response in refused:
        assert code_name(response) == "BUSY"
        assert "2 questions of this client" in response.message
        assert "max_questions_per_client" in response.message
    other = Planner()
    try:
        other.server = node.node
        open_ones.append(other.ask_later(max_new_tokens=20_000))
        wait_until(lambda: node.node.open_questions == 3, "the other client's question is taken")
        node.node.engine.cancel_all("the test is over")
        ended = [wait_for_result(future, "an end") for future in open_ones]
        assert {code_name(getattr(response, "result", response)) for response in ended} == {"CANCELED"}
        assert code_name(other.ask()) == "NONE"
    finally:
        other.close()
    assert code_name(planner.ask()) == "NONE"  # the places are free again


def test_the_share_can_be_given_up(start, planner):
    node = start(max_queued_questions=3, max_questions_per_client=0)
    planner.publish(*map(image, range(FRAMES)))
    node.wait_kept(FRAMES)
    node.wait_ready()
    waiting = [planner.ask_later(max_new_tokens=LONG) for _ in range(3)]
    wait_until(lambda: node.node.open_questions == 3, "all places are taken")
    assert "max_queued_questions" in planner.ask().message
    node.node.engine.cancel_all("the test is over")
    assert {code_name(wait_for_result(future, "an end")) for future in waiting} == {"CANCELED"}


def test_a_client_that_cannot_be_told_apart_has_no_share(start, planner, monkeypatch):
    monkeypatch.setattr(reply_queue, "guid_of", lambda header: None)
    node = start(max_queued_questions=3, max_questions_per_client=1)
    planner.publish(*map(image, range(FRAMES)))
    node.wait_kept(FRAMES)
    node.wait_ready()
    waiting = [planner.ask_later(max_new_tokens=LONG) for _ in range(2)]
    wait_until(lambda: node.node.open_questions == 2, "both are taken")
    node.node.engine.cancel_all("the test is over")
    assert {code_name(wait_for_result(future, "an end")) for future in waiting} == {"CANCELED"}


def test_a_header_of_another_kind_names_no_client():
    class Header:
        sequence_number = 1

    assert reply_queue.guid_of(Header()) is None
    assert reply_queue.participant_of(Header()) is None


def test_a_reply_waits_for_its_client_to_be_discovered(watching, planner, monkeypatch):
    known: list = []
    monkeypatch.setattr(reply_queue._Clients, "knows", lambda self, guid: bool(known))
    asked = planner.ask_later()
    wait_until(lambda: watching.node.engine.status().answers == 1, "the question is computed")
    assert not asked.done()
    assert watching.node.open_questions == 1
    known.append(True)
    assert code_name(wait_for_result(asked, "the answer")) == "NONE"


def test_a_reply_that_the_middleware_could_not_send_is_sent_again(watching, planner, monkeypatch):
    tries: list = []
    original = reply_queue._Reply.try_to_send
    monkeypatch.setattr(
        reply_queue._Reply, "try_to_send", lambda self: tries.append(self) or (len(tries) > 2 and original(self))
    )
    assert code_name(planner.ask()) == "NONE"
    assert len(tries) == 3
    assert watching.node.open_questions == 0


def test_images_flow_while_a_question_is_answered(watching, planner):
    asked = planner.ask_later(max_new_tokens=LONG)
    wait_until(lambda: watching.node.engine.status().running_question, "the question runs")
    planner.publish(*(image(i) for i in range(FRAMES, FRAMES + 20)))
    watching.wait_kept(FRAMES + 20)
    assert not asked.done()
    watching.node.engine.cancel_all("the test is over")
    assert code_name(wait_for_result(asked, "an end")) == "CANCELED"


def test_an_unexpected_error_is_internal_and_the_node_lives(watching, planner, monkeypatch):
    monkeypatch.setattr(watching.node.engine, "submit", lambda *args, **kwargs: 1 / 0)
    response = planner.ask()
    assert code_name(response) == "INTERNAL"
    assert "ZeroDivisionError" in response.message
    monkeypatch.undo()
    assert code_name(planner.ask()) == "NONE"


def test_every_error_has_its_constant():
    def family(cls):
        return {cls.code, *(code for sub in cls.__subclasses__() for code in family(sub))}

    codes = family(VStreamError)
    assert len(codes) > 5
    assert all(isinstance(getattr(AskVideo.Response, code), int) for code in codes)


# ---- the action ----


def test_the_action_answers_with_feedback_on_the_way(watching, planner):
    feedback: list = []
    handle = planner.send_goal(feedback=feedback, max_new_tokens=100)
    outcome = wait_for_result(handle.get_result_async(), "the result")
    assert outcome.status == GoalStatus.STATUS_SUCCEEDED
    assert outcome.result.success
    assert outcome.result.metrics.new_tokens == 100
    assert outcome.result.metrics.frames == FRAMES
    counts = [entry.new_tokens for entry in feedback]
    assert counts
    assert counts == sorted(counts)
    assert all(entry.text for entry in feedback)
    # The last character may be one of several tokens of which only the first have come: it shows as U+FFFD until then.
    assert all(outcome.result.answer.startswith(entry.text.rstrip("\ufffd")) for entry in feedback)
    assert max(counts) <= 100


def test_every_one_of_a_hundred_goals_ends(watching, planner):
    handles = [planner.send_goal_later() for _ in range(100)]
    results = [wait_for_result(handle, "the goal's acceptance").get_result_async() for handle in handles]
    codes = Counter(code_name(wait_for_result(result, "the result").result) for result in results)
    assert set(codes) <= {"NONE", "BUSY"}
    assert codes.total() == 100
    assert codes["NONE"] >= 16


def test_the_action_can_be_cancelled(watching, planner):
    feedback: list = []
    handle = planner.send_goal(feedback=feedback, max_new_tokens=LONG)
    result = handle.get_result_async()
    wait_until(lambda: feedback, "the answer is being decoded")
    cancel = wait_for_result(handle.cancel_goal_async(), "the cancellation")
    assert len(cancel.goals_canceling) == 1
    outcome = wait_for_result(result, "the result")
    assert outcome.status == GoalStatus.STATUS_CANCELED
    assert code_name(outcome.result) == "CANCELED"
    assert code_name(planner.ask()) == "NONE"


def test_the_action_aborts_with_code_and_sentence(watching, planner):
    outcome = wait_for_result(planner.send_goal(question="").get_result_async(), "the result")
    assert outcome.status == GoalStatus.STATUS_ABORTED
    assert code_name(outcome.result) == "INVALID_REQUEST"
    assert "empty" in outcome.result.message


def test_deactivation_ends_questions_and_keeps_the_memory(watching, planner):
    asked = planner.ask_later(max_new_tokens=LONG)
    goal = planner.send_goal(max_new_tokens=LONG).get_result_async()
    wait_until(lambda: watching.node.open_questions == 2, "the questions are taken")
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    assert code_name(wait_for_result(asked, "the answer", TIMEOUT_S)) == "CANCELED"
    outcome = wait_for_result(goal, "the result")
    assert outcome.status == GoalStatus.STATUS_ABORTED
    assert code_name(outcome.result) == "CANCELED"
    refused = planner.ask()
    assert code_name(refused) == "NOT_READY"
    assert "activate" in refused.message
    assert watching.memory.frames_kept == FRAMES
    assert planner.transition(Transition.TRANSITION_ACTIVATE)
    response = planner.ask()
    assert code_name(response) == "NONE"
    assert response.metrics.frames == FRAMES
