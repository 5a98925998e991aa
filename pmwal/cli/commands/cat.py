"""``pmwal cat``: print the records of logs, whether or not writers are running.

Invariants
----------
- Nothing is left out silently: records lost to damage are reported on standard error, by number, and the status is 2.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from pmwal.cli.exit_status import CORRUPT, FAILED, OK
from pmwal.cli.filters import LEVEL_HELP, Matches, add_kinds, add_record_filters, add_times, matches_of, selection_of
from pmwal.cli.formats.event_forms import EventForms
from pmwal.cli.formats.printing import Form, add_output, form_of, print_records, with_names
from pmwal.cli.inspection import judge_for_salvage, mention_torn_end
from pmwal.cli.parser import Commands, add_command, number_option
from pmwal.cli.places import ShortNames, add_paths, one_log, set_named
from pmwal.cli.reading.sets import SetReader
from pmwal.cli.reading.spans import Span
from pmwal.cli.terminal import say
from pmwal.cli.times import TIME_HELP
from pmwal.cli.wording import numbers_in_words
from pmwal.format.layout import SEQ_MAX
from pmwal.logs.log_set import LogSet
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record

_GAPS_SHOWN = 20

_EPILOG = f"""\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes. The
records of several logs are merged by time, and each line of text begins with
the name of its log; in JSON that is "log". --from, --to and --salvage take one
file.

{TIME_HELP}
--since and --until select one run of records, from the first one stored at or
after TIME on, which is found without reading the others. With --exact all
records are read, and selected by their own stamps: for clocks that were set
back while the log was open.

{LEVEL_HELP}The level of a record is its kind, that of an event is in its definition.

Text output is one line per record: number, time, level if the kind is that of
one, and payload. Control characters and bytes that are not UTF-8 are escaped as
\\xNN. Events logged with pmwal.events are formatted. In JSON a payload that is
a JSON object on one line is in "data" as it is, other text as a string, and all
else in "data_base64"; pmwal import restores the same bytes.

A corrupt log is refused; among several it is reported, and the others are
printed. --salvage prints the whole records around the damage, reports which
numbers are missing and which bytes cannot be read, and exits with status 2.

Exit status: 0; 1 if records were gone before they were printed; 2 if a log is
corrupt, 3 if one cannot be opened.

Examples:
  pmwal cat -n 10 app.wal
  pmwal cat --since -1h --level warning /var/log/shop
  pmwal cat --since yesterday --until yesterday -g 'timeout|refused' app.wal
  pmwal cat -o json app.wal | jq 'select(.data.user == 17) | .time, .data'
  pmwal cat -o raw app.wal > lines.txt   inverse of: pmwal write < lines.txt
  pmwal cat --length-prefixed app.wal | pmwal write --length-prefixed copy.wal
  pmwal cat --salvage broken.wal
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "cat", run, "print records", "Print records, oldest first, even while writers are running.", _EPILOG
    )
    add_paths(parser)
    parser.add_argument("-n", "--lines", type=number_option(0), metavar="N", help="print only the last N of the selected records")
    parser.add_argument("-r", "--reverse", action="store_true", help="print the newest first")
    parser.add_argument("--from", dest="first", type=number_option(1, SEQ_MAX), metavar="SEQ", help="start at this record")
    parser.add_argument("--to", dest="last", type=number_option(0, SEQ_MAX), metavar="SEQ", help="stop after this record")
    add_times(parser)
    parser.add_argument("--exact", action="store_true", help="read all records, and select each by its own stamp")
    add_kinds(parser)
    add_record_filters(parser)
    add_output(parser)
    parser.add_argument("--salvage", action="store_true", help="print every whole record of a damaged log")


def run(args: argparse.Namespace) -> int:
    """Print the selected records."""
    if args.first is not None and args.last is not None and args.last < args.first:
        args.parser.error(f"--to {args.last} is before --from {args.first}; exchange the two")
    chosen, form = selection_of(args), form_of(args)
    args.path = one_log(args.paths)
    if args.path is None:
        return _show_several(args, form, chosen)
    show = _salvage if args.salvage else _show
    with open(args.path, "r", recover="salvage" if args.salvage else "strict") as reader:
        events = EventForms(reader)
        return show(reader, chosen, matches_of(args, events), events.form(form), args)


def _show_several(args: argparse.Namespace, plain_form: Form, chosen: Selection) -> int:
    if args.salvage:
        args.parser.error("--salvage prints one log; name one file")
    if args.first is not None or args.last is not None:
        args.parser.error("--from and --to number the records of one log; name one file, or use --since and --until")
    places, status = set_named(args.paths)
    with LogSet(places) as logs:
        events, records = EventForms(logs), SetReader(logs, chosen)
        form = with_names(plain_form, events.form(plain_form), ShortNames(logs.logs))
        _print(records, matches_of(args, events), form, args)
        return max(status, records.finish())


def _show(reader: Reader, chosen: Selection, matches: Matches, form: Form, args: argparse.Namespace) -> int:
    first, last = reader.first_seq, reader.committed_seq
    if args.first is not None and args.first < first <= last:
        gone = first - 1 if args.last is None else min(first - 1, args.last)
        say(f"{args.path}: {numbers_in_words(args.first, gone)} no longer in the log")
    span = Span(args.path, reader, chosen)
    span.narrow(args.first, args.last)
    _print(span, matches, form, args)
    mention_torn_end(args.path, reader)
    return FAILED if span.missed else OK


def _print(source: Span | SetReader, matches: Matches, form: Form, args: argparse.Namespace) -> None:
    if args.lines is None and not args.reverse:
        print_records(filter(matches, chain.from_iterable(source.oldest_first())), form)
    else:
        newest = islice(filter(matches, chain.from_iterable(source.newest_first())), args.lines)
        print_records(newest if args.reverse else reversed(list(newest)), form)


def _salvage(reader: Reader, chosen: Selection, matches: Matches, form: Form, args: argparse.Namespace) -> int:
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

    records: Iterable[Record] = filter(wanted, chosen.filtered(gaps.watch(reader.read()), each=True))
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
