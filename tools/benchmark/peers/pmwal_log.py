"""pmwal itself, measured with the same loop as its peers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import pmwal
from benchmark.peers.base import DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Peer


class _Log:
    """A log whose ring has space for everything."""

    def __init__(self, wal: pmwal.Wal) -> None:
        self._wal = wal
        self.append = wal.append  # itself: a function around it would cost as much as the append
        self.extend = wal.extend

    def read(self) -> Iterator[object]:
        """All records."""
        return self._wal.read()

    def close(self) -> None:
        """Close the log."""
        self._wal.close()


def _open(directory: Path, workload: str, size: int, *, commit: Literal["each", "manual"]) -> _Log:
    return _Log(pmwal.open(directory / "app.wal", "x", size=size + (1 << 20), commit=commit))


PEERS = (
    Peer(
        "pmwal",
        partial(_open, commit="each"),
        {
            DURABLE_APPEND: "defaults: pipelined, each append acknowledged",
            PROCESS_APPEND: "defaults: each append acknowledged, the pointer stored with it",
            DURABLE_EXTEND: "defaults",
            READ: "defaults: checksums verified",
        },
        ours=True,
    ),
    Peer(
        "pmwal commit=False",
        partial(_open, commit="manual"),
        {PROCESS_APPEND: 'commit="manual": the record is in shared memory on return, as with the peers'},
        ours=True,
    ),
)
