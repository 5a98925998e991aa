"""``pmwal cat``: the records of a log, beside its writer or without one.

Invariants
----------
- Nothing is left out in silence: what damage hides is said on standard error, with the numbers, and ends in status 2.
- Newest first reads the log backwards in pieces, so that the memory it takes does not grow with the log.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pmwal.cli.common import (
    CORRUPT,
    FAILED,
    OK,
    Commands,
    add_command,
    look,
    number_option,
    numbers_in_words,
    running_writer,
    say,
    torn_in_words,
)
from pmwal.cli.events import EventForms
from pmwal.cli.show import FORMATS, as_item
from pmwal.cli.times import TIME_HELP, time_option
from pmwal.errors import Overrun
from pmwal.layout import SEQ_MAX
from pmwal.opening import open
from pmwal.reader import Reader
from pmwal.records import Record

_PIECE, _PIECE_MAX = 64, 16384  # records that are read at once on the way back
_GAPS_SHOWN = 20

_EPILOG = f"""\
{TIME_HELP}
Text is one line for each record: control characters and bytes that are not
UTF-8 are shown as \\xNN. Events of pmwal.events are shown filled in.

A corrupt log is refused; --salvage shows what is whole, names the numbers that
are missing, and still ends with status 2.

Examples:
  pmwal cat -n 10 app.wal
  pmwal cat --since yesterday --until today -g 'error|warn' app.wal
  pmwal cat --from 1000 --to 1999 -o json app.wal | jq .data
  pmwal cat -o raw app.wal > lines.txt   the inverse of: pmwal write < lines.txt
  pmwal cat --length-prefixed app.wal | pmwal write --length-prefixed copy.wal
  pmwal cat --salvage broken.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "cat", run, "print records", "Print records, oldest first, also while a writer is running.", _EPILOG
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("-n", "--lines", type=number_option(0), metavar="N", help="the last N of the selected records")
    parser.add_argument("-r", "--reverse", action="store_true", help="newest first")
    parser.add_argument("--from", dest="first", type=number_option(1, SEQ_MAX), metavar="SEQ", help="from this number on")
    parser.add_argument("--to", dest="last", type=number_option(0, SEQ_MAX), metavar="SEQ", help="up to and with this number")
    parser.add_argument("-S", "--since", type=time_option, metavar="TIME", help="stored at this time or later")
    parser.add_argument("-U", "--until", type=time_option, metavar="TIME", help="stored at this time or earlier")
    parser.add_argument("-g", "--grep", type=_pattern, metavar="REGEX", help="payloads and texts of events in which this is found")
    parser.add_argument(
        "-o",
        "--output",
        choices=tuple(FORMATS),
        help="text, json (an object a line), hex, or raw (payload and newline); default: text",
    )
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    parser.add_argument("--length-prefixed", action="store_true", help="payloads behind 4 bytes of length, little-endian")
    parser.add_argument("--salvage", action="store_true", help="show every whole record of a damaged log")


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def run(args: argparse.Namespace) -> int:
    """Print the records that were asked for."""
    if args.length_prefixed and args.output not in (None, "raw"):
        args.parser.error("--length-prefixed is a form of -o raw")
    form: Callable[[Record], bytes] = as_item if args.length_prefixed else FORMATS[args.output or "text"]
    show = _salvage if args.salvage else _show
    with open(args.path, "r", recover="salvage" if args.salvage else "strict") as reader:
        events = EventForms(reader)
        return show(reader, _filter(args, events.searched), events.form(form), args)


def _filter(args: argparse.Namespace, searched: Callable[[Record], str]) -> Callable[[Record], bool]:
    since, until, pattern = args.since, args.until, args.grep

    def matches(record: Record) -> bool:
        if since is not None and record.time_ns < since:
            return False
        if until is not None and record.time_ns > until:
            return False
        return pattern is None or pattern.search(searched(record)) is not None

    return matches


def _show(
    reader: Reader, matches: Callable[[Record], bool], form: Callable[[Record], bytes], args: argparse.Namespace
) -> int:
    first, last = reader.first_seq, reader.committed_seq
    if args.first is not None and args.first < first <= last:
        say(f"{args.path}: {numbers_in_words(args.first, first - 1)} not in the log any more")
    first = max(first, args.first or 0)
    last = last if args.last is None else min(last, args.last)
    walk = _Walk(reader, args.path)
    if args.lines is None and not args.reverse:
        _print(filter(matches, walk.oldest_first(first, last)), form)
    else:
        newest = islice(filter(matches, walk.newest_first(first, last)), args.lines)
        _print(newest if args.reverse else reversed(list(newest)), form)
    _mention_torn_end(args.path, reader)
    return FAILED if walk.missed else OK


class _Walk:
    """Records of a log that a writer may be overwriting meanwhile."""

    def __init__(self, reader: Reader, path: str) -> None:
        self.missed = False
        self._reader = reader
        self._path = path

    def oldest_first(self, first: int, last: int) -> Iterator[Record]:
        at = first
        while at <= last:
            try:
                for record in self._reader.read(at, last + 1):
                    at = record.seq + 1
                    yield record
                return
            except Overrun as error:
                if not error.missed:
                    raise  # rolled back: what was printed is not in the log any more
                self._say_missed(at, min(at + error.missed - 1, last))
                at += error.missed

    def newest_first(self, first: int, last: int) -> Iterator[Record]:
        piece = _PIECE
        while last >= first:
            begin = max(first, last + 1 - piece)
            records = list(self.oldest_first(begin, last))
            yield from reversed(records)
            last, piece = begin - 1, min(2 * piece, _PIECE_MAX)

    def _say_missed(self, first: int, last: int) -> None:
        self.missed = True
        say(f"{self._path}: {numbers_in_words(first, last)} gone before they could be read: the writer was faster")


def _mention_torn_end(path: str, reader: Reader) -> None:
    if running_writer(path) is None:  # beside a writer an unfinished end is no tear
        for phrase in torn_in_words(reader.recovery):
            say(f"{path}: {phrase}")


def _salvage(
    reader: Reader, matches: Callable[[Record], bool], form: Callable[[Record], bytes], args: argparse.Namespace
) -> int:
    judgement, _ = look(args.path)
    report, slot = judgement.report, judgement.control.newest
    corrupt = report.outcome == "corrupt"
    trusted = slot is not None and report.case not in ("R8", "R9", "R9b")
    if corrupt:
        say(f"{args.path}: corrupt: {report.reason}" + ("" if trusted else "; truncated records may be among what follows"))
    gaps = _Gaps(args.path, report.first_seq if trusted else None)

    def wanted(record: Record) -> bool:
        in_range = (args.first is None or record.seq >= args.first) and (args.last is None or record.seq <= args.last)
        return in_range and matches(record)

    records: Iterable[Record] = filter(wanted, gaps.watch(reader.read()))
    if args.lines is not None or args.reverse:
        records = deque(records, maxlen=args.lines)
        records = reversed(records) if args.reverse else records
    _print(records, form)
    known = [number for number in (report.lost_last_seq, slot.commit_seq if slot is not None and trusted else None) if number]
    if corrupt and known:
        gaps.end(max(known))
    gaps.sum_up()
    return CORRUPT if corrupt or gaps.count else OK


class _Gaps:
    """Says which numbers are missing between the records that pass."""

    def __init__(self, path: str, expected: int | None) -> None:
        self.count = 0
        self._path = path
        self._expected = expected

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if self._expected is not None and record.seq > self._expected:
                self._missing(self._expected, record.seq - 1)
            self._expected = record.seq + 1
            yield record

    def end(self, last: int) -> None:
        """The log acknowledged records up to this number."""
        if self._expected is not None and last >= self._expected:
            self._missing(self._expected, last)

    def sum_up(self) -> None:
        if self.count > _GAPS_SHOWN:
            say(f"{self._path}: and {self.count - _GAPS_SHOWN} more gaps")

    def _missing(self, first: int, last: int) -> None:
        self.count += 1
        if self.count <= _GAPS_SHOWN:
            say(f"{self._path}: {numbers_in_words(first, last)} damaged or missing")


def _print(records: Iterable[Record], form: Callable[[Record], bytes]) -> None:
    output = sys.stdout.buffer
    for record in records:
        output.write(form(record))
    output.flush()
