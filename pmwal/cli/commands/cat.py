"""``pmwal cat``: print the records of a log, whether or not a writer is running.

Invariants
----------
- Nothing is left out silently: records lost to damage are reported on standard error, by number, and the status is 2.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pmwal.cli.exit_status import CORRUPT, FAILED, OK
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import Form, add_output, form_of, print_records
from pmwal.cli.inspection import judge_for_salvage
from pmwal.cli.matching import Matches, add_grep, matches_pattern
from pmwal.cli.parser import Commands, add_command, add_path, number_option
from pmwal.cli.range_reader import RangeReader, mention_torn_end
from pmwal.cli.terminal import say
from pmwal.cli.times import TIME_HELP, check_order, since_option, until_option
from pmwal.cli.wording import numbers_in_words
from pmwal.format.layout import SEQ_MAX
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.records import Record

_GAPS_SHOWN = 20

_EPILOG = f"""\
{TIME_HELP}
Text output is one line per record; control characters and bytes that are not
UTF-8 are escaped as \\xNN. Events logged with pmwal.events are formatted.

A corrupt log is refused. --salvage prints the whole records around the damage,
reports which numbers are missing and which bytes cannot be read, and exits
with status 2.

Examples:
  pmwal cat -n 10 app.wal
  pmwal cat --since yesterday --until yesterday -g 'error|warn' app.wal
  pmwal cat --from 1000 --to 1999 -o json app.wal | jq .data
  pmwal cat -o raw app.wal > lines.txt   inverse of: pmwal write < lines.txt
  pmwal cat --length-prefixed app.wal | pmwal write --length-prefixed copy.wal
  pmwal cat --salvage broken.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "cat", run, "print records", "Print records, oldest first, even while a writer is running.", _EPILOG
    )
    add_path(parser)
    parser.add_argument("-n", "--lines", type=number_option(0), metavar="N", help="print only the last N of the selected records")
    parser.add_argument("-r", "--reverse", action="store_true", help="print the newest first")
    parser.add_argument("--from", dest="first", type=number_option(1, SEQ_MAX), metavar="SEQ", help="start at this record")
    parser.add_argument("--to", dest="last", type=number_option(0, SEQ_MAX), metavar="SEQ", help="stop after this record")
    parser.add_argument("-S", "--since", type=since_option, metavar="TIME", help="print only records stored at TIME or later")
    parser.add_argument("-U", "--until", type=until_option, metavar="TIME", help="print only records stored at TIME or earlier")
    add_grep(parser)
    add_output(parser)
    parser.add_argument("--salvage", action="store_true", help="print every whole record of a damaged log")


def run(args: argparse.Namespace) -> int:
    """Print the selected records."""
    if args.first is not None and args.last is not None and args.last < args.first:
        args.parser.error(f"--to {args.last} is before --from {args.first}; exchange the two")
    check_order(args.parser, args.since, args.until)
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
        gone = first - 1 if args.last is None else min(first - 1, args.last)
        say(f"{args.path}: {numbers_in_words(args.first, gone)} no longer in the log")
    first = max(first, args.first or 0)
    last = last if args.last is None else min(last, args.last)
    ranges = RangeReader(reader, args.path)
    if args.lines is None and not args.reverse:
        print_records(filter(matches, ranges.oldest_first(first, last)), form)
    else:
        newest = islice(filter(matches, ranges.newest_first(first, last)), args.lines)
        print_records(newest if args.reverse else reversed(list(newest)), form)
    mention_torn_end(args.path, reader)
    return FAILED if ranges.missed else OK


def _salvage(reader: Reader, matches: Matches, form: Form, args: argparse.Namespace) -> int:
    judgement, rebuilt = judge_for_salvage(args.path)
    first: int | None = judgement.report.first_seq
    if rebuilt is not None:
        doubt = "; rolled back or truncated records may be among these" if rebuilt.doubtful else ""
        say(f"{args.path}: corrupt: {judgement.report.reason}{doubt}")
        first = None if rebuilt.doubtful or rebuilt.slot is None else rebuilt.slot.tail_seq
    gaps = _Gaps(args.path, first)

    def wanted(record: Record) -> bool:
        in_range = (args.first is None or record.seq >= args.first) and (args.last is None or record.seq <= args.last)
        return in_range and matches(record)

    records: Iterable[Record] = filter(wanted, gaps.watch(reader.read()))
    if args.lines is not None or args.reverse:
        records = deque(records, maxlen=args.lines)
        records = reversed(records) if args.reverse else records
    print_records(records, form)
    if rebuilt is not None:
        gaps.end(max(rebuilt.last_seq, judgement.report.lost_last_seq or 0))
    gaps.sum_up()
    unreadable = reader.recovery.unreadable
    for start, end in unreadable:
        say(f"{args.path}: bytes {start} to {end} cannot be read; records there are missing")
    return CORRUPT if rebuilt is not None or gaps.count or unreadable else OK


class _Gaps:
    """Reports the numbers missing from a sequence of records."""

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
        """Report what is missing at the end of a log that acknowledged records up to this number."""
        if self._expected is not None and last >= self._expected:
            self._missing(self._expected, last)

    def sum_up(self) -> None:
        if self.count > _GAPS_SHOWN:
            say(f"{self._path}: and {self.count - _GAPS_SHOWN} more gaps")

    def _missing(self, first: int, last: int) -> None:
        self.count += 1
        if self.count <= _GAPS_SHOWN:
            say(f"{self._path}: {numbers_in_words(first, last)} damaged or missing")
