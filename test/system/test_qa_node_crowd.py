"""Many clients of the installed node at once: none is left without an answer."""

from __future__ import annotations

from support.crowd import UNANSWERED, Crowd, call_all
from support.ros_client import image, wait_until
from vstream_ros.msg import CacheStatus

FRAMES = 4
SHARE = 4
PLACES = 12


def test_everybody_hears_back(launch, planner):
    """500 clients in five processes with rclpy's default QoS, then 1,000 calls of one client, whose own queue must be
    long enough for them. One test, because each start of the node loads torch."""
    launch(max_queued_questions=PLACES, max_questions_per_client=SHARE)
    heard = planner.hear(CacheStatus, "/vstream/cache_status")
    wait_until(lambda: heard and heard[-1].model_state == CacheStatus.READY, "the model is loaded")
    planner.publish(*map(image, range(FRAMES)))
    wait_until(lambda: heard[-1].cameras[0].frames_kept >= FRAMES, "the frames are kept")
    for crowd in (Crowd(5, 100, wait_s=300.0), Crowd(1, 1, 1000, depth=1000)):
        codes, _ = call_all(crowd)
        assert codes[UNANSWERED] == 0, codes
        assert codes.total() == crowd.total
        assert set(codes) <= {"NONE", "BUSY", UNANSWERED}
        assert codes["NONE"] >= SHARE  # at least one process had its share
