"""An archive on disk: whatever the disk or somebody else does, nothing but the archive suffers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.memory_frames import SECOND, scene
from vstream_ros.memory import Archive, Clip, Tubelet, archive_storage
from vstream_ros.memory.archive_storage import RETRY_S, FolderStorage
from vstream_ros.memory.run_folder import OURS, PREFIX

NOTHING = Clip((), 1.0)
LEFTOVER = PREFIX + "0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[FolderStorage]:
    made = FolderStorage(str(tmp_path), Clock())
    yield made
    made.close()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow in this process: the kernel refuses every byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def put(storage: FolderStorage, key: int, data: bytes = b"x" * 5000) -> None:
    assert storage.put(key, data)
    storage.wait_written()


def run_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if OURS.fullmatch(path.name)]


def files(folder: Path) -> list[str]:
    (run,) = run_folders(folder)
    return sorted(path.name for path in run.iterdir())


def tubelets(count: int) -> list[Tubelet]:
    return [
        Tubelet(k, "camera", np.stack([scene(k), scene(k)]), (k * SECOND + 1,), k * SECOND, 0.1) for k in range(count)
    ]


def filled(folder: Path, count: int = 8) -> tuple[Archive, FolderStorage]:
    archive = Archive(1 << 22, str(folder))
    for one in tubelets(count):
        archive.add(one)
    archive.settle()
    storage = archive._storage
    assert isinstance(storage, FolderStorage)
    storage.wait_written()
    return archive, storage


def test_bytes_come_back_and_files_go(storage: FolderStorage, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []  # nothing before the first bytes
    put(storage, 1, b"one" * 4000)
    put(storage, 2, b"two")
    assert (storage.get(1), storage.get(2), storage.get(3)) == (b"one" * 4000, b"two", None)
    assert files(tmp_path) == ["1.jpegs", "2.jpegs"]
    assert run_folders(tmp_path)[0].stat().st_mode & 0o777 == 0o700
    storage.delete(1)
    storage.wait_written()
    assert (storage.get(1), files(tmp_path)) == (None, ["2.jpegs"])
    storage.clear()
    storage.wait_written()
    assert list(tmp_path.iterdir()) == []
    put(storage, 4)
    assert files(tmp_path) == ["4.jpegs"]
    storage.close()
    assert list(tmp_path.iterdir()) == []
    assert not storage.put(5, b"x")


def test_what_is_not_written_yet_is_read_from_ram_and_bounded(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(storage._run, "write", lambda *_: stuck.wait(60))
    monkeypatch.setattr(archive_storage, "MAX_WAITING_BYTES", 10_000)
    assert storage.put(1, b"a" * 4000)
    assert storage.put(2, b"b" * 4000)
    assert not storage.put(3, b"c" * 4000)
    assert "can't keep up" in storage.error
    assert storage.get(2) == b"b" * 4000
    storage.delete(2)
    assert storage.get(2) is None
    assert storage.put(4, b"d" * 4000)
    stuck.set()
    storage.wait_written()


def test_a_full_disk_costs_what_it_would_have_stored(storage: FolderStorage, tmp_path: Path) -> None:
    clock = storage._clock
    assert isinstance(clock, Clock)
    put(storage, 1)
    with full_disk():
        put(storage, 2)
    assert storage.take_lost() == [2]
    assert "archive_folder" in storage.error
    assert files(tmp_path) == ["1.jpegs"]  # nor half a file
    assert storage.get(1) is not None
    put(storage, 3)  # too soon to try again
    assert storage.take_lost() == [3]
    clock.now += RETRY_S
    put(storage, 4)
    assert (storage.take_lost(), storage.error) == ([], "")
    assert files(tmp_path) == ["1.jpegs", "4.jpegs"]


@pytest.mark.parametrize("kind", ["missing", "file", "link"])
def test_a_folder_that_cannot_be_used_costs_the_archive_only(tmp_path: Path, kind: str) -> None:
    target, folder = tmp_path / "target", tmp_path / "folder"
    target.mkdir()
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        folder.symlink_to(target)
    archive, _ = filled(folder)
    assert archive.joined(NOTHING, 1, 0, 99) is NOTHING
    archive.check_integrity()
    assert archive.status.archive_bytes == 0
    assert str(folder) in archive.status.archive_error
    assert list(target.iterdir()) == []
    archive.close()


def test_links_in_the_place_of_files_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    archive, storage = filled(folder, 2)
    (run,) = run_folders(folder)
    (run / "0.jpegs").unlink()
    (run / "0.jpegs").symlink_to(secret)
    (run / "2.jpegs.part").symlink_to(secret)
    assert storage.get(0) is None
    assert [one.stamps_ns for one in archive.joined(NOTHING, 1, 0, 99).tubelets] == [(SECOND + 1,)]
    archive.add(tubelets(9)[8])  # its key is 2
    archive.settle()
    storage.wait_written()
    assert secret.read_text() == "precious"
    archive.close()
    assert secret.read_text() == "precious"
    assert list(folder.iterdir()) == []


def test_a_run_folder_that_is_replaced_is_not_followed(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "0.jpegs").write_text("precious")
    archive, _ = filled(folder, 2)
    (run,) = run_folders(folder)
    run.rename(tmp_path / "moved")
    run.symlink_to(elsewhere)
    archive.close()
    assert (elsewhere / "0.jpegs").read_text() == "precious"


def test_files_that_vanish_or_change_are_left_out(tmp_path: Path) -> None:
    archive, _ = filled(tmp_path, 6)
    (run,) = run_folders(tmp_path)
    (run / "1.jpegs").unlink()
    (run / "3.jpegs").write_bytes((run / "2.jpegs").read_bytes())  # an image, but another one
    (run / "4.jpegs").write_bytes(b"")
    assert [one.time_ns // SECOND for one in archive.joined(NOTHING, 1, 0, 99).tubelets] == [0, 2, 5]
    archive.check_integrity()
    archive.close()


def test_a_folder_that_is_removed_is_made_anew(tmp_path: Path) -> None:
    archive, storage = filled(tmp_path, 2)
    (run,) = run_folders(tmp_path)
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    storage._clock = clock = Clock()
    put(storage, 100)
    clock.now += RETRY_S
    put(storage, 101)
    assert files(tmp_path) == ["101.jpegs"]
    archive.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_crashed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    living, other = filled(tmp_path, 2)
    code = (
        "import os; from vstream_ros.memory.archive_storage import FolderStorage\n"
        f"s = FolderStorage({str(tmp_path)!r}); s.put(7, b'x'); s.wait_written(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    (crashed,) = set(run_folders(tmp_path)) - {Path(tmp_path, other._run._name)}
    assert (crashed / "7.jpegs").exists()
    foreign = tmp_path / LEFTOVER
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.jpegs").write_text("mine")
    (tmp_path / (PREFIX + "f" * 16)).symlink_to(outside)
    (tmp_path / (PREFIX + "backup")).mkdir()
    fresh, _ = filled(tmp_path, 1)
    assert not crashed.exists()
    assert (foreign / "notes.txt").exists()
    assert (outside / "1.jpegs").exists()
    assert (tmp_path / (PREFIX + "backup")).exists()
    assert len(living.joined(NOTHING, 1, 0, 99)) == 2
    living.close()
    fresh.close()


def test_bytes_on_disk_stay_within_their_bound(tmp_path: Path) -> None:
    limit = 200_000
    archive = Archive(limit, str(tmp_path))
    storage = archive._storage
    assert isinstance(storage, FolderStorage)
    for one in tubelets(200):
        archive.add(one)
        archive.settle()
        storage.wait_written()
        (run,) = run_folders(tmp_path)
        assert sum(512 * os.stat(path).st_blocks for path in run.iterdir()) <= limit
    archive.check_integrity()
    assert 0 < len(archive.joined(NOTHING, 1, 0, 999)) < 200
    archive.close()
