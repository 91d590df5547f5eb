"""Replies of a service on their way to clients that can't take them as fast as they come.

DDS hands every reply to *every* client of the service, which keeps the last ten until its own executor takes them: of
200 replies in a row most clients never see theirs. And what is sent before a client is discovered never arrives.
"""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from vstream_ros.node.callbacks import steady_timer

BURST = 5
"""Replies that may go out at once: half of what a client with rclpy's default QoS keeps."""
PROCESS_PERIOD_S = 0.003
"""How long a client process needs for a reply, on a machine with other work: a round of its executor ..."""
CLIENT_PERIOD_S = 0.0002
"""... and this for each client object in it, because every one of them has to take every reply."""
QUIET_S = 0.05
"""While refusals follow one another within this, one burst goes out and no more: who makes many calls in a row takes
nothing meanwhile. On an idle machine; on another one as much longer as its load makes everything."""
LONGEST_QUIET_S = 1.0
"""... but no longer than this, whoever calls. Likewise on an idle machine."""
TICK_S = 0.005
DISCOVERY_TIMEOUT_S = 5.0
"""How long a reply waits, from its turn on, for its client to be discovered."""
LOOK_PERIOD_S = 0.25
"""How often the clients are looked at while there are replies."""
GUID_BYTES = 16
PARTICIPANT_BYTES = 12


def guid_of(header: Any) -> bytes | None:
    """The GUID of the client that sent a request.

    rclpy's header holds ``rmw_request_id_t`` (``uint8_t writer_guid[16]; int64_t sequence_number``) and shows the
    number only, so the bytes are read from behind pybind11's object.

    Args:
        header: as taken with a request.

    Returns:
        None where rclpy is built otherwise; the sequence number tells.
    """
    identity = getattr(header, "request_id", header)
    if type(type(identity)).__name__ != "pybind11_type":
        return None
    address = ctypes.c_void_p.from_address(id(identity) + object.__basicsize__).value
    if not address or ctypes.c_int64.from_address(address + GUID_BYTES).value != identity.sequence_number:
        return None
    return ctypes.string_at(address, GUID_BYTES)


def participant_of(header: Any) -> bytes | None:
    """Whose request this is, None where it can't be known.

    One value per process with Fast DDS or Connext, whose GUIDs are 12 bytes of the participant and 4 of the endpoint
    (OMG DDSI-RTPS 8.2.4), per client object with others.
    """
    guid = guid_of(header)
    return None if guid is None else guid[:PARTICIPANT_BYTES]


class ReplyQueue:
    """Sends replies one after another, no faster than the service's clients can take them, answers before refusals.

    Everything runs in the executor's one thread.
    """

    def __init__(self, node: Node, service_name: str, weight: float = 1.0) -> None:
        """
        Args:
            service_name: resolved.
            weight: how long a reply, with what follows from it, keeps a client busy: in replies of a service.
        """
        self._node = node
        self._answers: deque[_Reply] = deque()
        self._refusals: deque[_Reply] = deque()
        self._undiscovered: list[_Reply] = []
        """Replies to clients that aren't known yet."""
        self._refused_at = 0.0
        """When the latest refusal was added."""
        self._clients = _Clients(node, service_name)
        self._pace = _Pace()
        self._weight = weight
        self._timer = steady_timer(node, TICK_S, "sending replies", self._send_replies)
        self._timer.cancel()

    def __len__(self) -> int:
        return len(self._answers) + len(self._refusals) + len(self._undiscovered)

    def add(self, header: Any, send: Callable[[], None], *, refusal: bool) -> None:
        """Send a reply now, if that is possible, or later.

        Args:
            header: of the request.
            send: sends the reply; called in the executor's thread.
            refusal: it may wait until all that are none are sent.
        """
        self._queue(_Reply(guid_of(header), send, refusal))
        if refusal:
            self._refused_at = time.monotonic()
        self._send_replies()

    def destroy(self) -> None:
        """Part with the timer while the node still exists."""
        self._node.destroy_timer(self._timer)

    def _queue(self, reply: _Reply) -> None:
        (self._refusals if reply.refusal else self._answers).append(reply)

    def _calls_go_on(self, now: float) -> bool:
        """Whether a crowd, as far as its refusals tell, is still calling."""
        if len(self._refusals) <= BURST:
            return False
        load = self._clients.load
        return now < min(self._refused_at + load * QUIET_S, self._refusals[0].ready_at + load * LONGEST_QUIET_S)

    def _sendable(self, hold_refusals: bool) -> deque[_Reply]:
        return self._answers if self._answers or hold_refusals else self._refusals

    def _send_replies(self) -> None:
        if self._clients.look():
            undiscovered, self._undiscovered = self._undiscovered, []
            for reply in undiscovered:
                self._queue(reply)
        now = time.monotonic()
        calls_go_on = self._calls_go_on(now)
        period_s = float("inf") if calls_go_on else self._weight * self._clients.period_s
        while (queue := self._sendable(calls_go_on)) and self._pace.may_send(now, period_s):
            reply = queue.popleft()
            waits = now - reply.turn_at(now) < DISCOVERY_TIMEOUT_S
            if waits and not self._clients.knows(reply.guid):
                self._undiscovered.append(reply)
            elif not reply.try_to_send():
                if waits:
                    self._undiscovered.append(reply)
                else:
                    self._node.get_logger().warning("an answer did not reach its client, which is gone")
                break  # the attempt took a while
        if self:
            self._timer.reset()
        else:
            self._timer.cancel()


class _Reply:
    def __init__(self, guid: bytes | None, send: Callable[[], None], refusal: bool) -> None:
        self.guid = guid
        self.refusal = refusal
        self.ready_at = time.monotonic()
        self._send = send
        self._turn_at: float | None = None

    def turn_at(self, now: float) -> float:
        """When it was its turn for the first time."""
        if self._turn_at is None:
            self._turn_at = now
        return self._turn_at

    def try_to_send(self) -> bool:
        """False where the middleware doesn't know the client: rclpy warns of it, older versions raise."""
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                self._send()
        except RuntimeError:
            return False
        return not any(issubclass(warning.category, RuntimeWarning) for warning in told)


class _Clients:
    """The clients of a service, as their readers of replies are seen in the ROS graph."""

    def __init__(self, node: Node, service_name: str) -> None:
        self._node = node
        self._topic = f"rr{service_name}Reply"  # the name of rmw_fastrtps and rmw_cyclonedds
        self._readers: frozenset[bytes] = frozenset()
        self._looked_at = float("-inf")
        # There a request's GUID is that of its client's reader.
        self._comparable = get_rmw_implementation_identifier().startswith("rmw_fastrtps")
        self.load = 1.0
        """How much longer everything takes than on an idle machine."""
        self.period_s = PROCESS_PERIOD_S
        """Between two replies: what the busiest process needs, or all of them on the processors that there are."""

    def look(self) -> bool:
        """Look whether it is time to; returns whether it was."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_PERIOD_S:
            return False
        self._looked_at = now
        found = self._node.get_subscriptions_info_by_topic(self._topic, no_mangle=True)
        self._readers = frozenset(bytes(reader.endpoint_gid[:GUID_BYTES]) for reader in found)
        processes = Counter(reader[:PARTICIPANT_BYTES] for reader in self._readers)
        processors = os.cpu_count() or 1
        busiest_s = PROCESS_PERIOD_S + CLIENT_PERIOD_S * max(processes.values(), default=0)
        all_s = PROCESS_PERIOD_S * len(processes) + CLIENT_PERIOD_S * len(self._readers)
        self.load = max(1.0, os.getloadavg()[0] / processors)
        self.period_s = self.load * max(busiest_s, all_s / processors)
        return True

    def knows(self, guid: bytes | None) -> bool:
        """Whether a reply would reach this client, as far as can be known."""
        return guid is None or not self._comparable or guid in self._readers


class _Pace:
    """A bucket of ``BURST`` replies that fills by one in each period."""

    def __init__(self) -> None:
        self._credit = float(BURST)
        self._filled_at = 0.0

    def may_send(self, now: float, period_s: float) -> bool:
        """Whether a reply may go out now; it counts as sent then."""
        self._credit = min(BURST, self._credit + (now - self._filled_at) / period_s)
        self._filled_at = now
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
