"""Videos and bags as sources: exact pixels and stamps, and one clear error for what can't be read."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin

from support.replay_media import (
    MILLISECOND,
    TOPIC,
    compressed_cdr,
    image_bag,
    image_cdr,
    pictures,
    storage_file,
    write_bag,
    write_video,
)
from vstream_ros.errors import FrameError, InvalidRequestError
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.bags import COMPRESSED_IMAGE, IMAGE, TYPES, BagSource
from vstream_ros.replay.sources import open_source

STORAGES = [StoragePlugin.SQLITE3, StoragePlugin.MCAP]
BOTH_STORAGES = pytest.mark.parametrize("storage", STORAGES, ids=["sqlite3", "mcap"])


# -- videos ----------------------------------------------------------------------------------------------------------


def test_a_video_gives_its_pixels_and_its_own_uneven_times(tmp_path):
    frames, times = pictures(5), [0, 33, 67, 300, 301]
    with open_source(write_video(tmp_path / "v.mkv", frames, times)) as source:
        read = list(source)
    assert [f.stamp_ns for f in read] == [t * MILLISECOND for t in times]
    for frame, picture in zip(read, frames, strict=True):
        np.testing.assert_array_equal(frame.rgb(), picture)
    assert {f.topic for f in read} == set(source.topics)


def test_backward_times_are_kept_and_only_the_receive_time_never_goes_back(tmp_path):
    times = [0, 101, 67, 134, 34, 200]
    source = open_source(write_video(tmp_path / "v.mkv", pictures(6), times))
    read = list(source)
    assert [f.stamp_ns for f in read] == [t * MILLISECOND for t in times]
    received = [f.receive_ns for f in read]
    assert received == sorted(set(received))
    assert received[5] == 200 * MILLISECOND


def test_a_frame_is_scaled_on_demand(tmp_path):
    (frame,) = open_source(write_video(tmp_path / "v.mkv", pictures(1, 48, 64), [0]))
    assert frame.rgb((24, 32)).shape == (24, 32, 3)
    assert frame.rgb(lambda height, width: (height // 4, width // 2)).shape == (12, 32, 3)


@pytest.mark.parametrize(("a", "b", "turns"), [(0, 1, 3), (-1, 0, 2), (0, -1, 1)], ids=["90", "180", "270"])
def test_a_phone_s_video_stands_upright(tmp_path, a, b, turns):
    path = tmp_path / "v.mp4"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # upper left
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    writer.write(picture)
    writer.release()
    # The track header's matrix turns (x, y) into (a x - b y, b x + a y), in 16.16 fixed point.
    data = path.read_bytes()
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    matrix = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    (frame,) = open_source(path)
    assert abs(frame.rgb().astype(int) - np.rot90(picture, turns)).mean() < 10


def test_a_source_starts_over_with_each_iteration(tmp_path):
    for source in (
        open_source(write_video(tmp_path / "v.mkv", pictures(4), [0, 10, 20, 30])),
        open_source(image_bag(tmp_path / "bag", pictures(4))),
    ):
        first = next(iter(source))
        again = list(source)
        assert len(again) == 4
        np.testing.assert_array_equal(first.rgb(), again[0].rgb())


def test_a_damaged_packet_costs_only_itself(tmp_path):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(12):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    data = bytearray(path.read_bytes())
    starts = [i for i in range(len(data) - 8) if data[i : i + 4] == b"00dc" and data[i + 8 : i + 10] == b"\xff\xd8"]
    assert len(starts) == 12
    for at in starts[5:7]:
        data[at + 8 : at + 200] = bytes(192)
    path.write_bytes(data)
    source = open_source(path)
    assert len(list(source)) == 10
    assert source.skipped == 2
    assert source.last_fault


def _empty_video(folder: Path) -> Path:
    path = folder / "empty.avi"
    cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48)).release()
    return path


def _file(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "nothing.mp4", "does not exist"),
        (lambda d: _file(d, "zero.mp4", b""), "can't be read as a video"),
        (lambda d: _file(d, "noise.mp4", bytes(range(256)) * 20), "can't be read as a video"),
        (lambda d: _file(d, "notes.txt", b"hello\nworld\n" * 50), "holds no video"),
        (_empty_video, "holds no frame"),
        (lambda d: _file(d, "old.bag", b"#ROSBAG V2.0\n"), "rosbags-convert"),
        (lambda d: d, "has no metadata.yaml"),
        (lambda d: _file(d, "zero.db3", b""), "can't be read as a bag"),
        (lambda d: _file(d, "zero.mcap", b""), "can't be read as a bag"),
    ],
)
def test_what_is_no_recording_is_refused_with_a_sentence(tmp_path, make, words):
    with pytest.raises(InvalidRequestError, match=words) as caught:
        list(open_source(make(tmp_path)))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_video_has_no_topic_to_choose(tmp_path):
    with pytest.raises(InvalidRequestError, match="has no topics"):
        open_source(write_video(tmp_path / "v.mkv", pictures(1), [0]), ["/camera"])


# -- bags ------------------------------------------------------------------------------------------------------------


@BOTH_STORAGES
def test_a_bag_gives_pixels_header_stamps_and_the_bytes_as_recorded(tmp_path, storage):
    frames = pictures(4)
    bag = image_bag(tmp_path / "bag", frames, storage)
    for path in (bag, storage_file(bag)):
        with open_source(path) as source:
            read = list(source)
            assert (source.topics, source.frame_count) == ((TOPIC,), 4)
        for index, (frame, picture) in enumerate(zip(read, frames, strict=True)):
            receive_ns = 100 * NANOSECONDS + index * 100 * MILLISECOND
            assert (frame.receive_ns, frame.stamp_ns) == (receive_ns, receive_ns - MILLISECOND)
            np.testing.assert_array_equal(frame.rgb(), picture)
            assert frame.cdr == image_cdr(picture, receive_ns - MILLISECOND)
            assert frame.message.encoding == "rgb8"


def test_a_zero_stamp_takes_the_receive_time(tmp_path):
    bag = write_bag(tmp_path / "bag", [(TOPIC, IMAGE, 12345, image_cdr(pictures(1)[0], 0))])
    with open_source(bag) as source:
        assert [f.stamp_ns for f in source] == [12345]


def _mixed_bag(folder: Path) -> Path:
    picture = pictures(1)[0]
    jpeg = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
    text = bytes(TYPES.serialize_cdr(TYPES.types["std_msgs/msg/String"](data="hi"), "std_msgs/msg/String"))
    return write_bag(
        folder,
        [
            (TOPIC, IMAGE, 1 * NANOSECONDS, image_cdr(picture, 5)),
            ("/chatter", "std_msgs/msg/String", 2 * NANOSECONDS, text),
            ("/rear/compressed", COMPRESSED_IMAGE, 3 * NANOSECONDS, compressed_cdr(jpeg, 6)),
        ],
    )


def test_only_image_topics_are_read_and_topics_chooses_among_them(tmp_path):
    bag = _mixed_bag(tmp_path / "bag")
    with open_source(bag) as source:
        assert [f.topic for f in source] == [TOPIC, "/rear/compressed"]
    with open_source(bag, ["rear/compressed"]) as source:
        (frame,) = source
        np.testing.assert_array_equal(frame.rgb(), pictures(1)[0])
    with pytest.raises(InvalidRequestError, match=f"no image topic /other; it has {TOPIC}, /rear/compressed"):
        open_source(bag, ["/other"])


def test_a_bag_without_images_names_what_it_holds(tmp_path):
    text = bytes(TYPES.serialize_cdr(TYPES.types["std_msgs/msg/String"](data="hi"), "std_msgs/msg/String"))
    bag = write_bag(tmp_path / "bag", [("/chatter", "std_msgs/msg/String", 1, text)])
    with pytest.raises(InvalidRequestError, match=r"/chatter \(std_msgs/msg/String\)"):
        open_source(bag)


@BOTH_STORAGES
def test_a_corrupt_message_is_counted_and_passed_over(tmp_path, storage):
    frames = pictures(5)
    damaged = {1: b"\x00\x01\x00\x00\xff", 3: image_cdr(frames[3], 3)[:60]}
    cdrs = [damaged.get(i, image_cdr(frame, i + 1)) for i, frame in enumerate(frames)]
    bag = write_bag(tmp_path / "bag", ((TOPIC, IMAGE, i + 1, cdr) for i, cdr in enumerate(cdrs)), storage)
    with open_source(bag) as source:
        for _ in range(2):  # the count is of one iteration
            assert [f.stamp_ns for f in source] == [1, 3, 5]
            assert source.skipped == 2
            assert TOPIC in source.last_fault


def test_a_bag_of_corrupt_messages_alone_is_an_error(tmp_path):
    bag = write_bag(tmp_path / "bag", [(TOPIC, IMAGE, 1, b"nonsense")])
    with open_source(bag) as source, pytest.raises(InvalidRequestError, match="1 are damaged"):
        list(source)


def test_the_depth_of_sixteen_bit_images_is_the_topics_and_starts_over_with_each_iteration(tmp_path):
    """One pixel brighter than all before does not show what follows in another light."""
    levels = [800, 1024, 800]
    pngs = [cv2.imencode(".png", np.full((8, 8), level, np.uint16))[1].tobytes() for level in levels]
    cdrs = [("/rear/compressed", COMPRESSED_IMAGE, i + 1, compressed_cdr(png, i + 1)) for i, png in enumerate(pngs)]
    with open_source(write_bag(tmp_path / "bag", cdrs)) as source:
        for _ in range(2):
            assert [frame.rgb().max() for frame in source] == [800 >> 2, 1024 >> 4, 800 >> 4]


def test_an_image_that_can_not_be_decoded_fails_only_when_it_is_wanted(tmp_path):
    cdr = image_cdr(pictures(1)[0], 1, encoding="no such thing")
    with open_source(write_bag(tmp_path / "bag", [(TOPIC, IMAGE, 1, cdr)])) as source:
        (frame,) = source
    with pytest.raises(FrameError, match="no such thing"):
        frame.rgb()


@BOTH_STORAGES
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_bag_that_was_cut_short_is_one_clear_error(tmp_path, storage, keep):
    bag = image_bag(tmp_path / "bag", pictures(20, 60, 80), storage)
    data = storage_file(bag).read_bytes()
    storage_file(bag).write_bytes(data[: int(len(data) * keep)])
    hint = "mcap recover" if storage is StoragePlugin.MCAP else "sqlite3"
    with pytest.raises(InvalidRequestError, match=hint) as caught:
        list(open_source(bag))
    assert str(bag) in str(caught.value)


def test_a_folder_with_broken_metadata_is_one_clear_error(tmp_path):
    bag = image_bag(tmp_path / "bag", pictures(1))
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 8}\n")
    with pytest.raises(InvalidRequestError, match="can't be read as a bag"):
        open_source(bag)


def test_a_closed_bag_says_so(tmp_path):
    source = open_source(image_bag(tmp_path / "bag", pictures(1)))
    source.close()
    source.close()
    assert isinstance(source, BagSource)
    with pytest.raises(InvalidRequestError, match="closed"):
        list(source)


def test_replay_needs_neither_ros_nor_torch():
    code = (
        "import sys, vstream_ros.replay.sources, vstream_ros.replay.videos, vstream_ros.replay.bags, "
        "vstream_ros.replay.record, vstream_ros.replay.playback, vstream_ros.replay.ask, vstream_ros.cli\n"
        "sys.exit(','.join({'rclpy', 'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
