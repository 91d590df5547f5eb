"""Video files as a source, decoded by PyAV.

PyAV and not OpenCV, because a frame's time here is the container's own rational timestamp, a damaged packet is
reported rather than swallowed, and a decoded frame can be kept and converted later. What OpenCV reports as the
position depends on the backend it was built with.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vstream_ros.errors import FrameError, InvalidRequestError
from vstream_ros.images import SizeRule, resize_rgb
from vstream_ros.images.conversion import only_frame_errors, target_size
from vstream_ros.memory.clip import NANOSECONDS
from vstream_ros.replay.frames import Frame, Source

VIDEO_TOPIC = "video"
DEFAULT_RATE_HZ = Fraction(25)
"""Assumed for a stream that has neither timestamps nor a rate of its own."""
CONTAINERS = (
    "mov", "matroska", "avi", "mpeg", "mpegts", "ogg", "flv", "asf", "mxf", "nut", "ivf", "dv", "gif",
    "h264", "hevc", "mpegvideo", "m4v", "mjpeg", "yuv4mpegpipe",
)  # fmt: skip
"""FFmpeg's names of the formats that hold their own pictures. A playlist (hls, concat, dash, sdp, image2 ...) names
other files and hosts, and FFmpeg opens those while it opens the playlist: a stranger's recording would read them."""
MAX_STAMP_NS = 2**31 * NANOSECONDS
"""A header stamp's seconds have 31 bits."""


class VideoFrame(Frame):
    """A decoded picture, still in the codec's pixel format. Stamps are nanoseconds since the video's start."""

    def __init__(self, picture: av.VideoFrame, stamp_ns: int, receive_ns: int) -> None:
        self.topic = VIDEO_TOPIC
        self.stamp_ns = stamp_ns
        self.receive_ns = receive_ns
        self._picture = picture

    @only_frame_errors
    def rgb(self, size: SizeRule = None) -> np.ndarray:
        try:
            pixels: np.ndarray = self._picture.to_ndarray(format="rgb24")
        except (av.FFmpegError, ValueError) as error:
            raise FrameError(f"the frame at {self.stamp_ns / NANOSECONDS:.3f} s can't be converted: {error}") from error
        # Phones store portrait video lying down, with the rotation beside it; PyAV before 14 does not tell it.
        quarter_turns = round(getattr(self._picture, "rotation", 0) / 90) % 4
        pixels = np.ascontiguousarray(np.rot90(pixels, quarter_turns))
        return resize_rgb(pixels, target_size(size, *pixels.shape[:2]))


class VideoSource(Source):
    """A video file. Frames come in the order the decoder gives them, with the times the file gives them.

    In a sound file the times grow. Some files number their frames wrongly and the times step back; they are passed
    on as they are (a camera driver can do the same), and only ``receive_ns`` is kept from going back.
    """

    def __init__(self, path: Path) -> None:
        """Raises ``InvalidRequestError`` when ``path`` is not a video."""
        self.path = path
        self.topics = (VIDEO_TOPIC,)
        with self._open() as container:
            stream = container.streams.video[0]
            self.frame_count = stream.frames or _estimated_frames(container, stream)

    def __iter__(self) -> Iterator[Frame]:
        self.skipped, self.last_fault = 0, ""
        found = False
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            clock = _StreamClock(stream)
            for picture in self._pictures(container, stream):
                found = True
                stamp_ns = clock.stamp_ns(picture)
                yield VideoFrame(picture, stamp_ns, clock.newest_ns)
        if not found:
            raise InvalidRequestError(f"{self.path} holds no frame that can be decoded; pass another video")

    def close(self) -> None:
        """Nothing to release: each iteration opens the file for itself."""

    def _open(self) -> av.container.InputContainer:
        try:
            # "file:", so that "concat:a|b" is a name. Titles are often not in UTF-8, and nobody reads them.
            container = av.open(
                f"file:{self.path}",
                metadata_errors="replace",
                options={"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"},
            )
        except av.ArgumentError as error:  # what FFmpeg says of a format that is not on the list
            raise InvalidRequestError(
                f"{self.path} holds no video of its own (MP4, Matroska, AVI, MPEG ...; playlists are not followed); "
                "pass a video file or a rosbag2 folder"
            ) from error
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InvalidRequestError(f"{self.path} can't be read as a video: {_reason(error)}") from error
        if not container.streams.video:
            container.close()
            raise InvalidRequestError(f"{self.path} holds no video; pass a video file or a rosbag2 folder")
        return container

    def _pictures(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """Decode packet by packet, so that a damaged one costs itself only."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:
                raise InvalidRequestError(f"{self.path} breaks off: {_reason(error)}") from error
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self._count_fault(_reason(error))


class _StreamClock:
    """Frame times in nanoseconds since the stream's start, exactly as the file has them."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._unit = Fraction(stream.time_base or 1) * NANOSECONDS
        self._start = stream.start_time or 0
        rate = Fraction(stream.average_rate or stream.base_rate or DEFAULT_RATE_HZ)
        self._period_ns = round(NANOSECONDS / rate)
        self._next_ns = 0
        self.newest_ns = -1
        """The largest time so far, one nanosecond more where a time was not larger: strictly increasing."""

    def stamp_ns(self, picture: av.VideoFrame) -> int:
        """Return the picture's time; the expected one where the stream brings none, or none that a stamp can hold."""
        stamp = self._next_ns if picture.pts is None else round((picture.pts - self._start) * self._unit)
        if abs(stamp) >= MAX_STAMP_NS:
            stamp = self._next_ns
        self._next_ns = stamp + self._period_ns
        self.newest_ns = max(self.newest_ns + 1, stamp)
        return stamp


def _estimated_frames(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Return duration times rate, 0 when the file does not tell its duration."""
    if not container.duration or not stream.average_rate:
        return 0
    return round(Fraction(container.duration, av.time_base) * stream.average_rate)


def _reason(error: Exception) -> str:
    """Return FFmpeg's words without its error number and the path, which the caller names."""
    return str(getattr(error, "strerror", None) or error)
