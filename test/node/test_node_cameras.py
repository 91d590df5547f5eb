"""Topics, stamps, QoS and bad images, over real topics."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from support.ros_client import (
    BEST_EFFORT,
    CAMERA_TOPIC,
    RELIABLE,
    SECOND,
    START_NS,
    TIMEOUT_S,
    code_name,
    image,
    wait_until,
)


def received(node) -> int:
    return node.node.cameras["front"].received


def wait_received(node, images: int) -> None:
    wait_until(lambda: received(node) >= images, f"{images} images arrive")


def report(node):
    return node.node.cameras["front"].report()


def jpeg(index: int) -> CompressedImage:
    raw = image(index, size=(240, 320))
    pixels = np.frombuffer(raw.data, np.uint8).reshape(240, 320, 3)
    message = CompressedImage(format="jpeg", header=raw.header)
    message.data.frombytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    return message


def test_frames_are_sampled_on_the_grid_of_the_stamps(start, planner):
    node = start(sample_rate_hz=2.0)
    period = SECOND // 10
    planner.publish(*(image(i, stamp_ns=START_NS + i * period) for i in range(31)))
    wait_received(node, 31)
    memory = wait_until(lambda: status if (status := node.memory).frames_offered == 31 else None, "all are offered")
    assert memory.frames_kept == 7  # at 0, 0.5 ... 3 s
    assert memory.frames_rejected == 0


def test_the_memory_holds_the_pictures_that_were_sent(start, planner):
    node = start()
    sent = [image(i) for i in range(2)]
    planner.publish(*sent)
    node.wait_kept(2)
    (clip,) = node.node.engine.clips()
    frames = clip.tubelets[0].frames
    assert frames.shape == (2, 84, 112, 3)  # multiples of 28 are kept as they are
    for frame, message in zip(frames, sent, strict=True):
        assert np.array_equal(frame, np.frombuffer(message.data, np.uint8).reshape(84, 112, 3))


def test_compressed_images(start, planner):
    node = start(**{"front.image_transport": "compressed"})
    planner.publish(*map(jpeg, range(4)), topic=f"{CAMERA_TOPIC}/compressed")
    node.wait_kept(4)
    node.wait_ready()
    response = planner.ask()
    assert code_name(response) == "NONE"
    assert response.metrics.frames == 4


def test_several_cameras_are_asked_together_and_alone(start, planner):
    node = start(cameras=["front", "rear"], **{"rear.image_topic": "/back/image"})
    planner.publish(*map(image, range(4)))
    planner.publish(*map(image, range(6)), topic="/back/image")
    wait_until(lambda: [c.frames_kept for c in node.node.engine.status().cameras] == [4, 6], "all frames")
    node.wait_ready()
    both = planner.ask()
    assert code_name(both) == "NONE"
    assert sorted(both.frame_cameras) == ["front"] * 4 + ["rear"] * 6
    alone = planner.ask(cameras=["rear"])
    assert list(alone.frame_cameras) == ["rear"] * 6


# ---- stamps ----


def test_small_steps_back_are_dropped_and_counted(start, planner):
    node = start()
    half = SECOND // 2
    stamps = [START_NS + s for s in (0, 2 * half, 2 * half - SECOND // 10, 3 * half, half, 4 * half)]
    planner.publish(*(image(i, stamp_ns=stamp) for i, stamp in enumerate(stamps)))
    wait_received(node, len(stamps))
    memory = wait_until(lambda: m if (m := node.memory).frames_kept == 4 else None, "4 frames are kept")
    assert memory.frames_rejected == 2
    assert memory.clears == {}
    assert node.node.engine.status().memory_epoch == 0


def test_a_jump_back_clears_the_camera_and_says_so(start, planner):
    node = start(cameras=["front", "rear"])
    planner.publish(image(0), image(1), topic="/rear/image_raw")
    planner.publish(*(image(i, stamp_ns=START_NS + (100 + i) * SECOND) for i in range(4)))
    wait_until(lambda: [c.frames_kept for c in node.node.engine.status().cameras] == [4, 2], "all frames")
    planner.publish(*(image(i, stamp_ns=START_NS + i * SECOND) for i in range(2)))
    wait_received(node, 6)
    status = wait_until(lambda: s if (s := node.node.engine.status()).cameras[0].frames_kept == 6 else None, "kept")
    front, rear = status.cameras
    assert front.newest_stamp_ns == START_NS + SECOND
    assert front.star_frames + front.stream_frames == 2
    assert sum(front.clears.values()) == 1
    assert rear.star_frames + rear.stream_frames == 2
    assert rear.clears == {}
    assert status.memory_epoch == 1
    assert any("front" in text for text in status.announcements)


def test_a_zero_stamp_takes_the_time_of_receipt(start, planner):
    node = start(sample_rate_hz=0.0)
    before = node.node.get_clock().now().nanoseconds
    planner.publish(image(0, stamp_ns=0), image(1, stamp_ns=0))
    node.wait_kept(2)
    memory = node.memory
    assert before < memory.oldest_stamp_ns < memory.newest_stamp_ns < before + 2 * TIMEOUT_S * SECOND


def test_a_stamp_from_the_future_is_rejected_and_costs_nothing(start, planner):
    node = start()
    false_ns = node.node.get_clock().now().nanoseconds + 86_400 * SECOND
    planner.publish(image(0), image(1), image(2, stamp_ns=false_ns), image(3))
    node.wait_kept(3)
    assert (node.memory.frames_rejected, node.memory.clears) == (1, {})
    assert any("60 s in the future" in reason for reason in report(node).rejections)


def test_a_stamp_before_1970_is_rejected(start, planner):
    node = start()
    wrong = image(0)
    wrong.header.stamp = Time(sec=-5)
    planner.publish(wrong, image(1))
    node.wait_kept(1)
    assert node.memory.frames_rejected == 1
    assert any("1970" in reason for reason in report(node).rejections)


def ticking(node, planner):
    """A function that sets the ROS clock, in whole seconds, and waits until the node has seen it."""
    ticks = planner.publisher("/clock", Clock)
    wait_until(ticks.get_subscription_count, "the node listens to /clock")
    clock = node.node.get_clock()

    def tick(sec: int) -> None:
        def arrived() -> bool:
            ticks.publish(Clock(clock=Time(sec=sec)))
            return clock.now().nanoseconds == sec * SECOND

        wait_until(arrived, "the clock ticks")

    return tick


def test_the_ros_clock_jumping_back_clears_all_cameras(start, planner):
    node = start(use_sim_time=True)
    tick = ticking(node, planner)
    tick(1_000)
    tick(1_010)
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    assert node.node.engine.status().memory_epoch == 0
    tick(1_000)
    status = node.node.engine.status()
    assert status.memory_epoch == 1
    assert status.clip_frames == 0
    assert any("clock" in text and "10.0 s" in text for text in status.announcements)


def test_the_time_jump_threshold_is_the_one_that_is_set_now(start, planner):
    node = start(use_sim_time=True, autostart=False)
    node.node.set_parameters([Parameter("time_jump_threshold_s", value=20.0)])
    node.node.autostart()
    tick = ticking(node, planner)
    tick(1_000)
    tick(990)  # would count too
    tick(960)
    wait_until(lambda: node.node.engine.status().memory_epoch, "the memory is cleared")
    assert node.node.engine.status().memory_epoch == 1
    assert "30.0 s" in node.node.engine.status().announcements[-1]


def test_a_zero_stamp_without_a_clock_is_rejected(start, planner):
    node = start(use_sim_time=True)
    planner.publish(image(0, stamp_ns=0), image(1))
    node.wait_kept(1)
    assert any("/clock" in reason for reason in report(node).rejections)


# ---- QoS ----


def test_auto_follows_a_best_effort_camera_and_comes_back(start, planner):
    node = start()
    publisher = planner.publisher(qos=BEST_EFFORT)
    wait_until(lambda: report(node).reliability == "best_effort", "a best-effort subscription")
    wait_until(publisher.get_subscription_count, "a match")

    def arrives() -> bool:  # best effort may lose some
        publisher.publish(image(0))
        return received(node) > 0

    wait_until(arrives, "an image")
    assert report(node).incompatible_qos == ""
    planner.node.destroy_publisher(publisher)
    planner.publisher(qos=RELIABLE)
    wait_until(lambda: report(node).reliability == "reliable", "a reliable subscription")
    before = received(node)
    planner.publish(image(1), image(2))
    wait_received(node, before + 2)


def test_a_reliable_camera_is_heard_without_losing_a_frame(start, planner):
    node = start()
    planner.publish(*map(image, range(60)))
    wait_received(node, 60)
    assert report(node).reliability == "reliable"
    assert received(node) == 60


def test_a_forced_reliable_subscription_reports_a_best_effort_camera(start, planner):
    node = start(qos_reliability="reliable")
    planner.publisher(qos=BEST_EFFORT)
    wait_until(lambda: report(node).incompatible_qos, "the incompatible QoS event")
    assert report(node).reliability == "reliable"


def test_the_reliability_can_change_at_run_time(start, planner):
    node = start(qos_reliability="reliable")
    planner.publisher(qos=BEST_EFFORT)
    node.node.set_parameters([Parameter("qos_reliability", value="best_effort")])
    wait_until(lambda: report(node).reliability == "best_effort", "a best-effort subscription")


# ---- bad images ----


BAD = [
    {"step": 10},
    {"step": 2**32 - 1},
    {"data": b"\x00" * 50},
    {"data": b""},
    {"encoding": "telepathy8"},
    {"encoding": ""},
    {"height": 0, "width": 0, "step": 0, "data": b""},
    {"height": 2**32 - 1, "width": 2**32 - 1},
    {"height": 1, "width": 28_000, "step": 84_000, "data": b"\x00" * 84_000},
]


def test_bad_images_are_counted_by_reason_and_the_node_goes_on(start, planner):
    node = start()
    planner.publish(*(image(i, **fields) for i, fields in enumerate(BAD)))
    wait_received(node, len(BAD))
    planner.publish(image(20), image(21))
    node.wait_kept(2)
    assert node.memory.frames_rejected == len(BAD)
    assert sum(report(node).rejections.values()) == len(BAD)
    node.wait_ready()
    assert code_name(planner.ask()) == "NONE"


def test_compressed_data_that_breaks_decoders_is_counted(start, planner):
    node = start(**{"front.image_transport": "compressed"})
    bad = [jpeg(i) for i in range(3)]
    for message, data in zip(bad, (b"#?RADIANCE\n", b"PF\n8 8\n-1\n", b"GIF89a" + b"\xff" * 9), strict=True):
        message.data = data
    planner.publish(*bad, jpeg(3), topic=f"{CAMERA_TOPIC}/compressed")
    node.wait_kept(1)
    assert node.memory.frames_rejected == 3
    formats = ("Radiance HDR", "PFM", "GIF")
    assert report(node).rejections == {f"format {f} is not accepted: publish JPEG or PNG": 1 for f in formats}


def test_the_depth_of_sixteen_bit_images_is_the_cameras(start, planner):
    """One pixel that is brighter than any before does not show the next images in another light."""
    node = start()
    pixels = np.full((84, 112), 800, np.uint16)
    bright = pixels.copy()
    bright[0, 0] = 1024
    for index, data in enumerate((bright, pixels, pixels, pixels)):
        planner.publish(image(index, encoding="mono16", step=224, data=data.tobytes()))
    node.wait_kept(4)
    (clip,) = node.node.engine.clips()
    assert {int(np.median(tubelet.frames)) for tubelet in clip.tubelets} == {50}


def test_reasons_do_not_pile_up(start, planner):
    node = start()
    planner.publish(*(image(i, data=b"\x00" * i) for i in range(40)))
    wait_received(node, 40)
    rejections = wait_until(lambda: r if sum((r := report(node).rejections).values()) == 40 else None, "40 rejections")
    assert len(rejections) <= 13


def test_an_exception_in_the_image_callback_ends_nothing(start, planner, monkeypatch):
    node = start()
    engine = node.node.engine
    planner.publish(image(0))
    node.wait_kept(1)
    monkeypatch.setattr(engine, "keep", lambda *args, **kwargs: 1 / 0)
    planner.publish(image(1))
    wait_received(node, 2)
    monkeypatch.undo()
    planner.publish(image(2))
    node.wait_kept(2)


def test_a_changed_resolution_is_announced(start, planner):
    node = start()
    planner.publish(image(0), image(1))
    node.wait_kept(2)
    planner.publish(image(2, size=(112, 168)), image(3, size=(112, 168)))
    node.wait_kept(4)
    status = node.node.engine.status()
    assert status.memory_epoch == 1
    assert status.clip_frames == 2


@pytest.mark.parametrize("encoding", ["mono8", "bgr8"])
def test_other_encodings_arrive(start, planner, encoding):
    node = start()
    channels = 1 if encoding == "mono8" else 3
    data = np.arange(84 * 112 * channels, dtype=np.uint8).tobytes()
    planner.publish(*(image(i, encoding=encoding, step=112 * channels, data=data) for i in range(2)))
    node.wait_kept(2)
    (clip,) = node.node.engine.clips()
    pixels = np.frombuffer(data, np.uint8).reshape(84, 112, channels)
    want = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[..., ::-1]
    assert np.array_equal(clip.tubelets[0].frames[0], want)
