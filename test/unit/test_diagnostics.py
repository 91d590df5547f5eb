"""Diagnostics from plain values: each fault has its level, and a sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    rejecting_s=None,
    rejected_in_a_row=0,
    lost=0,
    lost_s_ago=None,
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
        ({"incompatible_qos": "Best effort publisher and reliable subscription"}, Level.ERROR, "qos_reliability: auto"),
        ({"publishers": 0, "seen": False}, Level.WARN, "no publisher on /front/image_raw"),
        ({"rejected_s_ago": 2.0, "last_rejection": "step is 3"}, Level.WARN, "step is 3"),
        ({"rejected_s_ago": 60.0, "last_rejection": "step is 3"}, Level.OK, "arrive"),
        ({"rejected_s_ago": 2.0, "last_rejection": "step is 3", "rejecting_s": 9.0}, Level.WARN, "step is 3"),
        (
            {"rejected_s_ago": 2.0, "last_rejection": "step is 3", "rejecting_s": 12.0, "rejected_in_a_row": 360},
            Level.ERROR,
            "all 360 images of the last 12 s were rejected: step is 3",
        ),
        ({"rejected_s_ago": 60.0, "last_rejection": "step is 3", "rejecting_s": 80.0}, Level.OK, "arrive"),
        (
            {"foreign_types": ("sensor_msgs/msg/CompressedImage",), "publishers": 0, "seen": False},
            Level.ERROR,
            "front.image_transport: compressed",
        ),
        ({"foreign_types": ("std_msgs/msg/String",), "publishers": 0}, Level.ERROR, "carries std_msgs/msg/String"),
        ({"foreign_types": ("std_msgs/msg/String",), "publishers": 1}, Level.OK, "arrive"),
        ({"lost": 4, "lost_s_ago": 2.0}, Level.WARN, "images are lost on their way (4 so far): the node can't keep up"),
        ({"lost": 4, "lost_s_ago": 2.0, "reliability": "best_effort"}, Level.WARN, "fastdds_large_images.xml"),
        ({"lost": 4, "lost_s_ago": 2.0, "silent_s": 6.0, "seen": False}, Level.WARN, "images are lost"),
        ({"lost": 4, "lost_s_ago": 2.0, "rejected_s_ago": 2.0, "last_rejection": "step is 3"}, Level.WARN, "step is 3"),
        ({"lost": 4, "lost_s_ago": 60.0}, Level.OK, "arrive"),
    ],
)
def test_a_cameras_faults(changes, level, says):
    entry = camera(**changes)
    assert entry.level is level
    assert says in entry.message


SECONDS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
REPORTS = st.builds(
    CameraReport,
    name=st.text(),
    topic=st.text(),
    msg_type=st.text(),
    active=st.booleans(),
    reliability=st.text(),
    publishers=st.integers(0),
    foreign_types=st.lists(st.text()).map(tuple),
    incompatible_qos=st.text(),
    received=st.integers(0),
    silent_s=st.floats(allow_nan=True, allow_infinity=True),
    seen=st.booleans(),
    rejections=st.dictionaries(st.text(), st.integers(0)),
    rejected_s_ago=SECONDS,
    last_rejection=st.text(),
    rejecting_s=SECONDS,
    rejected_in_a_row=st.integers(0),
    lost=st.integers(0),
    lost_s_ago=SECONDS,
)


@given(REPORTS, st.floats(0.0, 1e9))
def test_any_state_of_a_camera_has_an_entry(report, silent_timeout_s):
    for status in (None, READY):
        entry = diagnostics.camera(report, status, silent_timeout_s)
        assert entry.message
        assert entry.hardware_id == report.name
        assert (entry.level is Level.STALE) == (not report.active)


def test_an_unconfigured_camera_is_stale():
    entry = diagnostics.unconfigured_camera("front", "/front/image_raw", "unconfigured")
    assert entry.level is Level.STALE
    assert "the node is unconfigured" in entry.message
    assert entry.values == {"topic": "/front/image_raw"}


def test_a_long_error_of_the_model_keeps_its_beginning_and_what_to_do():
    status = replace(READY, model_state=ModelState.FAILED, model_error="no such folder" + "x" * 1_000_000)
    entry = diagnostics.model(status, "active", "cuda:0")
    assert entry.message.startswith("no such folder")
    assert entry.message.endswith("call ~/reload_model when that is mended")
    assert len(entry.message) < 1_000
    assert entry.hardware_id == "cuda:0"


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


def test_an_archive_that_cannot_be_written_is_seen_and_no_other_fault_is_hidden():
    archived = replace(MEMORY, archive_frames=6, archive_bytes=1234)
    good = diagnostics.camera(GOOD, replace(READY, cameras=(archived,)), 5.0)
    assert good.level is Level.OK
    assert (good.values["archived frames"], good.values["archived bytes"]) == (6, 1234)
    status = replace(READY, cameras=(replace(MEMORY, archive_error="no space left on device"),))
    entry = diagnostics.camera(GOOD, status, 5.0)
    assert entry.level is Level.WARN
    assert "no space left on device" in entry.message
    assert "publisher" in diagnostics.camera(replace(GOOD, publishers=0), status, 5.0).message
