"""A question about five minutes ago, over the real service, when star has long lost what was there then."""

from __future__ import annotations

from pathlib import Path

import pytest
from builtin_interfaces.msg import Time

from support.ros_client import START_NS, code_name, image, wait_until
from vstream_ros.msg import CacheStatus

SECOND = 10**9
PERIOD_NS = 2 * SECOND
FRAMES = 180
"""Six minutes at half a frame a second."""
BATCH = 6
"""Images on their way at once, within any queue's depth."""
SMALL = {"sample_rate_hz": 0.5, "star_memory_size": 6, "stream_window_size": 6, "stream_slide": 2}
NEWEST_NS = START_NS + (FRAMES - 1) * PERIOD_NS
THEN_NS = NEWEST_NS - 300 * SECOND
RANGE_NS = (THEN_NS - 6 * SECOND, THEN_NS + 6 * SECOND)


def to_time(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)


def stamps(response) -> list[int]:
    return [stamp.sec * SECOND + stamp.nanosec for stamp in response.frame_stamps]


def watch(start, planner, **parameters):
    """A node that has seen six minutes."""
    node = start(**{**SMALL, **parameters})
    for first in range(0, FRAMES, BATCH):
        planner.publish(*(image(k, stamp_ns=START_NS + k * PERIOD_NS) for k in range(first, first + BATCH)))
        node.wait_kept(first + BATCH)
    node.wait_ready()
    return node


def ask_about_then(planner, question: str = "What was there?"):
    return planner.ask(question, start_time=to_time(RANGE_NS[0]), end_time=to_time(RANGE_NS[1]))


@pytest.mark.parametrize("on_disk", [False, True])
def test_five_minutes_ago_is_answered_with_frames_of_that_time(start, planner, tmp_path: Path, on_disk: bool) -> None:
    heard = planner.hear(CacheStatus, "/vstream/cache_status")
    folder = str(tmp_path) if on_disk else ""
    node = watch(start, planner, archive_max_bytes=1 << 22, archive_folder=folder)
    now = planner.ask()
    assert code_name(now) == "NONE"
    assert not [stamp for stamp in stamps(now) if RANGE_NS[0] <= stamp <= RANGE_NS[1]]  # star has lost them
    then = ask_about_then(planner)
    assert code_name(then) == "NONE"
    shown = [START_NS + k * PERIOD_NS for k in range(FRAMES)]
    in_range = [stamp for stamp in shown if RANGE_NS[0] <= stamp <= RANGE_NS[1]]
    assert set(in_range) <= set(stamps(then))
    assert len(in_range) == 7
    assert all(RANGE_NS[0] - PERIOD_NS <= stamp <= RANGE_NS[1] + PERIOD_NS for stamp in stamps(then))  # whole tubelets
    assert set(then.frame_cameras) == {"front"}
    assert then.metrics.frames == len(then.frame_stamps)
    assert ask_about_then(planner, "And who?").metrics.cache_hit
    assert planner.ask("And now?").metrics.cache_hit  # the current timeline never saw them
    wait_until(lambda: heard and heard[-1].cameras[0].frames_kept == FRAMES, "the newest status", 30.0)
    front = heard[-1].cameras[0]
    assert front.archive_frames == FRAMES - front.star_frames - front.stream_frames
    assert 0 < front.archive_bytes <= 1 << 22
    assert len(list(tmp_path.iterdir())) == on_disk
    node.close()
    assert list(tmp_path.iterdir()) == []


def test_without_an_archive_there_is_nothing_of_that_time(start, planner) -> None:
    watch(start, planner)
    assert code_name(ask_about_then(planner)) == "NO_FRAMES"


def test_a_folder_that_is_not_there_costs_the_archive_and_not_the_node(start, planner, tmp_path: Path) -> None:
    node = watch(start, planner, archive_max_bytes=1 << 22, archive_folder=str(tmp_path / "missing"))
    wait_until(lambda: "archive_folder" in node.memory.archive_error, "the status says so", 30.0)
    assert code_name(ask_about_then(planner)) == "NO_FRAMES"
    assert code_name(planner.ask()) == "NONE"
