"""``~/ask``, as a service and as an action: questions to the engine, answers back, never silence."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rclpy.action import CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

from vstream_ros.action import AskVideo as AskVideoAction
from vstream_ros.engine import DelayedBatchInferenceEngine, PendingAnswer, Question
from vstream_ros.errors import BusyError, CanceledError, NotReadyError, VStreamError
from vstream_ros.node.callbacks import in_executor
from vstream_ros.node.messages import fill_answer, fill_error, ros_text, to_question
from vstream_ros.node.question_service import QuestionActionServer, QuestionService
from vstream_ros.node.settings import Settings
from vstream_ros.srv import AskVideo

RESULT_TIMEOUT_S = 60
"""How long an action's result can be fetched after its end."""
FEEDBACK_PERIOD_S = 0.1
LOG_PERIOD_S = 5.0


class QuestionServer:
    """Callbacks await the engine's future, so that images keep flowing through the same executor meanwhile."""

    def __init__(
        self,
        node: Node,
        engine: Callable[[], DelayedBatchInferenceEngine],
        settings: Callable[[], Settings],
    ) -> None:
        """
        Args:
            engine: the engine that may be asked now; raises ``NotReadyError`` with a sentence where there is none.
            settings: the current parameters: what a request may leave out, and what one client may ask for.
        """
        self._node = node
        self._engine = engine
        self._settings = settings
        self._pending: dict[bytes, PendingAnswer] = {}
        """Questions of running goals, by goal id."""
        self._open = 0
        self._open_of: Counter[bytes] = Counter()
        """Open questions by client, where it is known."""
        self._service = QuestionService(node, "~/ask", self._on_request)
        self._action = QuestionActionServer(
            node,
            "~/ask",
            self._on_goal,
            callback_group=ReentrantCallbackGroup(),  # several questions wait at a time
            cancel_callback=self._on_cancel,
            result_timeout=RESULT_TIMEOUT_S,
        )

    @property
    def open(self) -> int:
        """Questions that were taken and not yet answered."""
        return self._open + self._service.waiting_replies + self._action.waiting_replies

    def destroy(self) -> None:
        """Part with the handles of service and action while the node still exists."""
        self._service.destroy()
        self._action.destroy()

    async def _on_request(self, request: AskVideo.Request, client: bytes | None) -> AskVideo.Response:
        response = AskVideo.Response()
        try:
            with self._place_for(client):
                pending = self._submit(request)
                await in_executor(self._node, pending.future)
                fill_answer(response, pending.future.result())
        except Exception as error:  # noqa: BLE001
            self._fail(response, error)
        return response

    async def _on_goal(self, goal: ServerGoalHandle) -> Any:
        result = AskVideoAction.Result()
        key = bytes(goal.goal_id.uuid)
        try:
            with self._place_for(self._action.take_client(goal)):
                if goal.is_cancel_requested:
                    raise CanceledError("the goal was canceled before it began")
                pending = self._submit(goal.request, on_text=_Feedback(goal))
                self._pending[key] = pending
                await in_executor(self._node, pending.future)
                fill_answer(result, pending.future.result())
            goal.succeed()
        except Exception as error:  # noqa: BLE001
            self._fail(result, error)
            if goal.is_cancel_requested:
                goal.canceled()
            else:
                goal.abort()
        finally:
            self._pending.pop(key, None)
        return result

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        pending = self._pending.get(bytes(goal.goal_id.uuid))
        if pending is not None:
            pending.cancel("the goal was canceled")
        return CancelResponse.ACCEPT

    @contextmanager
    def _place_for(self, client: bytes | None) -> Iterator[None]:
        """One open question of this client; raises ``BusyError`` where it has its share of them already."""
        share = self._settings().max_questions_per_client
        if client is not None and 0 < share <= self._open_of[client]:
            raise BusyError(
                f"{share} questions of this client are open already; wait for an answer before the next one, or raise "
                "max_questions_per_client"
            )
        self._open += 1
        self._open_of.update([client] if client is not None else ())
        try:
            yield
        finally:
            self._open -= 1
            if client is not None:
                self._open_of[client] -= 1
                if not self._open_of[client]:
                    del self._open_of[client]

    def _submit(self, request: Any, on_text: Callable[[str, int], None] | None = None) -> PendingAnswer:
        defaults = self._settings().engine
        question: Question = to_question(request, max_new_tokens=defaults.max_new_tokens, timeout_s=defaults.timeout_s)
        return self._engine().submit(question, on_text=on_text)

    def _fail(self, response: Any, error: Exception) -> None:
        fill_error(response, error)
        if not isinstance(error, VStreamError):
            self._node.get_logger().error(f"a question failed unexpectedly:\n{traceback.format_exc()}")
        elif isinstance(error, BusyError):  # a crowd would fill the log
            self._node.get_logger().warning(f"questions are told BUSY: {error}", throttle_duration_sec=LOG_PERIOD_S)
        elif not isinstance(error, NotReadyError):  # and so would a planner that retries
            self._node.get_logger().warning(f"a question ended with {error.code}: {error}")


class _Feedback:
    """Publishes the text so far, at a rate that a planner can read. Called in the model's thread, after each token."""

    def __init__(self, goal: ServerGoalHandle) -> None:
        self._goal = goal
        self._next_at = 0.0

    def __call__(self, text: str, new_tokens: int) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + FEEDBACK_PERIOD_S
        self._goal.publish_feedback(AskVideoAction.Feedback(text=ros_text(text), new_tokens=new_tokens))
