"""What memory has let go, as JPEG and thinned: frames for questions about a time range in the past."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vstream_ros.images.resize import resize_rgb
from vstream_ros.memory.archive_storage import FolderStorage, RamStorage, Storage
from vstream_ros.memory.clip import NANOSECONDS, Clip, Tubelet
from vstream_ros.memory.slot import Fit, Size
from vstream_ros.memory.store import retention
from vstream_ros.memory.thinning import Thinning, most_valuable

JPEG_QUALITY = 90
INDEX_BYTES = 1536
"""What a tubelet takes in RAM beside its JPEGs, whose number counts too: measured, on 64 bits."""
NO_FRAMES = np.empty((0, 0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True)
class ArchiveStatus:
    """The fields of ``MemoryStatus`` of the same names."""

    archive_frames: int = 0
    archive_bytes: int = 0
    archive_ram_bytes: int = 0
    archive_error: str = ""


@dataclass(eq=False)
class _Entry:
    """One archived tubelet."""

    tubelet: Tubelet
    """As it left memory, without its frames."""
    key: int
    lengths: tuple[int, ...]
    """Bytes of the JPEGs of its real frames, which are stored one behind the other."""
    patch: int
    """Frames of the whole tubelet, repeated ones included."""
    digest: bytes
    nbytes: int
    archived_id: int | None = None
    """Of the decoded tubelet, whose pixels are not those that left memory; drawn when it is first decoded."""


@dataclass(frozen=True, eq=False)
class _Shrink:
    """A note: hand out at what ``fit`` makes of the size; None: at the size."""

    fit: Fit | None


class Archive:
    """One camera's tubelets that left its memory, at most ``max_bytes`` and ``horizon_s`` of them. Thread-safe.

    ``add``, ``forget``, ``resize``, ``shrink`` and ``withdraw_after`` only take a note, so that they may be called with
    other locks held. ``store_one`` and ``settle`` act on the notes, in their order, in their caller's thread: a
    camera's thread encodes one tubelet a frame, of the several that a slide of the window lets go at once.

    What is kept is decided as in star: the least retention x isolation^0.5 goes, among the archived. The same JPEGs
    are decoded to the same pixels, and are compared with their digest before: a decoded tubelet keeps its id until it
    leaves the archive or is scaled, and what was computed from it stays valid.
    """

    def __init__(
        self, max_bytes: int, folder: str = "", *, horizon_s: float = 3600.0, ids: Iterator[int] | None = None
    ) -> None:
        """
        Args:
            max_bytes: of the JPEGs (on disk: of whole blocks) and of the index, which is in RAM.
            folder: where the JPEGs are, in a folder of this run; "": in RAM.
            horizon_s: a tubelet that is older than the newest archived one by more is let go.
            ids: yields ids of decoded tubelets, never repeated; ``next`` of it must be one step (``itertools.count``).
        """
        self._max_bytes = max_bytes
        self._horizon_ns = round(horizon_s * NANOSECONDS)
        self._ids = itertools.count() if ids is None else ids
        self._storage: Storage = FolderStorage(folder) if folder else RamStorage()
        self._in_ram = not folder
        self._notes: deque[Tubelet | Size | _Shrink | int | None] = deque()
        """To do: store a tubelet, scale to a size or by a rule, withdraw what is newer than a stamp, forget all. Any
        thread adds; who holds ``_lock`` takes out."""
        self._lock = threading.Lock()
        """Guards everything below; held while one tubelet is encoded (2 ms), not while any is decoded or read."""
        self._entries: dict[int, _Entry] = {}
        """By first stamp."""
        self._by_key: dict[int, int] = {}
        """First stamps by key of the storage."""
        self._thinning = Thinning()
        self._keys = itertools.count()
        self._size: Size | None = None
        """At which tubelets are handed out, but for ``_fit``; None: as they were stored."""
        self._fit: Fit | None = None
        """From that size to the one that they are handed out at. Outlives ``forget``."""
        self._frames = self._nbytes = 0
        self._decoded: dict[int, Tubelet] = {}
        """What was handed out last, by id: two questions about one range decode it once."""

    # -- notes: any thread, at once ----------------------------------------------------------------------------------

    def add(self, tubelet: Tubelet) -> None:
        """Note a tubelet that memory has let go."""
        self._notes.append(tubelet)

    def forget(self) -> None:
        """Note that all is to be forgotten."""
        self._notes.append(None)

    def resize(self, size: Size) -> None:
        """Note that tubelets are to be handed out at ``size`` = (height, width), under new ids."""
        self._notes.append(size)

    def shrink(self, fit: Fit | None) -> None:
        """Note that tubelets are to be handed out at what ``fit`` makes of their size, under new ids; None: at that
        size."""
        self._notes.append(_Shrink(fit))

    def withdraw_after(self, stamp_ns: int) -> None:
        """Note that what is newer than this stamp was never to be kept."""
        self._notes.append(stamp_ns)

    # -- work --------------------------------------------------------------------------------------------------------

    def store_one(self) -> bool:
        """Act on the notes up to one tubelet that is encoded (1 to 2 ms at 448x252); whether there was one."""
        with self._lock:
            while self._notes:
                note = self._notes.popleft()
                if isinstance(note, Tubelet):
                    if None not in self._notes:
                        self._store(note)
                        return True
                elif isinstance(note, int):
                    for stamp_ns in [s for s in self._thinning.stamps_ns if s > note]:
                        self._drop(stamp_ns)
                elif note is None:
                    self._forget()
                elif isinstance(note, _Shrink):
                    self._fit = note.fit
                    self._make_anew()
                else:
                    self._size = note
                    self._make_anew()
        return False

    def settle(self) -> None:
        """Act on all notes."""
        while self.store_one():
            pass

    def close(self) -> None:
        """Forget all and delete what is on disk; what is added from now on is not stored."""
        self.forget()
        self.settle()
        self._max_bytes = 0
        self._storage.close()

    # -- out ---------------------------------------------------------------------------------------------------------

    def joined(self, clip: Clip, start_ns: int, end_ns: int, most: int) -> Clip:
        """``clip`` with archived tubelets of the range between its own, in time order.

        ``start_ns``, ``end_ns``: see ``SmartFrameManager.clip``. At most ``most`` tubelets are there then, or those of
        ``clip`` alone, of which none is left out: of the archived ones in the range the most valuable beside those.
        ``clip`` itself where there is none to add. Decodes (2 to 3 ms a tubelet at 448x252) what was not handed out
        the last time; may wait for the disk.
        """
        self.settle()
        with self._lock:
            self._drop_lost()
            entries = list(self._entries.values())
        held = {stamp for tubelet in clip.tubelets for stamp in tubelet.stamps_ns}
        within = (e.tubelet for e in entries if e.tubelet.is_within(start_ns, end_ns))
        chosen = most_valuable([t for t in within if held.isdisjoint(t.stamps_ns)], clip.tubelets, most - len(clip))
        archived = [tubelet for tubelet in map(self._decode, chosen) if tubelet is not None]
        with self._lock:
            self._decoded = {tubelet.id: tubelet for tubelet in archived}
        return replace(clip, tubelets=_in_time_order([*clip.tubelets, *archived])) if archived else clip

    def ids(self) -> set[int]:
        """The ids of all decoded tubelets that may be handed out again."""
        with self._lock:
            return {entry.archived_id for entry in self._entries.values() if entry.archived_id is not None}

    @property
    def status(self) -> ArchiveStatus:
        """Waits for nothing."""
        decoded = sum(tubelet.nbytes for tubelet in self._decoded.values())
        ram = decoded + (self._nbytes if self._in_ram else len(self._entries) * INDEX_BYTES)
        return ArchiveStatus(self._frames, self._nbytes, ram, self._storage.error)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant is broken. For tests: O(n)."""
        with self._lock:
            self._thinning.check_integrity()
            assert list(self._thinning.stamps_ns) == sorted(self._entries), "index and thinning differ"
            assert self._by_key == {e.key: e.tubelet.stamps_ns[0] for e in self._entries.values()}
            assert self._nbytes == sum(entry.nbytes for entry in self._entries.values()) <= self._max_bytes
            assert self._frames == sum(len(entry.lengths) for entry in self._entries.values())
            assert not any(entry.tubelet.frames.size for entry in self._entries.values()), "raw frames were kept"

    # -- inside, under the lock --------------------------------------------------------------------------------------

    def _store(self, tubelet: Tubelet) -> None:
        self._drop_lost()
        stamp_ns = tubelet.stamps_ns[0]
        stamps = self._thinning.stamps_ns
        if stamp_ns in self._entries or (stamps and stamp_ns < stamps[-1] - self._horizon_ns):
            return  # it left once, was put back after a false stamp, and leaves again; or it is too old
        jpegs = [_jpeg(frame) for frame in tubelet.frames[: len(tubelet.stamps_ns)]]
        data = b"".join(jpegs)
        nbytes = self._storage.size(data) + INDEX_BYTES
        if nbytes > self._max_bytes:
            return
        key = next(self._keys)
        if not self._storage.put(key, data):
            return
        shell = replace(tubelet, frames=NO_FRAMES)
        lengths = tuple(map(len, jpegs))
        self._entries[stamp_ns] = _Entry(shell, key, lengths, len(tubelet.frames), _digest(data), nbytes)
        self._by_key[key] = stamp_ns
        self._thinning.add(stamp_ns, tubelet.time_ns, retention(tubelet))
        self._frames += len(jpegs)
        self._nbytes += nbytes
        while self._thinning.stamps_ns[0] < self._thinning.stamps_ns[-1] - self._horizon_ns:
            self._drop(self._thinning.stamps_ns[0])
        while self._nbytes > self._max_bytes:
            self._drop(self._thinning.least())

    def _drop(self, stamp_ns: int) -> None:
        entry = self._entries.pop(stamp_ns)
        del self._by_key[entry.key]
        self._thinning.remove(stamp_ns)
        self._storage.delete(entry.key)
        self._frames -= len(entry.lengths)
        self._nbytes -= entry.nbytes

    def _drop_lost(self) -> None:
        for key in self._storage.take_lost():
            if key in self._by_key:
                self._drop(self._by_key[key])

    def _make_anew(self) -> None:
        """What is handed out from now on has other pixels, so other ids."""
        self._decoded = {}
        for entry in self._entries.values():
            entry.archived_id = None

    def _forget(self) -> None:
        self._entries, self._by_key, self._decoded = {}, {}, {}
        self._thinning = Thinning()
        self._frames = self._nbytes = 0
        self._size = None
        self._storage.clear()

    # -- inside, without the lock ------------------------------------------------------------------------------------

    def _decode(self, shell: Tubelet) -> Tubelet | None:
        """An archived tubelet with frames, repeated where it was sealed; None where what was stored is lost."""
        with self._lock:
            entry = self._entries.get(shell.stamps_ns[0])
            if entry is None or entry.tubelet is not shell:  # let go meanwhile
                return None
            if entry.archived_id is None:
                entry.archived_id = next(self._ids)
            archived_id, size, fit = entry.archived_id, self._size, self._fit
            if archived_id in self._decoded:
                return self._decoded[archived_id]
        data = self._storage.get(entry.key)
        if data is None or _digest(data) != entry.digest:
            with self._lock:
                if self._entries.get(shell.stamps_ns[0]) is entry:
                    self._drop(shell.stamps_ns[0])
            return None
        ends = itertools.accumulate(entry.lengths)
        frames = [_rgb(data[end - length : end], size, fit) for end, length in zip(ends, entry.lengths, strict=True)]
        pixels = np.stack(frames + frames[-1:] * (entry.patch - len(frames)))
        pixels.setflags(write=False)
        return replace(shell, id=archived_id, frames=pixels)


def _in_time_order(tubelets: list[Tubelet]) -> tuple[Tubelet, ...]:
    """By first stamp. A key tubelet's time is off the sampling grid: none is earlier than that of the one before."""
    ordered: list[Tubelet] = []
    for tubelet in sorted(tubelets, key=lambda tubelet: tubelet.stamps_ns[0]):
        earlier = bool(ordered) and tubelet.time_ns < ordered[-1].time_ns
        ordered.append(replace(tubelet, time_ns=ordered[-1].time_ns) if earlier else tubelet)
    return tuple(ordered)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _jpeg(frame: np.ndarray) -> bytes:
    """(height, width, 3) uint8 RGB as JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "an image that memory holds can be encoded"
    return bytes(data)


def _rgb(jpeg: bytes, size: Size | None, fit: Fit | None) -> np.ndarray:
    """Back to (height, width, 3) uint8 RGB, at what ``fit`` makes of ``size``; None: of the size stored, as it is."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    frame = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    height, width = size or frame.shape[:2]
    return resize_rgb(frame, (height, width) if fit is None else fit(height, width))
