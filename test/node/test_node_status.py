"""~/cache_status, ~/vram_status, /diagnostics: what a planner and an operator see."""

from __future__ import annotations

import itertools

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CompressedImage

from support.ros_client import BEST_EFFORT, CAMERA_TOPIC, START_NS, code_name, image, wait_until
from vstream_ros.msg import CacheStatus, VramStatus

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
    assert front.star_capacity == 20
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
