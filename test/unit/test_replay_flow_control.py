"""The player stays a few images ahead of the node, whatever becomes of the node."""

from __future__ import annotations

import threading

import pytest

from vstream_ros.replay.flow_control import FlowControl

TOPIC = "/camera"


@pytest.fixture
def stop():
    return threading.Event()


def sender(control, count):
    """A thread that sends ``count`` images, and the list of those that went out."""
    out: list[int] = []

    def send():
        for index in range(count):
            control.send(TOPIC)
            out.append(index)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread, out


def take(control, out, thread, count):
    """A node that takes one image at a time. Returns the most that were under way."""
    worst = 0
    for taken in range(1, count + 1):
        while len(out) < taken:
            thread.join(0.001)
        worst = max(worst, len(out) - (taken - 1))
        control.told({TOPIC: 1_000 + taken})
    thread.join(30.0)
    assert not thread.is_alive()
    return worst


def test_no_more_than_the_window_is_under_way(stop):
    control = FlowControl(stop, window=3)
    control.told({TOPIC: 1_000})
    thread, out = sender(control, 40)
    assert take(control, out, thread, 40) <= 3
    assert (len(out), control.lost) == (40, 0)


def test_a_topic_of_which_nothing_is_known_is_not_held_up(stop):
    control = FlowControl(stop, window=1)
    control.told({"/other": 5})
    for _ in range(100):
        control.send(TOPIC)
    control.drain()
    assert control.topics == ("/other",)


def test_what_is_never_taken_is_lost_and_said(stop):
    control = FlowControl(stop, window=2, stall_timeout_s=0.2)
    control.told({TOPIC: 0})
    for _ in range(3):
        control.send(TOPIC)
    assert control.lost == 2
    control.drain()
    assert control.lost == 3


def test_a_node_that_starts_anew_counts_from_zero(stop):
    control = FlowControl(stop, window=2)
    control.told({TOPIC: 50})
    control.send(TOPIC)
    control.told({TOPIC: 0})
    control.told({TOPIC: 1})
    control.drain()
    assert control.lost == 0


def test_another_publishers_images_give_no_credit(stop):
    control = FlowControl(stop, window=2, stall_timeout_s=0.1)
    control.told({TOPIC: 0})
    control.told({TOPIC: 100})
    control.send(TOPIC)
    control.send(TOPIC)
    control.send(TOPIC)
    assert control.lost == 2


def test_stop_ends_every_wait(stop):
    control = FlowControl(stop, window=1)
    control.told({TOPIC: 0})
    control.send(TOPIC)
    stop.set()
    control.send(TOPIC)
    control.drain()
    assert control.lost == 0
