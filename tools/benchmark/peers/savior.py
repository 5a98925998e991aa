"""sdsavior: a ring of JSON records in a mapped file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.peers.base import DURABLE, DURABLE_APPEND, DURABLE_EXTEND, PROCESS_APPEND, READ, Peer, initialise, load

_MAGIC = b"RBD1"  # a data file that begins with this is used as it is: written in advance, no holes


class _Ring:
    """Stores JSON bytes unchanged (``append_json_bytes``)."""

    def __init__(self, directory: Path, size: int, *, sync: bool, group: int | None) -> None:
        capacity = size * 2 + (1 << 20)
        initialise(directory / "data", capacity, _MAGIC)
        self._ring: Any = load("sdsavior").SDSavior(
            str(directory / "data"),
            str(directory / "meta"),
            capacity,
            fsync_data=sync,
            fsync_meta=sync,
            group_commit_records=group,
        )
        self._ring.open()
        self.append = self._ring.append_json_bytes

    def extend(self, items: list[bytes]) -> None:
        """A group, then an explicit commit."""
        append = self.append
        for item in items:
            append(item)
        self._ring.commit()

    def read(self) -> Iterator[object]:
        """Sequence numbers, times and decoded objects; there is no raw iterator."""
        return iter(self._ring.iter_records())

    def close(self) -> None:
        """Close the ring."""
        self._ring.close()


def _open(directory: Path, workload: str, size: int) -> _Ring:
    return _Ring(directory, size, sync=workload in DURABLE, group=1 << 30 if workload == DURABLE_EXTEND else None)


PEERS = (
    Peer(
        "sdsavior",
        _open,
        {
            DURABLE_APPEND: "fsync_data=True, fsync_meta=True, append_json_bytes",
            PROCESS_APPEND: "fsync_data=False, fsync_meta=False, append_json_bytes",
            DURABLE_EXTEND: "group_commit_records, fsync_data=True, commit()",
            READ: "iter_records(): decodes JSON",
        },
        module="sdsavior",
    ),
)
