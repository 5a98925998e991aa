"""``pmwal tail``: print the newest records, and with ``-f`` each new one.

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
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from pmwal.cli.atomic_file import replacing
from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import Form, add_output, form_of, print_records
from pmwal.cli.inspection import uuid_of
from pmwal.cli.matching import Matches, add_grep, matches_pattern
from pmwal.cli.parser import Commands, add_command, add_path, number_option
from pmwal.cli.range_reader import RangeReader, mention_torn_end
from pmwal.cli.streams import refuse_closed_output
from pmwal.cli.terminal import say
from pmwal.cli.wording import numbers_in_words
from pmwal.cursor import Cursor, cursor_of, parse_cursor
from pmwal.errors import FormatError, Overrun, PersistError
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.records import Record

_LINES = 10
_CURSOR_MAX = 1000  # characters of a cursor file
_TICK = 1.0  # seconds between saving the cursor and checking whether another log has taken the name
_REMEMBERED = 1000  # records whose cursors are kept, to find how far back a rollback went

_EPILOG = """\
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

Exit status: 0; 1 if records were gone before they were printed; 130 if
interrupted.

Examples:
  pmwal tail app.wal
  pmwal tail -f -n 0 -g 'error|warn' app.wal
  pmwal tail -f -o json app.wal | jq -r .data
  pmwal tail --cursor-file /var/lib/ship/cursor -o raw app.wal | ship
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "tail", run, "print the newest records, and follow", "Print the newest records; with -f follow the log.", _EPILOG
    )
    add_path(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="print new records as they become durable")
    parser.add_argument(
        "-n",
        "--lines",
        type=number_option(0),
        metavar="N",
        help=f"start with the last N records (default: {_LINES}, or all after a saved cursor)",
    )
    parser.add_argument("--cursor-file", metavar="FILE", help="resume after the cursor in FILE, and save the new cursor there")
    add_grep(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the newest records, and those that follow."""
    return _Tail(args).run()


class _Tail:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._path: str = args.path
        self._lines: int | None = args.lines
        self._follows: bool = args.follow
        self._pattern: re.Pattern[str] | None = args.grep
        self._plain_form = form_of(args)
        self._matches: Matches
        self._form: Form
        self._uuid: bytes  # of the log that is read: a repaired or restored file is still the same log
        self._bookmark = None if args.cursor_file is None else _Bookmark(args.cursor_file)
        self._seen: deque[Cursor] = deque(maxlen=_REMEMBERED)  # printed, or not matching; oldest first
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
        self._matches = matches_pattern(self._pattern, events.searched)
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
        ranges = RangeReader(reader, self._path)
        seen: deque[Cursor] = deque(maxlen=_REMEMBERED)
        try:
            if lines is None:
                print_records(filter(self._matches, _noted(ranges.oldest_first(first, last), seen.append)), self._form)
            else:
                newest_first = _noted(ranges.newest_first(first, last), seen.appendleft, _REMEMBERED)
                newest = list(islice(filter(self._matches, newest_first), lines))
                next(newest_first, None)  # with -n 0 islice has not read the newest yet
                print_records(reversed(newest), self._form)
        except Overrun as error:
            return self._next_after_rollback(reader, error)
        self._seen.extend(seen)
        self._missed |= ranges.missed
        return max(first, last + 1)

    def _follow(self, reader: Reader, next_seq: int) -> int:
        """Print new records until none has come for a tick; return the number to continue from."""
        save_at = time.monotonic() + _TICK
        try:
            for record in reader.follow(next_seq, timeout=_TICK):
                if self._matches(record):
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


class _Bookmark:
    """A cursor in a file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._saved: Cursor | None = None

    def load(self) -> Cursor | None:
        """The cursor; None if the file is empty or missing."""
        try:
            with Path(self._path).open(errors="backslashreplace") as file:
                text = file.read(_CURSOR_MAX + 1).strip()  # no more: it may be a device without an end
        except FileNotFoundError:
            return None
        if len(text) > _CURSOR_MAX:
            raise ValueError(f"{self._path}: more than {_CURSOR_MAX} characters are no cursor; name another file")
        if text:
            try:
                self._saved = parse_cursor(text)
            except ValueError as error:
                raise ValueError(f"{self._path}: {error}") from None
        return self._saved

    def save(self, cursor: Cursor) -> None:
        """Store the cursor; a crash leaves the old one or the new one."""
        if cursor != self._saved:
            with replacing(self._path) as file:
                file.write(f"{cursor}\n".encode())
            self._saved = cursor


def _cursor(record: Record) -> Cursor:
    return cursor_of(record.seq, record.kind, record.time_ns, record.data)


def _noted(records: Iterable[Record], note: Callable[[Cursor], None], limit: int | None = None) -> Iterator[Record]:
    """The records; ``note`` gets the cursors of the first ``limit`` as they pass."""
    for count, record in enumerate(records):
        if limit is None or count < limit:
            note(_cursor(record))
        yield record
