"""Moves the records of logs into archive files, each record once.

Invariants
----------
- A file is written from the log, which keeps the records until then. So nothing is buffered, and what is not in a file is still
  in the log.
- Only when a file has its name, durably, its records are acknowledged, durably. A kill or a power cut between the two leaves
  a position before the end of the archives: the next run acknowledges what they have, and continues after it.
- A file is acknowledged only while the log has the record that ends it, or no longer has that number. If the log has
  another record there, it was rolled back or restored: a new branch begins where the two differ.
- Records that were gone before they were archived, and rollbacks, are said in the summary of the next file, and reported.
- The archives say what is archived, and the position what the log may free. Where the archives end before the position, the log is
  archived again from their end on.
- Old archives are removed at the start, after each file, and from time to time, whether or not there is anything to archive. Only
  where that is asked for, a log that has no archives continues at its position.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from pmwal.cli.archiving.directory import ArchiveDirectory, Kept, Other
from pmwal.cli.archiving.forms import line_for, table_for
from pmwal.errors import CorruptWal, Overrun, PmwalError, PositionError
from pmwal.format.layout import HEADER, TIME_MAX, TIME_MIN
from pmwal.format.ring import Clock, Filter
from pmwal.logs.archives.checking import holes
from pmwal.logs.archives.file import ArchiveFile
from pmwal.logs.archives.lines import LinesWriter
from pmwal.logs.archives.names import divergence, name_for, newest_of
from pmwal.logs.archives.parquet import ParquetWriter
from pmwal.logs.archives.reader import ArchivedReader
from pmwal.logs.archives.summary import Group, Rows, Summary
from pmwal.logs.paths import ArchiveName, is_archive, logs_at
from pmwal.opening import open, open_with
from pmwal.opening.options import Options
from pmwal.reading.internals import (
    bounds_of,
    epoch_first_seq,
    epochs_of,
    is_elsewhere,
    newest_epoch,
    renewed_consumer,
    runs_of,
    same_file,
)
from pmwal.reading.reader import Reader
from pmwal.reading.walk import rolled_back
from pmwal.records import Record
from pmwal.storage.seam import Seam

FORMATS = {"parquet": ".parquet", "jsonl.zst": ".jsonl.zst"}
"""The formats, and how the names of their files end."""

_READ = Options("r")
_ALL = Filter(None, TIME_MIN, TIME_MAX)
_GROUP_RECORDS, _GROUP_BYTES = 16384, 4 << 20  # of a group, which readers take into memory
_PRUNE_PAUSE = 60.0  # seconds between two looks for old archives while no file is written


class Rules(NamedTuple):
    """``size`` and ``seconds``: a file is written when that much, or something that old, is to be archived.

    ``keep`` and ``total``: archives that are older than these seconds, or the oldest while all are larger, are removed.
    """

    format: str
    consumer: str
    size: int
    seconds: float
    keep: float | None = None
    total: int | None = None


class Written(NamedTuple):
    """A file that was written, and its records acknowledged. ``early``: because of half a ring, before the rules asked for it."""

    path: str
    log: str
    summary: Summary
    size: int
    early: bool = False


class Passed(NamedTuple):
    """The consumer has acknowledged records of this log up to that number, and there is no archive in the directory."""

    log: str
    position: int


class Missing(NamedTuple):
    """Records of this log that were archived, and that no file between others has any more."""

    log: str
    first: int
    last: int


class Archiver:
    """Archives the logs of these places. ``look`` is called from time to time."""

    def __init__(self, places: Sequence[str], target: str, rules: Rules, seam: Seam) -> None:
        self._places = list(places)
        self._rules = rules
        self._seam = seam
        self._logs: dict[str, _Log] = {}  # by path
        self.problems: dict[str, Exception] = {}  # of logs that could not be archived at the last look, by path
        self._directory = ArchiveDirectory(target, seam)
        self._is_empty = not self._directory.files()  # as far as this process knows
        self._said: set[str] = set()  # logs of which it was said that they are archived elsewhere
        self._missing: set[Missing] = set()  # of which it was said
        self._named: set[str] = set()  # what has the name of an archive, and is none
        self._prune_at = time.monotonic()

    def look(self, *, flush: bool = False) -> Iterator[Written | Kept | Passed | Missing | Other]:
        """Write the files that are due, or with ``flush`` all that the logs have now; what was written, and what was removed."""
        if time.monotonic() >= self._prune_at:  # first, so that there is room for new files
            yield from self._others()
            yield from self._prune()
        found = {path for place in self._places for path, _ in logs_at(place) if not is_archive(path)}
        for path in sorted(found | self._logs.keys()):
            try:
                yield from self._look_at(path, flush=flush)
                self.problems.pop(path, None)
            except (OSError, PmwalError) as error:
                self._drop(path)  # it is opened again at the next look
                if [path] == self._places or self._directory.is_of(error):  # there is nothing else to do
                    raise
                self.problems[path] = error

    def _look_at(self, path: str, *, flush: bool) -> Iterator[Written | Kept | Passed | Missing]:
        log = self._logs.get(path)
        if log is not None and log.gone:
            if not log.replaced:
                for written in log.archive(flush=True):  # the file is still there for those who have it open
                    yield from self._pruned(written)
            self._drop(path)
            log = None
        if log is None:
            try:
                reader = open_with(path, _READ, seam=self._seam)
            except FileNotFoundError:
                if path in self._places:
                    raise
                return
            assert isinstance(reader, Reader)
            if any(other.has_open(reader) for other in self._logs.values()):  # under another name
                reader.close()
                return
            try:
                self._logs[path] = log = _Log(reader, self._directory, self._rules)
            except BaseException:
                reader.close()
                raise
            for missing in log.missing():
                if missing not in self._missing:
                    self._missing.add(missing)
                    yield missing
            if self._is_empty and path not in self._said and log.passed is not None:
                self._said.add(path)
                yield log.passed
        for written in log.archive(flush=flush):
            yield from self._pruned(written)

    def _pruned(self, written: Written) -> Iterator[Written | Kept]:
        self._is_empty = False
        yield written
        yield from self._prune()

    def _others(self) -> Iterator[Other]:
        """What has the name of an archive and is none, each once."""
        for other in self._directory.others():
            if other.path not in self._named:
                self._named.add(other.path)
                yield other

    def _prune(self) -> list[Kept]:
        self._prune_at = time.monotonic() + _PRUNE_PAUSE
        return self._directory.prune(self._rules.keep, self._rules.total)

    def _drop(self, path: str) -> None:
        log = self._logs.pop(path, None)
        if log is not None:
            log.close()

    def close(self) -> None:
        """Let another process archive. Idempotent."""
        try:
            for path in list(self._logs):
                self._drop(path)
        finally:
            self._directory.close()


class _Log:
    """One log, and the archives of it that are there."""

    def __init__(self, reader: Reader, directory: ArchiveDirectory, rules: Rules) -> None:
        self._reader = reader
        self._directory = directory
        self._rules = rules
        self._files = self._there()
        self._next = 0
        self._idle: tuple[int, int, int] | None = None  # the state in which all was archived
        self._gap: tuple[int, int] | None = None
        self._rollback: int | None = None
        self._orphaned = False  # the position was removed with the log
        self._early = False
        self._waits: tuple[int, float] | None = None  # the first record to archive, and since when, by a clock that nobody sets
        self._newest: Summary | None = None  # of the file that ends the archives
        self._met = False  # whether the position was compared with that
        self._consumer = renewed_consumer(reader, rules.consumer, "oldest")

    def _there(self) -> list[ArchiveName]:
        return [name for name in self._directory.files() if name.uuid == self._reader.uuid]

    def missing(self) -> list[Missing]:
        """What is in no archive between others. Names tell, so that this costs little; summaries tell what was never archived."""
        return [Missing(self._reader.path, *numbers) for numbers in holes(self._files, self._summary_of)]

    def _summary_of(self, name: ArchiveName) -> Summary | None:
        with contextlib.suppress(CorruptWal, OSError), contextlib.closing(ArchiveFile(self._directory.path_of(name))) as file:
            return file.summary
        return None  # of the last one it is said when the records after it are archived

    @property
    def passed(self) -> Passed | None:
        """How far the consumer is, if that says where to continue without archives, and the log still has records before it."""
        position = self._consumer.position
        return Passed(self._reader.path, position) if self._removes and position >= self._reader.first_seq else None

    @property
    def _removes(self) -> bool:
        """Whether old archives are removed: then that there are none says nothing."""
        return self._rules.keep is not None or self._rules.total is not None

    @property
    def gone(self) -> bool:
        """Whether its path leads to another file, or to none."""
        return is_elsewhere(self._reader)

    def has_open(self, reader: Reader) -> bool:
        """Whether this is the same file."""
        return same_file(self._reader, reader)

    @property
    def replaced(self) -> bool:
        """Whether the path leads to another file of the same log, as after a resize."""
        with contextlib.suppress(OSError, PmwalError), open(self._reader.path, "r") as now:
            return now.uuid == self._reader.uuid
        return False

    def archive(self, *, flush: bool) -> Iterator[Written]:
        """Write the files that are due, or all that there is now."""
        last, self._early = self._reader.committed_seq, False
        while (state := self._state()) != self._idle:
            with contextlib.suppress(Overrun):  # overwritten or rolled back meanwhile: the next round finds out which
                first, end = self._resume(), self._reader.committed_seq + 1
                self._idle = state if first >= end else None
                if first >= end:
                    self._waits = None
                if first >= min(end, last + 1) or not (flush or self._is_due()):
                    return
                yield self._write(min(end, last + 1))

    def _state(self) -> tuple[int, int, int]:
        """What changes with all that there may be to archive."""
        return *bounds_of(self._reader), epoch_first_seq(self._reader)

    def _is_due(self) -> bool:
        lag, now = self._consumer.lag, time.monotonic()
        if self._waits is None or self._waits[0] != self._next:
            self._waits = self._next, now
        waited = max(lag.seconds, now - self._waits[1])  # by its time, too: it may have waited before the archiver began
        asked = lag.bytes >= self._rules.size or waited >= self._rules.seconds
        # A writer that waits for room gets it before its ring is full.
        self._early = not asked and lag.bytes >= self._reader.capacity // 2
        return asked or self._early

    # -- where to continue

    def _resume(self) -> int:
        """The number of the first record to archive. ``Overrun`` if the log has changed meanwhile: ask again."""
        if self._orphaned:
            return self._next
        consumer = self._consumer
        self._gap = self._rollback = None
        try:
            if self._moved_to_the_archives():
                consumer.follow(timeout=0)  # compares the position with the log
                self._next = consumer.position + 1
            else:
                self._begin_branch()
        except Overrun as error:
            if error.missed:
                newest = self._newest
                archived = consumer.position if newest is None else min(consumer.position, newest.last)
                self._continue_after(archived, archived + 1 + error.missed)
                if consumer.position >= self._next:  # the writer may free nothing of that
                    self._seek_next()
            else:
                self._begin_branch()
        except ValueError:  # the log ends before the last record that was archived
            self._begin_branch()
        return self._next

    def _moved_to_the_archives(self) -> bool:
        """Let the position be where the archives end; False if the log has discarded, and freed, what they end with."""
        consumer = self._consumer
        newest = self._newest = self._newest or self._newest_summary()
        if newest is None:
            if not self._removes and not self._met and consumer.position >= self._reader.first_seq:
                consumer.seek("oldest")
        elif not self._met or consumer.position != newest.last:
            if newest.last < self._reader.first_seq and self._discarded(newest) is not None:
                return False
            if consumer.position < newest.last:
                consumer.ack(newest.cursor, durable=True)
            else:
                consumer.seek(newest.cursor)
        self._met = True
        return True

    def _newest_summary(self) -> Summary | None:
        last = newest_of(self._files)
        if last is None:
            return None
        with contextlib.closing(ArchiveFile(self._directory.path_of(last))) as file, self._trusted():
            return file.summary

    @contextlib.contextmanager
    def _trusted(self) -> Iterator[None]:
        """Read archives, which say where to continue: if the last one cannot be read, this log is not archived."""
        try:
            yield
        except (CorruptWal, OSError) as error:
            if isinstance(error, OSError):
                number, reason = error.errno, f"{error.filename}: this archive cannot be read: {error.strerror}"
            else:
                number, reason = errno.EBADMSG, str(error)
            advice = "if it is moved away, what the log still has is archived again; until then this log is not archived"
            raise OSError(number, f"{reason}; {advice}", self._reader.path) from None

    def _discarded(self, newest: Summary) -> int | None:
        return divergence(epochs_of(self._reader), newest.groups[-1].epoch, newest.last)

    def _continue_after(self, archived: int, following: int) -> None:
        """Continue with this number; those in between are gone from the log."""
        self._met = False
        self._next = following
        if following > archived + 1:
            self._gap = archived + 1, following - 1

    def _begin_branch(self) -> None:
        """The log was rolled back, or restored: find the last record that it has in common with the archives."""
        with contextlib.suppress(IndexError, Overrun):  # a reader says once, whatever is read, that what it had read is gone
            self._reader[self._reader.committed_seq]
        history = newest_epoch(self._reader)
        self._files = self._there()  # without those that were removed since
        files = [ArchiveFile(self._directory.path_of(name)) for name in self._files]
        with contextlib.closing(ArchivedReader(self._reader.path, self._reader.uuid, files)) as archived:
            first, last = self._reader.first_seq, self._reader.committed_seq
            high = min(last, archived.committed_seq)
            low = min(max(first, archived.first_seq) - 1, high)
            while low < high:
                middle = (low + high + 1) // 2
                if self._is_same(archived, middle):
                    low = middle
                else:
                    high = middle - 1
        common = low if self._files else first - 1
        if common < first and self._newest is not None:  # what they have in common is no longer in the log
            discarded = self._discarded(self._newest)
            common = common if discarded is None else min(common, discarded - 1)
        while True:
            self._continue_after(common, max(common + 1, self._reader.first_seq))
            try:
                self._seek_next()
                break
            except Overrun as error:  # overwritten while they were compared, or meanwhile
                if not error.missed:
                    raise
        if newest_epoch(self._reader) != history:
            raise rolled_back(self._next)  # once more, while they were compared
        self._rollback = common

    def _seek_next(self) -> None:
        try:
            self._consumer.seek(self._next)
        except ValueError:  # the log ends before it by now
            raise rolled_back(self._next) from None

    def _is_same(self, archived: Reader, seq: int) -> bool:
        try:
            with self._trusted():
                before = archived[seq]
            return before == self._reader[seq]
        except (IndexError, Overrun):
            return False

    # -- writing

    def _write(self, end: int) -> Written:
        reader, first = self._reader, self._next
        measured = _Measured(reader.read(first, end), self._rules.size)
        if self._rules.format == "parquet":
            table = table_for(reader, measured)
            begin: Callable[[BinaryIO], ParquetWriter | LinesWriter] = lambda stream: ParquetWriter(stream, table)  # noqa: E731
        else:
            line = line_for(reader)
            begin = lambda stream: LinesWriter(stream, line)  # noqa: E731
        for _ in measured:
            pass
        if measured.last < first:
            raise rolled_back(first)
        newest, rollback = self._newest, self._rollback
        branch, branches = (0, ()) if newest is None else (newest.branch, newest.branches)
        if newest is not None and rollback is not None:
            branch, branches = branch + 1, (*branches, (branch + 1, rollback + 1))
        name = ArchiveName(name_for(reader.path), reader.uuid, first, measured.last, branch, FORMATS[self._rules.format])
        with self._directory.writing(name) as stream:
            writer = begin(stream)
            try:
                cursor, groups = "", []
                for records, group in _groups(reader, first, measured.last + 1):
                    groups.append(writer.add(records, group))
                    cursor = records[-1].cursor
                summary = Summary(reader.uuid, reader.path, branch, tuple(groups), cursor, self._gap, rollback, branches)
                writer.finish(summary)
                size = stream.tell()
            except BaseException:
                writer.abandon()
                raise
        self._files.append(name)
        self._acknowledge(summary)
        return Written(self._directory.path_of(name), reader.path, summary, size, self._early)

    def _acknowledge(self, summary: Summary) -> None:
        self._next, self._newest = summary.last + 1, summary
        try:
            self._consumer.ack(summary.cursor, durable=True)
        except PositionError:
            if not self.gone:
                raise
            self._orphaned = True
        except (Overrun, ValueError):  # rolled back meanwhile, which the next look finds
            pass

    def close(self) -> None:
        """Close the log. Idempotent."""
        try:
            self._consumer.close()
        finally:
            self._reader.close()


class _Measured:
    """Records until their bytes are as many as a file gets; ``last`` is the number of the last one."""

    def __init__(self, records: Iterator[Record], size: int) -> None:
        self._records = records
        self._left = size
        self.last = 0

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if self._left <= 0:
            raise StopIteration
        record = next(self._records)
        self._left -= len(record.data) + HEADER
        self.last = record.seq
        return record


def _groups(reader: Reader, first: int, stop: int) -> Iterator[tuple[list[Record], Group]]:
    """The records, in groups of one epoch."""
    records: list[Record] = []
    epoch = size = 0
    for run in runs_of(reader, _ALL, Clock(0), first, stop):
        if records and run.clock.epoch != epoch:
            yield records, _group(records, epoch)
            records, size = [], 0
        epoch = run.clock.epoch
        for record, _, _, _ in run.records:
            records.append(record)
            size += len(record.data)
            if len(records) >= _GROUP_RECORDS or size >= _GROUP_BYTES:
                yield records, _group(records, epoch)
                records, size = [], 0
    if records:
        yield records, _group(records, epoch)


def _group(records: list[Record], epoch: int) -> Group:
    columns: Any = zip(*((record.seq, record.kind, record.time_ns, record.data) for record in records), strict=True)
    return Rows(*columns).group(epoch)
