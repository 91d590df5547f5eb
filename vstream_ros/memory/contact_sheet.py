"""A picture of what memories hold: one thumbnail per tubelet in time order, with its time and why it is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

import cv2
import numpy as np

from vstream_ros.images.resize import resize_rgb
from vstream_ros.memory.clip import NANOSECONDS, Tubelet
from vstream_ros.memory.snapshot import MemorySnapshot
from vstream_ros.text import clipped

Colour = tuple[int, int, int]
"""RGB, each in [0, 255]."""

STAR, STREAM = (213, 94, 0), (0, 114, 178)
"""Vermillion and blue of Okabe and Ito: told apart with every kind of colour vision."""
STAR_PAPER, STREAM_PAPER = (253, 240, 230), (230, 241, 249)
PAPER, INK, FAINT, GAP_PAPER = (255, 255, 255), (32, 32, 32), (96, 96, 96), (226, 226, 226)
WIDTH, COLUMNS = 1600, 5
MAX_ROWS = 16
"""Of all cameras together: a sheet is bounded, whatever the memories hold."""
GUTTER = 20
"""Pixels on the left of a cell, where the gap to the tubelet before is written."""
CELL = WIDTH // COLUMNS
INNER = CELL - GUTTER - 4
"""Width of a tubelet's pictures."""
LINE = 19
"""Height of a line of text."""
LOWEST, HIGHEST = 80, 150
"""Height of the pictures: between these, by the frames' shape."""
BAND = 30
"""Height of a heading."""
SMALL, MEDIUM, LARGE = 0.42, 0.48, 0.55
"""Scales of OpenCV's font."""
FONT = cv2.FONT_HERSHEY_SIMPLEX
USUAL_STEPS = 1.75
"""Tubelets that are further apart than this many usual steps have a gap between them."""
YEAR_2001_NS = 10**18
"""Stamps from here on are dates; those of a simulation or a video count from 0."""


def draw_contact_sheet(snapshots: Sequence[MemorySnapshot]) -> np.ndarray:
    """Draw what memories hold, one camera below the other.

    Star is vermillion, stream is blue. A tubelet shows its first and last real frame. Where more is held than has room,
    tubelets are left out evenly, and the sheet says how many.

    Args:
        snapshots: one a camera, in any number.

    Returns:
        (height, 1600, 3) uint8 RGB, its height bounded whatever is held; a new array.
    """
    shown = snapshots[:MAX_ROWS]
    rows = MAX_ROWS // max(len(shown), 1)
    newest_ns = max((t.stamps_ns[-1] for s in snapshots for t in s.tubelets), default=0)
    parts = [_legend(len(snapshots) - len(shown))]
    for snapshot in shown:
        indices = _spread(len(snapshot.tubelets), rows * COLUMNS)
        parts.append(_heading(snapshot, len(indices)))
        parts += _rows(snapshot, indices, newest_ns)
    return np.concatenate(parts)


def span(ns: int) -> str:
    """A length of time in its two largest units: ``3.5 s``, ``2 min 10 s``, ``1 h 5 min``, ``3 d 4 h``."""
    tenths = round(ns * 10 / NANOSECONDS)
    if tenths < 600:
        return f"{tenths / 10:g} s"
    minutes, seconds = divmod(round(ns / NANOSECONDS), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    counts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while not counts[0][0]:
        del counts[0]
    return " ".join(f"{count} {unit}" for count, unit in counts[:2] if count)


def moment(stamp_ns: int) -> str:
    """A header stamp to a tenth of a second: date and time in UTC, or seconds where it is no date."""
    tenths = stamp_ns * 10 // NANOSECONDS
    if stamp_ns < YEAR_2001_NS:
        return f"t = {tenths / 10:.1f} s"
    date = datetime.fromtimestamp(tenths // 10, tz=timezone.utc)
    return f"{date:%Y-%m-%d %H:%M:%S}.{tenths % 10}"


def _spread(count: int, room: int) -> list[int]:
    """At most ``room`` of ``count`` indices, evenly, the first and the last among them."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, room))})


def _legend(left_out: int) -> np.ndarray:
    band = _paper(BAND, WIDTH, PAPER)
    x = 8
    for colour, words in ((STAR, "star: long-term"), (STREAM, "stream: the most recent")):
        cv2.rectangle(band, (x, 9), (x + 12, 21), colour, -1)
        x = _write(band, words, x + 18, 20, INK) + 24
    words = "grey: gap in time     ages count from the newest frame, dates are UTC     "
    words += "value = importance x (seconds alone)^0.5: the least is forgotten first"
    x = _write(band, words, x, 20, FAINT)
    if left_out:
        _write(band, f"{left_out} more cameras", WIDTH - 8, 20, INK, right=True)
    return band


def _heading(snapshot: MemorySnapshot, shown: int) -> np.ndarray:
    """The camera's name and how much is held."""
    band = _paper(BAND, WIDTH, GAP_PAPER)
    cv2.line(band, (0, 0), (WIDTH, 0), INK, 1)
    held = snapshot.tubelets
    words = "nothing is held yet"
    if held:
        words = f"{len(snapshot.star)} tubelets in star, {len(snapshot.stream)} in stream"
        words += f", over {span(held[-1].stamps_ns[-1] - held[0].stamps_ns[0])}"
    if shown < len(held):
        words += f"; {shown} of {len(held)} are shown"
    name = _fitting(clipped(snapshot.camera, 80), WIDTH // 2, LARGE)
    _write(band, words, _write(band, name, 8, 21, INK, LARGE) + 24, 20, INK)
    return band


def _rows(snapshot: MemorySnapshot, indices: Sequence[int], newest_ns: int) -> Iterator[np.ndarray]:
    """Rows of cells; all of a camera's are of one height."""
    if not indices:
        return
    frame = snapshot.tubelets[0].frames[0]
    picture = min(max(round(INNER / 2 * frame.shape[0] / frame.shape[1]), LOWEST), HIGHEST)
    for begin in range(0, len(indices), COLUMNS):
        row = _paper(picture + 2 * LINE + 8, WIDTH, PAPER)
        for column, index in enumerate(indices[begin : begin + COLUMNS]):
            before = None if begin + column == 0 else indices[begin + column - 1]
            cell = row[2:-2, column * CELL : (column + 1) * CELL]
            _draw_gap(cell[:, :GUTTER], snapshot, before, index)
            _draw_tubelet(cell[:, GUTTER:-4], snapshot, index, newest_ns)
        yield row


def _draw_tubelet(cell: np.ndarray, snapshot: MemorySnapshot, index: int, newest_ns: int) -> None:
    tubelet, star = snapshot.tubelets[index], index < len(snapshot.star)
    colour = STAR if star else STREAM
    cell[:] = STAR_PAPER if star else STREAM_PAPER
    figures = f"importance {_figure(tubelet.importance)}"
    if star and math.isfinite(snapshot.values[index]):
        figures += f"  value {_figure(snapshot.values[index])}"
    end = _write(cell, snapshot.reason(index), 6, LINE - 5, colour, MEDIUM)
    if cv2.getTextSize(figures, FONT, SMALL, 1)[0][0] > cell.shape[1] - 14 - end:
        figures = figures.replace("importance", "imp.")
    _write(cell, figures, cell.shape[1] - 6, LINE - 5, FAINT, right=True)
    bottom = cell.shape[0] - 6
    _write(cell, f"{span(newest_ns - tubelet.stamps_ns[0])} ago", 6, bottom, INK)
    _write(cell, moment(tubelet.stamps_ns[0]), cell.shape[1] - 6, bottom, FAINT, right=True)
    _draw_frames(cell[LINE:-LINE], tubelet)
    cv2.rectangle(cell, (0, 0), (cell.shape[1] - 1, cell.shape[0] - 1), colour, 2)


def _figure(value: float) -> str:
    """Two digits; what is next to nothing is nothing."""
    return f"{value:.2g}" if value >= 0.0005 else "0"


def _draw_frames(box: np.ndarray, tubelet: Tubelet) -> None:
    """The first and the last real frame side by side; a lonely one stands in the middle."""
    count = len(tubelet.stamps_ns)
    chosen = [tubelet.frames[0], tubelet.frames[count - 1]] if count > 1 else [tubelet.frames[0]]
    height, width = box.shape[:2]
    share = width // 2 - 2
    rows, columns = chosen[0].shape[:2]
    scale = min(share / columns, height / rows)
    size = max(round(columns * scale), 1), max(round(rows * scale), 1)
    left, top = (width - len(chosen) * (size[0] + 2)) // 2, (height - size[1]) // 2
    for number, frame in enumerate(chosen):
        x = left + number * (size[0] + 2)
        box[top : top + size[1], x : x + size[0]] = resize_rgb(frame, size[::-1])


def _draw_gap(gutter: np.ndarray, snapshot: MemorySnapshot, before: int | None, index: int) -> None:
    """What lies between two neighbours on the sheet, written upwards: the tubelets left out, or a gap in time."""
    if before is None:
        return
    held = snapshot.tubelets
    if index - before > 1:
        words = f"{index - before - 1} not shown"
    elif held[index].time_ns - held[before].time_ns > USUAL_STEPS * snapshot.second_per_grid * NANOSECONDS:
        words = f"gap {span(held[index].stamps_ns[0] - held[before].stamps_ns[-1])}"
    else:
        return
    strip = _paper(GUTTER - 4, gutter.shape[0], GAP_PAPER)
    width = cv2.getTextSize(words, FONT, SMALL, 1)[0][0]
    _write(strip, words, max((strip.shape[1] - width) // 2, 0), GUTTER - 9, INK)
    gutter[:, 2:-2] = np.rot90(strip)


def _paper(height: int, width: int, colour: Colour) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def _fitting(text: str, room: int, scale: float) -> str:
    """The beginning of ``text`` that is at most ``room`` pixels wide."""
    while text and cv2.getTextSize(_ascii(text), FONT, scale, 1)[0][0] > room:
        text = text[:-1]
    return text


def _ascii(text: str) -> str:
    """OpenCV's font has no other letters."""
    return text.encode("ascii", "replace").decode()


def _write(
    picture: np.ndarray, text: str, x: int, y: int, colour: Colour, scale: float = SMALL, *, right: bool = False
) -> int:
    """Write a line, its foot at ``y``, from ``x`` on or up to it; returns where it ends."""
    text = _ascii(text)
    width = cv2.getTextSize(text, FONT, scale, 1)[0][0]
    start = x - width if right else x
    cv2.putText(picture, text, (start, y), FONT, scale, colour, 1, cv2.LINE_AA)
    return start + width
