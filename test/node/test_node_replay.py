"""bag_player as its own process, playing to the node in this one."""

from __future__ import annotations

import time

import pytest

from support.replay_media import TOPIC, image_bag, pictures
from support.ros_client import TIMEOUT_S, wait_until
from vstream_ros.engine import DelayedBatchInferenceEngine
from vstream_ros.msg import CacheStatus
from vstream_ros.node.camera_subscription import QUEUE_DEPTH, CameraSubscription
from vstream_ros.replay.flow_control import WINDOW

IMAGES = 200


def received(node):
    return node.node.cameras["front"].received


@pytest.mark.parametrize("rate", ["10", "1000"])
def test_reliable_play_loses_nothing_however_fast(start, play, tmp_path, monkeypatch, rate):
    original = CameraSubscription.on_image

    def slow(self, message, info):
        time.sleep(0.02)  # at most 50 images a second; the bag brings 100 at rate 10
        original(self, message, info)

    monkeypatch.setattr(CameraSubscription, "on_image", slow)
    node = start(**{"front.image_topic": TOPIC})
    player = play(image_bag(tmp_path / "bag", pictures(IMAGES, 84, 112)), "--rate", rate)
    out, err = player.communicate(timeout=TIMEOUT_S)
    assert player.returncode == 0, err
    assert out.startswith(f"published {IMAGES} messages")
    assert "did not take" not in out
    assert received(node) == IMAGES  # the player ends when the last one is taken


def test_the_player_stays_within_the_nodes_queue():
    assert WINDOW < QUEUE_DEPTH


def test_progress_is_published_to_a_player_only(start, planner):
    node = start()
    heard = planner.hear(CacheStatus, "/vstream/image_progress")
    wait_until(lambda: heard, "the images' progress")
    (camera,) = heard[-1].cameras
    assert (camera.name, camera.topic, camera.frames_received) == ("front", "/front/image_raw", 0)
    planner.close_subscriptions()
    wait_until(node.node._progress._publishing.is_canceled, "nothing is published any more")


def test_the_player_waits_for_the_model(start, play, tmp_path, monkeypatch):
    may_load = []
    original = DelayedBatchInferenceEngine.load

    def slow_load(self, model=None):
        self._thread.run(lambda: wait_until(lambda: may_load, "the test's permission"))
        return original(self, model)

    monkeypatch.setattr(DelayedBatchInferenceEngine, "load", slow_load)
    node = start(**{"front.image_topic": TOPIC})
    player = play(image_bag(tmp_path / "bag", pictures(5, 84, 112)), "--rate", "100", "--wait-ready", "100")
    try:
        lines = iter(player.stderr.readline, "")
        assert "waiting for the model of /vstream\n" in lines
        assert received(node) == 0
        assert player.poll() is None
    finally:
        may_load.append(True)
    _, err = player.communicate(timeout=TIMEOUT_S)
    assert player.returncode == 0, err
    assert "playing anyway" not in err
    assert received(node) == 5


def test_a_model_that_cannot_be_loaded_is_said_and_the_bag_is_played(start, play, tmp_path):
    node = start(model=str(tmp_path / "no_such_model"), **{"front.image_topic": TOPIC})
    bag = image_bag(tmp_path / "bag", pictures(5, 84, 112))
    player = play(bag, "--rate", "100", "--wait-ready", "100")
    _, err = player.communicate(timeout=TIMEOUT_S)
    assert player.returncode == 0, err
    assert "/vstream could not load its model" in err
    assert received(node) == 5


def test_a_node_that_is_not_there_is_said_after_the_time_given(play, tmp_path, start):
    start(**{"front.image_topic": TOPIC})
    bag = image_bag(tmp_path / "bag", pictures(5, 84, 112))
    player = play(bag, "--rate", "100", "--wait-ready", "0.2", "--node", "robot1/other")
    _, err = player.communicate(timeout=TIMEOUT_S)
    assert player.returncode == 0, err
    assert "no status came from /robot1/other within 0.2 s: playing anyway" in err
