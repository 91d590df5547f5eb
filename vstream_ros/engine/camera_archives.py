"""The archives of the cameras that have one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from vstream_ros.memory import Archive, Clip, MemoryConfig, MemoryStatus


class CameraArchives:
    """What memories let go, by camera. Thread-safe: each archive has a lock of its own, which is never taken under
    another one. What takes time is done in the caller's thread."""

    def __init__(self, configs: Mapping[str, MemoryConfig], ids: Iterator[int]) -> None:
        """``ids``: of tubelets, shared with the memories."""
        self._configs = dict(configs)
        self._archives = {
            name: Archive(config.archive_max_bytes, config.archive_folder, horizon_s=config.archive_horizon_s, ids=ids)
            for name, config in configs.items()
            if config.archive_max_bytes
        }

    def of(self, camera: str) -> Archive | None:
        """A camera's archive; None where it has none."""
        return self._archives.get(camera)

    def store_one(self, camera: str) -> None:
        """Encode one of the tubelets that wait, if any does."""
        if camera in self._archives:
            self._archives[camera].store_one()

    def settle(self) -> None:
        """Do all that waits: memory has changed at once."""
        for archive in self._archives.values():
            archive.settle()

    def joined(self, clip: Clip, camera: str, start_ns: int, end_ns: int, temporal_patch_size: int) -> Clip:
        """A clip of a range with what the archive holds of it, up to the tubelets that star and window hold."""
        archive, config = self._archives.get(camera), self._configs[camera]
        if archive is None:
            return clip
        most = (config.star_memory_size + config.stream_window_size) // temporal_patch_size
        return archive.joined(clip, start_ns, end_ns, most)

    def tubelet_ids(self) -> set[int]:
        """Of all tubelets that an archive has handed out and still holds."""
        return set().union(*(archive.ids() for archive in self._archives.values()))

    def told(self, status: MemoryStatus) -> MemoryStatus:
        """A memory's status with its archive's."""
        archive = self._archives.get(status.camera)
        return status if archive is None else replace(status, **vars(archive.status))

    def close(self) -> None:
        """Forget all, and delete what is on disk."""
        for archive in self._archives.values():
            archive.close()
