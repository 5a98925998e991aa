"""A file, os.write and os.fdatasync: no framing, no checksum, no recovery."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmark.peers.base import DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Peer, initialise


class _File:
    """A descriptor at the start of a preallocated file."""

    def __init__(self, path: Path, size: int, *, sync: bool) -> None:
        initialise(path, size + (1 << 20))
        self._path, self._size, self._sync = path, 0, sync
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._written = self._record = 0
        self.append = self._append_durable if sync else partial(os.write, self._fd)

    def _append_durable(self, data: bytes) -> None:
        os.write(self._fd, data)
        os.fdatasync(self._fd)

    def extend(self, items: list[bytes]) -> None:
        """All in one write."""
        self._record = len(items[0])
        self._written += os.write(self._fd, b"".join(items))
        if self._sync:
            os.fdatasync(self._fd)

    def read(self) -> Iterator[bytes]:
        """Pieces of the size of a record, through Python's buffered reader."""
        with self._path.open("rb") as file:
            read, record = file.read, self._record
            for _ in range(self._written // record):
                yield read(record)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _open(directory: Path, workload: str, size: int) -> _File:
    return _File(directory / "plain.log", size, sync=workload in (DURABLE_APPEND, DURABLE_EXTEND))


PEERS = (
    Peer(
        "plain file",
        _open,
        {
            DURABLE_APPEND: "os.write + os.fdatasync, written beforehand; no framing, no checksum",
            PROCESS_APPEND: "os.write; no framing, no checksum",
            DURABLE_EXTEND: "one os.write + os.fdatasync; no framing, no checksum",
            READ: "file.read(128), buffered; no checksum",
        },
    ),
)
