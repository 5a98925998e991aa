"""Reading a log while another process writes it, or without a writer. It takes no lock and stores no record.

Invariants
----------
- With a living writer it shows what the live page says is durable; without one, what recovery would keep.
- Every record is checked in a private copy: bytes that change meanwhile are never delivered.
- When the epoch or the writer has changed, it is established that the last delivered record is still part of the log's history
  before a record after it is delivered (place.py).
- It reads the file that it opened. Only a ``follow`` and a new consumer turn to a new file of the same log, which all later calls
  read (succession.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import NoReturn, cast

from pmwal.errors import Overrun, PmwalError, WalClosed
from pmwal.format.control import first_seqs, read_slots
from pmwal.format.epochs import pack_starts
from pmwal.format.index import SparseIndex
from pmwal.format.payload import as_index, as_number, as_seconds
from pmwal.format.ring import Clock, Filter, Selected
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.native.checksum import crc32c
from pmwal.reading.consumer import Consumer
from pmwal.reading.follow import Watch, watch
from pmwal.reading.frames import FrameReader, Stretch
from pmwal.reading.hints import find_hints, seems_far, wrong_hint
from pmwal.reading.known_writer import KnownWriter
from pmwal.reading.place import Place
from pmwal.reading.selection import TRIES, Headers, Kinds, Records, Selection, Time, selection
from pmwal.reading.succession import File, Succession, cursor_in
from pmwal.reading.walk import Delivered, View, Walker, extent, gone, missing, resized, resume
from pmwal.reading.watcher import LiveWatcher
from pmwal.records import Bound, Record, RecoveryReport, WalStats
from pmwal.recovery.judge import Judgement
from pmwal.recovery.salvage import salvaged
from pmwal.recovery.snapshot import judge_beside, shown_bounds
from pmwal.recovery.superblock import Identity
from pmwal.storage.live_page import LiveBounds
from pmwal.storage.liveness import Liveness
from pmwal.storage.mapping import Mapping
from pmwal.storage.name import LogName
from pmwal.storage.seam import Seam

_TRIES = 8  # attempts to read a log that changes meanwhile


class Reader(FrameReader):
    """A log opened for reading (``pmwal.open(path, "r")``), by any number of processes, with or without a writer.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"payload")
    ...     with pmwal.open(path, "r") as reader:
    ...         [record.data for record in reader]
    [b'payload']
    """

    def __init__(
        self,
        path: str,
        mapping: Mapping,
        identity: Identity,
        seam: Seam,
        *,
        salvaging: bool,
        open_again: Callable[[], File] | None = None,
    ) -> None:
        """``open_again`` opens the file that the path leads to by then."""
        self._path = path
        self._seam = seam
        self._salvaging = salvaging
        self._closed = False
        self._open_again = open_again
        self._earlier: list[Mapping] = []  # files that it read before, which others may still read
        self._one_file = threading.RLock()  # while it is held, the reader does not turn to another file
        self._place = Place(mark=None if native is None else native.Mark())
        self._record_type = Record
        self._take((mapping, identity))
        self._view()

    def _take(self, file: File) -> None:
        """Read this file from now on."""
        self._mapping, self._identity = mapping, identity = file
        self._name = LogName(mapping.fd, self._path)
        self._block = identity.block
        self._succession = Succession(file, self._open_again)
        self._index = SparseIndex()
        self._scan = scan_for(identity.block)
        self._liveness = Liveness(mapping, self._seam)
        self._judged: tuple[int, Judgement] | None = None
        self._shown: tuple[Hashable, LiveBounds] | None = None  # what a writer has shown so far
        self._starts: tuple[Hashable, bytes] | None = None  # of a writer's epochs; the writer, and its last epoch
        self._indexed: View | None = None  # the history that the index is of

    # -- the current extent of the log

    def _view(self, *, doubted: bool = False) -> View:
        """What can be read now. ``CorruptWal`` if there is no writer and recovery would refuse the log."""
        self._check_open()
        for _ in range(_TRIES):
            view = self._view_of_writer(doubted=doubted)
            if view is not None:
                return view
            judgement = self._judge()
            if not judgement.report.live:
                break  # otherwise a writer has opened the log meanwhile, and shows its bounds
        if judgement.row.outcome == "corrupt" and not self._salvaging:
            raise judgement.error(self._path)
        slot = judgement.control.newest
        first_seq = 1 if slot is None else slot.epoch_first_seq
        return View(judgement.tail, judgement.end, judgement.report.epoch, first_seq, None, judgement.control.starts)

    def _view_of_writer(self, *, doubted: bool = False) -> View | None:
        """What the living writer shows; None if there is none."""
        writer = self._liveness.writer()
        while writer is not None:
            self._judged = None  # this writer may have rolled back what was judged before it opened the log
            bounds = shown_bounds(self._mapping.load, self._block, self._scan, doubted=doubted)
            before, writer = writer, self._liveness.writer()
            if bounds is None:
                return None
            if writer is not None and writer.same_process(before):
                return self._with_starts(View(*self._merged(bounds, writer.identity), writer.identity, open_id=writer.open_id))
        return None

    def _merged(self, bounds: LiveBounds, writer: Hashable) -> LiveBounds:
        """These bounds, or what the same writer has shown before where that is further: a slot may lag."""
        if self._shown is not None and self._shown[0] == writer and self._shown[1].epoch >= bounds.epoch:
            shown = self._shown[1]
            if shown.epoch > bounds.epoch:
                return shown
            bounds = bounds._replace(tail=max(shown.tail, bounds.tail), durable=max(shown.durable, bounds.durable))
        self._shown = writer, bounds
        return bounds

    def _judge(self) -> Judgement:
        """The verdict on the log as it is now.

        Without a writer it is valid until the slots change, because every open for writing writes slots before it stores a record.
        With a writer it is not remembered: a writer stores records without writing slots.
        """
        key = self._slots_key()
        if self._judged is not None and self._judged[0] == key and self._liveness.writer() is None:
            return self._judged[1]
        judgement = judge_beside(self._mapping, self._identity, self._seam, liveness=self._liveness)
        settled = not judgement.report.live and self._liveness.writer() is None and self._slots_key() == key
        self._judged = (key, judgement) if settled else None
        return judgement

    def _slots_key(self) -> int:
        return int(crc32c(self._mapping.load(self._block.control_offset, self._block.control_size)))

    @property
    def first_seq(self) -> int:
        """Number of the oldest record, or of the next one if the log is empty."""
        return self._view().tail.next_seq

    @property
    def committed_seq(self) -> int:
        """Number of the newest record that this reader shows; ``first_seq - 1`` if there is none."""
        return self._view().end.next_seq - 1

    def __len__(self) -> int:
        view = self._view()
        return view.end.next_seq - view.tail.next_seq

    @property
    def recovery(self) -> RecoveryReport:
        """What recovery would report for the file as it is now."""
        self._check_open()
        return replace(self._judge().report, unreadable=self._mapping.unreadable)

    # -- reading

    def read(
        self,
        start: int | str | None = None,
        stop: int | None = None,
        *,
        since: Time | None = None,
        until: Time | None = None,
        kind: Kinds | None = None,
        exact: bool = False,
    ) -> Iterator[Record]:
        """The records from number ``start`` up to, not including, ``stop``, as the log is at the call.

        Those that are truncated or rolled back during the read are still returned, until their space is used again; the next
        read, or the next look of a follow, notices the rollback. A ``start`` that is a ``Record.cursor`` means "after that
        record". Raises ``Overrun`` for a ``start`` before ``first_seq``; for a cursor whose record was rolled back or replaced,
        or was truncated together with the next one; for records that are overwritten while they are read; and if the record
        before ``start`` that it delivered was rolled back. Raises ``CorruptWal`` for damage and ``ValueError`` for text that is
        no cursor.

        ``since`` and ``until`` are included: nanoseconds since 1970, or a datetime with a time zone. They select one run of
        records, found by reading a few, which takes it that clocks were not set back while a writer had the log open, and
        counts a stamp past now as now. With ``exact`` all are read, and selected by their own stamps. ``kind`` is a number, or a
        range, set or list of numbers.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     seq = wal.append(b"error", kind=40)
        ...     with pmwal.open(path, "r") as reader:
        ...         [record.data for record in reader.read(start=2)], [record.seq for record in reader.read(kind=range(30, 51))]
        ([b'b', b'c', b'error'], [4])
        """
        chosen = selection(since, until, kind, exact)
        if self._salvaging:
            if isinstance(start, str):
                raise ValueError('damage may hide the record that a cursor names; with recover="salvage" start at a number')
            salvaged = self._salvage(None if start is None else as_number(start), None if stop is None else as_number(stop))
            return chosen.filtered(salvaged, each=True)
        stop = None if stop is None else as_number(stop)
        with self._one_file:
            view = self._view()
            first = None if start is None else self._first_number(start, view)
            if chosen.everything:
                return self._read(view, first, stop)
            return self._select(chosen.filter, *self._run(chosen, view, first, stop))

    def _run(self, chosen: Selection, view: View, start: int | None, stop: int | None) -> tuple[View, int, int]:
        """The view to read, where the selected run begins in it, and the number after its last record."""
        for _ in range(TRIES):
            first, end = self._begin(view, start, stop)
            try:
                return view, *self._search(chosen, view, first, end)
            except Overrun as error:
                if start is not None or not error.missed:
                    raise
            view = self._view()  # the log no longer begins where it did
        return view, *self._begin(view, start, stop)

    def _search(self, chosen: Selection, view: View, first: int, end: int) -> tuple[int, int]:
        return chosen.run(first, end, *self._probes(view), self._seam.now_ns()) if chosen.searches else (first, end)

    def _probes(self, view: View) -> tuple[Headers, Records]:
        """How a search looks at records of this view. None of them counts as delivered."""
        counting, start_of = self._in_file(view, self._place)
        walker = replace(counting, on_delivery=None)

        def records(first: int, stop: int) -> Iterator[Record]:
            return walker.walk(view, start_of(first), stop) if first < stop else iter(())

        return lambda seq: walker.header(view, start_of(seq)), records

    def _read(self, view: View, start: int | None, stop: int | None) -> Iterator[Record]:
        return self._walk(view, *self._begin(view, start, stop))

    def _select(self, chosen: Filter, view: View, first: int, end: int) -> Iterator[Record]:
        walker, start_of = self._in_file(view, self._place)
        runs = (run for each in (walker,) if first < end for run in each.selected(view, start_of(first), end, chosen, Clock(0)))
        return walker.delivered(runs)

    def _runs(self, chosen: Filter, clock: Clock, start: int, stop: int) -> Iterator[Selected]:
        """The selected records, in runs. Of each run the last record is noted as delivered, selected or not."""
        with self._one_file:
            view = self._view()
            first, end = self._begin(view, start, stop)
            walker, start_of = self._in_file(view, self._place)
        for run in walker.selected(view, start_of(first), end, chosen, clock) if first < end else ():
            walker.note(run)
            yield run

    def _first_number(self, start: int | str, view: View) -> int:
        return resume(start, view, partial(self._read, view)) if isinstance(start, str) else as_number(start)

    def _stretch(self, call: str, start: int | str | None, stop: int | None) -> Stretch:
        if self._salvaging:
            raise ValueError(f'{call} needs consecutive records; open the log without recover="salvage"')
        stop = None if stop is None else as_number(stop)
        with self._one_file:
            view = self._view()
            first, end = self._begin(view, None if start is None else self._first_number(start, view), stop)
            return Stretch(view, first, end, *self._in_file(view, self._place), self._mapping)

    def _begin(self, view: View, start: int | None, stop: int | None, place: Place | None = None) -> tuple[int, int]:
        """Prepare to deliver records of this view; the first number, and the one after the last."""
        place = self._place if place is None else place
        if start is not None and start < view.tail.next_seq:
            raise gone(start, view.tail)
        if start is not None:
            self._check_place(place, view)
        elif place.view is not None and not view.same_history(place.view):
            place.forget()
        if self._indexed is None or not view.same_history(self._indexed):
            self._indexed = view
            self._index = SparseIndex(() if self._judged is None else self._judged[1].index)
        self._index.drop_before(view.tail.next_seq)
        end = view.end.next_seq if stop is None else min(stop, view.end.next_seq)
        return view.tail.next_seq if start is None else start, end

    def follow(self, start: int | str | None = None, timeout: float | None = None) -> Iterator[Record]:
        """The records from number ``start`` on (the oldest if None), then each new one as soon as it is durable.

        It sleeps in between, and a writer wakes it. It ends when the writer closes the log, and after ``timeout`` seconds without a
        record. Without a writer it waits for one: after a writer was killed, the next one's records follow. ``start`` may be a
        cursor. Raises as ``read`` does.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b"])
        ...     with pmwal.open(path, "r") as reader:
        ...         [record.data for record in reader.follow(timeout=0)]
        [b'a', b'b']
        """
        if self._salvaging:
            raise ValueError('follow() shows a log as it grows; open it without recover="salvage"')
        timeout = as_seconds("timeout", timeout)
        view = self._view()
        first = view.tail.next_seq if start is None else self._first_number(start, view)
        source = self._follow_files(self._succession, Place(None if start is None else self._place), first, timeout)
        if self._scan is None or self._place.mark is None:
            return cast("Iterator[Record]", source)  # it requests nothing
        return self._scan.scanner.follower(self._record_type, self._place.mark, source)

    def consumer(self, name: str, start: int | str = "oldest") -> Consumer:
        """The named consumer of this log: it continues where it, in any process, has acknowledged.

        One that is new begins with the ``"oldest"`` record, after the end (``"newest"``), with a number, or after a cursor.
        Its position is in a file beside the log. ``ConsumerHeld`` if another handle is this consumer; ``PositionError`` if its
        position is damaged, or of another log; ``ValueError`` for a log with several hard links, ``WalUnlinked`` for one that was
        removed, or replaced by another log. For a guide see docs/guide-consumers.md.
        """
        self._check_open()
        if self._salvaging:
            raise ValueError('a consumer follows a log as it grows; open it without recover="salvage"')
        return Consumer(self, name, start)

    def _follow_files(self, succession: Succession, place: Place, first: int, timeout: float | None) -> Watch:
        """What to follow, in this file and in those that take its place, of which a follower in C gets the records from Python."""
        known = KnownWriter()
        watcher = None if self._scan is None or self._place.mark is None else LiveWatcher(self, known, place)

        def poll(next_seq: int) -> Iterator[Record] | None:
            nonlocal first
            first = next_seq
            with self._one_file:  # what is to be delivered, and where that is noted, is of one file
                return self._poll(known, place, succession, next_seq)

        yield from watch(succession.file[0], self._seam, poll, first, timeout, watcher)
        while self._succession is not succession:
            if place.last is not None and place.last.seq + 1 == first:
                cursor, view = cursor_in(succession.file, place.last), self._view()
                first = resume(cursor, view, partial(self._read, view))
                place.check_passed(view, self._epochs)
            succession, place, known = self._succession, Place(), KnownWriter()
            yield from watch(succession.file[0], self._seam, poll, first, timeout, None)

    def _poll(self, known: KnownWriter, place: Place, succession: Succession, first: int) -> Iterator[Record] | None:
        """What ``follow`` has to deliver now; None when a writer that was there has closed the log, or the log has another file."""
        self._check_open()
        if self._succession is not succession:
            return None
        view = known.view(self._mapping.load, self._block)
        if view is not None:
            view = self._with_starts(view)
        else:
            alive_at = time.monotonic()
            living = self._liveness.writer()
            # The view comes after the check: a writer that is gone by then has stored nothing since.
            view = (self._view_of_writer() if living is not None else None) or self._view()
            if first >= view.end.next_seq and living is None:
                ended = known.met and self._ended_before(first)
                if ended:
                    self._check_place(place, view)
                if self._succeed(succession, ended=ended) or ended:
                    return None
            if living is not None:
                known.meet(living, alive_at)
        if first < view.end.next_seq:
            return self._walk(view, *self._begin(view, first, None, place), place)
        self._check_place(place, view)
        return iter(())

    def _succeed(self, succession: Succession, *, ended: bool) -> bool:
        """Read the file that took the place of the one with this succession, if there is one."""
        file = succession.look(ended=ended)
        if file is not None:
            with self._one_file:
                if self._succession is not succession:  # another thread has turned to it
                    file[0].close()
                    return True
                before = self._place  # in which others may still note what they deliver of the old file
                self._place, before.mark = Place(mark=before.mark), None
                self._place.forget()
                self._earlier.append(self._mapping)
                self._take(file)
        return file is not None

    def _ended_before(self, seq: int) -> bool:
        """Whether the log was closed without a record of this number: since the last look another writer may have come and gone."""
        judgement = self._judge()
        return judgement.report.outcome == "clean" and judgement.end.next_seq <= seq

    def _walk(self, view: View, first: int, end: int, place: Place | None = None) -> Iterator[Record]:
        walker, start_of = self._in_file(view, self._place if place is None else place)
        if place is not None and first < end:
            return walker.walk(view, start_of(first), end)
        return (record for each in (walker,) if first < end for record in each.walk(view, start_of(first), end))

    def _in_file(self, view: View, place: Place) -> tuple[Walker, Callable[[int], Bound]]:
        """What reads the file that the log has now, and finds where its records start, later, too, when it has another."""
        walker = self._walker(view, place)
        return walker, partial(self._start_of, view, place=place, walker=walker)

    def _start_of(self, view: View, first: int, place: Place, walker: Walker | None = None) -> Bound:
        self._check_open()
        walker = walker or self._walker(view, place)
        last = place.last_in(view)
        if last is not None and last.seq in (first - 1, first):  # the caller reads from there, and so notices if it is gone
            return Bound(last.position if last.seq == first else last.end, first)
        known = walker.block is self._block and self._indexed is not None and view.same_history(self._indexed)
        index = self._index if known else SparseIndex()
        near = index.floor(first, view.tail)
        if last is not None and near.next_seq < last.seq < first:
            near = Bound(last.end, last.seq + 1)  # nearer than what the index knows
        if seems_far(near, index.ceiling(first, view.end), first):
            hints = find_hints(walker.block, walker.load, walker.scan, view, near, first)
            for start in hints.starts:
                passed: list[Bound] = []
                with contextlib.suppress(Overrun):  # it was only a hint
                    found = replace(walker, explain=wrong_hint).locate(view, start, first, passed)
                    if not hints.contradict(found):
                        index.merge(passed)
                        return Bound(found.position, first)
        passed = []
        found = walker.locate(view, near, first, passed)
        index.merge(passed)
        return Bound(found.position, first)

    def _walker(self, view: View, place: Place) -> Walker:
        note = partial(self._note_delivery, view, place, self._succession)
        explain, now = partial(self._explain, self._succession), partial(self._now, self._succession)
        return Walker(self._block, self._mapping.load, explain, note, self._scan, now, self._record_type)

    def _now(self, succession: Succession) -> View | None:
        """What can be read by now, doubted as a line of a writer of version 0.1 may be half old; None if it is of another file."""
        view = self._view(doubted=True)
        return view if succession is self._succession else None

    def _note_delivery(self, view: View, place: Place, succession: Succession, record: Delivered) -> None:
        """A record of the file that had this succession then: in the file that is read by now it is elsewhere."""
        self._check_open()
        place.deliver(record, view)
        if succession is self._succession:
            self._place.deliver(record, view)
            self._note_start(view, record)

    def _note_start(self, view: View, record: Delivered) -> None:
        if view is self._indexed or (self._indexed is not None and view.same_history(self._indexed)):
            self._index.add(Bound(record.position, record.seq))

    def _check_place(self, place: Place, view: View) -> None:
        """``Overrun`` if the last delivered record was rolled back since."""
        try:
            place.check(view, self._view, self._block, self._mapping.load, self._epochs)
        except Overrun:
            self._place.forget()  # told once: the caller reads again from an earlier one
            raise

    def _with_starts(self, view: View) -> View:
        """A view of a writer, with the epochs that the slots name. They are read once for each of its epochs."""
        key = view.writer, view.epoch
        if self._starts is None or self._starts[0] != key:
            begun = {epoch: first for epoch, first in self._epochs().items() if epoch <= view.epoch}
            self._starts = key, pack_starts(begun)
        return view._replace(starts=self._starts[1])

    def _epochs(self) -> dict[int, int]:
        """The epochs that the slots still name, with their first sequence numbers."""
        return first_seqs(read_slots(self._mapping.load, self._block, self._scan))

    def _explain(self, succession: Succession, at: Bound, before: View) -> PmwalError:
        """Why a walk did not find the record at this bound."""
        if succession is not self._succession:
            return resized(at.next_seq)
        now = self._view(doubted=True)
        moved = at.position < now.tail.position  # the line that named it was half old
        return missing(self._block, at, now.tail, cut=moved or not now.same_history(before))

    def _salvage(self, start: int | None, stop: int | None) -> Iterator[Record]:
        """Every whole record around the damage; numbers may be missing."""
        for reader, found in salvaged(self._mapping.load, self._judge, self._scan, start, stop):
            record = reader.record(found)
            if record is not None:
                yield record

    def __iter__(self) -> Iterator[Record]:
        return self.read()

    def __getitem__(self, seq: int) -> Record:
        """The record with this number. ``IndexError`` if the log does not hold it: 0 and negative numbers never exist."""
        seq = as_index(seq)
        view = self._view()
        if not view.tail.next_seq <= seq < view.end.next_seq:
            raise IndexError(f"no record {seq}; {extent(view.tail.next_seq, view.end.next_seq)}")
        record = next(self.read(seq, seq + 1), None)
        if record is None:
            raise IndexError(f"record {seq} cannot be salvaged")
        return record

    # -- the handle

    @property
    def path(self) -> str:
        """The path it was opened with."""
        return self._path

    @property
    def uuid(self) -> str:
        """The log's identity, in hexadecimal. Keep it from those who supply payloads: see docs/durability.md."""
        return self._block.uuid.hex()

    @property
    def label(self) -> str | None:
        """The name that the log was given when it was created; None if it has none."""
        return self._block.label

    @property
    def capacity(self) -> int:
        """Size of the ring in bytes."""
        return self._block.capacity

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return self._closed

    def stats(self) -> WalStats:
        """Facts about the log and its medium, and whether its path still leads to it. The counters of writing are zero.

        >>> import pmwal
        >>> pmwal.open(path, size="64KiB").close()
        >>> with pmwal.open(path, "r") as reader:
        ...     reader.stats().capacity
        65536
        """
        view, medium = self._view(), self._mapping.medium
        return WalStats(
            engine="python" if self._scan is None else "native",
            medium=medium.kind,
            durability=medium.durability,
            filesystem=medium.filesystem,
            flush=medium.flush,
            ordering="",
            capacity=self.capacity,
            used=view.end.position - view.tail.position,
            appends=0,
            bytes=0,
            commits=0,
            barriers=0,
            overwritten=0,
            waits=0,
            errors=0,
            epoch=view.epoch,
            alignment=self._block.alignment,
            assumptions=medium.assumptions,
            unlinked=self._name.lost() is not None,
        )

    def close(self) -> None:
        """Close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._place.mark is not None:
                self._place.mark.closed = True
            for mapping in (*self._earlier, self._mapping):
                mapping.close()

    def __enter__(self) -> Reader:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Exception):
                self.close()

    def __repr__(self) -> str:
        return f"<pmwal.Reader {self._path!r}{' closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError('a pmwal.Reader cannot be sent to another process; send the path and open it there with mode="r"')

    def _check_open(self) -> None:
        if self._closed:
            raise WalClosed("this handle is closed; open the log again with pmwal.open()")
