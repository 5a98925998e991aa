"""Walking over the records of a log: what ``Wal`` and ``Reader`` share.

Invariants
----------
- A record is delivered only from the private copy in which its checksum was verified.
- The records of one walk have consecutive numbers, and positions only grow. A record that is missing ends the walk with an
  error, never with a gap. A walk over a whole view ends exactly where the view does, or with an error.
- ``Overrun.missed`` counts from the record that was asked for, or that comes next, to the oldest one that is there: who continues
  that many later leaves out nothing that the log still has.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pmwal.cursor import cursor_of, parse_cursor
from pmwal.errors import CorruptWal, Overrun, PmwalError
from pmwal.format.epochs import has_expected_epoch
from pmwal.format.frame import ENTRY, pack
from pmwal.format.index import INDEX_STEP, SparseIndex
from pmwal.format.layout import HEADER, PAGE, Header, Superblock
from pmwal.format.relocation import PIECE, Relocation
from pmwal.format.ring import CHUNK, Clock, Filter, Found, Load, Packed, RingReader, Rules, Run, Scan, Selected
from pmwal.records import Bound, Frame, Record

_LOOKUP_CHUNK = 32 * 1024  # bytes that a look-up of one record loads at first
_FRAME_CHUNK = 4 * CHUNK  # bytes that are copied at a time for a frame, at most


class View(NamedTuple):
    """What may be read: the records from ``tail`` to ``end``. Those from ``epoch_first_seq`` on were stored in ``epoch``.

    ``writer`` identifies the open of the writer, of another process, that shows this; None without one. ``starts``: the epochs that
    are known, as ``pack_starts`` packs them. ``open_id`` is that of the open, empty for a writer of version 0.1.
    """

    tail: Bound
    end: Bound
    epoch: int
    epoch_first_seq: int
    writer: Hashable = None
    starts: bytes = b""
    open_id: bytes = b""

    def same_history(self, other: View) -> bool:
        """Whether no number can have come to mean another record between the two."""
        return (self.epoch, self.writer) == (other.epoch, other.writer)

    def contains(self, found: Found) -> bool:
        """Whether a whole record ends within the view and has the epoch that its number calls for.

        Records that were rolled back or dropped may be whole, too; and records stored after this view was taken are newer.
        """
        header = found.header
        fits = has_expected_epoch(header.seq, header.epoch, self.epoch, self.epoch_first_seq, self.starts)
        return found.end <= self.end.position and fits

    def rules(self, stop_seq: int) -> Rules:
        """What a scan of this view takes, up to but not including ``stop_seq``."""
        return Rules(stop_seq, self.end.position, self.epoch, self.epoch_first_seq, starts=self.starts)


class Delivered(NamedTuple):
    """What identifies a record that was delivered: where it starts and ends, its number and its checksum."""

    position: int
    end: int
    seq: int
    crc: int


Explain = Callable[[Bound, View], PmwalError]
"""Makes the error for a record that a walk over a view expected at this bound and did not find."""

OnDelivery = Callable[[Delivered], None]
"""Called with each record just before it is delivered."""


@dataclass(frozen=True, slots=True)
class Walker:
    """Reads the records of views of one log. With ``scan`` it takes runs of records from the native engine."""

    block: Superblock
    load: Load
    explain: Explain
    on_delivery: OnDelivery | None = None
    scan: Scan | None = None
    now: Callable[[], View | None] | None = None  # the log by now, None if it has another file; left out if the log cannot change
    record_type: type[Record] = Record

    def walk(self, view: View, start: Bound, stop_seq: int) -> Iterator[Record]:
        """The records from ``start`` up to, not including, number ``stop_seq``."""
        for run in self.runs(view, start, stop_seq):
            yield from deliver(run, self.on_delivery)

    def runs(self, view: View, start: Bound, stop_seq: int) -> Iterator[Sequence[tuple[Record, int, int, int]]]:
        """The same records in runs, each with its position, end and checksum. None of them counts as delivered."""
        chunk = min(CHUNK, max(PAGE, view.end.position - start.position))
        ring = RingReader(self.block, self.load, chunk, self.scan, self.record_type)
        at, rules = start, view.rules(stop_seq)
        while at.next_seq < stop_seq:
            run = ring.records(at, rules)
            if not run:
                found = self._expect(ring, view, at)
                run = [(self._record(ring, view, at, found), found.position, found.end, found.header.crc)]
            (first, position, _, _), (last, _, end, _) = run[0], run[-1]
            assert (first.seq, last.seq) == (at.next_seq, at.next_seq + len(run) - 1), "a walk leaves no record out"
            assert at.position <= position < end <= view.end.position, "positions only grow"
            yield run
            at = Bound(end, last.seq + 1)
        self._check_end(at, view)

    def selected(self, view: View, start: Bound, stop_seq: int, chosen: Filter, clock: Clock) -> Iterator[Selected]:
        """As ``runs``, with the records that are selected only. Each run is of one epoch."""
        chunk = min(CHUNK, max(PAGE, view.end.position - start.position))
        ring = RingReader(self.block, self.load, chunk, self.scan, self.record_type)
        at, rules = start, view.rules(stop_seq)
        while at.next_seq < stop_seq:
            run = ring.selected(at, rules, chosen, clock)
            if run is None:
                found = self._expect(ring, view, at)
                after = clock.after(found.header)
                checked = self._record(ring, view, at, found), found.position, found.end, found.header.crc
                records, times = ([checked], [after.latest]) if chosen.takes(found.header) else ([], [])
                run = Selected(records, times, found.position, found.end, found.header.seq, found.header.crc, after)
            assert at.next_seq <= run.seq < stop_seq, "a walk leaves no record out"
            assert at.position <= run.position < run.end <= view.end.position, "positions only grow"
            yield run
            at, clock = Bound(run.end, run.seq + 1), run.clock
        self._check_end(at, view)

    def delivered(self, runs: Iterable[Selected]) -> Iterator[Record]:
        """The records of runs of ``selected``."""
        for run in runs:
            yield from deliver(run.records, self.on_delivery)
            self.note(run)

    def note(self, run: Selected) -> None:
        """The last record of a run counts as delivered, selected or not."""
        if self.on_delivery is not None:
            self.on_delivery(Delivered(run.position, run.end, run.seq, run.crc))

    def frame(self, view: View, start: Bound, stop_seq: int, size_max: int) -> Frame:
        """The records from ``start`` on that fit into a body of this size, at least one. Only the last one counts as delivered.

        A record that is not there, but the first, ends the frame before it: the next frame begins with it, and raises.
        """
        ring = RingReader(self.block, self.load, _frame_chunk(view, start, size_max), self.scan)
        at, rules, bodies, room, packed = start, view.rules(stop_seq), list[bytes](), size_max, None
        while at.next_seq < stop_seq and (packed is None or not packed.full):
            more = ring.frame(at, rules, room)
            if not more.body:
                more = self._pack(ring, view, at, room, first=not bodies)
            if not more.body:
                break
            packed, at, room = more, more.after, room - len(more.body)
            bodies.append(more.body)
        assert packed is not None, "a frame has a record"
        self._check_end(at, view)
        last = at.next_seq - 1
        if self.on_delivery is not None:
            self.on_delivery(Delivered(packed.position, at.position, last, packed.crc))
        _, kind, time_ns = ENTRY.struct.unpack_from(packed.body, packed.entry)
        cursor = cursor_of(last, kind, time_ns, packed.body[packed.entry + ENTRY.size :])
        return Frame(start.next_seq, last, str(cursor), b"".join(bodies))

    def _pack(self, ring: RingReader, view: View, at: Bound, room: int, *, first: bool) -> Packed:
        """One record, packed as the native engine packs it. The ``first`` of a frame need not fit, and must be there."""
        found = ring.numbered(*at)
        if found is None or not view.contains(found):
            if first:
                raise self.explain(at, view)
            return Packed(b"", 0, 0, 0, at, full=False)
        full = ENTRY.size + found.header.length > room
        body = pack([self._record(ring, view, at, found)]) if first or not full else b""
        return Packed(body, 0, found.position, found.header.crc, Bound(found.end, at.next_seq + 1), full)

    def relocated(self, view: View, to: Relocation) -> Iterator[bytes]:
        """The ring of another log with all records of the view, in pieces of whole pages."""
        yield from self.laid(view, to, view.tail)
        yield to.take(rest=True)

    def laid(self, view: View, to: Relocation, start: Bound, index: SparseIndex | None = None) -> Iterator[bytes]:
        """The records of the view from ``start`` on, laid in the ring of another log, in pieces of whole pages.

        What is left over is pending in ``to``. ``index`` gets where some of them are laid.
        """
        ring = RingReader(self.block, self.load, PIECE if index is None else 2 * INDEX_STEP, self.scan)
        at, rules = start, view.rules(view.end.next_seq)
        while at.next_seq < rules.stop_seq:
            if index is not None:
                index.add(Bound(to.end, at.next_seq))
            after = to.lay(ring, at, rules)
            if after == at:
                found = self._expect(ring, view, at)
                to.add(found.header, self._record(ring, view, at, found).data)
                after = Bound(found.end, found.header.seq + 1)
            at = after
            if to.pending > PIECE // 2:
                yield to.take()
        self._check_end(at, view)

    def _check_end(self, at: Bound, view: View) -> None:
        """After the last record of a view a walk is at the end of the view."""
        if at.next_seq == view.end.next_seq and at != view.end and (self.now is None or self._ends_there(self.now(), view)):
            raise self.explain_end(at, view)

    @staticmethod
    def _ends_there(now: View | None, view: View) -> bool:
        return now is not None and now.end == view.end

    def explain_end(self, at: Bound, view: View) -> PmwalError:
        """Why a walk that found all numbers of a view ended elsewhere: a discarded record was taken for one that is lost."""
        return self.explain(Bound(at.position, at.next_seq - 1), view)

    def read_one(self, view: View, at: Bound) -> tuple[Record, int]:
        """The record at this bound, and where it ends."""
        ring = self._lookup()
        found = self._expect(ring, view, at)
        return self._record(ring, view, at, found), found.end

    def header(self, view: View, at: Bound) -> Header:
        """The header of the record at this bound."""
        return self._expect(self._lookup(), view, at).header

    def locate(self, view: View, near: Bound, seq: int, passed: list[Bound] | None = None) -> Found:
        """The record with this number, found by a walk from a known start. ``passed`` gets some starts on the way.

        ``Overrun.missed`` counts from this number: records before it, from which the walk began, may be freed meanwhile, and this
        one still be there. Then it begins again where the log begins by now.
        """
        passed = [] if passed is None else passed
        while True:
            try:
                return self._locate(view, near, seq, passed)
            except Overrun as error:
                if not error.missed or self.now is None:
                    raise
                now = self.now()
                if now is None:
                    raise resized(seq) from None
                if now.tail.next_seq <= near.next_seq:
                    raise
                if now.tail.next_seq > seq:
                    raise gone(seq, now.tail) from None
                near = now.tail
                passed.clear()

    def _locate(self, view: View, near: Bound, seq: int, passed: list[Bound]) -> Found:
        ring, at, epoch, rules, last = self._lookup(), near, 1, view.rules(seq), None
        while True:
            run = ring.run(at, rules, epoch, 0, last)
            if run.at == at:
                found = self._expect(ring, view, at)
                if found.header.seq == seq:
                    return found
                spaced = last is None or found.position - last >= INDEX_STEP
                starts = [Bound(found.position, found.header.seq)] if spaced else []
                run = Run(Bound(found.end, found.header.seq + 1), found.header.epoch, 0, starts)
            if run.starts:
                last = run.starts[-1].position
                passed += run.starts
            if run.at.position - near.position >= _LOOKUP_CHUNK > at.position - near.position:
                ring = RingReader(self.block, self.load, scan=self.scan)  # it takes larger pieces
            at, epoch = run.at, run.epoch

    def end_from(self, view: View, position: int) -> Bound:
        """Where the first record of the view ends that ends at or after this position; the end of the view if none does."""
        ring, at, epoch = RingReader(self.block, self.load, scan=self.scan), view.tail, 1
        rules = view.rules(view.end.next_seq)._replace(limit=min(position, view.end.position))
        while at.position < position and at.next_seq < view.end.next_seq:
            run = ring.run(at, rules, epoch, 0, None)
            if run.at == at:
                found = self._expect(ring, view, at)
                run = Run(Bound(found.end, found.header.seq + 1), found.header.epoch, 0, [])
            at, epoch = run.at, run.epoch
        return at

    def _record(self, ring: RingReader, view: View, at: Bound, found: Found) -> Record:
        record = ring.record(found)
        if record is None:
            raise self.explain(at, view)
        return record

    def _lookup(self) -> RingReader:
        return RingReader(self.block, self.load, chunk=_LOOKUP_CHUNK, scan=self.scan)

    def _expect(self, ring: RingReader, view: View, at: Bound) -> Found:
        found = ring.numbered(*at)
        if found is None or not view.contains(found):
            raise self.explain(at, view)
        return found


def _frame_chunk(view: View, start: Bound, size_max: int) -> int:
    """Bytes of the ring that a frame takes whose records are as long as those of the view on average, and an eighth more: what is
    copied in one piece is packed in one, and what is copied beyond it is copied again for the next frame."""
    left = view.end.position - start.position
    size = left // (view.end.next_seq - start.next_seq)
    chunk = size_max * size // (max(0, size - HEADER) + ENTRY.size)
    return min(max(PAGE, chunk + chunk // 8), _FRAME_CHUNK, max(PAGE, left))


def deliver(run: Sequence[tuple[Record, int, int, int]], on_delivery: OnDelivery | None) -> Iterator[Record]:
    """These records, which come with their position, end and checksum. ``on_delivery`` is called before each."""
    for record, position, end, crc in run:
        if on_delivery is not None:
            on_delivery(Delivered(position, end, record.seq, crc))
        yield record


def resume(cursor: str, view: View, read: Callable[[int, int], Iterator[Record]]) -> int:
    """The number after the record that a cursor names.

    ``Overrun`` when that record is now another one, or when both it and the next one were truncated. A truncated record cannot be
    compared with the cursor: it is assumed to be the same one.
    """
    named = parse_cursor(cursor)
    first_seq = view.tail.next_seq
    if named.seq >= view.end.next_seq:
        raise Overrun(
            f"there is no record {named.seq}, which the cursor names: it was rolled back, or the log is a new one; "
            f"{extent(first_seq, view.end.next_seq)}"
        )
    if named.seq >= first_seq:
        try:
            record = next(read(named.seq, named.seq + 1), None)
        except Overrun as error:
            if not error.missed:
                raise
            first_seq = named.seq + error.missed  # truncated since the view was taken
        else:
            if record is None:
                raise rolled_back(named.seq)
            if cursor_of(record.seq, record.kind, record.time_ns, record.data) != named:
                raise Overrun(
                    f"record {named.seq} is not the one that the cursor names: that was rolled back, or the log is a new one"
                )
    if named.seq + 1 < first_seq:
        raise gone(named.seq + 1, Bound(view.tail.position, first_seq))
    return named.seq + 1


def extent(first_seq: int, next_seq: int) -> str:
    """Which numbers the log has, for messages."""
    return f"the log holds {first_seq} to {next_seq - 1}" if next_seq > first_seq else "the log is empty"


def gone(seq: int, tail: Bound) -> Overrun:
    """The error for a record before the tail."""
    return Overrun(f"record {seq} is gone: the log now begins at {tail.next_seq}", tail.next_seq - seq)


def rolled_back(seq: int) -> Overrun:
    """The error for a record past the end that was there before."""
    return Overrun(f"record {seq} is gone: it was rolled back")


def uncertain(seq: int) -> Overrun:
    """The error for a record that was read before and is not there any more, if it was freed or rolled back too many epochs ago."""
    return Overrun(
        f"record {seq}, read before, is gone: whether freed or rolled back is not known any more; read again from the oldest"
    )


def resized(seq: int) -> Overrun:
    """The error for a record that the log may have, in another file than the one that was read."""
    return Overrun(f"record {seq} is gone from the file that the log had before it was resized; read again")


def missing(block: Superblock, at: Bound, tail: Bound, *, cut: bool) -> PmwalError:
    """Why a walk did not find a record, in a log that now begins at ``tail``. ``cut``: there was a rollback since."""
    if at.next_seq < tail.next_seq:
        return gone(at.next_seq, tail)
    if cut:
        return rolled_back(at.next_seq)
    return damaged(block, at)


def damaged(block: Superblock, at: Bound) -> CorruptWal:
    """The error for a record that the log names as present but that is not whole."""
    start = block.ring_offset + at.position % block.capacity
    return CorruptWal(
        f"record {at.next_seq} at file offset {start} is damaged: it was whole when it was stored or recovered",
        first_seq=at.next_seq,
        last_seq=at.next_seq,
        start=start,
        end=start + HEADER,
        reason="checksum, number or epoch is wrong",
    )
