"""``pmwal tail``: print the newest records of logs, and with ``-f`` each new one.

Invariants
----------
- A cursor is saved only after everything up to its record was written to standard output and flushed. So a kill or an error may
  cause records to be printed twice, but never to be left out.
- Records that are no longer in the log are reported on standard error; printing then continues with the oldest there are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, islice

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.filters import LEVEL_HELP, Matches, add_kinds, add_record_filters, kinds_of, matches_of
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import Form, add_output, form_of, print_records, with_names
from pmwal.cli.inspection import mention_torn_end, uuid_of
from pmwal.cli.parser import Commands, add_command, number_option
from pmwal.cli.places import ShortNames, add_paths, one_log, set_named
from pmwal.cli.reading.bookmark import log_bookmark, set_bookmark, usable_cursors
from pmwal.cli.reading.sets import SetReader, status_of_problems
from pmwal.cli.reading.spans import Span
from pmwal.cli.streams import refuse_closed_output
from pmwal.cli.terminal import say
from pmwal.cli.wording import numbers_in_words
from pmwal.cursor import Cursor, cursor_of
from pmwal.errors import FormatError, Overrun, PersistError
from pmwal.logs.log_set import LogSet
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record, SetRecord

_LINES = 10
_TICK = 1.0  # seconds between saving the cursor and checking whether another log has taken the name
_QUIET = 2.0  # seconds without a record until a set is begun anew: longer than it waits for records that are not durable
_REMEMBERED = 1000  # records whose cursors are kept, to find how far back a rollback went

_EPILOG = f"""\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes. The
records of several logs are merged by time, and each line of text begins with
the name of its log; in JSON that is "log". With -f logs that are new in a
directory or match a pattern are followed, too.

{LEVEL_HELP}The level of a record is its kind, that of an event is in its definition.

-f continues until interrupted (status 130), even if the writer closes the log
and another one opens it, or another log takes its name, also after the file was
truncated.

With --cursor-file the first run prints what it would print without it; each
later run resumes after the last record that the previous run read, matching or
not. If that record is gone (overwritten, rolled back, or the log is a new one),
this is reported and printing starts at the oldest record there is. -f saves the
cursor every second: if killed, the next run may repeat the last second's
records, but skips none. A cursor records what was written to standard output,
not what a program at the other end of a pipe did with it.

Exit status: 0; 1 if records were gone before they were printed; of several
logs 2 if one is corrupt, 3 if one cannot be opened; 130 if interrupted.

Examples:
  pmwal tail app.wal
  pmwal tail -f -n 0 --level warning /var/log/shop
  pmwal tail -f -o json app.wal | jq -r .data
  pmwal tail --cursor-file /var/lib/ship/cursor -o raw app.wal | ship
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "tail", run, "print the newest records, and follow", "Print the newest records; with -f follow the logs.", _EPILOG
    )
    add_paths(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="print new records as they become durable")
    parser.add_argument(
        "-n",
        "--lines",
        type=number_option(0),
        metavar="N",
        help=f"start with the last N records (default: {_LINES}, or all after a saved cursor)",
    )
    parser.add_argument("--cursor-file", metavar="FILE", help="resume after the cursor in FILE, and save the new cursor there")
    add_kinds(parser)
    add_record_filters(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the newest records, and those that follow."""
    form = form_of(args)
    args.path = one_log(args.paths)
    return _Tail(args, form).run() if args.path is not None else _SetTail(args, form).run()


class _Tail:
    """One run of the command, of one log."""

    def __init__(self, args: argparse.Namespace, form: Form) -> None:
        self._args = args
        self._path: str = args.path
        self._lines: int | None = args.lines
        self._follows: bool = args.follow
        self._kinds = kinds_of(args)
        self._plain_form = form
        self._matches: Matches
        self._form: Form
        self._uuid: bytes  # of the log that is read: a repaired or restored file is still the same log
        self._bookmark = None if args.cursor_file is None else log_bookmark(args.cursor_file)
        self._seen: deque[Cursor] = deque(maxlen=_REMEMBERED)  # printed, or the last of those not matching; oldest first
        self._missed = False

    def run(self) -> int:
        """Print, follow, and return the exit status."""
        start = None if self._bookmark is None else self._bookmark.load()
        if start is not None:
            self._seen.append(start)
        reader, file = self._open()
        try:
            next_seq = self._show_newest(reader)
            with contextlib.suppress(*((FileNotFoundError, FormatError, PersistError) if self._follows else ())):
                mention_torn_end(self._path, reader)  # a file that is gone by now is noticed below
            while self._follows:
                try:
                    next_seq = self._follow(reader, next_seq)
                    gone = False
                except PersistError as error:  # the file was shortened: its records are no more
                    self._report_gone(error)
                    gone = True
                if gone or self._name_was_taken(file):
                    reader.close()
                    uuid = self._uuid
                    reader, file = self._open_next() if gone else self._open()
                    next_seq = self._next_number(reader) if self._uuid == uuid else self._begin_again(reader)
        finally:
            reader.close()
            self._save()
        return FAILED if self._missed else OK

    def _open(self) -> tuple[Reader, tuple[int, int]]:
        """A reader, and the identity of its file, taken before opening it so that no replacement is overlooked."""
        status = os.stat(self._path)
        reader = open(self._path, "r")
        self._uuid = uuid_of(self._path)
        events = EventForms(reader)
        self._matches = matches_of(self._args, events)
        self._form = events.form(self._plain_form)
        return reader, (status.st_dev, status.st_ino)

    def _report_gone(self, error: PersistError) -> None:
        self._missed = True
        self._save()
        say(f"{self._path}: {error.strerror}; waiting for another log with this name")

    def _open_next(self) -> tuple[Reader, tuple[int, int]]:
        """Wait until the path leads to a log again, and open it."""
        while True:
            time.sleep(_TICK)
            refuse_closed_output()
            with contextlib.suppress(FileNotFoundError, FormatError, PersistError):
                return self._open()

    def _name_was_taken(self, file: tuple[int, int]) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:  # until another file has the name, this one may still be written to
            return False
        return (status.st_dev, status.st_ino) != file

    def _show_newest(self, reader: Reader) -> int:
        """Print what the log has; return the number to continue from."""
        lines = _LINES if self._lines is None and not self._seen else self._lines
        first = self._next_number(reader)
        last = reader.committed_seq
        span = Span(self._path, reader, Selection(kinds=self._kinds))
        span.narrow(first, last)
        seen: deque[Cursor] = deque(maxlen=_REMEMBERED)
        newest_seen = self._cursor_at(reader, last) if last >= first else None
        try:
            if lines is None:
                print_records(filter(self._matches, _noted(chain.from_iterable(span.oldest_first()), seen.append)), self._form)
            else:
                newest_first = _noted(chain.from_iterable(span.newest_first()), seen.appendleft, _REMEMBERED)
                newest = list(islice(filter(self._matches, newest_first), lines))
                print_records(reversed(newest), self._form)
        except Overrun as error:
            return self._next_after_rollback(reader, error)
        self._seen.extend(seen)
        if newest_seen is not None and (not seen or seen[-1] != newest_seen):
            self._seen.append(newest_seen)
        self._missed |= span.missed
        return max(first, last + 1)

    @staticmethod
    def _cursor_at(reader: Reader, seq: int) -> Cursor | None:
        try:
            return _cursor(reader[seq])
        except (IndexError, Overrun):  # overwritten or rolled back meanwhile, which the read reports
            return None

    def _follow(self, reader: Reader, next_seq: int) -> int:
        """Print new records until none has come for a tick; return the number to continue from."""
        save_at = time.monotonic() + _TICK
        try:
            for record in reader.follow(next_seq, timeout=_TICK):
                if (self._kinds is None or record.kind in self._kinds) and self._matches(record):
                    print_records((record,), self._form)
                self._seen.append(_cursor(record))
                next_seq = record.seq + 1
                if time.monotonic() >= save_at:
                    self._save()
                    save_at = time.monotonic() + _TICK
        except Overrun as error:
            if error.missed:
                self._missed = True
                say(f"{self._path}: {numbers_in_words(next_seq, next_seq + error.missed - 1)} gone before they were printed")
                next_seq += error.missed
            else:
                next_seq = self._next_after_rollback(reader, error)
        self._save()
        refuse_closed_output()
        return next_seq

    def _next_after_rollback(self, reader: Reader, error: Overrun) -> int:
        say(f"{self._path}: {error}")
        self._missed = True
        return self._next_number(reader)

    def _next_number(self, reader: Reader) -> int:
        """The number after the newest record seen that the log still has, or the log's oldest if there is none.

        If that is not the newest record seen, this is reported.
        """
        problem: Overrun | None = None
        next_seq: int | None = None
        while self._seen and next_seq is None:
            cursor = self._seen[-1]
            try:
                reader.read(str(cursor))
                next_seq = cursor.seq + 1
            except Overrun as error:
                problem = problem or error
                if error.missed:
                    next_seq = cursor.seq + 1 + error.missed
                else:
                    self._seen.pop()
        if next_seq is None:
            next_seq = reader.first_seq
        if problem is not None:
            self._missed = True
            say(f"{self._path}: {problem}; continuing with record {next_seq}")
        return next_seq

    def _begin_again(self, reader: Reader) -> int:
        """The first number of another log. It has none of the records seen, and so none of them is missing."""
        self._seen.clear()
        say(f"{self._path}: another log has this name now; continuing with its record {reader.first_seq}")
        return reader.first_seq

    def _save(self) -> None:
        if self._bookmark is not None and self._seen:
            self._bookmark.save(self._seen[-1])


class _SetTail:
    """One run of the command, of several logs."""

    def __init__(self, args: argparse.Namespace, form: Form) -> None:
        self._args = args
        self._plain_form = form
        self._kinds: Collection[int] | None = kinds_of(args)
        self._bookmark = None if args.cursor_file is None else set_bookmark(args.cursor_file)
        self._cursor: dict[str, str] = {}  # after what was printed
        self._logs: LogSet
        self._matches: Matches
        self._form: Form
        self._status = OK
        self._missed = 0

    def run(self) -> int:
        """Print, follow, and return the exit status."""
        start = None if self._bookmark is None else self._bookmark.load()
        places, self._status = set_named(self._args.paths, follow=self._args.follow)
        with LogSet(places) as self._logs:
            events = EventForms(self._logs)
            self._form = with_names(self._plain_form, events.form(self._plain_form), ShortNames(self._logs.logs))
            self._matches = matches_of(self._args, events)
            try:
                if start is not None and self._args.lines is None:
                    print_records(filter(self._wanted, self._logs.read(self._valid(start))), self._form)
                    self._cursor = self._logs.cursor
                else:
                    self._show_newest(self._valid(start or {}))
                self._report_missed("overwritten or truncated before they were read")
                while self._args.follow:
                    # The set is asked for all kinds: so the cursor is after what does not match, too, which is not read again.
                    self._print_each(self._logs.follow(self._cursor, timeout=_QUIET))
                    self._report_missed("gone before they were printed")
                    refuse_closed_output()
            finally:
                self._save()
            return self._status

    def _valid(self, start: Mapping[str, str]) -> dict[str, str]:
        """The cursors whose records are still there; of the others it says so."""
        usable, gone = usable_cursors(start, self._logs.logs)
        self._status = max(self._status, FAILED if gone else OK)
        return usable

    def _show_newest(self, start: dict[str, str]) -> None:
        records = SetReader(self._logs, Selection(kinds=self._kinds), start)
        lines, ends = _LINES if self._args.lines is None else self._args.lines, records.ends
        newest = list(islice(filter(self._matches, chain.from_iterable(records.newest_first())), lines))
        print_records(reversed(newest), self._form)
        self._cursor = start | ends
        self._status = max(self._status, records.finish())
        self._missed = self._logs.missed

    def _wanted(self, record: Record) -> bool:
        return (self._kinds is None or record.kind in self._kinds) and self._matches(record)

    def _print_each(self, records: Iterator[SetRecord]) -> None:
        save_at = time.monotonic() + _TICK
        last: dict[str, SetRecord] = {}
        handed: SetRecord | None = None  # by the set, and maybe not printed
        try:
            for record in records:
                handed = record  # before any call, in which a signal may be handled
                if self._wanted(record):
                    print_records((record,), self._form)
                last[record.log] = record
                handed = None
                if time.monotonic() >= save_at:
                    self._cursor = self._logs.cursor
                    self._save()
                    save_at = time.monotonic() + _TICK
        finally:
            self._cursor = self._logs.cursor if handed is None else self._cursor_before(handed, last.get(handed.log))
        self._save()

    def _cursor_before(self, record: SetRecord, last: SetRecord | None) -> dict[str, str]:
        """After what was handed out but for this record, which is not known to be printed; ``last`` was, of the same log."""
        cursor = self._logs.cursor
        reader = self._logs.logs.get(record.log)
        uuid = "" if reader is None else reader.uuid
        before = self._cursor.get(uuid) if last is None else last.cursor
        cursor.pop(uuid, None)
        return cursor if before is None else cursor | {uuid: before}

    def _report_missed(self, how: str) -> None:
        if self._logs.missed > self._missed:
            say(f"{self._logs.missed - self._missed} records {how}")
            self._missed = self._logs.missed
            self._status = max(self._status, FAILED)
        self._status = max(self._status, status_of_problems(self._logs))

    def _save(self) -> None:
        if self._bookmark is not None and self._cursor:
            self._bookmark.save(self._cursor)


def _cursor(record: Record) -> Cursor:
    return cursor_of(record.seq, record.kind, record.time_ns, record.data)


def _noted(records: Iterable[Record], note: Callable[[Cursor], None], limit: int | None = None) -> Iterator[Record]:
    """The records; ``note`` gets the cursors of the first ``limit`` as they pass."""
    for count, record in enumerate(records):
        if limit is None or count < limit:
            note(_cursor(record))
        yield record
