"""The lifecycle over its real services: what exists in which state, and what a question is told there."""

from __future__ import annotations

import gc
import os
import shutil
import threading

import pytest
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleNode
from std_srvs.srv import Trigger

from support.ros_client import code_name, image, wait_for_result, wait_until
from vstream_ros.engine import DelayedBatchInferenceEngine, ModelState
from vstream_ros.models import loader
from vstream_ros.node.camera_subscription import CameraSubscription


def test_autostart_activates(start, planner):
    start()
    assert planner.state() == "active"


def test_a_manager_brings_the_node_up_step_by_step(start, planner):
    node = start(autostart=False)
    assert planner.state() == "unconfigured"
    refused = planner.ask()
    assert code_name(refused) == "NOT_READY"
    assert "configure" in refused.message
    assert not planner.trigger("clear_memory").success
    reload = planner.trigger("reload_model")
    assert not reload.success
    assert "configure" in reload.message

    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    assert planner.state() == "inactive"
    node.wait_ready()  # the model is loaded while the node is inactive
    refused = planner.ask()
    assert code_name(refused) == "NOT_READY"
    assert "activate" in refused.message

    assert planner.transition(Transition.TRANSITION_ACTIVATE)
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    assert code_name(planner.ask()) == "NONE"


def test_an_inactive_node_does_not_watch(start, planner):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    publisher = planner.publisher()
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    wait_until(lambda: publisher.get_subscription_count() == 0, "the subscription is gone")
    publisher.publish(image(2))
    assert node.memory.frames_kept == 2
    assert planner.transition(Transition.TRANSITION_ACTIVATE)
    planner.publish(image(3))
    node.wait_kept(3)


def test_cleanup_frees_the_model_and_the_frames_and_configure_brings_a_new_one(start, planner):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    node.wait_ready()
    old = node.node.engine
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    assert planner.transition(Transition.TRANSITION_CLEANUP)
    assert planner.state() == "unconfigured"
    assert node.node.engine is None
    wait_until(lambda: old.status().model_state is ModelState.UNLOADED, "the weights are freed")
    node.node.wait_closed(30.0)
    old._thread._thread.join(30.0)
    assert not old._thread._thread.is_alive()
    assert code_name(planner.ask()) == "NOT_READY"

    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    assert planner.transition(Transition.TRANSITION_ACTIVATE)
    node.wait_ready()
    assert code_name(planner.ask()) == "NO_FRAMES"
    planner.publish(image(2), image(3))
    node.wait_kept(2)
    assert code_name(planner.ask()) == "NONE"


def test_shutdown_finalizes_and_still_answers(start, planner):
    start()
    assert planner.transition(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert planner.state() == "finalized"
    refused = planner.ask()
    assert code_name(refused) == "NOT_READY"
    assert "restart" in refused.message


@pytest.mark.skipif(
    os.environ.get("ROS_DISTRO") == "jazzy",
    reason="Jazzy's rclpy raises in its own service instead of refusing; test_qa_node shows that the node survives it",
)
def test_an_impossible_transition_is_refused(start, planner):
    start()
    assert not planner.transition(Transition.TRANSITION_CONFIGURE)
    assert planner.state() == "active"


def test_transitions_do_not_wait_for_the_model(start, planner, monkeypatch):
    release = threading.Event()
    original = DelayedBatchInferenceEngine.load

    def slow_load(self, model=None):
        self._thread.run(release.wait)
        return original(self, model)

    monkeypatch.setattr(DelayedBatchInferenceEngine, "load", slow_load)
    node = start(autostart=False)
    try:
        for transition in (
            Transition.TRANSITION_CONFIGURE,
            Transition.TRANSITION_ACTIVATE,
            Transition.TRANSITION_DEACTIVATE,
            Transition.TRANSITION_CLEANUP,
            Transition.TRANSITION_CONFIGURE,
            Transition.TRANSITION_ACTIVATE,
        ):
            assert planner.transition(transition)
        assert node.node.engine.status().model_state is not ModelState.READY
    finally:
        release.set()
    node.wait_ready()


def test_a_failing_transition_is_logged_and_survived(start, planner, monkeypatch, capfd):
    node = start(autostart=False)
    monkeypatch.setattr(DelayedBatchInferenceEngine, "frame_size", lambda *args: 1 / 0)
    assert not planner.transition(Transition.TRANSITION_CONFIGURE)
    assert planner.state() == "unconfigured"
    assert "ZeroDivisionError" in capfd.readouterr().err
    monkeypatch.undo()
    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    node.wait_ready()


def model_threads():
    return {thread for thread in threading.enumerate() if thread.name == "vstream-model"}


def test_a_failing_configure_leaves_nothing_behind(start, planner, monkeypatch):
    node = start(autostart=False)
    before = model_threads()
    with monkeypatch.context() as patch:
        patch.setattr(DelayedBatchInferenceEngine, "frame_size", lambda *args: 1 / 0)
        for _ in range(3):
            assert not planner.transition(Transition.TRANSITION_CONFIGURE)
    assert node.node.engine is None
    assert not node.node.cameras
    node.node.wait_closed(30.0)
    for thread in model_threads() - before:
        thread.join(30.0)
    assert model_threads() == before
    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    node.wait_ready()


def test_a_failing_activate_leaves_no_camera_subscribed(start, planner, monkeypatch):
    node = start(autostart=False, cameras=["front", "rear"], **{"rear.image_topic": "/rear/image_raw"})
    assert planner.transition(Transition.TRANSITION_CONFIGURE)
    front = planner.publisher()
    original = CameraSubscription.start

    def failing(self):
        if self.topic == "/rear/image_raw":
            raise RuntimeError("no room for another subscription")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(CameraSubscription, "start", failing)
        assert not planner.transition(Transition.TRANSITION_ACTIVATE)
    assert planner.state() == "inactive"
    assert not any(camera.report().active for camera in node.node.cameras.values())
    wait_until(lambda: front.get_subscription_count() == 0, "the first camera's subscription is gone")
    assert planner.transition(Transition.TRANSITION_ACTIVATE)
    assert all(camera.report().active for camera in node.node.cameras.values())
    wait_until(lambda: front.get_subscription_count() == 1, "there is one subscription")
    assert planner.transition(Transition.TRANSITION_DEACTIVATE)
    wait_until(lambda: front.get_subscription_count() == 0, "there is none again")


def test_one_model_is_loaded_at_a_time_however_often_the_node_is_configured(start, planner, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    log: list[str] = []
    original = loader.load_model

    def slow_load(*args, **kwargs):
        log.append("begins")
        begun.set()
        assert release.wait(120)
        try:
            return original(*args, **kwargs)
        finally:
            log.append("ends")

    monkeypatch.setattr(loader, "load_model", slow_load)
    node = start(autostart=False)
    try:
        assert planner.transition(Transition.TRANSITION_CONFIGURE)
        assert begun.wait(60)
        for _ in range(2):
            assert planner.transition(Transition.TRANSITION_CLEANUP)
            assert not node.node._freed.done()  # the first one's load goes on
            assert planner.transition(Transition.TRANSITION_CONFIGURE)
        assert node.node.engine.status().model_state is ModelState.LOADING
    finally:
        release.set()
    node.wait_ready()
    assert log == ["begins", "ends"] * 2


def test_a_destroyed_node_is_gone_at_once(start, planner):
    node = start(autostart=False)
    wait_until(lambda: "vstream" in planner.node.get_node_names(), "the node is seen")
    gc.disable()
    try:
        node.close()
        wait_until(lambda: "vstream" not in planner.node.get_node_names(), "the node is gone")
    finally:
        gc.enable()


def test_no_attribute_hides_one_of_rclpys(start):
    node = start(autostart=False).node
    plain = LifecycleNode("plain", context=node.context)
    try:
        types = {name: type(value) for name, value in vars(plain).items()}
        hidden = {name for name, value in vars(node).items() if type(value) is not types.get(name, type(value))}
    finally:
        plain.destroy_node()
        plain._state_machine.destroy_when_not_in_use()  # else the context's participant outlives the test
    assert hidden <= {"_Node__executor_weakref"}  # None until there is an executor


# ---- the model ----


def test_a_model_that_cannot_be_had_leaves_the_node_up(start, planner, tmp_path, checkpoint):
    from rclpy.parameter import Parameter

    node = start(model=str(tmp_path / "nothing"))
    wait_until(lambda: node.node.engine.status().model_state is ModelState.FAILED, "the load fails")
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    failed = planner.ask()
    assert code_name(failed) == "MODEL_FAILED"
    assert "nothing" in failed.message
    again = planner.trigger("reload_model")
    assert not again.success
    assert "nothing" in again.message
    (result,) = node.node.set_parameters([Parameter("model", value=str(checkpoint))])
    assert result.successful
    mended = planner.trigger("reload_model")
    assert mended.success, mended.message
    answer = planner.ask()
    assert code_name(answer) == "NONE"
    assert answer.metrics.frames == 2  # what was seen meanwhile is kept


def test_a_reload_that_fails_keeps_the_model(start, planner, tmp_path, checkpoint):
    from rclpy.parameter import Parameter

    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    node.wait_ready()
    first = planner.ask()
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    (damaged / "tokenizer.json").write_text("not what it was")
    (result,) = node.node.set_parameters([Parameter("model", value=str(damaged))])
    assert result.successful
    reload = planner.trigger("reload_model")
    assert not reload.success
    assert f"{checkpoint} still answers" in reload.message
    second = planner.ask()
    assert (code_name(second), second.answer) == ("NONE", first.answer)
    assert second.metrics.model == str(checkpoint)


def test_a_reload_says_what_is_loaded(start, planner, checkpoint):
    node = start()
    node.wait_ready()
    hold, begun = threading.Event(), threading.Event()
    engine = node.node.engine
    engine._thread.run(lambda: begun.set() or hold.wait(60))
    assert begun.wait(60)
    overtaken = planner.client(Trigger, "/vstream/reload_model").call_async(Trigger.Request())
    wait_until(lambda: engine.status().model_state is ModelState.LOADING, "the reload is announced")
    engine.load(str(checkpoint))
    hold.set()
    response = wait_for_result(overtaken, "the first reload's end")
    assert not response.success
    assert "overtaken" in response.message
    assert planner.trigger("reload_model").message == f"{checkpoint} is ready"


def test_a_reload_keeps_the_frames(start, planner):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    node.wait_ready()
    first = planner.ask()
    assert planner.trigger("reload_model").success
    second = planner.ask()
    assert second.answer == first.answer
    assert not second.metrics.cache_hit


def test_clear_memory(start, planner):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    node.wait_ready()
    assert code_name(planner.ask()) == "NONE"
    response = planner.trigger("clear_memory")
    assert response.success
    assert "2 frames" in response.message
    assert code_name(planner.ask()) == "NO_FRAMES"
    assert node.node.engine.status().memory_epoch == 1
    planner.publish(image(2), image(3))
    node.wait_kept(4)
    assert code_name(planner.ask()) == "NONE"


@pytest.mark.parametrize("cycles", [20])
def test_many_activations(start, planner, cycles):
    node = start()
    for _ in range(cycles):
        assert planner.transition(Transition.TRANSITION_DEACTIVATE)
        assert planner.transition(Transition.TRANSITION_ACTIVATE)
    planner.publish(image(0), image(1))
    node.wait_kept(2)
