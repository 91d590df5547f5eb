"""The order and the pace in which replies go out."""

from __future__ import annotations

import os

import pytest

from vstream_ros.node.reply_queue import (
    BURST,
    DISCOVERY_TIMEOUT_S,
    LONGEST_QUIET_S,
    LOOK_PERIOD_S,
    QUIET_S,
    ReplyQueue,
    _Pace,
)


class Gate:
    """A pace that a test opens."""

    def __init__(self):
        self.open = False

    def may_send(self, now, period_s):
        return self.open


@pytest.fixture(params=[1.0, 4.0], ids=["idle", "busy"])
def load(request, monkeypatch):
    """The machine's, for each of its processors."""
    monkeypatch.setattr(os, "getloadavg", lambda: (request.param * (os.cpu_count() or 1), 0.0, 0.0))
    return request.param


@pytest.fixture
def queue(planner, load):
    made = ReplyQueue(planner.node, "/vstream/ask")
    made._pace = Gate()
    yield made
    made.destroy()


@pytest.fixture
def clock(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr("vstream_ros.node.reply_queue.time.monotonic", lambda: now[0])
    return now


def test_a_burst_and_then_one_in_each_period():
    pace = _Pace()
    assert [pace.may_send(100.0, 0.5) for _ in range(BURST + 1)] == [True] * BURST + [False]
    assert not pace.may_send(100.4, 0.5)
    assert pace.may_send(100.5, 0.5)
    assert not pace.may_send(100.5, 0.5)
    assert [pace.may_send(1_000.0, 0.5) for _ in range(BURST + 1)] == [True] * BURST + [False]  # it saves no more


def test_answers_pass_refusals(queue, clock):
    sent = []
    for name in ("busy 1", "busy 2", "answer 1", "answer 2"):
        queue.add(None, lambda name=name: sent.append(name), refusal=name.startswith("busy"))
    assert (sent, len(queue)) == ([], 4)
    queue._pace.open = True
    queue._send_replies()
    assert (sent, len(queue)) == (["answer 1", "answer 2", "busy 1", "busy 2"], 0)


def test_many_refusals_wait_until_the_calls_end_but_not_for_ever(queue, clock, load):
    sent = []
    for index in range(BURST + 3):
        queue.add(None, lambda index=index: sent.append(index), refusal=True)
    queue._pace.open = True
    clock[0] += load * QUIET_S / 2
    queue._send_replies()
    assert sent == []
    clock[0] += load * QUIET_S
    queue._send_replies()
    assert sent == list(range(BURST + 3))

    queue._pace.open = False
    calls = int(LONGEST_QUIET_S / (QUIET_S / 2)) + 2
    began = clock[0] + load * QUIET_S / 2
    for index in range(calls):  # calls that never end
        clock[0] += load * QUIET_S / 2
        queue.add(None, lambda index=index: sent.append(f"late {index}"), refusal=True)
        queue._pace.open = index > BURST
        if clock[0] - began < 0.9 * load * LONGEST_QUIET_S:
            assert "late 0" not in sent
    assert "late 0" in sent


def test_while_a_crowd_calls_one_burst_goes_out_whatever_it_is(queue, clock, load):
    """Who calls takes nothing meanwhile, and keeps ten."""
    queue._pace = _Pace()
    sent = []

    def add(name):
        queue.add(None, lambda: sent.append(name), refusal=name.startswith("busy"))

    for index in range(2 * BURST + 1):
        add(f"busy {index}")
    for index in range(3):
        add(f"answer {index}")
    assert len(sent) == BURST
    for _ in range(9):  # the pace alone would let dozens go
        clock[0] += load * QUIET_S / 10
        queue._send_replies()
    assert len(sent) == BURST
    clock[0] += load * QUIET_S
    queue._send_replies()
    assert sent[BURST:][:3] == ["answer 0", "answer 1", "answer 2"]


def test_a_reply_that_waited_long_for_its_turn_still_waits_for_its_client(queue, clock, monkeypatch):
    sent = []
    known = []
    monkeypatch.setattr(queue._clients, "knows", lambda guid: bool(known))
    queue.add(None, lambda: sent.append("busy"), refusal=True)
    clock[0] += 2 * DISCOVERY_TIMEOUT_S  # others went first
    queue._pace.open = True
    queue._send_replies()
    assert (sent, len(queue)) == ([], 1)
    known.append("its client")
    clock[0] += 2 * LOOK_PERIOD_S
    queue._send_replies()
    assert (sent, len(queue)) == (["busy"], 0)


def test_a_client_that_is_never_discovered_is_tried_after_all(queue, clock, monkeypatch):
    sent = []
    monkeypatch.setattr(queue._clients, "knows", lambda guid: False)
    queue._pace.open = True
    queue.add(None, lambda: sent.append("answer"), refusal=False)
    assert (sent, len(queue)) == ([], 1)
    clock[0] += 2 * DISCOVERY_TIMEOUT_S
    queue._send_replies()
    assert (sent, len(queue)) == (["answer"], 0)
