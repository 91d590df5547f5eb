"""``~/save_memory`` and ``~/load_memory``, and the same at the node's start and end."""

from __future__ import annotations

import threading

import pytest
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter

from support.ros_client import code_name, image, wait_for_result, wait_until
from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.srv import LoadMemory, SaveMemory


def save(planner, name=""):
    return planner.call(SaveMemory, "/vstream/save_memory", SaveMemory.Request(name=name))


def load(planner, name=""):
    return planner.call(LoadMemory, "/vstream/load_memory", LoadMemory.Request(name=name))


def watched(start, planner, frames=6, **parameters):
    node = start(**parameters)
    planner.publish(*(image(k) for k in range(frames)))
    node.wait_kept(frames)
    node.wait_ready()
    return node


def test_what_is_saved_is_answered_from_again(start, planner, tmp_path):
    node = watched(start, planner, memory_folder=str(tmp_path / "memories"))
    before = planner.ask()
    saved = save(planner)
    assert saved.success, saved.message
    path = tmp_path / "memories" / "memory.npz"
    assert (saved.path, saved.tubelets, saved.bytes) == (str(path), 3, path.stat().st_size)
    assert planner.trigger("clear_memory").success
    planner.publish(image(20), image(21))
    node.wait_kept(8)
    assert planner.ask().frame_stamps != before.frame_stamps
    loaded = load(planner, "memory.npz")
    assert loaded.success, loaded.message
    assert (loaded.path, loaded.tubelets, loaded.bytes) == (saved.path, saved.tubelets, saved.bytes)
    after = planner.ask()
    assert (code_name(after), after.answer, after.frame_stamps) == ("NONE", before.answer, before.frame_stamps)
    planner.publish(image(6), image(7))  # and time goes on from there
    node.wait_kept(10)
    assert len(planner.ask().frame_stamps) == 8


def test_what_cannot_be_is_said_and_nothing_is_lost(start, planner, tmp_path):
    node = watched(start, planner)
    refused = save(planner)
    assert not refused.success
    assert "set the parameter memory_folder" in refused.message
    (result,) = node.node.set_parameters([Parameter("memory_folder", value="relative/folder")])
    assert "must be an absolute path" in result.reason
    (result,) = node.node.set_parameters([Parameter("memory_folder", value=str(tmp_path))])
    assert result.successful
    for name in ("../up", "/etc/passwd", ".hidden", "a b"):
        assert "the name must be" in save(planner, name).message
        assert "the name must be" in load(planner, name).message
    assert "there is no such file" in load(planner, "nothing").message
    (tmp_path / "foreign.npz").write_bytes(b"PK\5\6" + bytes(200))
    refused = load(planner, "foreign")
    assert not refused.success
    assert "no saved memory" in refused.message
    (tmp_path / "link.npz").symlink_to(tmp_path / "foreign.npz")
    assert "symbolic link" in save(planner, "link").message
    assert node.memory.tubelets == 3
    assert node.memory.epoch == 0


def test_an_unconfigured_node_says_so(start, planner, tmp_path):
    start(autostart=False, memory_folder=str(tmp_path))
    for response in (save(planner), load(planner)):
        assert not response.success
        assert "configure it first" in response.message


def test_an_inactive_node_saves_and_loads(start, planner, tmp_path):
    node = watched(start, planner, memory_folder=str(tmp_path))
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    assert save(planner).success
    assert planner.trigger("clear_memory").success
    assert load(planner).success
    assert node.memory.tubelets == 3


def test_a_slow_disk_delays_no_image_and_not_more_than_some_requests_wait(start, planner, tmp_path, monkeypatch):
    release = threading.Event()
    original = DelayedBatchInferenceEngine.save_memory

    def slow(self, path):
        assert release.wait(120)
        return original(self, path)

    monkeypatch.setattr(DelayedBatchInferenceEngine, "save_memory", slow)
    node = watched(start, planner, memory_folder=str(tmp_path))
    client = planner.client(SaveMemory, "/vstream/save_memory")
    try:
        waiting = [client.call_async(SaveMemory.Request(name=f"m{k}")) for k in range(8)]
        wait_until(lambda: len(node.node._memory_service._jobs) == 8, "eight requests wait")
        assert "8 files wait" in save(planner).message
        planner.publish(image(6), image(7))
        node.wait_kept(8)
        assert code_name(planner.ask()) == "NONE"
    finally:
        release.set()
    assert all(wait_for_result(future, "it is saved").success for future in waiting)


def test_saved_at_shutdown_and_restored_at_start(start, planner, tmp_path, capfd):
    parameters = {
        "memory_folder": str(tmp_path), "save_memory_at_shutdown": True, "restore_memory_at_start": True,
    }  # fmt: skip
    first = watched(start, planner, **parameters)
    wait_until(lambda: not first.node.saving, "the start's load is through")
    assert "there is no saved memory" in capfd.readouterr().err
    before = planner.ask()
    first.close()
    second = start(**parameters)
    wait_until(lambda: second.memory.tubelets == 3, "the memory is restored")
    second.wait_ready()
    after = planner.ask()
    assert (after.answer, after.frame_stamps) == (before.answer, before.frame_stamps)

    # Once for a process: who cleans the node up wants another memory.
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    assert planner.transition(Transition.TRANSITION_CLEANUP)
    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    assert second.memory.tubelets == 0
    assert planner.transition(Transition.TRANSITION_INACTIVE_SHUTDOWN)
    wait_until(lambda: not second.node.saving, "the empty memory is saved")
    assert "the memory was saved" in capfd.readouterr().err


def test_a_broken_file_at_start_is_a_warning_and_is_never_overwritten(start, planner, tmp_path, capfd):
    path = tmp_path / "memory.npz"
    path.write_bytes(b"of a later version" * 10)
    node = watched(
        start, planner, memory_folder=str(tmp_path), save_memory_at_shutdown=True, restore_memory_at_start=True
    )
    assert "the memory was not restored" in capfd.readouterr().err
    assert code_name(planner.ask()) == "NONE"
    node.close()
    assert (tmp_path / "memory.refused.npz").read_bytes() == b"of a later version" * 10
    assert path.read_bytes().startswith(b"PK")


@pytest.mark.parametrize("name", ["save_memory_at_shutdown", "restore_memory_at_start"])
def test_a_start_without_a_folder_is_refused(start, name):
    with pytest.raises(ValueError, match=f"memory_folder must name a folder where {name} is true"):
        start(**{name: True})
