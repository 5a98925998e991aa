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
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pmwal.format.layout import HEADER, PAGE, RECORD, Superblock, uuid_crc
from pmwal.format.ring import Load, Scan, data_ranges, view_at
from pmwal.native import native
from pmwal.recovery.spans import Limits, Span

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]
    Headers = npt.NDArray[np.void]  # of record headers; the columns have the names of RECORD's fields

PIECE = 128 * 1024  # bytes whose registers the native engine keeps at a time: they stay in the processor's cache
LOAD = 4 * 1024 * 1024  # bytes that are loaded at a time: whole pieces
PENDING_MIN = 1 << 22  # candidates that may wait however small the ring is; each takes 16 bytes in the native engine
PENDING_SHARE = 64  # bytes of the searched part for each further one that may

_CODES = {"I": "<u4", "Q": "<u8", "q": "<i8", "H": "<u2"}

assert LOAD % PIECE == 0


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
            yield Records(offsets + offsets.dtype.type(base), headers)
        start = base + until


def unplaced_records(block: Superblock, load: Load, scan: Scan | None = None) -> Iterator[Records]:
    """All whole records in the ring, in order of their ring offsets, when no slot tells which lap the ring is in."""
    part = _Part(block, load, 0, block.capacity, Limits(False, 0, 0, 1, 1), scan, None)
    for offsets, headers in _headers_at(block, load, part.offsets()):
        from pmwal.recovery.numpy_search import nearest  # noqa: PLC0415 - loads numpy, as the records that were found did

        yield Records(nearest(headers["durable"], offsets, block.capacity), headers)


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
        self._in_place = scan is not None and scan.file is None  # the reference engine takes whole loads
        self._until = until
        self._base = limits.base
        self._reached = reached
        self._spans = _spans(block, load, start)
        self._starts = [span.start for span in self._spans]
        self._pending_max = max(PENDING_MIN, (until - start) // PENDING_SHARE)
        self._search: _Search
        if scan is None:
            from pmwal.recovery.numpy_search import NumpySearch  # noqa: PLC0415 - loads numpy, which the native engine does without

            self._search = NumpySearch(block, limits, self._spans, LOAD)
        else:
            self._search = native.Search(
                block.capacity, block.alignment, block.payload_max, uuid_crc(block.uuid), limits, self._spans, PIECE
            )

    def offsets(self) -> bytes:
        """The ring offsets of all whole records that start in the part, in any order, as raw words."""
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
        return b"".join(found)

    def _step(self, until: int) -> bytes:
        """Search the next bytes, or pass a hole. Candidates start before ``until``."""
        at = self._search.at
        span = self._spans[bisect_right(self._starts, at) - 1]
        if not span.data:
            return self._search.hole()
        raw, length = self._bytes_at(at, span.end - at)
        return self._search.data(raw, length, min(max(until - at, 0), length))

    def _bytes_at(self, at: int, rest: int) -> tuple[bytes | memoryview, int]:
        """Some of the ``rest`` bytes from this ring offset on, and how many: all of them, or whole pieces.

        There are more bytes than that, so that a header near their end is whole.
        """
        offset, longest = self._block.ring_offset + at, LOAD
        view = view_at(self._load, offset) if self._in_place else None
        if view is not None:
            longest = (len(view) - (HEADER - 8)) // PIECE * PIECE
            if 0 < longest < rest:
                return view, longest
            longest = PIECE
        length = min(longest, rest)
        held = length + min(HEADER - 8, self._block.capacity - at - length)
        return (self._load(offset, held) if self._file is None else self._file[offset : offset + held]), length


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


def _headers_at(block: Superblock, load: Load, raw_offsets: bytes) -> Iterator[tuple[Words, Headers]]:
    """These ring offsets in order, and the headers at them; from a few loads."""
    if not raw_offsets:  # the usual case, and numpy takes longer to load than a small log to recover
        return
    from pmwal.format.numerics import np  # noqa: PLC0415 - see above

    dtype = np.dtype([(field.name, _CODES[field.code]) for field in RECORD.fields])
    assert dtype.itemsize == HEADER
    offsets = np.sort(np.frombuffer(raw_offsets, "<u8"))
    first = 0
    while first < len(offsets):
        start = int(offsets[first])
        last = int(np.searchsorted(offsets, start + LOAD))
        chosen = offsets[first:last]
        raw = load(block.ring_offset + start, int(chosen[-1]) + HEADER - start)
        words = np.frombuffer(raw, "<u8")
        rows = ((chosen - np.uint64(start)) // np.uint64(8)).astype(np.intp)
        yield chosen, words[rows[:, None] + np.arange(HEADER // 8)].view(dtype).reshape(-1)
        first = last
