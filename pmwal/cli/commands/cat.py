"""``pmwal cat``: the records of a log, beside its writer or without one.

Invariants
----------
- Nothing is left out in silence: what damage hides is said on standard error, with the numbers, and ends in status 2.
"""

from __future__ import annotations

import argparse
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
    say,
)
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import Form, add_output, form_of, print_records
from pmwal.cli.range_reader import Matches, RangeReader, add_grep, matches_pattern, mention_torn_end
from pmwal.cli.times import TIME_HELP, time_option
from pmwal.format.layout import SEQ_MAX
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.records import Record

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
    add_grep(parser)
    add_output(parser)
    parser.add_argument("--salvage", action="store_true", help="show every whole record of a damaged log")


def run(args: argparse.Namespace) -> int:
    """Print the records that were asked for."""
    form = form_of(args)
    show = _salvage if args.salvage else _show
    with open(args.path, "r", recover="salvage" if args.salvage else "strict") as reader:
        events = EventForms(reader)
        return show(reader, _filter(args, events.searched), events.form(form), args)


def _filter(args: argparse.Namespace, searched: Callable[[Record], str]) -> Matches:
    since, until, has_pattern = args.since, args.until, matches_pattern(args.grep, searched)

    def matches(record: Record) -> bool:
        if since is not None and record.time_ns < since:
            return False
        if until is not None and record.time_ns > until:
            return False
        return has_pattern(record)

    return matches


def _show(reader: Reader, matches: Matches, form: Form, args: argparse.Namespace) -> int:
    first, last = reader.first_seq, reader.committed_seq
    if args.first is not None and args.first < first <= last:
        say(f"{args.path}: {numbers_in_words(args.first, first - 1)} not in the log any more")
    first = max(first, args.first or 0)
    last = last if args.last is None else min(last, args.last)
    walk = RangeReader(reader, args.path)
    if args.lines is None and not args.reverse:
        print_records(filter(matches, walk.oldest_first(first, last)), form)
    else:
        newest = islice(filter(matches, walk.newest_first(first, last)), args.lines)
        print_records(newest if args.reverse else reversed(list(newest)), form)
    mention_torn_end(args.path, reader)
    return FAILED if walk.missed else OK


def _salvage(reader: Reader, matches: Matches, form: Form, args: argparse.Namespace) -> int:
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
    print_records(records, form)
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
