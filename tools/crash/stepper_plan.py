"""What the traced program does, made from a seed, and what a log may hold while it does it.

The program and its judge make the same calls from the same seed, each for itself: nothing has to be passed between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from pmwal.layout import ALIGN_DAX, place_record, record_size

CAPACITY = 32768
CONTROL_SIZE = 8192  # two pages of slots: a run goes round them more than once
SIZE_MAX = 5000  # of a payload: a streamed record of more than one chunk
STREAM_MIN = 1024 - 48

Numbered = tuple[int, int, bytes]
"""A record as (number, kind, payload)."""


class Call(NamedTuple):
    """One call of the log: "append", "store" (append without commit), "extend", "commit" or "truncate" (before ``seq``)."""

    name: str
    seq: int  # the number of its first record; of a commit or a truncate, the number it is given or returns
    sizes: tuple[int, ...] = ()

    @property
    def records(self) -> list[Numbered]:
        """What it stores."""
        kind = self.seq % 7
        return [(self.seq + place, kind, payload(self.seq + place, size)) for place, size in enumerate(self.sizes)]

    def __str__(self) -> str:
        """As it is printed."""
        sizes = " " + "+".join(map(str, self.sizes)) if self.sizes else ""
        return f"{self.name}{sizes} at {self.seq}"


def payload(seq: int, size: int) -> bytes:
    """The payload of a record: other bytes for each number, hardly a zero among them."""
    return Random(seq).randbytes(size)


def _small(rng: Random) -> int:
    return rng.choice((0, 1, 8, 15, 16, 17, 64, 80, 81, rng.randrange(400)))


def _large(rng: Random) -> int:
    return rng.choice((STREAM_MIN, 4048, 4049, rng.randrange(STREAM_MIN, SIZE_MAX)))


def calls(seed: int) -> Iterator[Call]:
    """The calls of a run, without an end.

    A full ring is truncated as a whole, now and then the older half of it: to find the record that begins the other half takes
    hundreds of thousands of instructions of the interpreter, which tell nothing.
    """
    rng = Random(seed)
    position, seq, pending = 0, 1, False
    starts: deque[tuple[int, int]] = deque()  # number and position of each record kept
    while True:
        name = rng.choices(("append", "extend", "store", "commit"), (70, 14, 10, 30 if pending else 1))[0]
        sizes: tuple[int, ...] = ()
        if name != "commit":
            sizes = (_large(rng) if rng.random() < 0.07 else _small(rng),)
        if name == "extend":
            sizes += tuple(_small(rng) for _ in range(rng.randrange(1, 5)))
        placed = []
        end = position
        for size in sizes:
            start = place_record(end, record_size(size, ALIGN_DAX), CAPACITY)
            placed.append(start)
            end = start + record_size(size, ALIGN_DAX)
        if starts and end - starts[0][1] > CAPACITY:
            room = rng.choices((0, CAPACITY // 2), (4, 1))[0]
            while starts and end - starts[0][1] > room:
                starts.popleft()
            yield Call("truncate", starts[0][0] if starts else seq)
        yield Call(name, seq - 1 if name == "commit" else seq, sizes)
        starts += zip(range(seq, seq + len(sizes)), placed, strict=True)
        position, seq, pending = end, seq + len(sizes), name == "store"


class History:
    """What was issued and acknowledged."""

    def __init__(self) -> None:
        self.kept: list[Numbered] = []  # issued and not truncated, in order
        self.acknowledged = 0  # the last number that is durable
        self.truncating: int | None = None  # a truncate before this number is under way
        self.ends = {0}  # numbers at which a log may end: the last ones of batches

    @property
    def first(self) -> int:
        """The oldest number that was not truncated."""
        return self.kept[0][0] if self.kept else max(self.ends) + 1

    def begin(self, call: Call) -> None:
        """A call begins: what it stores may be found from here on."""
        self.kept += call.records
        if call.sizes:
            self.ends.add(call.seq + len(call.sizes) - 1)
        if call.name == "truncate":
            self.truncating = call.seq

    def finish(self, call: Call) -> None:
        """A call has returned: what it promises holds from here on."""
        if call.name != "store":
            self.acknowledged = max(self.ends)
        if self.truncating is not None:
            self.kept = [record for record in self.kept if record[0] >= call.seq]
            self.truncating = None

    def problem(self, first: int, found: list[Numbered]) -> str | None:
        """Why a crash cannot leave a log that begins at ``first`` and holds these records, or None."""
        if first not in (self.first, self.truncating or self.first):
            return f"it begins at {first}, and not at {self.first}" + (f" or {self.truncating}" if self.truncating else "")
        last = first + len(found) - 1
        if last < self.acknowledged:
            return f"it ends at {last}, but {self.acknowledged} was acknowledged"
        if last not in self.ends:
            return f"it ends at {last}, inside of a batch or past what was issued"
        expected = [record for record in self.kept if first <= record[0] <= last]
        for one, other in zip(expected, found, strict=True):
            if one != other:
                return f"number {one[0]} is not what was issued"
        return None
