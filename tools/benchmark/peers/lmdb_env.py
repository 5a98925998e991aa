"""LMDB: a memory-mapped B+tree with copy on write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.peers.base import DURABLE, DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Keys, Peer, load


class _Environment:
    """Keys are ascending numbers, put at the end (MDB_APPEND)."""

    def __init__(self, path: Path, size: int, *, sync: bool) -> None:
        self._env: Any = load("lmdb").open(
            str(path), map_size=size * 4 + (64 << 20), subdir=False, lock=True, sync=sync, metasync=sync, writemap=not sync
        )
        self._keys = Keys()

    def append(self, data: bytes) -> None:
        """One transaction."""
        transaction = self._env.begin(write=True)
        transaction.put(self._keys.take(), data, append=True)
        transaction.commit()

    def extend(self, items: list[bytes]) -> None:
        """One transaction for all."""
        with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti([(self._keys.take(), item) for item in items], append=True)

    def read(self) -> Iterator[object]:
        """``for k, v in cursor``."""
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            yield from cursor

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _open(directory: Path, workload: str, size: int) -> _Environment:
    return _Environment(directory / "log.lmdb", size, sync=workload in DURABLE)


PEERS = (
    Peer(
        "lmdb",
        _open,
        {
            DURABLE_APPEND: "sync=True, append=True",
            PROCESS_APPEND: "sync=False, metasync=False, writemap=True, append=True",
            DURABLE_EXTEND: "sync=True, putmulti, append=True",
            READ: "for k, v in cursor; no checksum",
        },
        module="lmdb",
    ),
)
