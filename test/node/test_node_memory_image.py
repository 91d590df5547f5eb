"""~/show_memory and ~/memory_image over ROS: what is published, to whom, and what is not."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image

from support.ros_client import SECOND, START_NS, image, wait_for_result, wait_until
from vstream_ros.memory import draw_contact_sheet
from vstream_ros.node import memory_image

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def look(planner):
    """Subscribe now, as one who comes late; a list that fills with what comes."""

    def subscribe() -> list[Image]:
        heard: list[Image] = []
        planner.node.create_subscription(Image, "/vstream/memory_image", heard.append, LATCHED)
        return heard

    return subscribe


def pixels(message: Image) -> np.ndarray:
    assert message.encoding == "rgb8"
    assert message.step == 3 * message.width
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def test_who_comes_late_sees_what_memory_held_when_it_was_asked_for(start, planner, look):
    node = start()
    early = look()
    planner.publish(*(image(k) for k in range(5)))
    node.wait_kept(5)
    expected = draw_contact_sheet(node.node.engine.snapshots())
    answer = planner.trigger("show_memory")
    assert answer.success
    assert "/vstream/memory_image" in answer.message
    planner.publish(image(5), image(6))
    node.wait_kept(7)

    late = look()
    wait_until(lambda: early and late, "both have the sheet")
    for message in (early[0], late[0]):
        assert np.array_equal(pixels(message), expected)
        assert message.header.stamp.sec * SECOND + message.header.stamp.nanosec == START_NS + 2 * SECOND
    assert planner.trigger("show_memory").success
    wait_until(lambda: len(late) == 2, "the next sheet")
    assert not np.array_equal(pixels(late[1]), expected)
    assert len(early) == 2  # nothing that nobody asked for


def test_every_state_that_has_a_memory_shows_it(start, planner, look):
    node = start(autostart=False)
    refused = planner.trigger("show_memory")
    assert not refused.success
    assert "configure" in refused.message
    heard = look()

    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    assert planner.trigger("show_memory").success  # inactive, and nothing is held yet
    wait_until(lambda: len(heard) == 1, "a sheet of nothing")
    nothing = pixels(heard[0])
    assert planner.transition(Transition.TRANSITION_ACTIVATE)
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    assert planner.trigger("show_memory").success
    wait_until(lambda: len(heard) == 2, "a sheet of the inactive node")
    assert pixels(heard[1]).shape[0] > nothing.shape[0]

    assert planner.transition(Transition.TRANSITION_CLEANUP)
    assert not planner.trigger("show_memory").success


@pytest.mark.parametrize("how", ["clear_memory", "cleanup"])
def test_what_was_forgotten_is_not_shown_to_who_comes_late(start, planner, look, how):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    assert planner.trigger("show_memory").success
    early = look()
    wait_until(lambda: early, "the sheet")
    if how == "clear_memory":
        assert planner.trigger("clear_memory").success
    else:
        assert planner.transition(Transition.TRANSITION_DEACTIVATE)
        assert planner.transition(Transition.TRANSITION_CLEANUP)
    wait_until(lambda: len(early) == 2, "an empty sheet")
    late = look()
    wait_until(lambda: late, "the latched sheet")
    assert late[0].height == early[1].height < early[0].height


def test_a_sheet_that_is_overtaken_by_a_clear_is_not_published(start, planner, look, monkeypatch):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    begun, release = threading.Event(), threading.Event()

    def slow(snapshots):
        begun.set()
        assert release.wait(60)
        return draw_contact_sheet(snapshots)

    monkeypatch.setattr(memory_image, "draw_contact_sheet", slow)
    heard = look()
    showing = planner.client(memory_image.Trigger, "/vstream/show_memory").call_async(memory_image.Trigger.Request())
    assert begun.wait(60)
    assert planner.trigger("clear_memory").success  # the executor goes on meanwhile
    release.set()
    answer = wait_for_result(showing, "an answer")
    assert not answer.success
    assert "ask again" in answer.message
    assert planner.trigger("show_memory").success
    wait_until(lambda: heard, "the sheet of now")
    assert len(heard) == 1
    assert heard[0].height < 100


def test_a_failure_to_draw_costs_one_answer(start, planner, monkeypatch):
    start()
    with monkeypatch.context() as patch:
        patch.setattr(memory_image, "draw_contact_sheet", lambda snapshots: 1 / 0)
        answer = planner.trigger("show_memory")
    assert not answer.success
    assert "ZeroDivisionError" in answer.message
    assert planner.trigger("show_memory").success
