"""A memory outlives the process: saved, the process killed, another one started, loaded, the same question asked."""

from __future__ import annotations

import signal

from support.ros_client import code_name, image
from vstream_ros.msg import CacheStatus
from vstream_ros.srv import LoadMemory, SaveMemory

EXIT_S = 5.0


def test_the_answer_outlives_the_process(launch, planner, status, tmp_path):
    folder = tmp_path / "memories"

    def show(message, kept):
        """Publish until it is kept: what comes before the node knows its publisher is lost. A second one is refused."""

        def is_kept(latest):
            planner.publish(message)
            return latest.cameras[0].frames_kept == kept

        status(is_kept, "a frame is kept")

    first = launch(memory_folder=folder)
    status(lambda s: s.model_state == CacheStatus.READY, "the model is loaded")
    show(image(0), 1)
    planner.publish(*(image(k) for k in range(1, 7)))
    status(lambda s: s.cameras[0].frames_kept == 7, "the frames are kept")
    before = planner.ask()
    assert code_name(before) == "NONE"
    saved = planner.call(SaveMemory, "/vstream/save_memory", SaveMemory.Request(name="before"))
    assert saved.success, saved.message
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()

    second = launch(memory_folder=folder, save_memory_at_shutdown="true")
    status(lambda s: s.model_state == CacheStatus.READY and s.cameras[0].frames_kept == 0, "the other one is up")
    loaded = planner.call(LoadMemory, "/vstream/load_memory", LoadMemory.Request(name="before"))
    assert loaded.success, loaded.message
    assert (loaded.tubelets, loaded.bytes) == (saved.tubelets, saved.bytes)
    after = planner.ask()
    assert (after.answer, after.frame_stamps) == (before.answer, before.frame_stamps)
    assert len(after.frame_stamps) == 6  # the seventh frame waits for its partner,
    show(image(7), 1)  # which comes
    assert len(planner.ask().frame_stamps) == 8

    assert second.stop(signal.SIGTERM, EXIT_S) == 0
    assert "the memory was saved" in second.log
    third = launch(memory_folder=folder, restore_memory_at_start="true")
    third.wait_log("the memory was restored")
    status(lambda s: s.model_state == CacheStatus.READY and s.cameras[0].stream_frames == 8, "it is restored")
    assert third.stop(signal.SIGINT, EXIT_S) == 0
