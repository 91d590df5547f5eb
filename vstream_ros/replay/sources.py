"""One way into every recording: a video file or a ROS 2 bag, as frames with a topic, stamps and pixels on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vstream_ros.errors import InvalidRequestError
from vstream_ros.replay.frames import Source

BAG_SUFFIXES = (".mcap", ".db3")


def is_bag(path: Path) -> bool:
    """Whether ``open_source`` would take ``path`` for a ROS 2 bag rather than a video."""
    return path.is_dir() or path.suffix in BAG_SUFFIXES


def open_source(path: str | Path, topics: Sequence[str] | None = None) -> Source:
    """Open a video file, a rosbag2 folder, or a single ``.mcap`` or ``.db3`` file.

    ``topics``: the image topics of a bag to read, None or empty for all of them; a video has none to choose from.
    Raises ``InvalidRequestError``, one sentence that says what to do, for whatever can't be opened.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidRequestError(f"{path} does not exist; pass a video file or a rosbag2 folder")
    if path.suffix == ".bag":
        raise InvalidRequestError(
            f"{path} is a ROS 1 bag; convert it first: rosbags-convert --src {path} --dst {path.with_suffix('')}"
        )
    # Imported here: a video needs no bag library, a bag no video library.
    if is_bag(path):
        from vstream_ros.replay.bags import BagSource

        return BagSource(path, topics or ())
    if topics:
        raise InvalidRequestError(f"{path} is a video and has no topics; leave the topic out")
    from vstream_ros.replay.videos import VideoSource

    return VideoSource(path)
