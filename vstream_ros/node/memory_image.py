"""~/show_memory and ~/memory_image: a contact sheet of what memory holds, on request."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.errors import CanceledError
from vstream_ros.memory import MemorySnapshot, draw_contact_sheet
from vstream_ros.node.callbacks import fill_failure, in_executor
from vstream_ros.node.messages import to_time
from vstream_ros.node.qos import LATCHED


class MemoryImage:
    """Publishes with a plain publisher, in every state that has a memory. Everything but the drawing happens in the
    executor's thread."""

    def __init__(self, node: Node, engine: Callable[[], DelayedBatchInferenceEngine]) -> None:
        """``engine``: the engine; raises ``NotReadyError`` where there is none."""
        self._node = node
        self._engine = engine
        self._publisher = node.create_publisher(Image, "~/memory_image", LATCHED)
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="vstream-sheet")
        self._drawing: ThreadFuture[Image] | None = None
        """The sheet that is being drawn; requests that come meanwhile share it."""
        self._forgotten = 0
        """How often a sheet had to be withdrawn: one that was begun before must not be published."""
        self._published: Image | None = None
        """What is on the topic; None where that shows no frame."""
        node.create_service(Trigger, "~/show_memory", self._on_show, callback_group=ReentrantCallbackGroup())

    def forget(self) -> None:
        """Frames were forgotten: what was published of them is replaced by an empty sheet."""
        self._forgotten += 1
        self._drawing = None
        if self._published is not None:
            self._published = None
            self._publisher.publish(_image(()))

    def destroy(self) -> None:
        """End the painter's thread; it may finish the sheet that it draws."""
        self._painter.shutdown(wait=False, cancel_futures=True)

    async def _on_show(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answers when the sheet is published, or could not be."""
        try:
            begun = self._forgotten
            if self._drawing is None or self._drawing.done():
                self._drawing = self._painter.submit(_image, self._engine().snapshots())
            drawing = self._drawing
            await in_executor(self._node, drawing)
            image = drawing.result()
            if self._forgotten != begun:
                raise CanceledError("the memory was cleared meanwhile; ask again")
            if image is not self._published:  # else a request that shared it was faster
                self._publisher.publish(image)
                self._published = image
            response.success = True
            response.message = f"a sheet of {image.width}x{image.height} pixels is on {self._publisher.topic_name}"
        except Exception as error:  # noqa: BLE001
            fill_failure(self._node, response, error)
        return response


def _image(snapshots: tuple[MemorySnapshot, ...]) -> Image:
    """The sheet as a message; its stamp is that of the newest frame, zero where nothing is held."""
    sheet: np.ndarray = draw_contact_sheet(snapshots)
    height, width = sheet.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = array("B", sheet.tobytes())
    newest_ns = max((t.stamps_ns[-1] for s in snapshots for t in s.tubelets), default=0)
    message.header.stamp = to_time(newest_ns)
    return message
