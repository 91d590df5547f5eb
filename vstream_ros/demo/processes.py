"""The demo's processes: where the installed executables are, how they are started, and how they are surely ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vstream_ros.errors import ModelFailedError, NotReadyError

PATIENCE = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""How a process is ended: signals, and how many seconds each is given to work."""


def find_executable(name: str) -> Path:
    """Return an installed executable of this package. Raises ``NotReadyError`` if it isn't built or sourced."""
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        path = Path(prefix) / "lib" / "vstream_ros" / name
        if prefix and os.access(path, os.X_OK):
            return path
    if found := shutil.which(name):
        return Path(found)
    raise NotReadyError(f"{name} is not installed here: run make demo, or build the package and source its setup file")


def find_config(executable: Path) -> Path:
    """Return the node's parameter file that was installed with an executable."""
    for prefix in executable.absolute().parents:
        path = prefix / "share" / "vstream_ros" / "config" / "qa.yaml"
        if path.is_file():
            return path
    raise NotReadyError(f"config/qa.yaml was not installed beside {executable}: run make demo, or build the package")


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in ``log``; on leaving it is ended, politely first."""
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C is ours, and we end it in order.
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            for number, patience_s in PATIENCE:
                if process.poll() is None:
                    process.send_signal(number)
                    try:
                        process.wait(patience_s)
                    except (subprocess.TimeoutExpired, KeyboardInterrupt):
                        continue  # less politely


def require_running(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        raise ModelFailedError(f"the node ended with exit code {process.returncode}; its log is {log}")
