"""One way into every recording: a video file or a ROS 2 bag, as frames with a topic, stamps and pixels on demand."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from vstream_ros.errors import InvalidRequestError
from vstream_ros.replay.frames import Source

BAG_SUFFIXES = (".mcap", ".db3")
VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".ogv", ".flv", ".wmv", ".mxf",
)  # fmt: skip
"""What makes a file in a folder a video. A file that is named itself is judged by its content."""


def is_bag(path: Path) -> bool:
    """Whether ``open_source`` would take ``path``, as ``find_recording`` returned it, for a bag rather than a video."""
    return path.is_dir() or path.suffix in BAG_SUFFIXES


def find_recording(path: str | Path) -> Path:
    """Return the video, rosbag2 folder or storage file that ``path`` is, or the only one in the folder that it is.

    Only looks, and never waits: a pipe or a device is refused. Raises ``InvalidRequestError``.
    """
    path = Path(path)
    mode = _file_mode(path)
    if stat.S_ISDIR(mode):
        try:
            return path if (path / "metadata.yaml").exists() else _only_recording(path)
        except OSError as error:
            raise InvalidRequestError(f"{path} can't be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise InvalidRequestError(
            f"{path} is a pipe, socket or device and no regular file; pass a video file or a rosbag2 folder"
        )
    return path


def open_source(path: str | Path, topics: Sequence[str] | None = None) -> Source:
    """Open a video file, a rosbag2 folder, a single ``.mcap`` or ``.db3`` file, or a folder with one of these.

    ``topics``: the image topics of a bag to read, None or empty for all of them; a video has none to choose from.
    Raises ``InvalidRequestError``, one sentence that says what to do, for whatever can't be opened.
    """
    path = find_recording(path)
    if path.suffix == ".bag" and not path.is_dir():
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


def _file_mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise InvalidRequestError(f"{path} does not exist; pass a video file or a rosbag2 folder") from None
    except ValueError as error:  # a NUL in it
        raise InvalidRequestError(f"{str(path)!r} is no path of a file: {error}") from error
    except OSError as error:
        raise InvalidRequestError(f"{path} can't be read: {error.strerror}") from error


def _only_recording(folder: Path) -> Path:
    """The one recording in a folder that is no bag itself."""
    entries = sorted(folder.iterdir())
    found = [entry for entry in entries if entry.suffix in BAG_SUFFIXES and entry.is_file()]
    found += [entry for entry in entries if (entry / "metadata.yaml").is_file()]
    found += [entry for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES and entry.is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InvalidRequestError(
            f"{folder} is no rosbag2 folder: it has no metadata.yaml, and holds no bag and no video; pass a bag's "
            "folder or one of its .mcap or .db3 files"
        )
    names = ", ".join(entry.name for entry in found[:10]) + (", ..." if len(found) > 10 else "")
    raise InvalidRequestError(
        f"{folder} holds {len(found)} recordings: {names}; pass one of them (the files of an interrupted recording "
        f"become a bag by: ros2 bag reindex {folder})"
    )
