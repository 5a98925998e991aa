"""The calls of the traced program, generated from a seed, and the contents that a log may have during them.

The program and its judge generate the same calls from the same seed, so nothing is passed between them.

``History`` is an oracle of its own, beside ``crash.disk.oracle``, because it can be stricter: one thread makes the calls of a plan
that is fully known, so the kinds of records and the exact number up to which an overwriting log frees are checked as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from pmwal.format.layout import ALIGN_DAX, place_record, record_size

CAPACITY = 32768
CONTROL_SIZE = 8192  # two pages of slots, which a run wraps more than once
SIZE_MAX = 5000  # of a payload: a record streamed in more than one chunk
STREAM_MIN = 1024 - 48
FILLED = (12240, 12240, 4048, 2000)  # before the first call: few records to scan, and a ring that is soon full
TOUR = ("append", "extend", "batch", "reserve", "store", "rollback")
WEIGHTS = (60, 12, 6, 6, 10, 2)

Numbered = tuple[int, int, bytes]
"""A record as (number, kind, payload)."""


class Call(NamedTuple):
    """One call of the log: one of ``TOUR`` ("store": append without commit), "commit" or "truncate".

    ``seq`` is the sequence number of its first record, what a commit returns, the number before which a truncate frees, or the
    first number that a rollback discards. ``frees``: an overwriting log first frees the records before this number.
    """

    number: int  # of the call; makes its payloads unique
    name: str
    seq: int
    sizes: tuple[int, ...] = ()
    frees: int | None = None

    @property
    def records(self) -> list[Numbered]:
        """The records that it stores."""
        kind = self.seq % 7
        return [(self.seq + index, kind, self._payload(index, size)) for index, size in enumerate(self.sizes)]

    def _payload(self, index: int, size: int) -> bytes:
        """Random bytes: hardly a zero among them, so that a lost store shows."""
        return Random(self.number << 8 | index).randbytes(size)

    def __str__(self) -> str:
        """As it is printed."""
        sizes = " " + "+".join(map(str, self.sizes)) if self.sizes else ""
        return f"{self.name}{sizes} at {self.seq}" + (f", overwriting up to {self.frees}" if self.frees else "")


def overwrites(seed: int) -> bool:
    """Whether the log overwrites a full ring; otherwise the plan truncates."""
    return seed % 2 == 0


def filling() -> Call:
    """The call that fills the log before the first step."""
    return Call(0, "extend", 1, FILLED)


class _Extent(NamedTuple):
    """The positions of a record."""

    seq: int
    start: int
    end: int


class _Ring:
    """The positions of all records of a run."""

    def __init__(self) -> None:
        self.head, self.next_seq, self.tail = 0, 1, 0
        self.records: deque[_Extent] = deque()

    def extents(self, sizes: tuple[int, ...]) -> list[_Extent]:
        """The positions of records of these sizes, if they were stored now."""
        found, end = [], self.head
        for seq, size in enumerate(sizes, self.next_seq):
            start = place_record(end, record_size(size, ALIGN_DAX), CAPACITY)
            end = start + record_size(size, ALIGN_DAX)
            found.append(_Extent(seq, start, end))
        return found

    def put(self, sizes: tuple[int, ...]) -> None:
        """Store them."""
        self.records += self.extents(sizes)
        self.next_seq += len(sizes)
        self.head = self.records[-1].end

    def fits(self, sizes: tuple[int, ...]) -> bool:
        """Whether there is space for them."""
        return not sizes or self.extents(sizes)[-1].end - self.tail <= CAPACITY

    def free_to(self, room: int) -> int:
        """Truncate until at most this much is used; the new first number."""
        while self.records and self.head - self.records[0].start > room:
            self.records.popleft()
        self.tail = self.records[0].start if self.records else self.head
        return self.records[0].seq if self.records else self.next_seq

    def overwrite(self, sizes: tuple[int, ...]) -> int:
        """Free the space for these records and an eighth of the ring, as an overwriting log does; the new first number."""
        wanted = self.extents(sizes)[-1].end - CAPACITY + CAPACITY // 8
        while self.records and self.tail < wanted:
            self.tail = self.records.popleft().end
        return self.records[0].seq if self.records else self.next_seq

    def cut(self, count: int) -> int:
        """Discard this many of the newest records; the first discarded number."""
        for _ in range(count):
            self.records.pop()
        self.next_seq -= count
        self.head = self.records[-1].end if self.records else self.tail
        return self.next_seq


def _small(rng: Random) -> int:
    return rng.choice((0, 1, 8, 15, 16, 17, 64, 80, 81, rng.randrange(400)))


def _large(rng: Random) -> int:
    return rng.choice((STREAM_MIN, 4048, 4049, rng.randrange(STREAM_MIN, SIZE_MAX)))


def _names(rng: Random) -> Iterator[str]:
    """One call of each kind, then random ones; an uncommitted store is often followed by a commit."""
    yield from rng.sample(TOUR, len(TOUR))
    name = ""
    while True:
        name = rng.choices((*TOUR, "commit"), (*WEIGHTS, 40 if name == "store" else 1))[0]
        yield name


def calls(seed: int) -> Iterator[Call]:
    """The endless calls of a run after the ``filling``: one of each kind, then random ones. One of the first is streamed.

    A full ring that is not overwritten is usually truncated as a whole: freeing only the older half makes the interpreter search
    for a record, hundreds of thousands of instructions that test nothing.
    """
    rng = Random(seed)
    ring = _Ring()
    ring.put(filling().sizes)
    number, large = 0, rng.randrange(len(TOUR))
    for at, name in enumerate(_names(rng)):
        sizes: tuple[int, ...] = ()
        if name not in ("commit", "rollback"):
            sizes = (STREAM_MIN if at == large else _large(rng) if at > large and rng.random() < 0.07 else _small(rng),)
        if name in ("extend", "batch"):
            sizes += tuple(_small(rng) for _ in range(rng.randrange(1, 5)))
        frees = None
        if not ring.fits(sizes):
            if overwrites(seed):
                frees = ring.overwrite(sizes)
            else:
                number += 1
                yield Call(number, "truncate", ring.free_to(rng.choices((0, CAPACITY // 2), (4, 1))[0]))
        number += 1
        if name == "rollback":
            yield Call(number, name, ring.cut(rng.randint(1, min(3, len(ring.records))) if ring.records else 0))
        else:
            yield Call(number, name, ring.next_seq - 1 if name == "commit" else ring.next_seq, sizes, frees)
        if sizes:
            ring.put(sizes)


class History:
    """The records issued and acknowledged so far."""

    def __init__(self) -> None:
        self.kept: list[Numbered] = []  # issued and neither freed nor discarded, in order
        self.acknowledged = 0  # the last durable number
        self.freeing: int | None = None  # the call under way frees the records before this number
        self.discarding: int | None = None  # the call under way discards this number and all after it
        self.ends = {0}  # last numbers that a log may have: ends of batches, and of what a rollback keeps

    @property
    def first(self) -> int:
        """The oldest number that was not freed."""
        return self.kept[0][0] if self.kept else max(self.ends) + 1

    def begin(self, call: Call) -> None:
        """A call begins: its records may be found from now on."""
        if call.name == "rollback":
            self.discarding = call.seq
        self.freeing = call.seq if call.name == "truncate" else call.frees
        self.kept += call.records
        if call.sizes:
            self.ends.add(call.seq + len(call.sizes) - 1)

    def finish(self, call: Call) -> None:
        """A call has returned: its promise holds from now on."""
        if self.freeing is not None:
            self.kept = [record for record in self.kept if record[0] >= self.freeing]
        if self.discarding is not None:
            self.kept = [record for record in self.kept if record[0] < call.seq]
            self.ends = {end for end in self.ends if end < call.seq} | {call.seq - 1}
        if call.name != "store":
            self.acknowledged = max(self.ends)
        elif self.freeing is not None:  # freeing begins with a commit of everything before
            self.acknowledged = max(self.acknowledged, call.seq - 1)
        self.freeing = self.discarding = None

    def problem(self, first: int, found: list[Numbered]) -> str | None:
        """Why a crash cannot leave a log of these records, the first of which is ``first``; None if it can."""
        if first not in (self.first, self.freeing or self.first):
            return f"it begins at {first}, not at {self.first}" + (f" or {self.freeing}" if self.freeing else "")
        last = first + len(found) - 1
        cut = None if self.discarding is None else self.discarding - 1
        if last < self.acknowledged and last != cut:
            return f"it ends at {last}, but {self.acknowledged} was acknowledged"
        if last not in self.ends and last != cut:
            return f"it ends at {last}, inside a batch or past what was issued"
        expected = [record for record in self.kept if first <= record[0] <= last]
        for one, other in zip(expected, found, strict=True):
            if one != other:
                return f"number {one[0]} is not what was issued"
        return None
