"""The service and the action ``~/ask`` as the middleware needs them: no request and no reply is lost, and the caller is
known.

rclpy's own service takes one request per round of the executor, doesn't say whose it is, and sends replies as fast as
they come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rclpy.action import ActionServer
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import CallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.waitable import NumberOfEntities, Waitable

from vstream_ros.action import AskVideo as AskVideoAction
from vstream_ros.node.qos import KEEP_ALL
from vstream_ros.node.reply_queue import ReplyQueue, participant_of
from vstream_ros.srv import AskVideo

GOAL_WEIGHT = 20.0
"""How much longer a goal keeps every client of the action busy than a reply keeps those of the service: acceptance,
result, feedback, three times the status, by way of rclpy's slower client. Measured: with 6 some miss theirs."""


class QuestionService(Waitable):
    """The service: takes all requests that wait, and says whose each is.

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
        self._replies = ReplyQueue(node, self._service.service_name)
        node.add_waitable(self)

    @property
    def waiting_replies(self) -> int:
        """Replies that are ready and not sent yet."""
        return len(self._replies)

    def destroy(self) -> None:
        """Part with the handles while the node still exists."""
        self._replies.destroy()
        self._node.remove_waitable(self)
        self._node.destroy_service(self._service)

    async def _serve(self, request: AskVideo.Request, header: Any) -> None:
        response = await self._answer(request, participant_of(header))
        self._replies.add(header, lambda: self._service.send_response(response, header), refusal=_is_refusal(response))

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
    """The action's server, which remembers whose goal each one is, and whose clients hear of all their goals."""

    def __init__(self, node: Node, name: str, *args: Any, **kwargs: Any) -> None:
        """As rclpy's, without the action's type, the QoS of its services and ``handle_accepted_callback``."""
        self._asking: bytes | None = None
        self._clients: dict[bytes, bytes | None] = {}
        """Clients of goals that were accepted and have not begun, by goal id."""
        prefix = f"{node.resolve_service_name(name)}/_action"
        self._acceptances = ReplyQueue(node, f"{prefix}/send_goal", weight=GOAL_WEIGHT)
        self._results = ReplyQueue(node, f"{prefix}/get_result")
        qos = {f"{service}_service_qos_profile": KEEP_ALL for service in ("goal", "result", "cancel")}
        super().__init__(node, AskVideoAction, name, *args, handle_accepted_callback=self._on_accepted, **qos, **kwargs)

    @property
    def waiting_replies(self) -> int:
        """Results that are ready and not sent yet."""
        return len(self._results)

    def take_client(self, goal: ServerGoalHandle) -> bytes | None:
        """Whose goal this is, to be asked once."""
        return self._clients.pop(bytes(goal.goal_id.uuid), None)

    def destroy(self) -> None:
        """Part with the handles while the node still exists."""
        self._acceptances.destroy()
        self._results.destroy()
        super().destroy()

    async def _execute_goal_request(self, request_header_and_message: Any) -> None:
        executor = self._node.executor
        if executor is not None:
            self._acceptances.add(
                request_header_and_message[0],
                lambda: executor.create_task(self._accept, request_header_and_message),
                refusal=False,
            )

    async def _accept(self, request_header_and_message: Any) -> None:
        # rclpy's method accepts the goal, without another task in between.
        self._asking = participant_of(request_header_and_message[0])
        await super()._execute_goal_request(request_header_and_message)

    def _send_result_response(self, request_header: Any, future: Any) -> None:
        send = super()._send_result_response
        ended = future.result()
        refusal = ended is not None and _is_refusal(ended.result)
        self._results.add(request_header, lambda: send(request_header, future), refusal=refusal)

    def _on_accepted(self, goal: ServerGoalHandle) -> None:
        self._clients[bytes(goal.goal_id.uuid)] = self._asking
        goal.execute()


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


def _is_refusal(response: AskVideo.Response | AskVideoAction.Result) -> bool:
    return bool(response.error_code == AskVideo.Response.BUSY)
