"""sqlite3 of the standard library, journal_mode=WAL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmark.peers.base import DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Peer

_INSERT = "INSERT INTO log (data) VALUES (?)"


class _Database:
    """One table, one connection in autocommit mode: each INSERT is a transaction."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._run = self._connection.execute
        for statement in (
            "PRAGMA journal_mode=WAL",
            f"PRAGMA synchronous={synchronous}",
            "PRAGMA locking_mode=EXCLUSIVE",
            "CREATE TABLE log (id INTEGER PRIMARY KEY, data BLOB)",
        ):
            self._run(statement)

    def append(self, data: bytes) -> None:
        """One transaction."""
        self._run(_INSERT, (data,))

    def extend(self, items: list[bytes]) -> None:
        """One transaction for all."""
        self._run("BEGIN")
        self._connection.executemany(_INSERT, [(item,) for item in items])
        self._run("COMMIT")

    def read(self) -> Iterator[object]:
        """Rows in order."""
        return self._run("SELECT id, data FROM log ORDER BY id")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _open(directory: Path, workload: str, size: int, *, synchronous: str) -> _Database:
    return _Database(directory / "log.sqlite", synchronous)


_COMMON = "journal_mode=WAL, locking_mode=EXCLUSIVE, synchronous="
PEERS = (
    Peer(
        "sqlite3 FULL",
        partial(_open, synchronous="FULL"),
        {DURABLE_APPEND: f"{_COMMON}FULL", DURABLE_EXTEND: f"{_COMMON}FULL"},
    ),
    Peer(
        "sqlite3 NORMAL",
        partial(_open, synchronous="NORMAL"),
        {PROCESS_APPEND: f"{_COMMON}NORMAL: a commit does not sync", READ: f"{_COMMON}NORMAL"},
    ),
)
