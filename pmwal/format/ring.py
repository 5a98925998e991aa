"""Finding records in the ring: is there a whole one at this position, and where does the next one start. Pure but for ``load``.

Invariants
----------
- No field of a header is used before ``header_problem`` accepted the header, and no record counts before its checksum was verified.
  The checksum is taken over a private copy, and a record is made from that copy: bytes that change meanwhile are never delivered.
- A record that does not fit before the ring's end starts at the next lap. So wherever a record may have wrapped, both positions are
  examined, and a record of an older epoch at the first never hides a newer one at the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pmwal.format.epochs import has_expected_epoch
from pmwal.format.layout import (
    CRC_SIZE,
    HEADER,
    Header,
    Slot,
    Superblock,
    decode_header,
    encode_header,
    header_problem,
    record_crc,
    record_size,
    seed_crc,
)
from pmwal.native import native
from pmwal.native.checksum import crc32c
from pmwal.records import Bound, Record

Load = Callable[[int, int], bytes]
"""``load(offset, length)``: a private copy of these bytes of the file."""

CHUNK = 256 * 1024  # bytes that a walk copies at a time
_LARGE = 64 * 1024  # bytes of a payload that is copied once, into the record itself
_RUN_MAX = 64 * 1024 * 1024  # bytes that one call of ``run`` covers
LARGE_RECORD = 64 * 1024 * 1024  # a longer payload is checked piece by piece, and holes of the file are not read for it
RECORDS_MAX = 256  # records that one call of ``records`` makes


class Scan(NamedTuple):
    """Lets a scan run in C. ``file`` is the whole file, to be scanned in place, if nobody writes it; otherwise None."""

    scanner: native.Scanner
    file: memoryview | None


class Rules(NamedTuple):
    """Which records a scan takes: numbers below ``stop_seq`` that end at or before ``limit``, of an epoch that the number can have.

    With ``batches``, a batch counts from its first record to its last or not at all. ``starts``: the epochs that are known, as
    ``pack_starts`` packs them.
    """

    stop_seq: int
    limit: int
    epoch: int
    epoch_first_seq: int
    batches: bool = False
    starts: bytes = b""

    def takes_epoch(self, found: Found) -> bool:
        """Whether a record has an epoch that its number calls for."""
        return has_expected_epoch(found.header.seq, found.header.epoch, self.epoch, self.epoch_first_seq, self.starts)


class Filter(NamedTuple):
    """Which records a scan selects: their kinds, a bit for each, or None for all; and the first and the last stamp."""

    kinds: bytes | None
    since: int
    until: int

    def takes(self, header: Header) -> bool:
        """Whether a record with this header is selected."""
        kinds = self.kinds
        kind = kinds is None or kinds[header.kind >> 3] >> (header.kind & 7) & 1
        return bool(kind) and self.since <= header.time_ns <= self.until


class Clock(NamedTuple):
    """What a scan knows of the effective time: the reader's ``now``, and the ``latest`` one of an ``epoch``, 0 for none."""

    now: int
    epoch: int = 0
    latest: int = 0

    def after(self, header: Header) -> Clock:
        """The same after the record with this header: the latest stamp of its epoch so far, and a stamp past now counts as now."""
        time = min(header.time_ns, self.now)
        return Clock(self.now, header.epoch, max(self.latest, time) if header.epoch == self.epoch else time)


class Selected(NamedTuple):
    """What was selected of records of one epoch, as ``RingReader.records`` has them, and the effective times of these.

    ``position``, ``end``, ``seq`` and ``crc`` are of the last one of all, selected or not; ``clock`` is as it was after that.
    """

    records: list[tuple[Record, int, int, int]]
    times: list[int]
    position: int
    end: int
    seq: int
    crc: int
    clock: Clock


class Window(NamedTuple):
    """Bytes of the ring from ring offset ``start`` on, and the number in the header at the ring's start.

    Near the ring's end a scan stops before a record of number ``lap_seq``: the right one may be the one at the ring's start.
    """

    data: memoryview | bytes
    start: int
    lap_seq: int


class Laid(NamedTuple):
    """How far records are laid in another ring: where the next one goes, where its batch began, and the longest payload so far."""

    position: int = 0
    batch: int = 0
    longest: int = 0


class Packed(NamedTuple):
    """Records packed for a frame: their ``body``, empty for none; what follows them, and whether it is too long (``full``).

    ``entry``, ``position`` and ``crc`` are of the last one: where it begins in the body, where in the ring, and its checksum.
    """

    body: bytes
    entry: int
    position: int
    crc: int
    after: Bound
    full: bool


class Run(NamedTuple):
    """How far a run got: its end, its last epoch, the highest ``durable`` mark so far, and where some of its records start."""

    at: Bound
    epoch: int
    mark: int
    starts: list[Bound]


def data_ranges(load: Load, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, stop) of the file that may be other than zeros, in order.

    A load that is a method of an object with a method ``data_ranges`` tells them; any other has data everywhere.
    """
    find = getattr(getattr(load, "__self__", None), "data_ranges", None)
    yield from ((start, stop),) if find is None else find(start, stop)


def view_at(load: Load, offset: int) -> memoryview | None:
    """Bytes of the file from this offset on, in place: they stay as they are until the next load. None where there are none.

    A load that is a method of an object with a method ``view_at`` has them.
    """
    find = getattr(getattr(load, "__self__", None), "view_at", None)
    return None if find is None else find(offset)


def overlay(load: Load, patches: Sequence[tuple[int, bytes]]) -> Load:
    """A load that sees these (offset, bytes) patches over the file."""
    return _Overlay(load, patches).load


class _Overlay:
    """Patches over a file, and the load that sees them."""

    def __init__(self, load: Load, patches: Sequence[tuple[int, bytes]]) -> None:
        self._load = load
        self._patches = patches

    def load(self, offset: int, length: int) -> bytes:
        """A private copy of these bytes of the patched file."""
        data = bytearray(self._load(offset, length))
        for start, patch in self._patches:
            begin, end = max(start, offset), min(start + len(patch), offset + length)
            if begin < end:
                data[begin - offset : end - offset] = patch[begin - start : end - start]
        return bytes(data)

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The data of the file, and the patches."""
        patched = ((max(start, at), min(stop, at + len(patch))) for at, patch in self._patches)
        ranges = sorted([*data_ranges(self._load, start, stop), *(item for item in patched if item[0] < item[1])])
        while ranges:
            first, end = ranges.pop(0)
            while ranges and ranges[0][0] <= end:
                end = max(end, ranges.pop(0)[1])
            yield first, end


class Found(NamedTuple):
    """A whole record in the ring: where it starts and ends, and its header."""

    position: int
    end: int
    header: Header


class RingReader:
    """Reads a ring through private copies of up to ``chunk`` bytes.

    One reader serves one walk: it never loads again what it has copied, so a new walk needs a new reader.
    """

    def __init__(
        self, block: Superblock, load: Load, chunk: int = CHUNK, scan: Scan | None = None, record_type: type[Record] = Record
    ) -> None:
        self.block = block
        self._record_type = record_type
        self._scan = scan
        self._load = load
        self._chunk_size = chunk
        self._chunk = b""
        self._chunk_start = 0
        self._checked = (-1, b"", 0)  # of the last record found: position, private copy, offset of its payload in the copy
        self._lap: RingReader | None = None  # reads the ring's start, so that this reader's chunk stays where the walk is
        self._capacity, self._alignment, self._payload_max = block.capacity, block.alignment, block.payload_max
        self._size_max = record_size(block.payload_max, block.alignment)
        self._peeked = b""  # the private copy that the last header came from

    def _copy(self, offset: int, length: int) -> tuple[bytes, int]:
        """A copy that contains ``length`` bytes of the ring from ``offset``, and where in it they begin."""
        begin = offset - self._chunk_start
        if begin < 0 or begin + length > len(self._chunk):
            size = max(length, min(self._chunk_size, self._capacity - offset))
            self._chunk = self._load(self.block.ring_offset + offset, size)
            self._chunk_start = offset
            begin = 0
        return self._chunk, begin

    def peek(self, position: int) -> Header | None:
        """The header at this position if it is a possible one. Its checksum is not verified."""
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
        """The whole record that starts at exactly this position, of any number, or None."""
        header = self.peek(position)
        return None if header is None else self._check(position, header)

    def _check(self, position: int, header: Header) -> Found | None:
        if header.length > LARGE_RECORD:
            self._checked = position, b"", 0
            whole = self._is_whole(position, header)
        else:
            whole = self._copy_whole(position, header)
        return Found(position, position + record_size(header.length, self._alignment), header) if whole else None

    def _is_whole(self, position: int, header: Header) -> bool:
        """Whether a large record is whole: by its bytes as they are now, of which no copy is kept.

        Holes of the file are not read, so that a header of a few bytes cannot claim time and memory for gigabytes.
        """
        start = self.block.ring_offset + position % self._capacity
        if decode_header(self._load(start, HEADER)) != header:
            return False
        from pmwal.format.linear import crc_after_zeros  # noqa: PLC0415 - loads numpy, which other records do not need

        at, end, crc = start + CRC_SIZE, start + HEADER + header.length, seed_crc(self.block.uuid, position)
        for first, stop in data_ranges(self._load, at, end):
            crc = crc_after_zeros(crc, first - at)
            for at in range(first, stop, CHUNK):
                crc = crc32c(self._load(at, min(CHUNK, stop - at)), crc)
            at = stop
        return crc_after_zeros(crc, end - at) == header.crc

    def _copy_whole(self, position: int, header: Header) -> bool:
        """Whether a record is whole, by a private copy, which is kept."""
        if header.length > _LARGE:
            return self._copy_large(position, header)
        raw, begin = self._copy(position % self._capacity, HEADER + header.length)
        # Header and payload come from one private copy; if the header was peeked at in another, it may have changed since.
        if raw is not self._peeked and decode_header(raw, begin) != header:
            return False
        stored = memoryview(raw)[begin : begin + HEADER + header.length]
        if record_crc(stored, self.block.uuid, position) != header.crc:
            return False
        self._checked = position, raw, begin + HEADER
        return True

    def _copy_large(self, position: int, header: Header) -> bool:
        """As ``_copy_whole``: the checksum covers the fields of ``header``, a copy already, and a copy of the payload alone."""
        payload = self._load(self.block.ring_offset + position % self._capacity + HEADER, header.length)
        if decode_header(encode_header(header, payload, self.block.uuid, position)).crc != header.crc:
            return False
        self._checked = position, payload, 0
        return True

    def numbered(self, position: int, seq: int) -> Found | None:
        """The whole record with this number, at ``position`` or at the start of the next lap."""
        here: Found | None = None
        header = self.peek(position)
        if header is not None and header.seq == seq:
            here = self._check(position, header)
        there = self._at_next_lap(position, seq)
        if here is None or (there is not None and there.header.epoch > here.header.epoch):
            return there
        # Two whole records: check the first again, because ``record`` delivers what was checked last.
        return here if there is None else self._check(here.position, here.header)

    def next_lap(self, position: int) -> int | None:
        """The start of the next lap, if a record that follows ``position`` may have wrapped to it."""
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

    # -- runs of records, by the native engine. It takes the ordinary case only; the caller examines what stops it record by record.

    def run(self, at: Bound, rules: Rules, epoch: int, mark: int, last_start: int | None) -> Run:
        """Follow whole records from ``at`` on, none of an epoch before ``epoch``, as far as the ordinary case goes.

        ``last_start`` is the newest record start that the caller knows, ``mark`` the highest ``durable``; the answer adds to them.
        """
        if self._scan is None or at.next_seq >= rules.stop_seq:
            return Run(at, epoch, mark, [])
        window = self._window(at.position)
        position, seq, epoch, mark, outside, starts = self._scan.scanner.run(window, at, rules, epoch, mark, last_start, _RUN_MAX)
        if outside:
            self._chunk = b""  # the next record is not wholly in the copy
        return Run(Bound(position, seq), epoch, mark, starts)

    def records(self, at: Bound, rules: Rules) -> list[tuple[Record, int, int, int]]:
        """Some records from ``at`` on as (record, position, end, checksum). None if the next one is not an ordinary case."""
        if self._scan is None:
            return []
        records: list[tuple[Record, int, int, int]] = self._scan.scanner.records(
            self._record_type, self._window(at.position), at, rules, RECORDS_MAX
        )
        if len(records) < RECORDS_MAX:
            self._chunk = b""
        return records

    def selected(self, at: Bound, rules: Rules, chosen: Filter, clock: Clock) -> Selected | None:
        """Some records from ``at`` on, of one epoch. None if the next one is not an ordinary case."""
        if self._scan is None:
            return None
        window = self._window(at.position)
        found = self._scan.scanner.selected(self._record_type, window, at, rules, RECORDS_MAX, *chosen, *clock)
        if found is None:
            self._chunk = b""
            return None
        records, times, position, end, seq, crc, epoch, latest = found
        if len(records) < RECORDS_MAX:
            self._chunk = b""
        return Selected(records, times, position, end, seq, crc, Clock(clock.now, epoch, latest))

    def frame(self, at: Bound, rules: Rules, room: int) -> Packed:
        """Pack records from ``at`` on into at most ``room`` bytes."""
        if self._scan is None:
            return Packed(b"", 0, 0, 0, at, full=False)
        body, entry, last, crc, position, seq, full = self._scan.scanner.frame(self._window(at.position), at, rules, room)
        if not full:
            self._chunk = b""  # the next record is not wholly in the copy, or no ordinary case
        return Packed(body, entry, last, crc, Bound(position, seq), full)

    def relocate(
        self, at: Bound, rules: Rules, laid: Laid, other: native.Scanner, buffer: bytearray, used: int
    ) -> tuple[Bound, Laid]:
        """Lay records from ``at`` on anew in another ring: into the buffer, after the ``used`` bytes, as far as there is room."""
        if self._scan is None:
            return at, laid
        window = self._window(at.position)
        position, seq, *reached, full = self._scan.scanner.relocate(window, at, rules, other, buffer, used, *laid)
        if not full:
            self._chunk = b""  # the next record is not wholly in the copy, or no ordinary case
        return Bound(position, seq), Laid(*reached)

    def _window(self, position: int) -> Window:
        """A part of the ring that contains this position."""
        assert self._scan is not None
        ring, file_size, offset = self.block.ring_offset, self.block.file_size, position % self._capacity
        lap = lap_seq(self.block, self._load)  # before the view, which stays until the next load
        if self._scan.file is not None:
            return Window(self._scan.file[ring:file_size], 0, lap)
        view = view_at(self._load, ring + offset)
        if view is not None:
            return Window(view[: self._capacity - offset], offset, lap)
        self._copy(offset, min(HEADER, self._capacity - offset))
        return Window(self._chunk, self._chunk_start, lap)

    def record(self, found: Found) -> Record | None:
        """The record that this reader found last, made from the very bytes that were checked.

        A large one is copied only now, and checked once more: None if it has changed.
        """
        header = found.header
        if header.length > LARGE_RECORD and not self._copy_large(found.position, header):
            return None
        position, raw, start = self._checked
        assert position == found.position
        return self._record_type(header.seq, header.kind, header.time_ns, raw[start : start + header.length])


def lap_seq(block: Superblock, load: Load) -> int:
    """The number in the header at the ring's start, whole or not."""
    return decode_header(load(block.ring_offset, HEADER)).seq


def belongs(found: Found, slot: Slot, starts: bytes) -> bool:
    """Whether a whole record has an epoch that its number and position call for, in a log with this commit pointer.

    A record that a rollback or an earlier recovery discarded is whole, too, but has an older one. ``starts``: as in ``Control``.
    """
    if found.position >= slot.commit_position:
        return found.header.epoch >= slot.epoch
    return has_expected_epoch(found.header.seq, found.header.epoch, slot.epoch, slot.epoch_first_seq, starts)
