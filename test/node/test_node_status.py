"""~/cache_status, ~/vram_status, /diagnostics: what a planner and an operator see."""

from __future__ import annotations

import itertools

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage

from support.ros_client import BEST_EFFORT, CAMERA_TOPIC, START_NS, Planner, code_name, image, wait_until
from vstream_ros.msg import CacheStatus, VramStatus
from vstream_ros.node import diagnostics

LEVELS = {
    DiagnosticStatus.OK: "OK",
    DiagnosticStatus.WARN: "WARN",
    DiagnosticStatus.ERROR: "ERROR",
    DiagnosticStatus.STALE: "STALE",
}


class Board:
    """The latest entry of each name on /diagnostics."""

    def __init__(self, planner):
        self.arrays = planner.hear(DiagnosticArray, "/diagnostics")

    def entry(self, name):
        entries = [s for array in self.arrays[-1:] for s in array.status if s.name == f"vstream: {name}"]
        return entries[-1] if entries else None

    def wait(self, name, level, says=""):
        def found():
            entry = self.entry(name)
            return entry if entry and LEVELS[entry.level] == level and says in entry.message else None

        try:
            return wait_until(found, f"{name} is {level} with {says!r}", 30.0)
        except AssertionError as error:
            entry = self.entry(name)
            raise AssertionError(f"{error}; it is {entry and (LEVELS[entry.level], entry.message)}") from None


def values(entry):
    return {pair.key: pair.value for pair in entry.values}


def test_cache_status_follows_what_happens(start, planner):
    heard = planner.hear(CacheStatus, "/vstream/cache_status")
    node = start()

    def latest(condition):
        return wait_until(lambda: heard[-1] if heard and condition(heard[-1]) else None, "such a status", 30.0)

    empty = latest(lambda s: s.model_state == CacheStatus.READY)
    assert [camera.name for camera in empty.cameras] == ["front"]
    assert empty.cameras[0].topic == CAMERA_TOPIC
    assert not empty.valid
    planner.publish(*map(image, range(5)))
    node.wait_kept(5)
    full = latest(lambda s: s.cameras[0].frames_kept == 5)
    assert full.header.stamp.sec > 0
    assert full.clip_frames == 4  # the odd one waits for its partner
    assert full.pending_tubelets == 2
    assert (full.timeline_tubelets, full.valid) == (0, False)
    front = full.cameras[0]
    assert front.frames_received == 5
    assert front.star_capacity == 30
    assert front.stream_frames == 4 or front.stream_frames == 5
    assert front.oldest_stamp.sec == START_NS // 10**9
    planner.ask()
    planner.ask()
    asked = latest(lambda s: s.cache_hits == 1)
    assert asked.cache_misses == 1
    assert asked.valid
    assert (asked.timeline_tubelets, asked.pending_tubelets) == (2, 0)
    assert asked.timeline_tokens > 0
    assert asked.timeline_bytes > 0
    assert asked.tokens_reused > 0
    assert (asked.memory_epoch, asked.cameras[0].epoch) == (0, 0)
    planner.trigger("clear_memory")
    cleared = latest(lambda s: s.memory_epoch == 1)
    assert cleared.cameras[0].epoch == 1
    assert cleared.clip_frames == 0
    assert cleared.cameras[0].frames_kept == 5  # counters survive


def test_vram_status(start, planner):
    heard = planner.hear(VramStatus, "/vstream/vram_status")
    node = start()
    node.wait_ready()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    planner.ask()
    status = wait_until(lambda: heard[-1] if heard and heard[-1].kv_cache else None, "the KV cache's bytes", 30.0)
    assert status.device == "cpu"
    assert status.total > status.allocated > status.model > 0
    assert status.free > 0
    assert status.reserved == status.allocated
    assert status.peak_allocated >= status.allocated
    assert status.frames >= 2 * 84 * 112 * 3
    assert status.features > 0


def test_status_and_diagnostics_come_in_every_state(start, planner):
    caches = planner.hear(CacheStatus, "/vstream/cache_status")
    board = Board(planner)
    start(autostart=False)
    board.wait("model", "STALE", "unconfigured")
    assert caches[-1].model_state == CacheStatus.UNLOADED
    planner.transition(Transition.TRANSITION_CONFIGURE)
    board.wait("model", "OK", "inactive")
    board.wait("camera front", "STALE", "not active")
    planner.transition(Transition.TRANSITION_ACTIVATE)
    board.wait("camera front", "WARN", "no publisher")
    count = len(caches)
    wait_until(lambda: len(caches) > count, "the status goes on", 30.0)


def test_status_does_not_need_the_clock(start, planner):
    caches = planner.hear(CacheStatus, "/vstream/cache_status")
    start(use_sim_time=True)  # and nobody publishes /clock
    wait_until(lambda: len(caches) >= 2, "two statuses", 30.0)


def test_a_camera_from_nothing_to_images_to_silence(start, planner):
    board = Board(planner)
    start(silent_camera_timeout_s=2.0)
    entry = board.wait("camera front", "WARN", "no publisher")
    assert CAMERA_TOPIC in entry.message
    planner.publisher()
    board.wait("camera front", "WARN", "no image came")
    indices = itertools.count()

    def is_ok():
        planner.publish(image(next(indices)))
        entry = board.entry("camera front")
        return entry is not None and entry.level == DiagnosticStatus.OK

    wait_until(is_ok, "the camera is OK", 30.0)
    silent = board.wait("camera front", "WARN", "no image for")
    assert int(values(silent)["images received"]) > 0
    assert values(silent)["publishers"] == "1"


def test_rejected_images_show_with_their_reason(start, planner):
    board = Board(planner)
    start()
    planner.publish(image(0, encoding="telepathy8"))
    entry = board.wait("camera front", "WARN", "telepathy8")
    assert [v for k, v in values(entry).items() if k.startswith("rejected: ") and "telepathy8" in k] == ["1"]
    assert values(entry)["frames rejected"] == "1"


def test_incompatible_qos_and_a_wrong_type_are_errors(start, planner):
    board = Board(planner)
    start(cameras=["front", "rear"], qos_reliability="reliable")
    planner.publisher(qos=BEST_EFFORT)
    planner.publisher("/rear/image_raw", CompressedImage)
    board.wait("camera front", "ERROR", "qos_reliability: auto")
    board.wait("camera rear", "ERROR", "rear.image_transport: compressed")


def test_a_failed_model_is_an_error_that_says_why(start, planner, tmp_path):
    board = Board(planner)
    start(model=str(tmp_path / "nothing"))
    entry = board.wait("model", "ERROR", "nothing")
    assert "reload_model" in entry.message
    assert values(entry)["model state"] == "FAILED"


def test_questions_are_counted(start, planner):
    board = Board(planner)
    node = start()
    node.wait_ready()
    assert code_name(planner.ask()) == "NO_FRAMES"
    board.wait("questions", "OK", "0 answered, 1 failed")
    assert values(board.entry("questions"))["last failure"].startswith("NoFramesError")
    assert board.entry("memory").level == DiagnosticStatus.OK


def test_entries_are_named_after_the_node(start, planner):
    arrays = planner.hear(DiagnosticArray, "/diagnostics")
    node = start()
    wait_until(lambda: arrays, "diagnostics", 30.0)
    assert node.node.get_fully_qualified_name() == "/vstream"
    assert {status.name for status in arrays[-1].status} == {
        "vstream: model",
        "vstream: camera front",
        "vstream: questions",
        "vstream: memory",
    }


def test_each_entry_names_its_hardware(start, planner):
    board = Board(planner)
    start()
    board.wait("model", "OK")
    assert board.entry("camera front").hardware_id == "front"
    assert board.entry("model").hardware_id == "cpu"
    assert board.entry("memory").hardware_id == "cpu"
    assert board.entry("questions").hardware_id == "none"


def test_cameras_are_listed_while_the_node_is_unconfigured(start, planner):
    board = Board(planner)
    start(autostart=False, cameras=["front", "rear"])
    entry = board.wait("camera front", "STALE", "not configured")
    assert values(entry)["topic"] == CAMERA_TOPIC
    board.wait("camera rear", "STALE", "unconfigured")
    planner.transition(Transition.TRANSITION_CONFIGURE)
    board.wait("camera front", "STALE", "not active")
    planner.transition(Transition.TRANSITION_CLEANUP)
    board.wait("camera front", "STALE", "not configured")


@pytest.fixture
def another_planner():
    """In another participant: Fast DDS allows a topic one type in each."""
    planner = Planner()
    yield planner
    planner.close()


def test_a_camera_that_worked_and_now_publishes_another_type(start, planner, another_planner):
    board = Board(planner)
    start()
    planner.publish(image(0))
    board.wait("camera front", "OK", "images arrive")
    planner.node.destroy_publisher(planner.publisher())
    another_planner.publisher(CAMERA_TOPIC, CompressedImage)
    entry = board.wait("camera front", "ERROR", "carries sensor_msgs/msg/CompressedImage")
    assert values(entry)["publishers"] == "0"


def test_an_incompatible_publisher_that_is_gone_is_no_error(start, planner):
    board = Board(planner)
    start(qos_reliability="reliable")
    publisher = planner.publisher(qos=BEST_EFFORT)
    board.wait("camera front", "ERROR", "qos_reliability: auto")
    planner.node.destroy_publisher(publisher)
    board.wait("camera front", "WARN", "no publisher")


def test_a_blind_camera_is_an_error_and_recovers(start, planner, monkeypatch):
    monkeypatch.setattr(diagnostics, "RECENT_S", 0.5)
    board = Board(planner)
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    indices = itertools.count(2)

    def is_error():
        planner.publish(image(next(indices), encoding="telepathy8"))
        entry = board.entry("camera front")
        return entry if entry is not None and entry.level == DiagnosticStatus.ERROR else None

    entry = wait_until(is_error, "the camera is blind", 30.0)
    assert "telepathy8" in entry.message
    assert int(values(entry)["images rejected in a row"]) > 1
    planner.publish(image(next(indices)))
    board.wait("camera front", "OK")
    assert values(board.entry("camera front"))["images rejected in a row"] == "0"


def test_texts_from_outside_are_clipped(start, planner, monkeypatch):
    board = Board(planner)
    node = start(**{"front.image_transport": "compressed"})
    subscription = node.node.cameras["front"]
    for i in range(7):
        message = CompressedImage(format=f"{i}\n{'x' * 1_000_000}")
        message.header.stamp.sec = 1_700_000_000 + i
        message.data.frombytes(b"no picture")
        planner.publish(message, topic=f"{CAMERA_TOPIC}/compressed")
        wait_until(lambda i=i: sum(subscription.rejections.values()) > i, f"{i + 1} rejections")
    board.wait("camera front", "WARN")

    def all_are_counted():
        return values(board.entry("camera front")).get("frames rejected") == "7"

    wait_until(all_are_counted, "all are counted")
    assert len(serialize_message(board.arrays[-1])) < 20_000
    assert all(len(reason) <= 200 and reason.isprintable() for reason in subscription.rejections)


def test_lost_images_are_a_warning_that_says_what_to_do(start, planner):
    board = Board(planner)
    node = start()
    planner.publish(image(0))
    node.wait_kept(1)
    event = type("Event", (), {"total_count": 5, "total_count_change": 5})()
    node.executor.create_task(node.node.cameras["front"].on_message_lost, event)
    entry = board.wait("camera front", "WARN", "images are lost")
    assert values(entry)["images lost"] == "5"
