"""The service and the action ``~/ask`` as the middleware needs them: nobody's request or reply may be lost, and the
caller is known.

rclpy's own service takes one request per round of the executor, doesn't say whose it is, and sends replies as fast as
they come. DDS hands every reply to *every* client of the service, which keeps the last ten until its own executor takes
them: of 200 replies in a row most clients never see theirs.
"""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

from rclpy.action import ActionServer
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import CallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile
from rclpy.utilities import get_rmw_implementation_identifier
from rclpy.waitable import NumberOfEntities, Waitable

from vstream_ros.srv import AskVideo

KEEP_ALL = QoSProfile(history=HistoryPolicy.KEEP_ALL)
"""A request that finds the queue full is sent again by the middleware, instead of taking another one's place."""
BURST = 5
"""Replies that may go out at once: half of what a client with rclpy's default QoS keeps."""
REPLY_PERIOD_S = 0.001
"""Between further replies, for the client's executor to take one. And as long as it takes for ..."""
PERIOD_PER_CLIENT_S = 0.0002
"""... each client object of the busiest process, because every one of them has to take every reply."""
TICK_S = 0.005
DISCOVERY_TIMEOUT_S = 5.0
"""How long a reply waits for its client to be discovered."""
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


class QuestionService(Waitable):
    """The service: takes all requests that wait, and sends replies no faster than clients can take them.

    Everything runs in the executor's one thread.
    """

    def __init__(
        self, node: Node, name: str, answer: Callable[[AskVideo.Request, bytes | None], Awaitable[AskVideo.Response]]
    ) -> None:
        """
        Args:
            answer: called with each request and its client; must not raise.
        """
        super().__init__(ReentrantCallbackGroup())
        self._node = node
        self._answer = answer
        # The executor must leave the requests to this waitable.
        self._service = node.create_service(
            AskVideo, name, _unused, qos_profile=KEEP_ALL, callback_group=_NeverExecuted()
        )
        self._index = -1
        self._answers: deque[_Reply] = deque()
        self._refusals: deque[_Reply] = deque()
        """Replies that wait; refusals let answers pass."""
        self._undiscovered: list[_Reply] = []
        """Replies to clients that aren't known yet."""
        self._clients = _Clients(node, self._service.service_name)
        self._pace = _Pace()
        # A timer on ROS time stands still where use_sim_time is set and nobody publishes /clock.
        self._timer = node.create_timer(TICK_S, self._send_replies, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._timer.cancel()
        node.add_waitable(self)

    @property
    def waiting_replies(self) -> int:
        """Replies that are ready and not sent yet."""
        return len(self._answers) + len(self._refusals) + len(self._undiscovered)

    def destroy(self) -> None:
        """Part with the handles while the node still exists."""
        self._node.destroy_timer(self._timer)
        self._node.remove_waitable(self)
        self._node.destroy_service(self._service)

    async def _serve(self, request: AskVideo.Request, header: Any) -> None:
        self._queue(_Reply(await self._answer(request, participant_of(header)), header))
        self._send_replies()

    def _queue(self, reply: _Reply) -> None:
        refused = reply.response.error_code == AskVideo.Response.BUSY
        (self._refusals if refused else self._answers).append(reply)

    def _send_replies(self) -> None:
        if self._clients.look():
            undiscovered, self._undiscovered = self._undiscovered, []
            for reply in undiscovered:
                self._queue(reply)
        now = time.monotonic()
        while (queue := self._answers or self._refusals) and self._pace.may_send(now, self._clients.period_s):
            reply = queue.popleft()
            waits = now - reply.ready_at < DISCOVERY_TIMEOUT_S
            if waits and not self._clients.knows(reply.guid):
                self._undiscovered.append(reply)
            elif not self._send(reply):
                if waits:
                    self._undiscovered.append(reply)
                else:
                    self._node.get_logger().warning("an answer did not reach its client, which is gone")
                break  # the attempt took a while
        if self.waiting_replies:
            self._timer.reset()
        else:
            self._timer.cancel()

    def _send(self, reply: _Reply) -> bool:
        """False where the middleware doesn't know the client: rclpy warns of it, older versions raise."""
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                self._service.send_response(reply.response, reply.header)
        except RuntimeError:
            return False
        return not told

    # -- as rclpy's executor wants it --

    def __enter__(self) -> None:
        self._service.handle.__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        self._service.handle.__exit__(*exc_info)

    def get_num_entities(self) -> NumberOfEntities:
        return NumberOfEntities(num_services=1)

    def add_to_wait_set(self, wait_set: Any) -> None:
        self._index = wait_set.add_service(self._service.handle)

    def is_ready(self, wait_set: Any) -> bool:
        return bool(wait_set.is_ready("service", self._index))

    def take_data(self) -> list[tuple[Any, Any]]:
        taken: list[tuple[Any, Any]] = []
        with self._service.handle:
            while True:
                request, header = self._service.handle.service_take_request(AskVideo.Request)
                if header is None:
                    return taken
                taken.append((request, header))

    async def execute(self, taken_data: list[tuple[Any, Any]]) -> None:
        executor = self._node.executor
        for request, header in taken_data if executor is not None else ():
            executor.create_task(self._serve, request, header)


class QuestionActionServer(ActionServer):
    """The action's server, which remembers whose goal each one is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._asking: bytes | None = None
        self._clients: dict[bytes, bytes | None] = {}
        """Clients of goals that were accepted and have not begun, by goal id."""
        qos = {f"{name}_service_qos_profile": KEEP_ALL for name in ("goal", "result", "cancel")}
        super().__init__(*args, handle_accepted_callback=self._on_accepted, **qos, **kwargs)

    def take_client(self, goal: ServerGoalHandle) -> bytes | None:
        """Whose goal this is, to be asked once."""
        return self._clients.pop(bytes(goal.goal_id.uuid), None)

    async def _execute_goal_request(self, request_header_and_message: Any) -> None:
        # rclpy's method accepts the goal, without another task in between.
        self._asking = participant_of(request_header_and_message[0])
        await super()._execute_goal_request(request_header_and_message)

    def _on_accepted(self, goal: ServerGoalHandle) -> None:
        self._clients[bytes(goal.goal_id.uuid)] = self._asking
        goal.execute()


class _Reply:
    def __init__(self, response: AskVideo.Response, header: Any) -> None:
        self.response = response
        self.header = header
        self.guid = guid_of(header)
        self.ready_at = time.monotonic()


class _Clients:
    """The clients of a service, as their readers of replies are seen in the ROS graph."""

    def __init__(self, node: Node, service_name: str) -> None:
        self._node = node
        self._topic = f"rr{service_name}Reply"  # the name of rmw_fastrtps and rmw_cyclonedds
        self._readers: frozenset[bytes] = frozenset()
        self._looked_at = float("-inf")
        # There a request's GUID is that of its client's reader.
        self._comparable = get_rmw_implementation_identifier().startswith("rmw_fastrtps")
        self.period_s = REPLY_PERIOD_S
        """Between two replies. Every client object takes each of them, those of one process one after another, and the
        processors have other work too."""

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
        clients = max([*processes.values(), len(self._readers) / processors])
        self.period_s = (REPLY_PERIOD_S + PERIOD_PER_CLIENT_S * clients) * max(1.0, os.getloadavg()[0] / processors)
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


class _NeverExecuted(CallbackGroup):
    """Of a service whose requests the executor must not take."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        return None


def _unused(request: AskVideo.Request, response: AskVideo.Response) -> AskVideo.Response:
    raise AssertionError("the executor took a request")
