"""A ROS domain of this process's own."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

DOMAINS = 100
"""1 to this: the range that every system has free ports for."""
_held: list[int] = []


def own_domain() -> int:
    """A domain that no other test process on this machine has until this one ends: two runs side by side (two
    checkouts, two distributions) would hear each other's nodes. Where all are taken, the one of the process's number.
    """
    first = os.getpid()
    for number in range(first, first + DOMAINS):
        domain = 1 + number % DOMAINS
        path = Path(tempfile.gettempdir(), f"vstream-test-domain-{domain}.lock")
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:  # another user's
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue
        _held.append(file)
        return domain
    return 1 + first % DOMAINS
