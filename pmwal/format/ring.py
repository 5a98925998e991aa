"""Reading the ring: is there a whole record at this position, and where does the next one stand. Pure but for ``load``.

Invariants
----------
- Nothing that a header says is believed before ``header_problem`` found it possible and its checksum was right, and the
  checksum is taken over a private copy: bytes that change meanwhile are never handed out.
- A record that does not fit before the ring's end stands at the next lap's start, so wherever one may have wrapped both
  places are looked at, and an older epoch at the first never hides a newer one at the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pmwal.format.layout import (
    HEADER,
    Header,
    Superblock,
    decode_header,
    header_problem,
    record_crc,
    record_size,
)
from pmwal.native import native
from pmwal.records import Bound, Record

Load = Callable[[int, int], bytes]
"""A private copy of ``length`` bytes of the file from ``offset``."""

CHUNK = 256 * 1024  # what a walk copies at a time
_RUN_MAX = 16 * 1024 * 1024  # bytes that a run takes at once
RECORDS_MAX = 256  # records that are made at once


class Scan(NamedTuple):
    """What lets a scan run in C. ``window`` is the whole file, to be looked at in place, or None."""

    scanner: native.Scanner
    window: memoryview | None


class Rules(NamedTuple):
    """Which records a run takes: numbers below ``stop_seq`` that end at or before ``limit`` and have the epoch that their number
    calls for; with ``batches``, a batch counts from its first record to its last or not at all."""

    stop_seq: int
    limit: int
    epoch: int
    epoch_first_seq: int
    batches: bool


class Run(NamedTuple):
    """How far a run got: its end, the last epoch and the highest ``durable`` mark met, and where some records start."""

    at: Bound
    epoch: int
    mark: int
    starts: list[Bound]


def overlay(load: Load, patches: Sequence[tuple[int, bytes]]) -> Load:
    """A load that sees these (offset, bytes) patches over the file."""

    def patched(offset: int, length: int) -> bytes:
        data = bytearray(load(offset, length))
        for start, patch in patches:
            begin, end = max(start, offset), min(start + len(patch), offset + length)
            if begin < end:
                data[begin - offset : end - offset] = patch[begin - start : end - start]
        return bytes(data)

    return patched


class Found(NamedTuple):
    """A whole record: where it starts and ends, and its header."""

    position: int
    end: int
    header: Header


class RingReader:
    """Looks at a ring through private copies of up to 256 KiB.

    One reader serves one walk: it never looks twice at what it copied, so a new walk takes a new reader.
    """

    def __init__(self, block: Superblock, load: Load, chunk: int = CHUNK, scan: Scan | None = None) -> None:
        self.block = block
        self._scan = scan
        self._load = load
        self._chunk_size = chunk
        self._chunk = b""
        self._chunk_start = 0
        self._checked = (-1, b"", 0)  # position, private copy and where in it the payload begins, of the last record found
        self._lap: RingReader | None = None  # looks at the ring's start, so that this one's chunk stays where the walk is
        self._capacity, self._alignment, self._payload_max = block.capacity, block.alignment, block.payload_max
        self._size_max = record_size(block.payload_max, block.alignment)
        self._peeked = b""  # the private copy that the last header came from

    def _copy(self, offset: int, length: int) -> tuple[bytes, int]:
        """Bytes that hold ``length`` bytes of the ring from ``offset``, and where in them they begin."""
        begin = offset - self._chunk_start
        if begin < 0 or begin + length > len(self._chunk):
            size = max(length, min(self._chunk_size, self._capacity - offset))
            self._chunk = self._load(self.block.ring_offset + offset, size)
            self._chunk_start = offset
            begin = 0
        return self._chunk, begin

    def peek(self, position: int) -> Header | None:
        """The header at this position when one is possible there; its checksum is not looked at."""
        offset = position % self._capacity
        room = self._capacity - offset
        if room < HEADER:
            return None
        self._peeked, begin = self._copy(offset, HEADER)
        header = decode_header(self._peeked, begin)
        if header_problem(header, position, room, self._alignment, self._payload_max):
            return None
        return header

    def whole(self, position: int) -> Found | None:
        """The whole record that starts at exactly this position, whatever its number, or None."""
        header = self.peek(position)
        return None if header is None else self._check(position, header)

    def _check(self, position: int, header: Header) -> Found | None:
        raw, begin = self._copy(position % self._capacity, HEADER + header.length)
        # Header and payload are taken from one private copy: the header may have changed since it was peeked at in another.
        if raw is not self._peeked and decode_header(raw, begin) != header:
            return None
        stored = memoryview(raw)[begin : begin + HEADER + header.length]
        if record_crc(stored, self.block.uuid, position) != header.crc:
            return None
        self._checked = position, raw, begin + HEADER
        return Found(position, position + record_size(header.length, self._alignment), header)

    def numbered(self, position: int, seq: int) -> Found | None:
        """The whole record with this number in a log that goes on at ``position``: here or at the next lap's start."""
        here: Found | None = None
        header = self.peek(position)
        if header is not None and header.seq == seq:
            here = self._check(position, header)
        there = self._at_next_lap(position, seq)
        if here is None or (there is not None and there.header.epoch > here.header.epoch):
            return there
        # Two whole ones: the first has to be checked again, because ``record`` hands out what was checked last.
        return here if there is None else self._check(here.position, here.header)

    def next_lap(self, position: int) -> int | None:
        """The next lap's start, when a record of this log may have wrapped to it from ``position``."""
        room = self._capacity - position % self._capacity
        return position + room if room < self._size_max else None

    def _at_next_lap(self, position: int, seq: int) -> Found | None:
        start = self.next_lap(position)
        if start is None:
            return None
        if self._lap is None:
            self._lap = RingReader(self.block, self._load, chunk=HEADER)
        header = self._lap.peek(start)
        if header is None or header.seq != seq:
            return None
        if record_size(header.length, self._alignment) <= start - position:
            return None  # it would have fitted before the ring's end, so it is not the next record
        self._peeked = b""  # this header comes from another copy
        return self._check(start, header)

    # -- many at once, by the native engine: the ordinary case only, so what stops it is looked at one by one

    def run(self, at: Bound, rules: Rules, epoch: int, mark: int, last_start: int | None) -> Run:
        """Follow whole records from ``at`` on, none of an epoch before ``epoch``, as far as the ordinary case goes.

        ``last_start`` is where the newest known start lies; ``starts`` in the answer go on from it.
        """
        if self._scan is None or at.next_seq >= rules.stop_seq:
            return Run(at, epoch, mark, [])
        window, start = self._window(at.position)
        position, seq, epoch, mark, outside, starts = self._scan.scanner.run(
            window,
            start,
            *at,
            rules.stop_seq,
            rules.limit,
            rules.epoch,
            rules.epoch_first_seq,
            self._lap_number(),
            rules.batches,
            _RUN_MAX,
            epoch,
            mark,
            last_start,
        )
        if outside:
            self._chunk = b""  # what is next does not fit into what was copied
        return Run(Bound(position, seq), epoch, mark, starts)

    def records(self, at: Bound, stop_seq: int, limit: int, epoch: int, epoch_first_seq: int) -> list[tuple[Record, int, int, int]]:
        """Some records from ``at`` on as (record, position, end, checksum); none when the next one is not an ordinary case."""
        if self._scan is None:
            return []
        window, start = self._window(at.position)
        lap_number = self._lap_number()
        many: list[tuple[Record, int, int, int]] = self._scan.scanner.records(
            Record, window, start, *at, stop_seq, limit, epoch, epoch_first_seq, lap_number, RECORDS_MAX
        )
        if len(many) < RECORDS_MAX:
            self._chunk = b""
        return many

    def _window(self, position: int) -> tuple[memoryview | bytes, int]:
        """Bytes of the ring that hold this position, and the ring offset at which they begin."""
        assert self._scan is not None
        if self._scan.window is not None:
            return self._scan.window[self.block.ring_offset : self.block.file_size], 0
        offset = position % self._capacity
        self._copy(offset, min(HEADER, self._capacity - offset))
        return self._chunk, self._chunk_start

    def _lap_number(self) -> int:
        """The number in the header at the ring's start: another record of that number may stand there."""
        return decode_header(self._load(self.block.ring_offset, HEADER)).seq

    def record(self, found: Found) -> Record:
        """The record that this reader found last, from the very bytes that were checked."""
        position, raw, start = self._checked
        assert position == found.position
        header = found.header
        return Record(header.seq, header.kind, header.time_ns, raw[start : start + header.length])


def has_due_epoch(found: Found, epoch: int, epoch_first_seq: int) -> bool:
    """Whether a record has the epoch that its number calls for in a log whose newest epoch begins with that number."""
    return found.header.epoch == epoch if found.header.seq >= epoch_first_seq else found.header.epoch < epoch
