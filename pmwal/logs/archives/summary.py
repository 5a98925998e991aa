"""What an archive file says of itself: whose records it has, in which groups, and what was gone before it was written.

Invariants
----------
- The summary has a checksum, and each group has one over numbers, kinds, times and payloads. So a reader delivers what was
  archived, or notices the damage, whatever the container checks.
- The records of a group have consecutive numbers and one epoch, and the groups of a file follow each other without a gap.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from pmwal.native.checksum import crc32c

VERSION = 1
KINDS_MAX = 32  # kinds of a group that are listed
_CRC = 8  # hexadecimal digits before the text


class Group(NamedTuple):
    """Records that are read at once. ``kinds`` is empty if there are too many; ``offset``, ``size`` and ``raw`` are of a frame."""

    first: int
    records: int
    epoch: int
    time_min: int
    time_max: int
    kinds: tuple[int, ...]
    check: int
    offset: int = 0
    size: int = 0
    raw: int = 0

    @property
    def stop(self) -> int:
        """The number after the last."""
        return self.first + self.records


class Rows(NamedTuple):
    """The records of a group, in columns."""

    seqs: Sequence[int]
    kinds: Sequence[int]
    times: Sequence[int]
    data: Sequence[bytes]

    @property
    def check(self) -> int:
        """The checksum."""
        count = len(self.seqs)
        parts = (
            struct.pack(f"<{count}Q", *self.seqs),
            struct.pack(f"<{count}H", *self.kinds),
            struct.pack(f"<{count}q", *self.times),
            struct.pack(f"<{count}Q", *map(len, self.data)),
        )
        return int(crc32c(b"".join((*parts, *self.data))))

    def group(self, epoch: int) -> Group:
        """What the summary says of them."""
        kinds = set(self.kinds)
        listed = tuple(sorted(kinds)) if len(kinds) <= KINDS_MAX else ()
        return Group(self.seqs[0], len(self.seqs), epoch, min(self.times), max(self.times), listed, self.check)


class Summary(NamedTuple):
    """``gap``: the first and the last of the numbers before this file that were gone from the log before they were archived.

    ``rollback``: this file begins a branch, and of earlier files only the records up to this number still count. ``cursor`` is that
    of the last record. ``branches``: where each branch up to that of this file began, as pairs of branch and first number.
    """

    uuid: str
    log: str
    branch: int
    groups: tuple[Group, ...]
    cursor: str
    gap: tuple[int, int] | None = None
    rollback: int | None = None
    branches: tuple[tuple[int, int], ...] = ()

    @property
    def first(self) -> int:
        """The first number."""
        return self.groups[0].first

    @property
    def last(self) -> int:
        """The last number."""
        return self.groups[-1].stop - 1

    def encode(self) -> bytes:
        """As text with its checksum."""
        text = json.dumps({"version": VERSION, **self._asdict()}, separators=(",", ":")).encode()
        return f"{int(crc32c(text)):0{_CRC}x}".encode() + text


def decode_summary(data: bytes) -> Summary:
    """The summary in this text; ``ValueError``, in words, if it is damaged or of a newer version."""
    head, text = data[:_CRC], data[_CRC:]
    if head != f"{int(crc32c(text)):0{_CRC}x}".encode():
        raise ValueError("the checksum of its summary is wrong")
    value: dict[str, Any] = json.loads(text)
    version = value.pop("version", None)
    if version != VERSION:
        raise ValueError(f"it has version {version}, and this pmwal reads version {VERSION}; use a newer one")
    groups = tuple(_as_group(*group) for group in value.pop("groups"))
    gap = value.pop("gap")
    branches = tuple((branch, first) for branch, first in value.pop("branches", ()))
    return Summary(groups=groups, gap=None if gap is None else (gap[0], gap[1]), branches=branches, **value)


def _as_group(first: int, records: int, epoch: int, time_min: int, time_max: int, kinds: list[int], *rest: int) -> Group:
    check, offset, size, raw = rest
    return Group(first, records, epoch, time_min, time_max, tuple(kinds), check, offset, size, raw)
