"""A stream folded to records: messages put together, and what markers say. Pure.

Invariants
----------
- Of each log the messages come in the order of the stream. A message that comes twice adds nothing new to a record in parts.
- A record in parts is handed out with its last part, and dropped when a marker comes instead: the log did not have it any more.
- The body of a message is checked before a record of it is handed out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from pmwal.format.frame import unpack
from pmwal.records import Record
from pmwal.ship.chain import Entry, check_body, entry_of


class Message(Protocol):
    """A message as nats-py delivers it, or reads it from a stream."""

    @property
    def subject(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str] | None: ...
    @property
    def data(self) -> bytes: ...


class Gap(NamedTuple):
    """These records were gone from the log before they were shipped."""

    first: int
    last: int


class Rollback(NamedTuple):
    """The log was rolled back: its records after number ``keep`` that came before are void."""

    keep: int


class _Parts:
    """A record of which parts have come."""

    def __init__(self, entry: Entry) -> None:
        self.seq = entry.first
        self.size = entry.size
        self.body = bytearray()


def records(message: Message) -> list[Record]:
    """The records of a message that a shipper has published; none of a marker.

    ``ValueError`` for a message of something else, for a damaged one, and for a part of a record that was too large for one
    message: ``Folding`` puts parts together, and says what markers mean.

    >>> from types import SimpleNamespace
    >>> from pmwal.ship import records
    >>> body = b"\\x02\\0\\0\\0" + b"\\x07\\0" + bytes(8) + b"hi"
    >>> headers = {"Pmwal-Version": "1", "Pmwal-First": "5", "Pmwal-Last": "5", "Pmwal-Prev": "0", "Pmwal-Crc": "312d7567"}
    >>> [record.seq for record in records(SimpleNamespace(subject="logs.x", headers=headers, data=body))]
    [5]
    """
    entry = entry_of(message.headers)
    if not entry.has_records:
        return []
    if entry.size:
        raise ValueError(f"the message has a part of record {entry.first}; put parts together with pmwal.ship.Folding")
    return unpacked(entry, message.data or b"")


def unpacked(entry: Entry, body: bytes) -> list[Record]:
    """The records of a message that has whole ones. ``ValueError`` if it is damaged."""
    check_body(entry, body)
    return _records(entry, body)


def _records(entry: Entry, body: bytes) -> list[Record]:
    items = unpack(body) if entry.stamp is None else [(*entry.stamp, bytes(body))]
    if len(items) != entry.last - entry.first + 1:
        raise ValueError(
            f"the message has {len(items)} records, and by its headers it has those from {entry.first} to {entry.last}"
        )
    return [Record(seq, kind, time_ns, data) for seq, (kind, time_ns, data) in enumerate(items, entry.first)]


class Folding:
    """Puts the messages of logs together, for a consumer of the stream.

    >>> from pmwal.ship import Folding, Gap, Rollback
    >>> async def consume(subscription, store):
    ...     folding = Folding()
    ...     async for message in subscription.messages:
    ...         for each in folding.add(message):
    ...             match each:
    ...                 case Rollback(keep):
    ...                     store.remove_after(message.subject, keep)
    ...                 case Gap(first, last):
    ...                     store.note_missing(message.subject, first, last)
    ...                 case record:
    ...                     store.add(message.subject, record)
    """

    def __init__(self) -> None:
        self._parts: dict[str, _Parts] = {}  # by subject

    def add(self, message: Message) -> list[Record | Gap | Rollback]:
        """What this message adds. ``ValueError`` as from ``records``, and if parts before it did not come."""
        entry, body = entry_of(message.headers), message.data or b""
        subject = message.subject
        if not entry.size:
            self._parts.pop(subject, None)
        if entry.gap:
            return [Gap(entry.first, entry.last)]
        if entry.rollback:
            return [Rollback(entry.last)]
        if not entry.size:
            return [*unpacked(entry, body)]
        return [*self._add_part(subject, entry, body)]

    def _add_part(self, subject: str, entry: Entry, body: bytes) -> list[Record]:
        check_body(entry, body)
        parts = self._parts.get(subject)
        if parts is None or (parts.seq, parts.size) != (entry.first, entry.size):
            parts = self._parts[subject] = _Parts(entry)
        if entry.offset > len(parts.body):
            raise ValueError(
                f"a part of record {entry.first} is missing, from byte {len(parts.body)} to {entry.offset}; begin with an earlier "
                "message"
            )
        if entry.offset + len(body) > len(parts.body):
            parts.body += body[len(parts.body) - entry.offset :]
        if len(parts.body) < parts.size:
            return []
        del self._parts[subject]
        return _records(entry, bytes(parts.body))
