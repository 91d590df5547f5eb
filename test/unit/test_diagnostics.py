"""Diagnostics from plain values: each fault has its level, and a sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vstream_ros.engine import BackgroundState, DeviceMemory, EngineStatus, ModelState
from vstream_ros.memory import MemoryStatus
from vstream_ros.node import diagnostics
from vstream_ros.node.diagnostics import CameraReport, Level

GOOD = CameraReport(
    name="front",
    topic="/front/image_raw",
    msg_type="sensor_msgs/msg/Image",
    active=True,
    reliability="reliable",
    publishers=1,
    foreign_types=(),
    incompatible_qos="",
    received=10,
    silent_s=0.1,
    seen=True,
    rejections={},
    rejected_s_ago=None,
    last_rejection="",
)
MEMORY = MemoryStatus(
    camera="front",
    frames_offered=10,
    frames_kept=4,
    frames_rejected=1,
    star_frames=2,
    star_capacity=20,
    stream_frames=4,
    stream_capacity=34,
    tubelets=3,
    nbytes=1,
    oldest_stamp_ns=1,
    newest_stamp_ns=2,
    clears={"requested": 2},
)
READY = EngineStatus(
    model="m", model_state=ModelState.READY, model_error="", cameras=(MEMORY,), clip_frames=6, answers=3
)


def camera(**changes):
    return diagnostics.camera(replace(GOOD, **changes), READY, silent_timeout_s=5.0)


def test_a_good_camera():
    entry = camera()
    assert entry.name == "camera front"
    assert entry.level is Level.OK
    assert entry.values["frames kept"] == 4
    assert entry.values["star frames"] == "2 of 20"
    assert entry.values["cleared: requested"] == 2


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({"active": False}, Level.STALE, "not active"),
        ({"publishers": 0}, Level.WARN, "no publisher on /front/image_raw"),
        ({"silent_s": 6.0}, Level.WARN, "no image for 6 s"),
        ({"silent_s": 6.0, "seen": False}, Level.WARN, "no image came"),
        ({"silent_s": 1.0, "seen": False}, Level.OK, "waiting"),
        ({"incompatible_qos": "RELIABILITY"}, Level.ERROR, "qos_reliability: auto"),
        ({"rejected_s_ago": 2.0, "last_rejection": "step is 3"}, Level.WARN, "step is 3"),
        ({"rejected_s_ago": 60.0, "last_rejection": "step is 3"}, Level.OK, "arrive"),
        (
            {"foreign_types": ("sensor_msgs/msg/CompressedImage",), "seen": False},
            Level.ERROR,
            "front.image_transport: compressed",
        ),
        ({"foreign_types": ("std_msgs/msg/String",), "seen": False}, Level.ERROR, "carries std_msgs/msg/String"),
    ],
)
def test_a_cameras_faults(changes, level, says):
    entry = camera(**changes)
    assert entry.level is level
    assert says in entry.message


def test_rejections_are_listed_by_reason():
    assert camera(rejections={"step is 3": 7}).values["rejected: step is 3"] == 7


@pytest.mark.parametrize(
    ("state", "level", "says"),
    [
        (ModelState.READY, Level.OK, "m is ready"),
        (ModelState.LOADING, Level.WARN, "loading m"),
        (ModelState.UNLOADED, Level.WARN, "reload_model"),
        (ModelState.FAILED, Level.ERROR, "no such folder"),
    ],
)
def test_the_model(state, level, says):
    error = "no such folder" if state is ModelState.FAILED else ""
    entry = diagnostics.model(replace(READY, model_state=state, model_error=error), "active")
    assert entry.level is level
    assert says in entry.message
    assert entry.values["lifecycle state"] == "active"


def test_a_failed_reload_is_seen_while_the_old_model_answers():
    error = "reload of n failed: no such folder; m still answers"
    entry = diagnostics.model(replace(READY, model_error=error), "active")
    assert entry.level is Level.WARN
    assert error in entry.message
    assert "reload_model" in entry.message


@pytest.mark.parametrize(
    ("state", "says"), [(BackgroundState.PAUSED, "pauses: KeyError: boom"), (BackgroundState.STOPPED, "rests until")]
)
def test_failing_work_ahead_is_seen(state, says):
    assert diagnostics.memory(READY, []).values["work ahead"] == "off"
    status = replace(READY, background_state=state, background_failures=3, background_error="KeyError: boom")
    entry = diagnostics.memory(status, [])
    assert entry.level is Level.WARN
    assert "3 times in a row" in entry.message
    assert says in entry.message


def test_an_unconfigured_node_is_stale_not_wrong():
    entries = [
        diagnostics.model(None, "unconfigured"),
        diagnostics.questions(None, 64),
        diagnostics.memory(None, []),
    ]
    assert {entry.level for entry in entries} == {Level.STALE}


def test_questions():
    assert diagnostics.questions(READY, 64).level is Level.OK
    assert diagnostics.questions(READY, 64).values["answered"] == 3
    assert diagnostics.questions(replace(READY, queued_questions=64), 64).level is Level.WARN
    assert diagnostics.questions(replace(READY, queued_questions=63), 64).level is Level.OK
    assert diagnostics.questions(replace(READY, queued_questions=63, running_question=True), 64).level is Level.WARN


def test_a_full_device_is_told():
    device = DeviceMemory("cuda:0", total=1000, free=500, allocated=400, reserved=450, peak_allocated=480, kv_cache=5)
    entry = diagnostics.memory(replace(READY, announcements=("a jump",)), [device])
    assert entry.level is Level.OK
    assert entry.values["cuda:0 kv_cache"] == 5
    assert entry.values["clearing 1"] == "a jump"
    full = diagnostics.memory(READY, [replace(device, free=10)])
    assert full.level is Level.WARN
    assert "cuda:0" in full.message
