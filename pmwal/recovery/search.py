"""All whole records that start in a part of the ring, wherever they are, in time linear in its bytes. It never writes.

Invariants
----------
- A possible header costs the same whatever length it declares: its checksum is joined from two registers (linear.h, linear.py), and
  it waits for the second in a bucket of the piece where its record would end. So no payload can make a search give up or slow.
- Every record that is whole at its place is found. Only headers that no record can have are ruled out by their fields.
- What waits is bounded: past a limit it is settled first, by reading ahead without new candidates, and the search resumes where it
  was. Positions have at most one header each, so that happens a constant number of times.
- Holes of a sparse file are not read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pmwal.format import linear
from pmwal.format.layout import HEADER, PAGE, POSITION_MAX, RECORD, SEQ_MAX, Superblock, uuid_crc
from pmwal.format.ring import Load, Scan, data_ranges
from pmwal.native import native

Words = npt.NDArray[np.uint64]
Headers = npt.NDArray[np.void]
"""An array of record headers; its columns have the names of ``RECORD``'s fields."""

PIECE = 128 * 1024  # bytes whose registers the native engine keeps at a time: they stay in the processor's cache
LOAD = 4 * 1024 * 1024  # bytes that are loaded at a time: whole pieces
PENDING_MIN = 1 << 22  # candidates that may wait however small the ring is; each takes 16 bytes in the native engine
PENDING_SHARE = 64  # bytes of the searched part for each further one that may

_CODES = {"I": "<u4", "Q": "<u8", "q": "<i8", "H": "<u2"}
_HEADERS = np.dtype([(field.name, _CODES[field.code]) for field in RECORD.fields])
_HOLE = 1 << 31  # bytes of a hole that are passed at once
_ONES = 0xFFFFFFFF
_COVERED = HEADER - 4  # bytes of a header that its checksum covers
_LAP_UNKNOWN_MAX = POSITION_MAX // 2  # the greatest ``durable`` that is believed to tell a record's lap

assert _HEADERS.itemsize == HEADER
assert LOAD % PIECE == 0


class Limits(NamedTuple):
    """Which records are searched for: of this ``epoch`` and a number of at least ``seq_min``, or of a greater one and at least
    ``newer_seq_min``.

    ``placed``: the lap is known, and the position is ``base`` plus the ring offset. Otherwise ``durable`` tells the lap: it is at
    most one lap before its record.
    """

    placed: bool
    base: int
    epoch: int
    seq_min: int
    newer_seq_min: int


class Span(NamedTuple):
    """A part of the ring, in ring offsets, and whether it has data; a hole reads as zeros."""

    start: int
    end: int
    data: bool


class Records(NamedTuple):
    """Whole records in order of their positions."""

    positions: Words
    headers: Headers


class _Search(Protocol):
    """The search of one span after the other. ``data`` and ``hole`` give the ring offsets of the records found, as raw words."""

    @property
    def at(self) -> int: ...
    @property
    def pending(self) -> int: ...
    def data(self, raw: bytes | memoryview, length: int, starts: int, /) -> bytes: ...
    def hole(self) -> bytes: ...
    def rewind(self, at: int, /) -> None: ...


def whole_records(
    block: Superblock,
    load: Load,
    start: int,
    stop: int,
    *,
    epoch: int,
    seq_min: int,
    newer_seq_min: int,
    reached: Callable[[int], None] | None = None,
    scan: Scan | None = None,
) -> Iterator[Records]:
    """The whole records that start in [start, stop), at most a lap apart, within these limits: see ``Limits``.

    They may end past ``stop``, but not past the ring's end. ``reached`` is called now and then with the position that was reached.
    """
    while start < stop:
        base = start // block.capacity * block.capacity
        until = min(stop - base, block.capacity)
        limits = Limits(True, base, epoch, seq_min, newer_seq_min)
        part = _Part(block, load, start - base, until, limits, scan, reached)
        for offsets, headers in _headers_at(block, load, part.offsets()):
            yield Records(offsets + np.uint64(base), headers)
        start = base + until


def unplaced_records(block: Superblock, load: Load, scan: Scan | None = None) -> Iterator[Records]:
    """All whole records in the ring, in order of their ring offsets, when no slot tells which lap the ring is in."""
    part = _Part(block, load, 0, block.capacity, Limits(False, 0, 0, 1, 1), scan, None)
    for offsets, headers in _headers_at(block, load, part.offsets()):
        yield Records(_nearest(headers["durable"], offsets, block.capacity), headers)


class _Part:
    """A search through one contiguous part of the ring."""

    def __init__(
        self,
        block: Superblock,
        load: Load,
        start: int,
        until: int,
        limits: Limits,
        scan: Scan | None,
        reached: Callable[[int], None] | None,
    ) -> None:
        self._block = block
        self._load = load
        self._file = None if scan is None else scan.file
        self._until = until
        self._base = limits.base
        self._reached = reached
        self._spans = _spans(block, load, start)
        self._starts = [span.start for span in self._spans]
        self._pending_max = max(PENDING_MIN, (until - start) // PENDING_SHARE)
        self._search: _Search
        if scan is None:
            self._search = _NumpySearch(block, limits, self._spans)
        else:
            self._search = native.Search(
                block.capacity, block.alignment, block.payload_max, uuid_crc(block.uuid), limits, self._spans, PIECE
            )

    def offsets(self) -> Words:
        """The ring offsets of all whole records that start in the part, in order."""
        search, found = self._search, []
        while search.at < self._until or (search.pending and search.at < self._block.capacity):
            if self._reached is not None:
                self._reached(self._base + min(search.at, self._until))
            found.append(self._step(self._until))
            if search.pending > self._pending_max and search.at < self._until:
                at = search.at
                while search.pending:
                    found.append(self._step(0))
                search.rewind(at)
        offsets = np.frombuffer(b"".join(found), "<u8").copy()
        offsets.sort()
        return offsets

    def _step(self, until: int) -> bytes:
        """Search the next bytes, or pass a hole. Candidates start before ``until``."""
        at = self._search.at
        span = self._spans[bisect_right(self._starts, at) - 1]
        if not span.data:
            return self._search.hole()
        length = min(LOAD, span.end - at)
        held = length + min(HEADER - 8, self._block.capacity - at - length)  # so that a header near the end is whole
        offset = self._block.ring_offset + at
        raw = self._load(offset, held) if self._file is None else self._file[offset : offset + held]
        return self._search.data(raw, length, min(max(until - at, 0), length))


def _nearest(durable: Words, offsets: Words, capacity: int) -> Words:
    """The first positions from ``durable`` on at these ring offsets."""
    lap = np.uint64(capacity)
    return (durable + (offsets + (lap - durable % lap)) % lap).astype(np.uint64)


def _spans(block: Superblock, load: Load, start: int) -> list[Span]:
    """The ring from this offset to its end, as data and holes. Headers that begin in the page before data count as data."""
    spans: list[Span] = []
    at, capacity, ring = start, block.capacity, block.ring_offset
    for data, hole in data_ranges(load, ring + start, ring + capacity):
        begin, end = max(at, (data - ring - HEADER) // PAGE * PAGE), min(capacity, -((ring - hole) // PAGE) * PAGE)
        if begin > at:
            spans.append(Span(at, begin, False))
        elif spans:  # no hole of a whole page lies between
            begin = spans.pop().start
        spans.append(Span(begin, max(end, at), True))
        at = spans[-1].end
    if at < capacity:
        spans.append(Span(at, capacity, False))
    return spans


def _headers_at(block: Superblock, load: Load, offsets: Words) -> Iterator[tuple[Words, Headers]]:
    """The headers at these ring offsets, which are in order; from a few loads."""
    first = 0
    while first < len(offsets):
        start = int(offsets[first])
        last = int(np.searchsorted(offsets, start + LOAD))
        chosen = offsets[first:last]
        raw = load(block.ring_offset + start, int(chosen[-1]) + HEADER - start)
        words = np.frombuffer(raw, "<u8")
        rows = ((chosen - np.uint64(start)) // np.uint64(8)).astype(np.intp)
        yield chosen, words[rows[:, None] + np.arange(HEADER // 8)].view(_HEADERS).reshape(-1)
        first = last


class _NumpySearch:
    """The search in numpy: what pmwal/native/search.c does, one load at a time."""

    def __init__(self, block: Superblock, limits: Limits, spans: list[Span]) -> None:
        self.at = spans[0].start
        self._register = 0
        self.pending = 0
        self._block = block
        self._limits = limits
        self._spans = spans
        self._starts = np.array([span.start for span in spans], np.uint64)
        self._waiting: dict[int, list[npt.NDArray[np.void]]] = {}  # by where the piece begins in which they end

    def hole(self) -> bytes:
        """Pass over the hole that is due."""
        end, found = self._spans[self._span_at(self.at)].end, []
        for piece in [piece for piece in self._waiting if piece < end]:
            waiting = self._take(piece)
            there = linear.shift(np.full(len(waiting), self._register, np.uint32), waiting["end"] - np.uint64(self.at))
            found.append(waiting["start"][there == waiting["wanted"]].tobytes())
        self._register = int(linear.shift(np.array([self._register], np.uint32), np.array([end - self.at], np.uint64))[0])
        self.at = end
        return b"".join(found)

    def data(self, raw: bytes | memoryview, length: int, starts: int, /) -> bytes:
        """Search these bytes, which are due. Headers start in the first ``starts`` of them."""
        words = np.frombuffer(raw, "<u8", len(raw) // 8)
        indexes = self._candidates(words, starts)
        if not self.pending and not len(indexes):
            self.at += length
            return b""
        registers = linear.registers(self._register, memoryview(raw)[:length])
        if len(indexes):
            self._join(words, indexes, registers)
        waiting = self._take(self.at)
        ends = waiting["end"] - np.uint64(self.at)
        rows, counts = (ends // np.uint64(8)).astype(np.intp), ends % np.uint64(8)
        # The word after the last one is not read: nothing of it counts where a record ends at a word's start.
        there = linear.step(registers[rows], words[np.minimum(rows, length // 8 - 1)], counts)
        self.at += length
        self._register = int(registers[-1])
        found: bytes = waiting["start"][there == waiting["wanted"]].tobytes()
        return found

    def rewind(self, at: int, /) -> None:
        """Resume the search where it was. Nothing is pending, so registers may begin with any value again."""
        self.at = at

    def _span_at(self, offset: int) -> int:
        return int(np.searchsorted(self._starts, offset, "right")) - 1

    def _candidates(self, words: Words, starts: int) -> npt.NDArray[np.intp]:
        """The words at which a record may start."""
        limits, block, step = self._limits, self._block, self._block.alignment // 8
        count = min(starts // 8, len(words) - HEADER // 8 + 1)
        if count <= 0:
            return np.empty(0, np.intp)
        columns = [words[column : column + count : step] for column in range(HEADER // 8)]
        least = np.uint64(max(1, min(limits.seq_min, limits.newer_seq_min)))
        likely = np.flatnonzero(
            (columns[1] >= least) & (columns[1] <= np.uint64(SEQ_MAX)) & (columns[2] <= self._durable_max(count))
        )
        first, seq, durable, _, marks, batch = (column[likely] for column in columns)
        epoch, length = marks & np.uint64(_ONES), first >> np.uint64(32)
        possible = (marks >> np.uint64(48) == 0) & ((batch & np.uint64(_ONES)) < (batch >> np.uint64(32)))
        possible &= (epoch >= 1) & (length <= np.uint64(block.payload_max))
        align = np.uint64(block.alignment - 1)
        size = (np.uint64(HEADER) + length + align) & ~align
        offsets = np.uint64(self.at) + likely.astype(np.uint64) * np.uint64(block.alignment)
        possible &= size <= np.uint64(block.capacity) - offsets
        if limits.placed:
            possible &= durable <= np.uint64(limits.base) + offsets
        else:
            possible &= durable <= np.uint64(_LAP_UNKNOWN_MAX)
        this = (epoch == np.uint64(limits.epoch)) & (seq >= np.uint64(limits.seq_min))
        newer = (epoch > np.uint64(limits.epoch)) & (seq >= np.uint64(limits.newer_seq_min))
        indexes: npt.NDArray[np.intp] = likely[possible & (this | newer)] * step
        return indexes

    def _durable_max(self, count: int) -> np.uint64:
        return np.uint64(self._limits.base + self.at + 8 * count if self._limits.placed else _LAP_UNKNOWN_MAX)

    def _join(self, words: Words, indexes: npt.NDArray[np.intp], registers: linear.Registers) -> None:
        """Let these candidates wait for the pieces in which they end."""
        block = self._block
        first, durable = words[indexes], words[indexes + 2]
        starts = np.uint64(self.at) + indexes.astype(np.uint64) * np.uint64(8)
        placed = self._limits.placed
        places = starts + np.uint64(self._limits.base) if placed else _nearest(durable, starts, block.capacity)
        distances = np.uint64(_COVERED) + (first >> np.uint64(32))
        seed = np.full(len(indexes), uuid_crc(block.uuid) ^ _ONES, np.uint32)
        eight, four = np.full(len(indexes), 8), np.full(len(indexes), 4)
        differences = linear.step(seed, places, eight) ^ linear.step(registers[indexes], first, four)
        waiting = np.empty(len(indexes), [("start", np.uint64), ("end", np.uint64), ("wanted", np.uint32)])
        waiting["start"] = starts
        waiting["end"] = starts + np.uint64(4) + distances
        waiting["wanted"] = linear.shift(differences, distances) ^ ~first.astype(np.uint32)
        self.pending += len(indexes)
        self._put(waiting)

    def _put(self, waiting: npt.NDArray[np.void]) -> None:
        lasts = waiting["end"] - np.uint64(1)
        spans = np.searchsorted(self._starts, lasts, "right") - 1
        begins = self._starts[spans]
        sizes = np.array([LOAD if span.data else _HOLE for span in self._spans], np.uint64)[spans]
        pieces = begins + (lasts - begins) // sizes * sizes
        order = np.argsort(pieces, kind="stable")
        pieces, waiting = pieces[order], waiting[order]
        firsts = np.flatnonzero(np.concatenate([[True], pieces[1:] != pieces[:-1]]))
        for piece, part in zip(pieces[firsts].tolist(), np.split(waiting, firsts[1:]), strict=True):
            self._waiting.setdefault(piece, []).append(part)

    def _take(self, piece: int) -> npt.NDArray[np.void]:
        """What waits for this piece."""
        parts = self._waiting.pop(piece, [])
        waiting = np.concatenate(parts) if parts else np.empty(0, [("start", np.uint64), ("end", np.uint64), ("wanted", np.uint32)])
        self.pending -= len(waiting)
        return waiting
