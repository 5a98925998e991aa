"""A named consumer: reads a log from where it has acknowledged, in this process or an earlier one.

Invariants
----------
- Delivery is at least once: ``follow`` begins after the position, which only ``ack`` and ``seek`` move. What was delivered and
  not acknowledged is delivered again to the next holder.
- ``ack`` moves a position forwards only. It names a record that the log contained, so a rollback of that record is recognised.
- Where a record starts and ends is a hint in a position, verified by the checksum of the record. Without it the record is found
  as a reader finds any. A resize makes all hints wrong; whoever holds a consumer next finds its record and corrects them.
- ``ack`` may be called by any thread: it uses what ``follow``, or a frame, noted with the last record, and keeps the reader at one
  file while it looks for another one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from pmwal.cursor import Cursor, cursor_of, parse_cursor
from pmwal.errors import CorruptWal, ForkedWal, Overrun, PmwalError, PositionError, WalClosed, WalUnlinked
from pmwal.format.layout import TIME_MAX, TIME_MIN
from pmwal.format.payload import as_number
from pmwal.format.position import APPLICATION_MAX, Position, check_name
from pmwal.reading.consumed import problem_of
from pmwal.reading.hints import wrong_hint
from pmwal.reading.place import Place
from pmwal.reading.walk import Delivered, View, Walker, extent, gone, resume
from pmwal.records import Bound, Frame, Lag, Record
from pmwal.storage.positions import Look, PositionFile, check_links, damaged, directory_of, log_of, names_in

if TYPE_CHECKING:
    from typing import Protocol

    from pmwal.format.layout import Superblock
    from pmwal.reading.succession import Succession
    from pmwal.storage.mapping import Mapping
    from pmwal.storage.name import LogName
    from pmwal.storage.seam import Seam

    class Log(Protocol):
        """What a consumer uses of its ``Reader``."""

        _block: Superblock
        _mapping: Mapping
        _name: LogName
        _one_file: threading.RLock
        _seam: Seam
        _succession: Succession
        _place: Place

        @property
        def path(self) -> str: ...
        def follow(self, start: int | None = None, timeout: float | None = None) -> Iterator[Record]: ...
        def _check_open(self) -> None: ...
        def _view(self) -> View: ...
        def _succeed(self, succession: Succession, *, ended: bool) -> bool: ...
        def _epochs(self) -> dict[int, int]: ...
        def _read(self, view: View, start: int | None, stop: int | None) -> Iterator[Record]: ...
        def _walker(self, view: View, place: Place) -> Walker: ...
        def _start_of(self, view: View, first: int, place: Place) -> Bound: ...


class _Handed(NamedTuple):
    """The record that was handed out last, or its cursor, where it is, and the view and the file that it is of."""

    record: Record | Cursor
    at: Delivered | None
    view: View | None
    file: Mapping


class Consumer:
    """A named consumer of a log; made by ``Reader.consumer``. It keeps its position in a file beside the log.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b", b"c"])
    >>> with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
    ...     for record in consumer.follow(timeout=0):
    ...         if record.seq < last:
    ...             consumer.ack(record.seq)
    >>> with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
    ...     [record.data for record in consumer.follow(timeout=0)], consumer.lag.records
    ([b'c'], 1)
    """

    def __init__(self, log: Log, name: str, start: int | str | None, *, renew: bool = False) -> None:
        """``renew``: a position that is damaged, or of another log, is no error; the consumer begins at ``start``, as if new.

        ``start`` is None for one that must be there: ``FileNotFoundError`` if it is not.
        """
        self._name = check_name(name)
        self._log = log
        self._guard = threading.Lock()  # of the position
        self._handed: _Handed | None = None
        self._closed = False
        succession = log._succession
        with log._one_file:
            lost = log._name.lost()
        if lost is not None and not log._succeed(succession, ended=True):
            raise WalUnlinked(
                f"{log.path}: {lost} while the log was open, so a position beside it would be lost; open the path again"
            )
        with log._one_file:  # another thread may turn it to the next one
            self._begin(start, renew=renew)

    def _begin(self, start: int | str | None, *, renew: bool) -> None:
        """Hold the position, in its file."""
        log = self._log
        check_links(log._mapping.fd, log.path)
        # On DAX no sector is whole, and the writer relies on the newest slot.
        self._always_durable = log._mapping.medium.kind == "dax"
        mode = os.fstat(log._mapping.fd).st_mode & 0o666
        first = None if start is None else partial(self._beginning, start)
        self._file = PositionFile(directory_of(log._name.path), self._name, log._seam, mode, first)
        try:
            if not self._file.created:
                self._take_over(start if renew else None)
        except BaseException:
            self._file.close()
            raise

    def _take_over(self, start: int | str | None) -> None:
        """Store again, durably, what the file says: it may be in the page cache only."""
        position = self._file.position
        if position is None:
            if start is None:
                raise damaged(self._file.path, self._name)
            position = self._beginning(start)
        if position.uuid != self._log._block.uuid:
            if start is None:
                raise PositionError(
                    f"{self._file.path}: the position of consumer {self._name!r} is of another log, which had this path before; "
                    f"remove it with pmwal consumers {log_of(self._file.path)} --forget {self._name}, or move the directory to "
                    "where that log is now"
                )
            position = self._beginning(start)
        self._file.store(self._laid_anew(position), durable=True)

    def _laid_anew(self, position: Position) -> Position:
        """The same position with hints that are right."""
        view = self._log._view()
        if view.tail.next_seq <= position.seq < view.end.next_seq:
            with contextlib.suppress(PmwalError):  # which ``follow`` raises
                record, at = self._sought(position.seq, view, position)
                if _check_of(record) == position.check:
                    return position._replace(epoch=view.epoch, epoch_first_seq=view.epoch_first_seq, start=at.position, end=at.end)
        return position

    # -- where it is

    def _beginning(self, start: int | str) -> Position:
        """The position before the record with which to begin."""
        view = self._log._view()
        if start == "oldest":
            next_seq = view.tail.next_seq
        elif start == "newest":
            next_seq = view.end.next_seq
        elif isinstance(start, str):
            next_seq = resume(start, view, partial(self._log._read, view))
        else:
            next_seq = as_number(start)
            if next_seq < view.tail.next_seq:
                raise gone(next_seq, view.tail)
            if next_seq > view.end.next_seq:
                raise ValueError(f"start={next_seq} is past the end; {extent(view.tail.next_seq, view.end.next_seq)}")
        return self._at(next_seq - 1, view)

    def _at(self, seq: int, view: View, known: Position | None = None) -> Position:
        """The position after a record of this view, found from an earlier position if one is known."""
        if seq < view.tail.next_seq:  # there is none, or it is gone
            return self._position(seq, 0, view.tail.position, view.tail.position, view)
        try:
            record, at = self._sought(seq, view, known)
        except Overrun as error:
            if not error.missed:
                raise
            return self._position(seq, 0, view.tail.position, view.tail.position, view)
        return self._position(seq, _check_of(record), at.position, at.end, view)

    def _position(self, seq: int, check: int, start: int, end: int, view: View) -> Position:
        now_ns = min(max(self._log._seam.now_ns(), TIME_MIN), TIME_MAX)
        uuid = self._log._block.uuid
        return Position(view.epoch, 1, uuid, seq, check, view.epoch_first_seq, start, end, seq, now_ns, bytes(APPLICATION_MAX))

    def _sought(self, seq: int, view: View, known: Position | None) -> tuple[Record, Delivered]:
        """The record with this number, and where it is. From a known position it is found without the reader's help."""
        walker = replace(self._log._walker(view, self._log._place), on_delivery=None)
        if known is not None and known.seq <= seq:
            near = Bound(known.start, seq) if known.seq == seq else Bound(known.end, known.seq + 1)
            with contextlib.suppress(Overrun):  # it was only a hint
                return self._read(replace(walker, explain=wrong_hint), near, seq, view)
        return self._read(walker, self._log._start_of(view, seq, self._log._place), seq, view)

    def _read(self, walker: Walker, near: Bound, seq: int, view: View) -> tuple[Record, Delivered]:
        found = walker.locate(view, near, seq)
        record, end = walker.read_one(view, Bound(found.position, seq))
        return record, Delivered(found.position, end, seq, found.header.crc)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def position(self) -> int:
        """Number of the last record that was acknowledged; what is delivered next comes after it."""
        return self._current().seq

    @property
    def cursor(self) -> str:
        """``Record.cursor`` of that record; empty if there was none, or it was no longer in the log."""
        return self._current().cursor

    @property
    def application(self) -> bytes:
        """The 64 bytes that ``ack`` has stored with the position, zeros at first."""
        return self._current().application

    @property
    def lag(self) -> Lag:
        """How far the position lies before the end of the log.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b"])
        ...     with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
        ...         consumer.ack(first)
        ...         consumer.lag.records
        1
        """
        return lag_of(self._log, self._current())

    def _current(self) -> Position:
        position = self._file.position
        assert position is not None
        return position

    # -- reading

    def follow(self, timeout: float | None = None) -> Iterator[Record]:
        """The records after the position, then each new one as soon as it is durable.

        It waits and ends as ``Reader.follow`` does. Each call begins after the last acknowledged record. Raises ``Overrun`` if
        records after the position were overwritten or truncated, or its own was rolled back: continue with ``seek``.
        """
        self._check()
        first = self._resume()
        return self._hand_out(self._log.follow(first, timeout))

    def _resume(self) -> int:
        """The number of the first record to deliver."""
        position, view = self._current(), self._log._view()
        found: list[Delivered] = []

        def find(seq: int, view: View) -> Record:
            record, at = self._sought(seq, view, position)
            found.append(at)
            return record

        problem = problem_of(position, self._log._block.uuid, view, find, self._log._epochs)
        if problem is not None:
            raise Overrun(f"consumer {self._name!r}: {problem}; continue with seek()")
        if found:
            self._log._place.deliver(found[0], view)  # so that the next record is found right after it
        elif position.seq + 1 < view.tail.next_seq:
            raise gone(position.seq + 1, view.tail)
        return position.seq + 1

    def _hand_out(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            place = self._log._place  # another one in each file
            self._handed = _Handed(record, place.last, place.view, self._log._mapping)
            yield record

    def _hand_out_frame(self, frame: Frame) -> None:
        """The reader has just read this frame."""
        place = self._log._place
        self._handed = _Handed(parse_cursor(frame.cursor), place.last, place.view, self._log._mapping)

    # -- moving

    def ack(self, seq: int | str, *, durable: bool = False, released: int | None = None, application: bytes | None = None) -> None:
        """Acknowledge the record with this number, or ``Record.cursor``, and all before it.

        It survives the death of the process at once, and a power cut with ``durable=True``, after a later call with it, or on DAX.
        A number before the position changes nothing. ``released`` is the last record that ``truncate(consumed=True)`` may
        free, if later ones may be wanted again; ``application``, up to 64 bytes, is stored with the position. With the number of
        the position only these change. Raises ``PersistError``, ``ValueError`` for a number past the end, ``Overrun`` for a cursor
        whose record was rolled back, and ``PositionError`` if the position was removed meanwhile.
        """
        number = parse_cursor(seq).seq if isinstance(seq, str) else as_number(seq)
        if application is not None and len(application) > APPLICATION_MAX:
            raise ValueError(f"application has {len(application)} bytes; there is room for {APPLICATION_MAX}")
        with self._guard:
            self._check()
            now = self._current()
            position = now if number <= now.seq else self._acknowledged(number)
            if isinstance(seq, str) and position.seq == number and position.cursor not in ("", seq):
                raise Overrun(
                    f"record {number} is not the one that the cursor names: that was rolled back, or the log is a new one"
                )
            free = position.released if released is None else as_number(released)
            if free < 0:
                raise ValueError(f"released={free} is no record; released=0 lets none be freed")
            if free > position.seq:
                raise ValueError(f"released={free} is past the position, {position.seq}")
            if number < now.seq:  # what belongs to an older position does not replace what belongs to this one
                released = application = None
                free = now.released
            position = position._replace(
                generation=now.generation,
                released=max(now.released, free),
                application=now.application if application is None else bytes(application).ljust(APPLICATION_MAX, b"\0"),
            )
            if position != now:
                self._file.store(position, durable=durable or self._always_durable)
            elif durable:
                self._file.sync()

    def _acknowledged(self, seq: int) -> Position:
        handed, view = self._handed, None
        if handed is not None and handed.at is not None and seq <= handed.at.seq:
            view = handed.view
            if view is not None and view.end.next_seq <= handed.at.seq:  # a native follow delivers past the view that it began with
                view = view._replace(end=Bound(handed.at.end, handed.at.seq + 1))
            if view is not None and seq == handed.record.seq == handed.at.seq:
                return self._position(seq, _check_of(handed.record), handed.at.position, handed.at.end, view)
        with self._log._one_file:
            if view is None or handed is None or handed.file is not self._log._mapping:
                view = self._log._view()
            if seq >= view.end.next_seq:
                raise ValueError(f"there is no record {seq} to acknowledge; {extent(view.tail.next_seq, view.end.next_seq)}")
            return self._at(seq, view, self._current())

    def seek(self, start: int | str) -> None:
        """Move the position, durably: to before the ``"oldest"`` record, to the end (``"newest"``), to before a number, or to after
        the record that a cursor names. Raises what ``Reader.read`` raises for such a start.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b"])
        >>> with pmwal.open(path, "r") as reader, reader.consumer("mail", start="newest") as consumer:
        ...     consumer.seek(last)
        ...     [record.data for record in consumer.follow(timeout=0)]
        [b'b']
        """
        with self._guard:
            self._check()
            position = self._beginning(start)
            self._handed = None
            self._file.store(position._replace(application=self._current().application), durable=True)

    # -- the handle

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Let another process be this consumer. Idempotent."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._file.close()

    def __enter__(self) -> Consumer:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pmwal.Consumer {self._name!r} of {self._log.path!r}{' closed' if self._closed else ''}>"

    def _check(self) -> None:
        if os.getpid() != self._file.pid:
            raise ForkedWal(f"consumer {self._name!r} belongs to the parent process; begin one of another name here")
        if self._closed:
            raise WalClosed("this consumer is closed; begin it again with reader.consumer()")
        self._log._check_open()


def _check_of(record: Record | Cursor) -> int:
    return record.check if isinstance(record, Cursor) else cursor_of(record.seq, record.kind, record.time_ns, record.data).check


class Standing(NamedTuple):
    """What is known of a consumer without holding it. ``position`` is None if it is damaged or cannot be read.

    ``holder``: id of the process that is this consumer, 0 if it is not known which; None if none is. ``problem``: why the position
    says nothing about the log.
    """

    name: str
    position: Position | None
    lag: Lag | None
    holder: int | None
    problem: str | None


def lay_anew(log: Log) -> None:
    """Correct the positions beside a log that was resized, which are hints. One that somebody holds corrects its holder."""
    for known in standings(log):  # which finds the records while no position is held
        if known.position is not None and known.problem is None and known.holder is None:
            with contextlib.suppress(OSError, PmwalError):
                Consumer(log, known.name, None).close()


def problem(log: Log, consumer: Consumer) -> str | None:
    """Why the position of this consumer says nothing about the log, in words; None if it does."""

    def find(seq: int, view: View) -> Record:
        return consumer._sought(seq, view, None)[0]

    return problem_of(consumer._current(), log._block.uuid, log._view(), find, log._epochs)


def standings(log: Log) -> list[Standing]:
    """All consumers of a log."""
    directory = directory_of(log._name.path)
    return [_standing(log, directory, name) for name in names_in(directory)]


def _standing(log: Log, directory: str, name: str) -> Standing:
    try:
        with Look(directory, name) as look:
            position, holder = look.position, look.holder
    except OSError as error:
        return Standing(name, None, None, None, f"its position cannot be read: {error.strerror}")
    if position is None:
        return Standing(name, None, None, holder, "its position is damaged")

    def find(seq: int, view: View) -> Record:
        return next(log._read(view, seq, seq + 1))

    problem = problem_of(position, log._block.uuid, log._view(), find, log._epochs)
    return Standing(name, position, None if problem else lag_of(log, position), holder, problem)


def lag_of(log: Log, position: Position) -> Lag:
    """How far a position lies before the end of the log."""
    view = log._view()
    first = max(position.seq + 1, view.tail.next_seq)
    if first >= view.end.next_seq:
        return Lag(0, 0, 0.0)
    begin = max(position.end, view.tail.position) if position.seq + 1 >= view.tail.next_seq else view.tail.position
    seconds = 0.0
    walker = replace(log._walker(view, log._place), on_delivery=None)
    with contextlib.suppress(Overrun, CorruptWal):
        near = Bound(begin, first)
        try:
            time_ns = replace(walker, explain=wrong_hint).header(view, near).time_ns
        except Overrun:
            near = log._start_of(view, first, log._place)
            time_ns = walker.header(view, near).time_ns
        seconds = max(0.0, (log._seam.now_ns() - time_ns) / 1e9)
    return Lag(view.end.next_seq - first, view.end.position - near.position, seconds)
