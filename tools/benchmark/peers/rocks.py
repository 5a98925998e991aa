"""RocksDB through rocksdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.peers.base import DURABLE, DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Keys, Peer, load


class _Store:
    """Raw mode, bytes to bytes, with the write-ahead log on."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        module = load("rocksdict")
        options = module.Options(raw_mode=True)
        options.create_if_missing(True)
        self._batch: Any = module.WriteBatch
        self._write = module.WriteOptions()
        self._write.sync = sync
        self._db: Any = module.Rdict(str(path), options)
        self._db.set_write_options(self._write)
        self._keys = Keys()

    def append(self, data: bytes) -> None:
        """One put."""
        self._db[self._keys.take()] = data

    def extend(self, items: list[bytes]) -> None:
        """One write batch."""
        batch = self._batch(raw_mode=True)
        for item in items:
            batch.put(self._keys.take(), item)
        self._db.write(batch)

    def read(self) -> Iterator[object]:
        """Keys and values in order."""
        return iter(self._db.items())

    def close(self) -> None:
        """Close the store."""
        self._db.close()


def _open(directory: Path, workload: str, size: int) -> _Store:
    return _Store(directory / "rocks", sync=workload in DURABLE)


PEERS = (
    Peer(
        "rocksdict",
        _open,
        {
            DURABLE_APPEND: "raw_mode, WriteOptions.sync=True",
            PROCESS_APPEND: "raw_mode, WriteOptions.sync=False",
            DURABLE_EXTEND: "raw_mode, WriteBatch, WriteOptions.sync=True",
            READ: "raw_mode, items()",
        },
        module="rocksdict",
    ),
)
