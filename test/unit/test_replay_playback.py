"""Reading ahead and keeping time, without ROS."""

from __future__ import annotations

import threading
import time

import pytest

from support.replay_media import MILLISECOND, TOPIC, image_bag, image_cdr, pictures, write_bag
from vstream_ros.errors import InvalidRequestError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.bags import IMAGE
from vstream_ros.replay.playback import Pacer, Prefetcher
from vstream_ros.replay.sources import open_source


def test_frames_come_in_order_and_are_due_by_bag_time(tmp_path):
    with open_source(image_bag(tmp_path / "bag", pictures(5))) as source:
        frames = Prefetcher(source)
        items = list(frames)
        frames.close()
    assert [i.due_ns for i in items] == [n * 100 * MILLISECOND for n in range(5)]
    assert {i.pass_index for i in items} == {0}


def test_a_loop_goes_on_at_the_bag_s_own_spacing(tmp_path):
    with open_source(image_bag(tmp_path / "bag", pictures(3))) as source:
        frames = Prefetcher(source, loop=True)
        items = [item for item, _ in zip(frames, range(8), strict=False)]
        frames.close()
    assert [i.due_ns for i in items] == [n * 100 * MILLISECOND for n in range(8)]
    assert [i.pass_index for i in items] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert items[3].frame.stamp_ns == items[0].frame.stamp_ns


def test_no_more_than_the_bound_is_read_ahead(tmp_path):
    bag = image_bag(tmp_path / "bag", pictures(30, 60, 80))
    size = len(image_cdr(pictures(1, 60, 80)[0], 1))
    with open_source(bag) as source:
        frames = Prefetcher(source, max_bytes=3 * size)
        iterator = iter(frames)
        next(iterator)
        time.sleep(0.2)  # for a reader that does not stop
        assert len(frames._queue) == 3
        assert len(list(iterator)) == 29
        frames.close()


def test_a_frame_larger_than_the_bound_still_gets_through(tmp_path):
    with open_source(image_bag(tmp_path / "bag", pictures(3))) as source:
        frames = Prefetcher(source, max_bytes=1)
        assert len(list(frames)) == 3
        frames.close()


def test_closing_ends_the_reader_in_the_middle(tmp_path):
    with open_source(image_bag(tmp_path / "bag", pictures(10))) as source:
        frames = Prefetcher(source, loop=True, max_bytes=1)
        next(iter(frames))
        frames.close()
        assert not frames._thread.is_alive()
        assert list(frames) == []


def test_damaged_messages_of_all_passes_are_counted(tmp_path):
    cdrs = [image_cdr(p, 5) for p in pictures(3)]
    cdrs[1] = cdrs[1][:50]
    bag = write_bag(tmp_path / "bag", ((TOPIC, IMAGE, i + 1, cdr) for i, cdr in enumerate(cdrs)))
    with open_source(bag) as source:
        frames = Prefetcher(source, loop=True)
        for item in frames:
            if item.pass_index == 2:
                break
        frames.close()
    assert frames.skipped >= 2


def test_what_reading_raises_arrives_after_the_frames_before_it(tmp_path):
    with open_source(write_bag(tmp_path / "bag", [(TOPIC, IMAGE, 1, b"nonsense")])) as source:
        frames = Prefetcher(source)
        with pytest.raises(InvalidRequestError, match="1 are damaged"):
            list(frames)
        frames.close()


def test_deadlines_are_absolute_and_scaled_by_the_rate(monkeypatch):
    now = [50.0]
    slept = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            slept.append(timeout)
            now[0] += timeout
            return self.is_set()

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pacer = Pacer(2.0, Stop())
    assert pacer.elapsed_ns() == 0
    pacer.start()
    assert pacer.wait_until(1 * NANOSECONDS)
    assert slept == [0.5]
    assert pacer.elapsed_ns() == 1 * NANOSECONDS
    now[0] += 0.3  # publishing took long: the next wait is shorter, the one after it is not late
    assert pacer.wait_until(2 * NANOSECONDS)
    assert slept[-1] == pytest.approx(0.2)
    now[0] += 5.0
    assert pacer.wait_until(3 * NANOSECONDS)
    assert len(slept) == 2


def test_a_stopped_pacer_returns_at_once():
    stop = threading.Event()
    pacer = Pacer(1.0, stop)
    pacer.start()
    threading.Timer(0.05, stop.set).start()
    start = time.monotonic()
    assert not pacer.wait_until(60 * NANOSECONDS)
    assert time.monotonic() - start < 30.0
    assert not pacer.wait_until(0)
