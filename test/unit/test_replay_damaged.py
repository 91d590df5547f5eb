"""Bags and videos from broken disks and broken writers: read or refused in one sentence, never a stack trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import av
import pytest
from rosbags.rosbag2 import StoragePlugin
from ruamel.yaml import YAML

from support.replay_media import image_bag, pictures, storage_file
from vstream_ros.cli import main
from vstream_ros.errors import VStreamError
from vstream_ros.replay.sources import open_source

FRAMES = pictures(4)
STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
BOTH_STORAGES = pytest.mark.parametrize("storage", STORAGES)


def refusal(path: Path) -> str:
    """Read all of ``path``; the sentence with which it was refused, "" if it was not."""
    message = ""
    try:
        with open_source(path) as source:
            for frame in source:
                frame.rgb((28, 28))
    except VStreamError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    return message


# -- metadata --------------------------------------------------------------------------------------------------------


def metadata_variants() -> Iterator[tuple[str, Any]]:
    """The places in a metadata.yaml, and what stands there that should not."""
    wrong = (None, 7, -1, 1.5, True, "text", "x" * 2000, [], [[1]], {}, {"a": 1}, 10**30)
    places = (
        "", "version", "storage_identifier", "duration", "duration.nanoseconds", "starting_time",
        "starting_time.nanoseconds_since_epoch", "message_count", "topics_with_message_count",
        "topics_with_message_count.0", "topics_with_message_count.0.message_count",
        "topics_with_message_count.0.topic_metadata", "topics_with_message_count.0.topic_metadata.name",
        "topics_with_message_count.0.topic_metadata.type",
        "topics_with_message_count.0.topic_metadata.serialization_format",
        "topics_with_message_count.0.topic_metadata.offered_qos_profiles",
        "topics_with_message_count.0.topic_metadata.type_description_hash", "relative_file_paths",
        "relative_file_paths.0", "files", "files.0", "compression_format", "compression_mode", "ros_distro",
        "custom_data",
    )  # fmt: skip
    for place in places:
        for value in wrong:
            yield place, value


def replaced(document: Any, place: str, value: Any) -> Any:
    """A copy of nested dicts and lists with another value at a dotted place."""
    if not place:
        return value
    document = copy.deepcopy(document)
    *way, last = (int(word) if word.isdecimal() else word for word in place.split("."))
    inner = document
    for word in way:
        inner = inner[word]
    inner[last] = value
    return document


@BOTH_STORAGES
def test_a_wrongly_typed_metadata_yaml_is_one_sentence(tmp_path, storage):
    bag = image_bag(tmp_path / "bag", FRAMES[:1], STORAGES[storage])
    yaml = YAML(typ="safe")
    good = yaml.load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    refused = 0
    for place, value in metadata_variants():
        with (bag / "metadata.yaml").open("w") as stream:
            yaml.dump({"rosbag2_bagfile_information": replaced(good, place, value)}, stream)
        refused += bool(refusal(bag))
    assert refused > 120


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "text", "- 1\n- 2\n", "{", "a: &a [*a]\n", "\t", "!!python/object:os.system x", "[" * 2000]
)
def test_metadata_that_is_no_bag_s_is_one_line(tmp_path, capsys, text):
    bag = image_bag(tmp_path / "bag", FRAMES[:1])
    (bag / "metadata.yaml").write_text(text)
    assert main(["ask", str(bag), "What?"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"vstream: {bag} can't be read as a bag: ")
    assert error.count("\n") == 1


def test_huge_metadata_is_not_read(tmp_path):
    bag = image_bag(tmp_path / "bag", FRAMES[:1])
    with (bag / "metadata.yaml").open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse
    assert "ros2 bag reindex" in refusal(bag)


def test_sqlite_rows_of_other_types_are_damaged_messages(tmp_path):
    bag = image_bag(tmp_path / "bag", FRAMES)
    database = apsw.Connection(str(storage_file(bag)))
    for number, value in enumerate(("'text'", "1000000000000", "0.5"), start=1):
        database.execute(f"UPDATE messages SET data = {value} WHERE id = {number}")
    database.close()
    with open_source(bag) as source:
        assert len(list(source)) == 1
        assert source.skipped == 3


def test_a_topic_without_a_name_is_one_sentence(tmp_path):
    path = storage_file(image_bag(tmp_path / "bag", FRAMES))
    database = apsw.Connection(str(path))
    database.execute("UPDATE topics SET name = x'00ff'")
    database.close()
    assert "topic is" in refusal(path)


# -- fuzz ------------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file as a broken disk or a broken writer leaves it."""
    kind = rng.choice(("truncate", "repeat", "flip", "flip", "zeros", "ones"))
    if kind == "truncate":
        return data[: rng.randrange(len(data))]
    if kind == "repeat":
        at = rng.randrange(len(data))
        return data[:at] + data[at : at + rng.randrange(64)] * rng.randrange(2, 4) + data[at:]
    changed = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 800)  # headers are where it hurts
    for _ in range(rng.randrange(1, 10)):
        at = rng.randrange(reach)
        if kind == "flip":
            changed[at] ^= rng.randrange(1, 256)
        else:
            changed[at : at + 8] = bytes([0 if kind == "zeros" else 255]) * 8
    return bytes(changed)


def one_line_or_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    """Run the command; whether it failed, as it may: exit 1 and one line."""
    code = main(arguments)
    error = capsys.readouterr().err
    assert (code, error.count("\n"), error[:9]) in ((0, 0, ""), (1, 1, "vstream: ")), (code, error)
    return code == 1


@pytest.mark.parametrize("codec", ["mkv", "mp4", "avi", "ts", "gif"])
def test_a_damaged_video_is_read_or_refused_in_one_line(tmp_path, capsys, codec):
    path = tmp_path / f"v.{codec}"
    name, pix_fmt = {"gif": ("gif", "rgb8"), "ts": ("mpeg2video", "yuv420p")}.get(codec, ("mpeg4", "yuv420p"))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=25)
        stream.height, stream.width, stream.pix_fmt = 24, 32, pix_fmt
        for picture in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    good = path.read_bytes()
    rng = random.Random(codec)
    failed = 0
    for number, data in enumerate([b"", *(mutated(good, rng) for _ in range(24))]):
        path.write_bytes(data)
        failed += one_line_or_none(["record", str(path), str(tmp_path / f"bag{number}")], capsys)
    assert 0 < failed < 25


@BOTH_STORAGES
@pytest.mark.parametrize("what", ["metadata", "storage"])
def test_a_damaged_bag_is_read_or_refused_in_one_sentence(tmp_path, storage, what):
    bag = image_bag(tmp_path / "bag", FRAMES, STORAGES[storage])
    path = bag / "metadata.yaml" if what == "metadata" else storage_file(bag)
    good = path.read_bytes()
    rng = random.Random(f"{storage} {what}")
    failed = 0
    for _ in range(60):
        path.write_bytes(mutated(good, rng))
        failed += bool(refusal(bag))
    assert 0 < failed < 60
