"""A small key-value store whose only file is a pmwal log: what such a program needs to do, and no more.

The table is in memory, and each change is a record, logged before it is applied. A checkpoint is one record that holds the whole
table; once it is durable, everything before it is truncated. Replay begins with the oldest record, so whether a crash came before
the checkpoint, between it and the truncate, or after, the same table comes out. The table must stay below a quarter of the ring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import IntEnum

import pmwal

Change = tuple[str, str | None]
"""A key, and its new value or None to delete it."""


class Kind(IntEnum):
    """Kinds of records."""

    PUT = 1
    DELETE = 2
    CHECKPOINT = 3


class Store(Mapping[str, str]):
    """Strings by strings. When a call that changes something has returned, the change is durable.

    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     store = Store(wal)
    ...     store.put("name", "Ada")
    ...     store.change([("name", "Grace"), ("born", "1906")])
    >>> with pmwal.open(path) as wal:
    ...     dict(Store(wal))
    {'name': 'Grace', 'born': '1906'}
    """

    def __init__(self, wal: pmwal.Wal) -> None:
        """Replay the log. ``wal``: opened with ``commit="each"``, and used by this store only."""
        self._wal = wal
        self._table: dict[str, str] = {}
        for record in wal:
            self._apply(record.kind, record.data)

    def put(self, key: str, value: str) -> None:
        """Set a key."""
        self.change([(key, value)])

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""
        self.change([(key, None)])

    def change(self, changes: list[Change]) -> None:
        """Make all these changes or none of them."""
        records = [(Kind.DELETE, [key]) if value is None else (Kind.PUT, [key, value]) for key, value in changes]
        encoded = [(kind, json.dumps(fields).encode()) for kind, fields in records]
        self._make_room(sum(len(data) + 128 for _, data in encoded))
        with self._wal.batch() as batch:
            for kind, data in encoded:
                batch.append(data, kind=kind)
        for kind, data in encoded:  # only now: an exception above leaves log and table as they were
            self._apply(kind, data)

    def checkpoint(self) -> None:
        """Make the log as short as the table: durable first, and then the old records go."""
        seq = self._wal.append(json.dumps(self._table).encode(), kind=Kind.CHECKPOINT)
        self._wal.truncate(before=seq)

    def _make_room(self, size: int) -> None:
        if self._wal.free - size < self._wal.capacity // 2:  # the rest is for the checkpoint, and for the gap where the ring wraps
            self.checkpoint()

    def _apply(self, kind: int, data: bytes) -> None:
        match kind, json.loads(data):
            case Kind.PUT, [key, value]:
                self._table[key] = value
            case Kind.DELETE, [key]:
                self._table.pop(key, None)
            case Kind.CHECKPOINT, dict(table):
                self._table = table
            case _:
                raise ValueError(f"a record of kind {kind} is not of this store")

    def __getitem__(self, key: str) -> str:
        return self._table[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
