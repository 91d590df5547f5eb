"""A video recorded as a bag and read back is the same video."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from ruamel.yaml import YAML

from support.replay_media import MILLISECOND, image_bag, pictures, write_video
from vstream_ros.errors import ConfigError, InvalidRequestError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.record import RecordOptions, record
from vstream_ros.replay.sources import open_source

START_NS = 1_700_000_000 * NANOSECONDS + 123_456_789
TIMES_MS = [0, 40, 81, 120, 161, 200]
BOTH_STORAGES = pytest.mark.parametrize("storage", ["sqlite3", "mcap"])


@pytest.fixture
def frames():
    return pictures(6)


@pytest.fixture
def video(tmp_path, frames):
    return write_video(tmp_path / "v.mkv", frames, TIMES_MS)


@BOTH_STORAGES
@pytest.mark.parametrize("encoding", ["bgr8", "rgb8"])
def test_raw_images_come_back_bit_for_bit_with_exact_stamps(tmp_path, video, frames, storage, encoding):
    options = RecordOptions(storage=storage, encoding=encoding, start_ns=START_NS, frame_id="lens", topic="/front")
    summary = record(video, tmp_path / "bag", options)
    assert dataclasses.astuple(summary) == (6, 0, START_NS, START_NS + 200 * MILLISECOND)
    with open_source(tmp_path / "bag") as source:
        assert source.topics == ("/front",)
        for read, picture, time_ms in zip(source, frames, TIMES_MS, strict=True):
            assert read.stamp_ns == read.receive_ns == START_NS + time_ms * MILLISECOND
            assert (read.message.encoding, read.message.header.frame_id) == (encoding, "lens")
            np.testing.assert_array_equal(read.rgb(), picture)


@BOTH_STORAGES
def test_compressed_images_are_close_and_better_with_quality(tmp_path, video, frames, storage):
    errors = {}
    for quality in (30, 95):
        bag = tmp_path / f"bag{quality}"
        record(video, bag, RecordOptions(storage=storage, compressed=True, quality=quality, start_ns=START_NS))
        with open_source(bag) as source:
            assert source.topics == ("/camera/image_raw/compressed",)
            read = list(source)
        assert [f.stamp_ns for f in read] == [START_NS + t * MILLISECOND for t in TIMES_MS]
        assert "jpeg" in read[0].message.format
        errors[quality] = np.mean([abs(f.rgb().astype(int) - p).mean() for f, p in zip(read, frames, strict=True)])
    assert errors[95] < errors[30]


def test_jpeg_keeps_red_and_blue_apart(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 250
    video = write_video(tmp_path / "v.mkv", [red], [0])
    for encoding in ("bgr8", "rgb8"):
        record(video, tmp_path / encoding, RecordOptions(compressed=True, encoding=encoding))
        with open_source(tmp_path / encoding) as source:
            (frame,) = source
            assert abs(frame.rgb().astype(int) - red).max() < 20


def test_mono8_and_size(tmp_path, video):
    record(video, tmp_path / "bag", RecordOptions(encoding="mono8", size=(16, 10)))
    with open_source(tmp_path / "bag") as source:
        frame = next(iter(source))
        message = frame.message
        assert (message.width, message.height, message.step, message.data.size) == (16, 10, 16, 160)
        grey = frame.rgb()
        assert np.ptp(grey, axis=2).max() == 0
        assert np.ptp(grey) > 0


def test_backward_times_stay_in_the_headers_and_the_order_is_kept(tmp_path):
    times, frames = [0, 101, 67, 134, 34], pictures(5)
    record(write_video(tmp_path / "v.mkv", frames, times), tmp_path / "bag", RecordOptions(start_ns=START_NS))
    with open_source(tmp_path / "bag") as source:
        read = list(source)
    assert [f.stamp_ns - START_NS for f in read] == [t * MILLISECOND for t in times]
    for frame, picture in zip(read, frames, strict=True):
        np.testing.assert_array_equal(frame.rgb(), picture)


def test_rate_keeps_the_first_frame_of_each_slot_and_does_not_drift(tmp_path):
    # 30 Hz in whole milliseconds, as Matroska has it.
    times = [round(i * 1000 / 30) for i in range(60)]
    video = write_video(tmp_path / "v.mkv", pictures(60, 8, 8), times)

    def kept(rate_hz: float) -> list[int]:
        bag = tmp_path / f"bag{rate_hz}"
        record(video, bag, RecordOptions(rate_hz=rate_hz, start_ns=START_NS))
        with open_source(bag) as source:
            return [(f.stamp_ns - START_NS) // MILLISECOND for f in source]

    assert kept(30.0) == times
    assert kept(10.0) == times[::3]
    assert kept(4.0) == [0, 267, 500, 767, 1000, 1267, 1500, 1767]


@BOTH_STORAGES
def test_the_bag_is_a_rosbag2_folder_that_humble_reads_too(tmp_path, video, storage):
    record(video, tmp_path / "bag", RecordOptions(storage=storage))
    with (tmp_path / "bag" / "metadata.yaml").open() as stream:
        info = YAML(typ="safe").load(stream)["rosbag2_bagfile_information"]
    # From version 9 on (Jazzy), the QoS profiles are a list that Humble can't parse.
    assert (info["version"], info["storage_identifier"], info["message_count"]) == (8, storage, 6)
    (topic,) = info["topics_with_message_count"]
    assert topic["topic_metadata"]["type"] == "sensor_msgs/msg/Image"
    assert topic["topic_metadata"]["offered_qos_profiles"] == ""
    assert topic["topic_metadata"]["type_description_hash"].startswith("RIHS01_")
    assert all((tmp_path / "bag" / name).is_file() for name in info["relative_file_paths"])
    with AnyReader([tmp_path / "bag"]) as reader:  # by the definitions that the bag brings along
        connection, _, cdr = next(reader.messages())
        assert reader.deserialize(cdr, connection.msgtype).height == 24


def test_an_existing_bag_is_replaced_only_by_force_and_only_if_it_is_one(tmp_path, video):
    image_bag(tmp_path / "bag", pictures(1))
    with pytest.raises(InvalidRequestError, match="--force"):
        record(video, tmp_path / "bag")
    with open_source(tmp_path / "bag") as source:
        assert len(list(source)) == 1
    record(video, tmp_path / "bag", force=True)
    with open_source(tmp_path / "bag") as source:
        assert len(list(source)) == 6

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    with pytest.raises(InvalidRequestError, match="not a rosbag2 folder"):
        record(video, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "precious"


def test_a_failure_leaves_nothing_behind_and_the_old_bag_alone(tmp_path, video, monkeypatch):
    image_bag(tmp_path / "bag", pictures(1))
    before = sorted(p.name for p in tmp_path.iterdir())

    def broken(*_: int) -> None:
        raise OSError("disk full")

    for target, force in (("bag", True), ("new", False)):
        with pytest.raises(InvalidRequestError, match="disk full"):
            record(video, tmp_path / target, force=force, on_progress=broken)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    with open_source(tmp_path / "bag") as source:
        assert len(list(source)) == 1


def test_progress_counts_every_frame(tmp_path, video):
    calls = []
    record(video, tmp_path / "bag", RecordOptions(rate_hz=5.0), on_progress=lambda *call: calls.append(call))
    assert [read for read, _ in calls] == [1, 2, 3, 4, 5, 6]


def test_a_bag_is_not_recorded_again(tmp_path):
    with pytest.raises(InvalidRequestError, match="is a bag already"):
        record(image_bag(tmp_path / "bag", pictures(1)), tmp_path / "other")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage", "zip"), ("encoding", "rgb16"), ("quality", 0), ("quality", 101), ("rate_hz", 0.0),
        ("size", (0, 10)), ("start_ns", 0), ("start_ns", 2**31 * NANOSECONDS),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(field, value):
    with pytest.raises(ConfigError):
        RecordOptions(**{field: value})
