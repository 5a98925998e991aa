"""Which messages of a stream make up a log as it was last. Pure: headers in, a plan out.

Invariants
----------
- A log has consecutive numbers. So the plan is the newest unbroken run: what comes before a gap, or before messages that were
  removed from the middle of the stream, is left out, and counted.
- What a rollback made void is not in it, nor is a record of which the last part did not come.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from pmwal.format.frame import ENTRY
from pmwal.ship.chain import Entry


class Kept(NamedTuple):
    """A message, and the last of its records that counts. ``size``: bytes of its body.

    ``each``: a message for each of the records, one after another in the stream; it is an atomic batch, or a part of one.
    """

    number: int
    first: int
    last: int
    size: int
    part: bool = False
    each: bool = False

    @property
    def payload(self) -> int:
        """Bytes of payload, at most."""
        return self.size if self.part or self.each else self.size - ENTRY.size * (self.last - self.first + 1)

    @property
    def messages(self) -> range:
        """The stream's numbers of the messages."""
        return range(self.number, self.number + (self.last - self.first + 1 if self.each else 1))


class Plan:
    """The messages of a log, as far as they were added."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.next_seq: int | None = None
        """The number of the next record; None before the first message."""
        self.left_out = 0
        """Records that the stream has, or had, which the log cannot have."""
        self._number = 0
        self._part: tuple[int, int, int] | None = None  # of a record that is not whole yet: its number, what is there, its size

    @property
    def first_seq(self) -> int:
        """The number of the first record."""
        return self.kept[0].first if self.kept else self.next_seq or 1

    @property
    def longest(self) -> int:
        """Bytes of the largest record, at most: of a message, or of all parts of a record."""
        sizes = Counter[int]()
        for each in self.kept:
            sizes[each.first] += each.size
        return max(sizes.values(), default=0)

    def add(self, number: int, entry: Entry, size: int) -> None:
        """The next message of the log: its number in the stream, what it says, and bytes of its body."""
        if self._number and entry.before(number) != self._number:
            self._break()
        self._number = number
        if entry.rollback:
            self._roll_back(entry.last)
            return
        if entry.gap:
            self._drop_part()
            self._break()
            self.next_seq = entry.last + 1
            return
        if entry.size and entry.offset:
            if self._part != (entry.first, entry.offset, entry.size):
                self._drop_part()
                self._number = 0  # its beginning was removed from the stream
                self._break()
                self.next_seq = entry.last + 1
                return
        else:
            self._drop_part()
            if self.next_seq is not None and entry.first != self.next_seq:
                self._break()
        whole = entry.offset + size >= entry.size
        self._part = None if whole else (entry.first, entry.offset + size, entry.size)
        self._keep(Kept(number, entry.first, entry.last, size, bool(entry.size), entry.stamp is not None), entry.prev is None)
        if whole:
            self.next_seq = entry.last + 1

    def finish(self) -> None:
        """There are no more messages."""
        self._drop_part()

    def fit(self, room: int, alignment_overhead: int) -> None:
        """Leave out the oldest messages until the rest takes no more bytes of a ring than ``room``."""
        used, at = 0, len(self.kept)
        while at:
            each = self.kept[at - 1]
            used += each.payload + alignment_overhead * (each.last - each.first + 1)
            if used > room:
                break
            at -= 1
        while 0 < at < len(self.kept) and self.kept[at].part and self.kept[at].first == self.kept[at - 1].first:
            at += 1  # the record of which the first part is left out
        self._leave_out(at)

    def _keep(self, new: Kept, in_batch: bool) -> None:
        last = self.kept[-1] if self.kept else None
        if in_batch and last is not None and last.each and last.last + 1 == new.first:
            self.kept[-1] = last._replace(last=new.last, size=last.size + new.size)
        else:
            self.kept.append(new)

    def _roll_back(self, keep: int) -> None:
        self._drop_part()
        while self.kept and self.kept[-1].first > keep:
            self.kept.pop()
        if self.kept:
            last = self.kept[-1]
            self.kept[-1] = last._replace(last=min(last.last, keep))
        if self.next_seq is not None:
            self.next_seq = min(self.next_seq, keep + 1)

    def _drop_part(self) -> None:
        if self._part is not None:
            seq, self._part = self._part[0], None
            while self.kept and self.kept[-1].first == seq:
                self.kept.pop()

    def _break(self) -> None:
        """What comes next does not follow what is there."""
        self._part = None
        self._leave_out(len(self.kept))

    def _leave_out(self, count: int) -> None:
        gone, self.kept = self.kept[:count], self.kept[count:]
        if gone:
            self.left_out += gone[-1].last - gone[0].first + 1
