"""``pmwal tail``: the newest records, and with ``-f`` each new one.

Invariants
----------
- A cursor is saved only after everything up to its record was handed to standard output, so that a record may be shown
  twice (after a kill), but none is left out.
- What the log no longer has is said on standard error; then it goes on with the oldest that there is.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from pmwal.cli.atomic_file import replacing
from pmwal.cli.common import FAILED, OK, Commands, add_command, number_option, numbers_in_words, say
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import Form, add_output, form_of, print_records
from pmwal.cli.range_reader import Matches, RangeReader, add_grep, matches_pattern, mention_torn_end
from pmwal.cursor import Cursor, cursor_of, parse_cursor
from pmwal.errors import Overrun
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.records import Record

_LINES = 10
_TICK = 1.0  # seconds; so often a cursor is saved, and a log looked for that took this one's name
_REMEMBERED = 1000  # records, to find out how far a rollback went

_EPILOG = """\
-f goes on until it is interrupted (status 130), also when the writer closes the
log and another one opens it, and when another log takes its name.

With --cursor-file the first run shows what it would show without; each later
one goes on behind the record at which the last one stopped, matching or not.
When that is gone (overwritten, rolled back, or the log is a new one) it says so
and shows the oldest that there is. -f saves the cursor each second: killed, it
may show the last second's records again, but leaves none out. A cursor says
what the output took, not what a program behind a pipe did with it.

Exit status: 0; 1 when records were gone before they could be shown; 130 when
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
        commands, "tail", run, "print the newest records, and follow", "Print the newest records, and follow the log.", _EPILOG
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("-f", "--follow", action="store_true", help="show new records as they become durable")
    parser.add_argument(
        "-n",
        "--lines",
        type=number_option(0),
        metavar="N",
        help=f"begin with the last N (default: {_LINES}; all behind a saved cursor)",
    )
    parser.add_argument("--cursor-file", metavar="FILE", help="go on behind the cursor in FILE, and save the last one there")
    add_grep(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Show the newest records, and what follows."""
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
        self._bookmark = None if args.cursor_file is None else _Bookmark(args.cursor_file)
        self._seen: deque[Cursor] = deque(maxlen=_REMEMBERED)  # handed to standard output, or not matching; oldest first
        self._missed = False

    def run(self) -> int:
        """Show, and follow; the exit status."""
        start = None if self._bookmark is None else self._bookmark.load()
        if start is not None:
            self._seen.append(start)
        reader, file = self._open()
        try:
            next_seq = self._show_newest(reader)
            mention_torn_end(self._path, reader)
            while self._follows:
                next_seq = self._follow(reader, next_seq)
                if self._name_was_taken(file):
                    reader.close()
                    say(f"{self._path}: another log has this name now")
                    reader, file = self._open()
                    next_seq = self._number_behind(reader)
        finally:
            reader.close()
            self._save()
        return FAILED if self._missed else OK

    def _open(self) -> tuple[Reader, tuple[int, int]]:
        """A reader, and what tells its file from others; looked at before, so that no change is overlooked."""
        status = os.stat(self._path)
        reader = open(self._path, "r")
        events = EventForms(reader)
        self._matches = matches_pattern(self._pattern, events.searched)
        self._form = events.form(self._plain_form)
        return reader, (status.st_dev, status.st_ino)

    def _name_was_taken(self, file: tuple[int, int]) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:  # until another one has the name, this one may be written to
            return False
        return (status.st_dev, status.st_ino) != file

    def _show_newest(self, reader: Reader) -> int:
        """Show what is there; the number to go on from."""
        lines = _LINES if self._lines is None and not self._seen else self._lines
        first = self._number_behind(reader)
        last = reader.committed_seq
        walk = RangeReader(reader, self._path)
        seen: deque[Cursor] = deque(maxlen=_REMEMBERED)
        try:
            if lines is None:
                print_records(filter(self._matches, _noted(walk.oldest_first(first, last), seen.append)), self._form)
            else:
                newest_first = _noted(walk.newest_first(first, last), seen.appendleft, _REMEMBERED)
                newest = list(islice(filter(self._matches, newest_first), lines))
                next(newest_first, None)  # asked for none, it has not looked at the newest yet
                print_records(reversed(newest), self._form)
        except Overrun as error:
            return self._behind_rollback(reader, error)
        self._seen.extend(seen)
        self._missed |= walk.missed
        return max(first, last + 1)

    def _follow(self, reader: Reader, next_seq: int) -> int:
        """Show what comes, until nothing has come for a tick; the number to go on from."""
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
                say(f"{self._path}: {numbers_in_words(next_seq, next_seq + error.missed - 1)} gone before they could be shown")
                next_seq += error.missed
            else:
                next_seq = self._behind_rollback(reader, error)
        self._save()
        _refuse_closed_output()
        return next_seq

    def _behind_rollback(self, reader: Reader, error: Overrun) -> int:
        say(f"{self._path}: {error}")
        self._missed = True
        return self._number_behind(reader)

    def _number_behind(self, reader: Reader) -> int:
        """The number after the newest record seen that the log still has, its oldest when there is none.

        That it is not the newest one seen, is said.
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
            say(f"{self._path}: {problem}; going on with record {next_seq}")
        return next_seq

    def _save(self) -> None:
        if self._bookmark is not None and self._seen:
            self._bookmark.save(self._seen[-1])


class _Bookmark:
    """A cursor in a file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._saved: Cursor | None = None

    def load(self) -> Cursor | None:
        """The cursor; None when the file is empty or not there."""
        try:
            text = Path(self._path).read_text(errors="backslashreplace").strip()
        except FileNotFoundError:
            return None
        if text:
            try:
                self._saved = parse_cursor(text)
            except ValueError as error:
                raise ValueError(f"{self._path}: {error}") from None
        return self._saved

    def save(self, cursor: Cursor) -> None:
        """Put this one there; a crash leaves the old one or the new one."""
        if cursor != self._saved:
            with replacing(self._path) as file:
                file.write(f"{cursor}\n".encode())
            self._saved = cursor


def _cursor(record: Record) -> Cursor:
    return cursor_of(record.seq, record.kind, record.time_ns, record.data)


def _noted(records: Iterable[Record], note: Callable[[Cursor], None], limit: int | None = None) -> Iterator[Record]:
    """The records, the cursors of the first ``limit`` of them noted as they pass."""
    for count, record in enumerate(records):
        if limit is None or count < limit:
            note(_cursor(record))
        yield record


def _refuse_closed_output() -> None:
    """``BrokenPipeError`` when nobody reads the output any more; without a new record no write would tell."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        raise BrokenPipeError
