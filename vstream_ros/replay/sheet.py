"""A memory's contact sheet as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2

from vstream_ros.errors import InvalidRequestError
from vstream_ros.memory import MemorySnapshot, draw_contact_sheet

SUFFIXES = (".png", ".jpg", ".jpeg")


def check_picture_name(path: Path) -> None:
    """Raise ``InvalidRequestError`` where a picture can't be written there, before the work that leads to it."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequestError(f"{path}: a contact sheet is one of {', '.join(SUFFIXES)}; name such a file")
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidRequestError(f"{path} can't be written: its folder must exist, and it must be none")


def write_sheet(snapshots: Sequence[MemorySnapshot], path: Path, jpeg_quality: int = 95) -> None:
    """Write what memories hold as a picture, in the format of the file's ending. A file that is there is replaced.

    ``jpeg_quality``: 1 to 100, of a JPEG. Raises ``InvalidRequestError`` where it can't be written.
    """
    check_picture_name(path)
    sheet = draw_contact_sheet(snapshots)[..., ::-1]
    quality = () if path.suffix.lower() == ".png" else (cv2.IMWRITE_JPEG_QUALITY, jpeg_quality)
    _, data = cv2.imencode(path.suffix.lower(), sheet, quality)
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise InvalidRequestError(f"{path} can't be written: {error.strerror}") from error
