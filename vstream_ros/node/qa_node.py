"""The managed node: which parts exist in which lifecycle state."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import wait
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.errors import CanceledError, ConfigError, NotReadyError
from vstream_ros.node.callbacks import RosLogHandler, fill_failure, in_executor, never_raising
from vstream_ros.node.camera_subscription import CameraSubscription
from vstream_ros.node.image_progress import ImageProgress
from vstream_ros.node.memory_image import MemoryImage
from vstream_ros.node.memory_service import MemoryService
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
        """Ends when the weights of the engine before this one, and of all before that, are freed."""
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
        self._memory_service = MemoryService(self, self._configured_engine, lambda: self.settings)
        self._status = StatusPublisher(
            self, lambda: self.settings, lambda: self._engine, self._cameras, self._lifecycle_label
        )
        self._progress = ImageProgress(self, self._cameras)
        self._memory_image = MemoryImage(self, self._configured_engine)
        self.create_service(Trigger, "~/clear_memory", self._on_clear_memory)
        self.create_service(Trigger, "~/reload_model", self._on_reload_model, callback_group=ReentrantCallbackGroup())
        # Kept: a jump handle that is thrown away crashes the process at the jump.
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False),
            post_callback=never_raising(self, "the time jump callback", self._on_time_jump),
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

    @property
    def saving(self) -> bool:
        """A memory is being written or read."""
        return self._memory_service.busy

    def close(self) -> None:
        """End the questions, the subscriptions and the engine; begin to save the memory, where that is wanted. Does not
        wait for the model's thread, nor for the disk."""
        self._shut_down()

    def wait_closed(self, timeout_s: float | None = None) -> None:
        """Wait until the memory is saved and the models' threads have ended, after ``close``."""
        self._memory_service.wait(timeout_s)
        if self._freed is not None:
            wait([self._freed], timeout_s)

    def destroy_node(self) -> None:
        """As rclpy's; what must go before the node's handle goes first."""
        self.close()
        logging.getLogger(LIBRARY_LOGGER).removeHandler(self._log_handler)
        self._jump_handle.unregister()
        self._questions.destroy()
        self._memory_image.destroy()
        self._memory_service.close()
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
        return self._transition("cleanup", lambda: self._give_up_memory("the node was cleaned up"))

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
        self._engine = DelayedBatchInferenceEngine(config=settings.engine, memory=settings.memory, after=self._freed)
        try:
            self._prepare(self._engine, settings)
        except BaseException:
            self._release_engine("the node could not be configured")
            raise

    def _prepare(self, engine: DelayedBatchInferenceEngine, settings: Settings) -> None:
        # The first call imports what knows the model's sizes, which takes longer than an image callback may.
        engine.frame_size(480, 640)
        for camera in settings.cameras:
            self._cameras[camera.name] = CameraSubscription(
                self, engine, camera, reliability=lambda: self.settings.qos_reliability
            )
        self._load(engine)
        self._memory_service.restore_at_start(engine)  # after that: the model's name tells the frames' size

    def _load(self, engine: DelayedBatchInferenceEngine) -> ThreadFuture[str]:
        model = self.settings.model
        self.get_logger().info(f"loading {model}")
        future = engine.load(model)
        future.add_done_callback(self._log_load)
        return future

    def _log_load(self, loaded: ThreadFuture[str]) -> None:
        error = loaded.exception()
        if error is None:
            self.get_logger().info(f"{loaded.result()} is ready")
        elif not isinstance(error, CanceledError):  # that: a later load, unload or cleanup took its place
            self.get_logger().error(f"{error}; call ~/reload_model when that is mended")

    def _activate(self) -> None:
        try:
            for camera in self._cameras.values():
                camera.start()
        except BaseException:
            self._stop_cameras()  # those that were started: the node stays inactive
            raise

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
        self._freed = engine.close(reason, wait_s=0.0)  # later: a load that has begun can't be interrupted

    def _give_up_memory(self, reason: str) -> None:
        self._release_engine(reason)
        self._memory_image.forget()

    def _shut_down(self) -> None:
        self._stop_cameras()
        if self._engine is not None:
            self._memory_service.save_at_shutdown(self._engine)
        self._give_up_memory("the node is shutting down")

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
            self._memory_image.forget()
            response.success, response.message = True, f"{frames} frames were forgotten"
        except Exception as error:  # noqa: BLE001
            fill_failure(self, response, error)
        return response

    async def _on_reload_model(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answers when the model is loaded, or could not be, or another load or unload overtook it."""
        try:
            loaded = self._load(self._configured_engine())
            await in_executor(self, loaded)
            response.success, response.message = True, f"{loaded.result()} is ready"
        except Exception as error:  # noqa: BLE001
            fill_failure(self, response, error)
        return response

    def _configured_engine(self) -> DelayedBatchInferenceEngine:
        if self._engine is None:
            raise NotReadyError(
                f"the node is {self._lifecycle_label()}; configure it first "
                f"(ros2 lifecycle set {self.get_fully_qualified_name()} configure)"
            )
        return self._engine

    # -- time --------------------------------------------------------------------------------------------------------

    def _on_time_jump(self, jump: TimeJump) -> None:
        """Called for every step back, however small: the threshold may change while the node is unconfigured."""
        seconds = -jump.delta.nanoseconds / 1e9
        threshold_s = max(config.time_jump_threshold_s for config in self.settings.memory.values())
        if self._engine is not None and seconds >= threshold_s:
            self._engine.clear(f"the ROS clock jumped back by {seconds:.1f} s")
            self._memory_image.forget()
