"""The managed node: which parts exist in which lifecycle state."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future as ThreadFuture
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState
from vstream_ros.errors import ConfigError, NotReadyError, VStreamError
from vstream_ros.node.callbacks import RosLogHandler, guarded, in_executor
from vstream_ros.node.camera_subscription import CameraSubscription
from vstream_ros.node.image_progress import ImageProgress
from vstream_ros.node.parameters import Parameters
from vstream_ros.node.question_server import QuestionServer
from vstream_ros.node.settings import Settings
from vstream_ros.node.status import StatusPublisher

NODE_NAME = "vstream"
LIBRARY_LOGGER = "vstream_ros"


class QaNode(LifecycleNode):
    """Cameras in, answers out.

    The engine exists from configure to cleanup, the subscriptions from activate to deactivate; services, status and
    diagnostics always. Transitions start things and never wait for them: active does not mean that the model is
    loaded. Belongs into one ``SingleThreadedExecutor``.
    """

    def __init__(self, **node_options: Any) -> None:
        """``node_options``: of ``rclpy.node.Node``. Raises ``ConfigError`` for a parameter that can't be."""
        super().__init__(NODE_NAME, **node_options)
        self._engine: DelayedBatchInferenceEngine | None = None
        self._freed: ThreadFuture[None] | None = None
        """Ends when the weights of the engine before this one are freed."""
        self._closing: list[threading.Thread] = []
        self._cameras: dict[str, CameraSubscription] = {}
        try:
            self._qa_parameters = Parameters(self, is_configured=lambda: self._engine is not None)
        except ConfigError:
            self._destroy_lifecycle_node()  # else the context does it at its end, to a node that is half made
            raise
        self._log_handler = RosLogHandler(self)
        logging.getLogger(LIBRARY_LOGGER).addHandler(self._log_handler)
        logging.getLogger(LIBRARY_LOGGER).setLevel(logging.INFO)
        self._questions = QuestionServer(self, self._engine_to_ask, lambda: self.settings)
        self._status = StatusPublisher(
            self, lambda: self.settings, lambda: self._engine, self._cameras, self._lifecycle_label
        )
        self._progress = ImageProgress(self, self._cameras)
        self.create_service(Trigger, "~/clear_memory", self._on_clear_memory)
        self.create_service(Trigger, "~/reload_model", self._on_reload_model, callback_group=ReentrantCallbackGroup())
        # Kept: a jump handle that is thrown away crashes the process at the jump.
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=self._jump_threshold(), on_clock_change=False),
            post_callback=guarded(self, "the time jump callback", self._on_time_jump),
        )

    @property
    def settings(self) -> Settings:
        """The parameters as they are now."""
        return self._qa_parameters.settings

    @property
    def engine(self) -> DelayedBatchInferenceEngine | None:
        """None while the node is not configured."""
        return self._engine

    @property
    def cameras(self) -> Mapping[str, CameraSubscription]:
        """By name; empty while the node is not configured."""
        return self._cameras

    def autostart(self) -> None:
        """Configure and activate, as a lifecycle manager would."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    @property
    def open_questions(self) -> int:
        """Questions that were taken and not yet answered."""
        return self._questions.open

    def close(self) -> None:
        """End the questions, the subscriptions and the engine. Does not wait for the model's thread."""
        self._stop_cameras()
        self._release_engine("the node is shutting down")

    def wait_closed(self, timeout_s: float | None = None) -> None:
        """Wait until the model's thread has ended, after ``close``."""
        for thread in self._closing:
            thread.join(timeout_s)

    def destroy_node(self) -> None:
        """As rclpy's; what must go before the node's handle goes first."""
        self.close()
        logging.getLogger(LIBRARY_LOGGER).removeHandler(self._log_handler)
        self._jump_handle.unregister()
        self._questions.destroy()
        self._destroy_lifecycle_node()

    def _destroy_lifecycle_node(self) -> None:
        super().destroy_node()
        # rclpy leaves this to the garbage collector; until then others find the node's services and ask nobody.
        self._state_machine.destroy_when_not_in_use()

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make the engine; the model is loaded in its thread."""
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras, take questions."""
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the memory and the model stay."""
        return self._transition("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the weights and forget the frames."""
        return self._transition("cleanup", lambda: self._release_engine("the node was cleaned up"))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give everything up, in whatever state."""
        return self._transition("shutdown", self._shut_down)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        return self._transition("error processing", self._shut_down)

    def _transition(self, name: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        """rclpy swallows what a transition raises: the log is the only place where it can be seen."""
        try:
            action()
        except Exception:  # noqa: BLE001
            self.get_logger().error(f"{name} failed:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.FAILURE
        self.get_logger().info(f"{name}: done")
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        settings = self.settings
        engine = DelayedBatchInferenceEngine(config=settings.engine, memory=settings.memory)
        # The first call imports what knows the model's sizes, which takes longer than an image callback may.
        engine.frame_size(480, 640)
        self._engine = engine
        for camera in settings.cameras:
            self._cameras[camera.name] = CameraSubscription(
                self, engine, camera, reliability=lambda: self.settings.qos_reliability
            )
        if self._freed is None or self._freed.done():
            self._load(engine)
        else:  # two models at a time may not fit
            self._freed.add_done_callback(lambda _: self._load(engine))

    def _load(self, engine: DelayedBatchInferenceEngine) -> ThreadFuture[None]:
        model = self.settings.model
        self.get_logger().info(f"loading {model}")
        future = engine.load(model)
        future.add_done_callback(lambda loaded: self._log_load(engine, model, loaded))
        return future

    def _log_load(self, engine: DelayedBatchInferenceEngine, model: str, loaded: ThreadFuture[None]) -> None:
        error = loaded.exception()
        if error is None:
            if engine.status().model_state is ModelState.READY:  # else a later load or unload took its place
                self.get_logger().info(f"{model} is ready")
        elif isinstance(error, VStreamError):
            self.get_logger().error(f"{error}; call ~/reload_model when that is mended")
        else:
            text = "".join(traceback.format_exception(error))
            self.get_logger().error(f"{model} could not be loaded:\n{text}")

    def _activate(self) -> None:
        for camera in self._cameras.values():
            camera.start()

    def _deactivate(self) -> None:
        self._stop_cameras()
        if self._engine is not None:
            self._engine.cancel_all("the node was deactivated; activate it and ask again")

    def _stop_cameras(self) -> None:
        for camera in self._cameras.values():
            camera.stop()

    def _release_engine(self, reason: str) -> None:
        engine, self._engine = self._engine, None
        self._cameras.clear()
        if engine is None:
            return
        engine.cancel_all(reason)
        freed = self._freed = engine.unload()

        def close() -> None:
            freed.exception()  # waits: a load that has begun can't be interrupted
            engine.close()

        self._closing = [thread for thread in self._closing if thread.is_alive()]
        self._closing.append(threading.Thread(target=close, name="vstream-close", daemon=True))
        self._closing[-1].start()

    def _shut_down(self) -> None:
        self._stop_cameras()
        self._release_engine("the node is shutting down")

    def _lifecycle_label(self) -> str:
        return str(self._state_machine.current_state[1])

    # -- services ----------------------------------------------------------------------------------------------------

    def _engine_to_ask(self) -> DelayedBatchInferenceEngine:
        label, name = self._lifecycle_label(), self.get_fully_qualified_name()
        if self._engine is not None and label == "active":
            return self._engine
        if label == "finalized":
            raise NotReadyError("the node was shut down; restart it")
        steps = "activate" if label == "inactive" else "configure it and then activate"
        raise NotReadyError(f"the node is {label}; {steps} it (ros2 lifecycle set {name} activate) and ask again")

    def _on_clear_memory(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            engine = self._configured_engine()
            frames = engine.status().clip_frames
            engine.clear("requested by ~/clear_memory")
            response.success, response.message = True, f"{frames} frames were forgotten"
        except Exception as error:  # noqa: BLE001
            self._fail(response, error)
        return response

    async def _on_reload_model(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answers when the model is loaded, or could not be."""
        try:
            engine, model = self._configured_engine(), self.settings.model
            loaded = self._load(engine)
            await in_executor(self, loaded)
            loaded.result()
            state = engine.status().model_state
            response.success = state is ModelState.READY
            response.message = f"{model} is ready" if response.success else f"{model} is {state.name.lower()}"
        except Exception as error:  # noqa: BLE001
            self._fail(response, error)
        return response

    def _configured_engine(self) -> DelayedBatchInferenceEngine:
        if self._engine is None:
            raise NotReadyError(
                f"the node is {self._lifecycle_label()}; configure it first "
                f"(ros2 lifecycle set {self.get_fully_qualified_name()} configure)"
            )
        return self._engine

    def _fail(self, response: Trigger.Response, error: Exception) -> None:
        response.success = False
        response.message = str(error) if isinstance(error, VStreamError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, VStreamError):
            self.get_logger().error(f"a service failed unexpectedly:\n{traceback.format_exc()}")

    # -- time --------------------------------------------------------------------------------------------------------

    def _jump_threshold(self) -> Duration:
        seconds = max(config.time_jump_threshold_s for config in self.settings.memory.values())
        return Duration(nanoseconds=-round(seconds * 1e9))

    def _on_time_jump(self, jump: TimeJump) -> None:
        if self._engine is not None:
            self._engine.clear(f"the ROS clock jumped back by {-jump.delta.nanoseconds / 1e9:.1f} s")
