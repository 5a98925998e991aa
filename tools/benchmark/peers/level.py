"""LevelDB through plyvel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.peers.base import DURABLE, DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Keys, Peer, load


class _Store:
    """One database without compression: the payloads would shrink to nothing."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        self._db: Any = load("plyvel").DB(str(path), create_if_missing=True, compression=None, write_buffer_size=64 << 20)
        self._put = self._db.put
        self._sync = sync
        self._keys = Keys()

    def append(self, data: bytes) -> None:
        """One put."""
        self._put(self._keys.take(), data, sync=self._sync)

    def extend(self, items: list[bytes]) -> None:
        """One write batch."""
        with self._db.write_batch(sync=self._sync) as batch:
            for item in items:
                batch.put(self._keys.take(), item)

    def read(self) -> Iterator[object]:
        """Keys and values in order."""
        return iter(self._db.iterator())

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def _open(directory: Path, workload: str, size: int) -> _Store:
    return _Store(directory / "level", sync=workload in DURABLE)


_COMMON = "write_buffer_size=64 MiB, no compression"
PEERS = (
    Peer(
        "plyvel",
        _open,
        {
            DURABLE_APPEND: f"sync=True, {_COMMON}",
            PROCESS_APPEND: f"sync=False, {_COMMON}",
            DURABLE_EXTEND: f"write_batch(sync=True), {_COMMON}",
            READ: "iterator()",
        },
        module="plyvel",
    ),
)
