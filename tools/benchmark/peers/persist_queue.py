"""persist-queue: a queue in SQLite. Its file queue never syncs a record, so this measures the SQLite one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.peers.base import DURABLE_APPEND, PROCESS_APPEND, READ, Peer, load


class _Queue:
    """A ``SQLiteQueue`` that commits each item."""

    def __init__(self, path: Path) -> None:
        self._queue: Any = load("persistqueue").SQLiteQueue(str(path), auto_commit=True, multithreading=False)
        self.append = self._queue.put

    def extend(self, items: list[bytes]) -> None:
        """One by one, because there is no batch call. Only used to fill the queue for ``read``."""
        for item in items:
            self._queue.put(item)

    def read(self) -> Iterator[object]:
        """All items, which it reads into one list."""
        return iter(self._queue.queue())

    def close(self) -> None:
        """Close the queue."""
        self._queue.close()


def _open(directory: Path, workload: str, size: int) -> _Queue:
    return _Queue(directory / "queue")


PEERS = (
    Peer(
        "persist-queue",
        _open,
        {
            DURABLE_APPEND: "SQLiteQueue, auto_commit=True (its synchronous is SQLite's default, FULL)",
            PROCESS_APPEND: "SQLiteQueue, auto_commit=True",
            READ: "SQLiteQueue.queue()",
        },
        module="persistqueue",
    ),
)
