"""Recordings from strangers: what is no recording is refused in one sentence, at once, and nothing else is opened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin

from support.replay_media import MILLISECOND, image_bag, pictures, storage_file, write_video
from vstream_ros.cli import main
from vstream_ros.errors import InvalidRequestError
from vstream_ros.replay.sources import open_source

FRAMES = pictures(4)
TIMES_MS = [0, 100, 200, 300]
BOTH_STORAGES = pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])


def refusal(path: Path) -> str:
    """The one sentence with which ``path`` is refused."""
    with pytest.raises(InvalidRequestError) as caught, open_source(path) as source:
        list(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


# -- what is no file -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", [["ask", "{}", "What?"], ["compare", "{}"], ["record", "{}", "bag"]])
@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a fifo"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, monkeypatch, capsys, command, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "camera.mp4"
    with contextlib.ExitStack() as stack:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind("camera.mp4")
        elif kind == "device":
            path = Path("/dev/null")
        else:
            os.mkfifo(tmp_path / "fifo")
            path.symlink_to("fifo")
        assert main([word.format(path) for word in command]) == 1
    assert capsys.readouterr().err == (
        f"vstream: {path} is a pipe, socket or device and no regular file; pass a video file or a rosbag2 folder\n"
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["metadata.yaml", "extra.db3"])
def test_a_bag_with_a_pipe_in_it_is_refused_at_once(tmp_path, name):
    bag = image_bag(tmp_path / "bag", FRAMES)
    (bag / name).unlink(missing_ok=True)
    os.mkfifo(bag / name)
    assert f"{name} is a pipe" in refusal(bag)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300 + ".mp4", "nothing\udcff.mp4", "http://robot/video.mp4", "pipe:0"])
def test_a_path_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main(["ask", name, "What?"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vstream: ")
    assert error.count("\n") == 1
    assert "\0" not in error


def test_names_that_mean_something_to_ffmpeg_or_are_no_text_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("v.mkv"), FRAMES, TIMES_MS)
    for name in ("concat:a|b.mkv", "img%03d.mkv", os.fsdecode(b"caf\xe9.mkv"), "-v.mkv", "a b\n.mkv"):
        shutil.copy("v.mkv", name)
        assert len(list(open_source(name))) == 4


# -- folders ---------------------------------------------------------------------------------------------------------


@BOTH_STORAGES
def test_the_one_recording_in_a_folder_is_found(tmp_path, storage):
    bag = image_bag(tmp_path / "scene" / "0-78s", FRAMES, storage)
    (tmp_path / "scene" / "notes.txt").write_text("")
    with open_source(tmp_path / "scene") as source:
        assert source.path == bag
        assert len(list(source)) == 4
    (tmp_path / "alone").mkdir()
    alone = Path(shutil.copy(storage_file(bag), tmp_path / "alone"))
    with open_source(tmp_path / "alone") as source:
        assert source.path == alone
        assert len(list(source)) == 4
    (tmp_path / "films").mkdir()
    film = write_video(tmp_path / "films" / "v.MKV", FRAMES, TIMES_MS)
    assert open_source(tmp_path / "films").path == film
    assert main(["record", str(tmp_path / "films"), str(tmp_path / "out")]) == 0
    assert main(["record", str(tmp_path / "scene"), str(tmp_path / "out2")]) == 1


def test_of_several_recordings_in_a_folder_the_names_are_told(tmp_path):
    for name in ("0-78s", "78-113s"):
        image_bag(tmp_path / name, FRAMES[:1])
    write_video(tmp_path / "v.mkv", FRAMES, TIMES_MS)
    assert "holds 3 recordings: 0-78s, 78-113s, v.mkv; pass one of them" in refusal(tmp_path)


# -- playlists -------------------------------------------------------------------------------------------------------


class OpenedFiles:
    """Whether anybody opens a file, by the kernel's word (inotify)."""

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), self.IN_OPEN) >= 0

    def __enter__(self) -> OpenedFiles:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)

    def any(self) -> bool:
        try:
            return bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False


HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:5,\nsecret.mkv\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile secret.mkv\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/x-matroska"><Representation id="1" '
    'bandwidth="1"><BaseURL>secret.mkv</BaseURL></Representation></AdaptationSet></Period></MPD>'
)


@pytest.mark.parametrize(
    ("name", "text", "followed"),
    [
        ("list.m3u8", HLS, True), ("list.mp4", HLS, False), ("list.ffconcat", CONCAT, True), ("list.mp4", CONCAT, True),
        ("list.sdp", SDP, False), ("list.mpd", DASH, False), ("list.mp4", DASH, False),
    ],
)  # fmt: skip
def test_a_playlist_is_not_followed(tmp_path, name, text, followed):
    """``followed``: by FFmpeg as it comes, here where nothing forbids it; shows that the watch sees it."""
    secret = write_video(tmp_path / "secret.mkv", FRAMES, TIMES_MS)
    playlist = tmp_path / name
    playlist.write_text(text)
    with OpenedFiles(secret) as opened:
        refusal(playlist)
        assert not opened.any()
        if followed:
            av.open(str(playlist)).close()
            assert opened.any()


def test_a_picture_sequence_is_not_followed(tmp_path):
    with av.open(str(tmp_path / "p0001.png"), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], format="rgb24")))
    assert "holds no video of its own" in refusal(tmp_path / "p0001.png")


def test_titles_that_are_not_utf_8_are_nobody_s_business(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Fruehling"
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = FRAMES[0].shape[:2]
        for picture in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.count(b"Fruehling") == 1
    path.write_bytes(data.replace(b"Fruehling", b"Fr\xfchling!"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert len(list(open_source(path))) == 4


def test_a_film_without_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    assert "holds no video" in refusal(tmp_path / "sound.mkv")


def test_a_time_that_no_stamp_can_hold_is_the_expected_one(tmp_path):
    path = write_video(tmp_path / "v.mkv", FRAMES, [0, 100, 2**61, 2**61 + 100])
    stamps = [frame.stamp_ns for frame in open_source(path)]
    assert stamps[:2] == [0, 100 * MILLISECOND]
    assert all(0 < stamp < 60_000 * MILLISECOND for stamp in stamps[2:])
    assert main(["record", str(path), str(tmp_path / "bag")]) == 0
