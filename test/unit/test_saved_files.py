"""Where saved memories lie: plain names, no symbolic links, the old file or the new one whatever happens."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vstream_ros.errors import MemoryFileError, NoMemoryFileError
from vstream_ros.memory import safe_files
from vstream_ros.memory.safe_files import checked_file_name, opened_file, put_aside, replaced_file


def write(path: Path, data: bytes = b"new") -> None:
    with replaced_file(path) as file:
        file.write(data)


def read(path: Path) -> bytes:
    with opened_file(path) as file:
        return file.read()


@pytest.mark.parametrize(("name", "file"), [("memory", "memory.npz"), ("a.npz", "a.npz"), ("2026-01-01_x.y", None)])
def test_plain_names(name: str, file: str | None) -> None:
    assert checked_file_name(name) == (file or f"{name}.npz")


@pytest.mark.parametrize(
    "name", ["", "a/b", "../a", "..", ".", ".hidden", "a..b", "/etc/passwd", "a b", "a\n", "a\0", "é", "-rf", "a" * 101]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(MemoryFileError, match="the name must be"):
        checked_file_name(name)


def test_a_file_is_replaced_and_read_by_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new_folder" / "memory.npz"
    write(path, b"old")
    write(path)
    assert read(path) == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["memory.npz"]


def test_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoMemoryFileError, match="there is no such file"):
        read(tmp_path / "memory.npz")
    with pytest.raises(NoMemoryFileError):
        read(tmp_path / "nowhere" / "memory.npz")
    with pytest.raises(NoMemoryFileError):  # only the last part of a folder is made
        write(tmp_path / "nowhere" / "deep" / "memory.npz")


def test_symbolic_links_are_refused_as_file_and_as_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.npz"
    outside.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    link = folder / "memory.npz"
    link.symlink_to(outside)
    for access in (write, read):
        with pytest.raises(MemoryFileError, match="a symbolic link"):
            access(link)
    (tmp_path / "way").symlink_to(folder)
    for access in (write, read):
        with pytest.raises(MemoryFileError):
            access(tmp_path / "way" / "other.npz")
    assert outside.read_bytes() == b"precious"
    assert os.listdir(folder) == ["memory.npz"]


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe.npz", "folder.npz"):
        for access in (write, read):
            with pytest.raises(MemoryFileError, match="no ordinary file"):
                access(tmp_path / name)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_of_before(tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.npz"
    write(path, b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(MemoryFileError, match="No space left on device"):
            write(path)
    assert read(path) == b"old"
    assert os.listdir(tmp_path) == ["memory.npz"]


def test_a_write_that_really_fails_leaves_the_file_of_before(tmp_path: Path) -> None:
    """The system refuses files of more than 1,000 bytes to that process."""
    path = tmp_path / "memory.npz"
    write(path, b"old")
    program = (
        "import pathlib, resource, sys\n"
        "from vstream_ros.errors import MemoryFileError\n"
        "from vstream_ros.memory.safe_files import replaced_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with replaced_file(pathlib.Path(sys.argv[1])) as file:\n"
        "        file.write(bytes(100_000))\n"
        "except MemoryFileError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=300)
    assert "File too large" in done.stdout, done
    assert read(path) == b"old"
    assert os.listdir(tmp_path) == ["memory.npz"]


def test_an_error_while_writing_leaves_the_file_of_before(tmp_path: Path) -> None:
    path = tmp_path / "memory.npz"
    write(path, b"old")

    def half_write() -> None:
        with replaced_file(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half_write()
    assert read(path) == b"old"
    assert os.listdir(tmp_path) == ["memory.npz"]


def test_a_read_only_folder_is_told() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        child = os.fork()
        if child == 0:  # as nobody in particular: root may write everywhere
            told = ""
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                write(Path(folder) / "memory.npz")
            except MemoryFileError as error:
                told = str(error)
            finally:
                os._exit(0 if "Permission denied" in told else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert os.listdir(folder) == []


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    path = tmp_path / "memory.npz"
    old, young, other = (tmp_path / name for name in (".memory.npz.a.tmp", ".memory.npz.b.tmp", ".other.npz.c.tmp"))
    for file in (old, young, other):
        file.write_bytes(b"half")
    long_ago = time.time() - 2 * safe_files.ABANDONED_S
    for file in (old, other):
        os.utime(file, (long_ago, long_ago))
    write(path)
    assert sorted(os.listdir(tmp_path)) == sorted(["memory.npz", young.name, other.name])


def test_a_refused_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "memory.npz"
    assert put_aside(path) is None
    path.write_bytes(b"newer format")
    aside = put_aside(path)
    assert aside == tmp_path / "memory.refused.npz"
    assert aside.read_bytes() == b"newer format"
    assert not path.exists()
