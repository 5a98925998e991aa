"""A log of which archives have the older records, and its ring, if it is there, the newer ones: read as one log.

Invariants
----------
- From the first number that the ring has on, the ring says what the log is. Before it the archives do. So no record comes twice,
  and one that was rolled back does not come from an archive while the ring still has its successor, or knows of the rollback.
- Records come in the order of their numbers. A number that neither has is missed, never passed over silently.
- One group of records of one file is in memory at a time, and the few that a search has looked at; one file is open.
- A file is opened only when a record of it is needed: names say which numbers a file has, and summaries which times and kinds.
  The summary of the newest file says besides where branches began whose files are gone.
- A file that is damaged still replaces what earlier branches have: its records are missed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from pmwal.errors import CorruptWal, Overrun
from pmwal.format.layout import SEQ_MAX, TIME_MAX, TIME_MIN, Header
from pmwal.format.ring import Clock, Filter, Selected
from pmwal.logs.archives.file import ArchiveFile
from pmwal.logs.archives.names import Piece, divergence, order_of, pieces_of
from pmwal.logs.archives.summary import Group, Rows, Summary
from pmwal.reading.arrays import Source
from pmwal.reading.consumer import Consumer
from pmwal.reading.internals import bounds_of, deliver_as, epochs_of, newest_epoch, runs_of
from pmwal.reading.place import Place
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Headers, Records, Selection
from pmwal.reading.walk import View, gone
from pmwal.records import Bound, Frame, Record, RecoveryReport, SetRecord, WalStats
from pmwal.storage.seam import SYSTEM

_ALL = Filter(None, TIME_MIN, TIME_MAX)
_GROUPS = 4  # that are kept in memory
_OVERHEAD = 40  # bytes that a record takes beside its payload, for those who count

OnDamage = Callable[[str, Exception], None]
"""Called with the path of a file that cannot be read, and why; without it the error is raised."""


class ArchivedReader(Reader):
    """A ``Reader`` of archive files, and of a ring of the same log."""

    def __init__(
        self,
        path: str,
        uuid: str,
        files: Sequence[ArchiveFile],
        ring: Reader | None = None,
        *,
        on_damage: OnDamage | None = None,
        look_again: Callable[[], None] | None = None,
    ) -> None:
        """``look_again`` gives the reader the files that are there by now, through ``have``."""
        self._path = path
        self._uuid = uuid
        self._seam = SYSTEM
        self._one_file = threading.RLock()
        self._closed = self._salvaging = False
        self._kind: type[Record] = Record
        self._on_damage = on_damage
        self._look_again = look_again
        self._bad: set[str] = set()
        self._files: list[ArchiveFile] = []
        self._pieces: list[Piece] = []
        self._open_file: ArchiveFile | None = None
        self._groups: dict[tuple[str, int], Rows] = {}
        self._ring = ring
        self._begun: dict[int, int] = {}  # the epochs of the ring, when the pieces were laid out
        self._newest: tuple[int, int] | None = None  # the newest of them, and its first number
        self.have(files)

    def have(self, files: Sequence[ArchiveFile]) -> None:
        """Read these files from now on."""
        self._files = list(files)
        self._lay_out()

    def _lay_out(self) -> None:
        names = [(file.claim.branch, file.claim.first, file.claim.last) for file in self._files]
        newest = self._newest_summary() if len(self._begun) > 1 or any(branch for branch, _, _ in names) else None
        if newest is not None:
            begun = list(newest.branches)
            discarded = divergence(self._begun, newest.groups[-1].epoch, newest.last)
            if discarded is not None:
                begun.append((newest.branch + 1, discarded))
            names += [(branch, first, first - 1) for branch, first in begun]
        self._pieces = [piece for piece in pieces_of(names) if self._files[piece.file].path not in self._bad]

    def _newest_summary(self) -> Summary | None:
        """Of the newest file that has one. What is wrong with the others is said when a record of theirs is needed."""
        for file in sorted(self._files, key=lambda file: order_of(file.claim), reverse=True):
            with contextlib.suppress(CorruptWal, OSError):
                try:
                    return file.summary
                finally:
                    if file is not self._open_file:
                        file.close()
        return None

    @property
    def ring(self) -> Reader | None:
        """The log itself, if it is there."""
        return self._ring

    def attach(self, path: str, ring: Reader) -> None:
        """The log was found."""
        self._path, self._ring = path, ring

    def detach(self) -> None:
        """The log is gone, and was read to its end."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    # -- what it has

    def _view(self, *, doubted: bool = False) -> View:
        del doubted
        self._check_open()
        newest = None if self._ring is None else newest_epoch(self._ring)
        if self._ring is not None and self._pieces and newest != self._newest:
            self._begun, self._newest = epochs_of(self._ring), newest
            self._lay_out()
        first, end = (self._pieces[0].first, self._pieces[-1].stop) if self._pieces else (1, 1)
        if self._ring is None or newest is None:
            return View(Bound(0, first), Bound(0, end), 0, first)
        tail, end = bounds_of(self._ring)
        return View(Bound(0, min(first, tail) if self._pieces else tail), Bound(0, end), 0, newest[1])

    def _ring_first(self) -> int:
        """The first number that the ring has."""
        return SEQ_MAX + 1 if self._ring is None else bounds_of(self._ring)[0]

    def _piece_at(self, seq: int) -> Piece | None:
        """The piece that has this number, or else the next one."""
        return next((piece for piece in self._pieces if seq < piece.stop), None)

    def _next_number(self, seq: int) -> int | None:
        """This number, or the next one that there is; None if there is none."""
        piece, ring = self._piece_at(seq), self._ring_first()
        if self._ring is not None and seq >= ring:
            return seq
        if piece is None:
            return None if self._ring is None else ring
        return max(seq, min(piece.first, ring))

    # -- reading

    def _begin(self, view: View, start: int | None, stop: int | None, place: Place | None = None) -> tuple[int, int]:
        del place
        if start is not None and start < view.tail.next_seq:
            raise gone(start, view.tail)
        end = view.end.next_seq if stop is None else min(stop, view.end.next_seq)
        return view.tail.next_seq if start is None else start, end

    def _walk(self, view: View, first: int, end: int, place: Place | None = None) -> Iterator[Record]:
        del place
        return self._select(_ALL, view, first, end)

    def _select(self, chosen: Filter, view: View, first: int, end: int) -> Iterator[Record]:
        del view
        for run in self._runs(chosen, Clock(0), first, end):
            for record, _, _, _ in run.records:
                yield record

    def _runs(self, chosen: Filter, clock: Clock, start: int, stop: int) -> Iterator[Selected]:
        self._check_open()
        at = start
        while at < stop:
            runs = self._runs_of_ring(chosen, clock, at, stop) if at >= self._ring_first() else None
            if runs is None:
                runs = self._runs_of_archive(chosen, clock, at, min(stop, self._ring_first()))
            came = False
            for run in runs:
                yield run
                at, clock, came = run.seq + 1, run.clock, True
            if not came and self._ring is not None and at >= bounds_of(self._ring)[1]:
                return  # rolled back since the caller asked for the end
            if not came:
                self._find(at, stop)

    def _find(self, seq: int, stop: int) -> None:
        """A record is where it was not looked for, or it is gone: ``Overrun``."""
        if self._look_again is not None:
            self._look_again()
        found = self._next_number(seq)
        if found != seq:
            following = stop if found is None else min(found, stop)
            raise Overrun(f"record {seq} is gone: the archives and the log have no record before {following}", following - seq)

    def _runs_of_ring(self, chosen: Filter, clock: Clock, start: int, stop: int) -> Iterator[Selected]:
        assert self._ring is not None
        try:
            yield from runs_of(self._ring, chosen, clock, start, stop)
        except Overrun as error:
            if not error.missed:
                raise
            # The archives may have it by now: the caller looks.

    def _runs_of_archive(self, chosen: Filter, clock: Clock, start: int, stop: int) -> Iterator[Selected]:
        piece = self._piece_at(start)
        if piece is None or start < piece.first:
            return
        file = self._files[piece.file]
        try:
            self._turn_to(file)
            for index, group in enumerate(file.summary.groups):
                first, end = max(start, group.first), min(stop, piece.stop, group.stop)
                if first < end:
                    run = self._passed(chosen, clock, group, first, end) or self._run_in(file, index, chosen, clock, first, end)
                    yield run
                    clock = run.clock
        except (CorruptWal, OSError) as error:
            self._give_up(file, error)

    def _passed(self, chosen: Filter, clock: Clock, group: Group, first: int, end: int) -> Selected | None:
        """A run of none of the records, if the summary of a whole group says that none is selected."""
        if (first, end) != (group.first, group.stop):
            return None
        kinds = chosen.kinds is None or not group.kinds or any(chosen.kinds[kind >> 3] >> (kind & 7) & 1 for kind in group.kinds)
        if kinds and group.time_max >= chosen.since and group.time_min <= chosen.until:
            return None
        after = clock.after(_header(group.first, group.time_max, group.epoch))
        return Selected([], [], 0, 0, end - 1, 0, after)

    def _run_in(self, file: ArchiveFile, index: int, chosen: Filter, clock: Clock, first: int, end: int) -> Selected:
        group, rows = file.summary.groups[index], self._rows(file, index)
        make, kinds, records, times, size = self._kind, chosen.kinds, [], [], 0
        now, latest = clock.now, clock.latest if clock.epoch == group.epoch else TIME_MIN
        for at in range(first - group.first, end - group.first):
            kind, time_ns = rows.kinds[at], rows.times[at]
            latest = max(latest, min(time_ns, now))  # as ``Clock.after``
            if (kinds is None or kinds[kind >> 3] >> (kind & 7) & 1) and chosen.since <= time_ns <= chosen.until:
                records.append((make(rows.seqs[at], kind, time_ns, rows.data[at]), 0, 0, 0))
                times.append(latest)
                size += len(rows.data[at]) + _OVERHEAD
        return Selected(records, times, 0, size, end - 1, 0, Clock(now, group.epoch, latest))

    def _rows(self, file: ArchiveFile, index: int) -> Rows:
        key = file.path, index
        rows = self._groups.pop(key, None)
        if rows is None:
            self._turn_to(file)
            rows = file.rows(index)
        self._groups[key] = rows
        for old in list(self._groups)[:-_GROUPS]:
            del self._groups[old]
        return rows

    def _turn_to(self, file: ArchiveFile | None) -> None:
        """Have this file open, and no other one."""
        if self._open_file is not None and self._open_file is not file:
            self._open_file.close()
        self._open_file = file

    def _give_up(self, file: ArchiveFile, error: Exception) -> None:
        """A file cannot be read; the others can."""
        file.close()
        if isinstance(error, FileNotFoundError) and self._look_again is not None:
            self._look_again()  # removed for its age, or moved
            if file not in self._files:
                return
        if self._on_damage is None:
            raise error
        self._bad.add(file.path)
        self._on_damage(file.path, error)
        self._lay_out()

    # -- searching by time

    def _search(self, chosen: Selection, view: View, first: int, end: int) -> tuple[int, int]:
        while True:
            try:
                return super()._search(chosen, view, first, end)
            except Overrun:
                now = max(first, self._view().end.next_seq)
                if now >= end:
                    raise
                end = now  # the search has found that the last files cannot be read

    def _probes(self, view: View) -> tuple[Headers, Records]:
        def header(seq: int) -> Header:
            """Of this record, or of the next one that there is."""
            while True:
                found = self._next_number(seq)
                if found is None:
                    raise Overrun(f"record {seq} is gone: the archives have no record after it")
                with contextlib.suppress(Overrun):  # gone meanwhile
                    for run in self._runs(_ALL, Clock(TIME_MAX), found, found + 1):
                        record, _, _, _ = run.records[0]
                        return _header(found, record.time_ns, run.clock.epoch, record.kind)

        def records(first: int, stop: int) -> Iterator[Record]:
            at: int | None = self._next_number(first)
            while at is not None and at < stop:
                try:
                    for record in self._walk(view, at, stop):
                        yield record
                        at = record.seq + 1
                except Overrun as error:
                    if not error.missed:
                        raise
                    at += error.missed

        return header, records

    # -- what only a ring has

    def _need_ring(self) -> Reader:
        self._check_open()
        if self._ring is None:
            raise ValueError(f"{self._path}: only archives of this log are there, which can be read; the log itself is not")
        return self._ring

    def follow(self, start: int | str | None = None, timeout: float | None = None) -> Iterator[Record]:
        """As ``Reader.follow``, of the log itself."""
        return self._need_ring().follow(start, timeout)

    def consumer(self, name: str, start: int | str = "oldest") -> Consumer:
        """As ``Reader.consumer``, of the log itself."""
        return self._need_ring().consumer(name, start)

    def frame(self, start: int | str, *, size_max: int, count_max: int | None = None) -> Frame | None:
        """As ``Reader.frame``, of the log itself."""
        return self._need_ring().frame(start, size_max=size_max, count_max=count_max)

    def stats(self) -> WalStats:
        """As ``Reader.stats``, of the log itself."""
        return self._need_ring().stats()

    def _source(self, start: int | None, stop: int | None) -> Source:
        del start, stop
        raise ValueError(f"{self._path}: an array is read from a log, and this one is read from archives; use read()")

    @property
    def recovery(self) -> RecoveryReport:
        """As ``Reader.recovery``, of the log itself."""
        return self._need_ring().recovery

    @property
    def uuid(self) -> str:
        """The log's identity, in hexadecimal."""
        return self._uuid

    @property
    def label(self) -> str | None:
        """As ``Reader.label``, of the log itself."""
        return None if self._ring is None else self._ring.label

    @property
    def capacity(self) -> int:
        """As ``Reader.capacity``, of the log itself."""
        return self._need_ring().capacity

    @property
    def path(self) -> str:
        """The path of the log itself, or else what its records have as their log."""
        return self._path

    def close(self) -> None:
        """Close all files. Idempotent."""
        self._closed = True
        self._groups.clear()
        self._turn_to(None)
        if self._ring is not None:
            self._ring.close()

    def deliver_as(self, record_type: type[SetRecord]) -> None:
        """Let it make records of this type."""
        self._kind = record_type
        if self._ring is not None:
            deliver_as(self._ring, record_type)


def ring_of(reader: Reader) -> Reader | None:
    """The reader of a ring: this one, that of a log with archives, or None if there are only archives."""
    return reader.ring if isinstance(reader, ArchivedReader) else reader


def _header(seq: int, time_ns: int, epoch: int, kind: int = 0) -> Header:
    return Header(0, 0, seq, 0, time_ns, epoch, kind, 0, 0, 0)
