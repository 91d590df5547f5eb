"""Stages that take minutes: what they say meanwhile, where their output goes, one make at a time."""

import contextlib
import fcntl
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from provision.layout import ROOT, Layout, SetupError
from provision.variables import environment


def run(layout: Layout, name: str, what: str, command: list[str]) -> None:
    """One stage: a line that says what, where it stands now and then, the end of its log if it fails.

    Raises ``SetupError`` then.
    """
    log = ROOT / "build" / f"{layout.base.name}-{name}.log"
    start = time.monotonic()
    say(f"-- {what}")
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(layout), stdout=stream, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                if process.returncode is None:
                    say(f"   {time.monotonic() - start:3.0f} s  {latest_step(log)}")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        say("\n".join(log.read_text(errors="replace").strip().splitlines()[-30:]))
        raise SetupError(f"Failed: {what} (the end of {log.relative_to(ROOT)} stands above).")
    say(f"   done in {time.monotonic() - start:.0f} s")


def latest_step(log: Path) -> str:
    """Of pip's or colcon's output, without the warnings and details in between."""
    steps = re.compile(r"^ *((?:Collecting|Downloading|Installing|Building|Starting) .{0,60})", re.MULTILINE)
    return (["", *steps.findall(log.read_text(errors="replace"))])[-1]


def say(text: str) -> None:
    """A line for whoever runs make."""
    sys.stderr.write(text + "\n")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two makes in one clone: the second waits for the first."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("-- waiting for another make in this folder")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
