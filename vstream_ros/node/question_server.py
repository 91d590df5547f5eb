"""``~/ask``, as a service and as an action: questions to the engine, answers back, never silence."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

from vstream_ros.action import AskVideo as AskVideoAction
from vstream_ros.engine import DelayedBatchInferenceEngine, EngineConfig, PendingAnswer, Question
from vstream_ros.errors import CanceledError, NotReadyError, VStreamError
from vstream_ros.node.callbacks import in_executor
from vstream_ros.node.messages import fill_answer, fill_error, ros_text, to_question
from vstream_ros.srv import AskVideo

SERVICE_DEPTH = 100
"""Requests that wait for the executor. With the default of 10 most of 50 simultaneous calls vanish without a trace."""
RESULT_TIMEOUT_S = 60
"""How long an action's result can be fetched after its end."""
FEEDBACK_PERIOD_S = 0.1


class QuestionServer:
    """Callbacks await the engine's future, so that images keep flowing through the same executor meanwhile."""

    def __init__(
        self,
        node: Node,
        engine: Callable[[], DelayedBatchInferenceEngine],
        defaults: Callable[[], EngineConfig],
    ) -> None:
        """
        Args:
            engine: the engine that may be asked now; raises ``NotReadyError`` with a sentence where there is none.
            defaults: the current values of what a request may leave out.
        """
        self._node = node
        self._engine = engine
        self._defaults = defaults
        self._pending: dict[bytes, PendingAnswer] = {}
        """Questions of running goals, by goal id."""
        self.open = 0
        """Questions that were taken and not yet answered."""
        group = ReentrantCallbackGroup()  # several questions wait at a time
        depth = QoSProfile(depth=SERVICE_DEPTH)
        self._service = node.create_service(
            AskVideo, "~/ask", self._on_request, qos_profile=depth, callback_group=group
        )
        self._action = ActionServer(
            node,
            AskVideoAction,
            "~/ask",
            self._on_goal,
            callback_group=group,
            cancel_callback=self._on_cancel,
            goal_service_qos_profile=depth,
            result_service_qos_profile=depth,
            cancel_service_qos_profile=depth,
            result_timeout=RESULT_TIMEOUT_S,
        )

    def destroy(self) -> None:
        """Part with the action's handles while the node still exists."""
        self._action.destroy()

    async def _on_request(self, request: Any, response: Any) -> Any:
        self.open += 1
        try:
            pending = self._submit(request)
            await in_executor(self._node, pending.future)
            fill_answer(response, pending.future.result())
        except Exception as error:  # noqa: BLE001
            self._fail(response, error)
        finally:
            self.open -= 1
        return response

    async def _on_goal(self, goal: ServerGoalHandle) -> Any:
        result = AskVideoAction.Result()
        key = bytes(goal.goal_id.uuid)
        self.open += 1
        try:
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
            self.open -= 1
        return result

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        pending = self._pending.get(bytes(goal.goal_id.uuid))
        if pending is not None:
            pending.cancel("the goal was canceled")
        return CancelResponse.ACCEPT

    def _submit(self, request: Any, on_text: Callable[[str, int], None] | None = None) -> PendingAnswer:
        defaults = self._defaults()
        question: Question = to_question(request, max_new_tokens=defaults.max_new_tokens, timeout_s=defaults.timeout_s)
        return self._engine().submit(question, on_text=on_text)

    def _fail(self, response: Any, error: Exception) -> None:
        fill_error(response, error)
        if not isinstance(error, VStreamError):
            self._node.get_logger().error(f"a question failed unexpectedly:\n{traceback.format_exc()}")
        elif not isinstance(error, NotReadyError):  # a planner that retries would fill the log
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
