"""``pmwal export``: write the records of logs in a format that other programs read."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO

from pmwal.cli.atomic_file import descriptor_named, replacing
from pmwal.cli.exit_status import OK
from pmwal.cli.filters import Choice, add_entry_filters, add_kinds, add_times, choice_of, selection_of
from pmwal.cli.formats.columns import COLUMNS_MAX, ColumnLayout, PayloadLayout, Survey, row_of
from pmwal.cli.formats.interchange import INTERCHANGES, Interchange, form_for
from pmwal.cli.parser import Commands, Parser, add_command, number_option
from pmwal.cli.places import add_paths, one_log, set_named
from pmwal.cli.reading.passes import LogPasses, SetPasses
from pmwal.cli.terminal import say
from pmwal.cli.times import TIME_HELP
from pmwal.events.entries import Entries, Entry
from pmwal.logs.log_set import LogSet
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.records import Record

_SAMPLE = 1000  # records that decide on the layout

_EPILOG = f"""\
Formats:
  jsonl            one JSON object per line: seq, kind, time_ns, time, and data
                   if the payload is UTF-8, else data_base64
  length-prefixed  each payload after its length (4 bytes, little-endian);
                   without kinds, numbers and times
  csv              a table (RFC 4180), with a line of names
  parquet, arrow   a table; requires pyarrow: pip install 'pmwal[arrow]'

The default format follows from the suffix of FILE (.jsonl, .ndjson, .json,
.csv, .parquet, .arrow, .feather); without one it is jsonl. FILE appears
complete or not at all; a file that it replaces lends it mode, owner and
attributes. One with several names, or that cannot be replaced, is overwritten
once the whole output was made. To read a damaged log: pmwal cat --salvage.

A table has columns for seq, kind and time, and log if several are exported;
then data, the payload, which pmwal import reads (--raw), or what is in the
payload (--columns): level, level_name, logger, message, format, traceback, one
column for each field of events and JSON objects, rest, and data. Without an
option it is --columns if one of the first {_SAMPLE} records is an event or a
JSON object with a message. rest is a JSON object of the fields that no column
can take. data is the payload of records that are neither, or of all with
--payloads, which can be imported.

{TIME_HELP}
Filters are those of pmwal logs: a record must pass all of them.

Exit status: 0; 1 if a writer overwrote records before they could be read.

Examples:
  pmwal export app.wal | jq .kind
  pmwal export app.wal -o app.parquet
  pmwal export /var/log/shop -o shop.csv
  pmwal export app.wal -p warning --since yesterday -o late.parquet
  pmwal export old.wal | pmwal import new.wal --size 1GiB
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "export",
        run,
        "write records to a file for other programs",
        "Write records as JSON lines, length-prefixed items, CSV, Parquet or Arrow.",
        _EPILOG,
    )
    add_paths(parser)
    parser.add_argument(
        "--format", choices=tuple(INTERCHANGES), help="format to write (default: from the suffix of FILE, else jsonl)"
    )
    parser.add_argument("-o", "--output", dest="file", metavar="FILE", help="write to FILE (default: standard output)")
    layout = parser.add_mutually_exclusive_group()
    for name, meaning in (
        ("raw", "table: payloads as they are stored"),
        ("columns", "table: a column for each field of events and JSON objects"),
        ("payloads", "table: such columns, and all payloads, so that it can be imported"),
    ):
        layout.add_argument(f"--{name}", dest="layout", action="store_const", const=name, help=meaning)
    parser.add_argument(
        "--max-columns",
        type=number_option(0),
        metavar="N",
        help=f"columns for at most N fields, those with the most values; the others are in rest (default: {COLUMNS_MAX})",
    )
    add_times(parser)
    add_kinds(parser)
    add_entry_filters(parser)


def run(args: argparse.Namespace) -> int:
    """Write every record that the logs now have."""
    name = _form_name(args)
    form = INTERCHANGES[name]
    if args.file is not None and descriptor_named(args.file) == 1:
        args.file = None
    if args.file is None and not form.is_text and sys.stdout.isatty():
        args.parser.error(f"{name} is binary and cannot be written to a terminal; use -o FILE")
    selection = selection_of(args)
    source, status = _source(args)
    with source:
        _check_target(args.parser, args.file, source)
        entries = _Chosen(choice_of(args), Entries(source))
        passes = SetPasses(source, selection) if isinstance(source, LogSet) else LogPasses(source, args.paths[0], selection)
        with _target(args.file) as stream:
            what = _write(args, form, entries, passes, stream)
            stream.flush()
        if args.file is not None:
            print(f"{passes.name}: exported {what}")
        return max(status, passes.finish())


def _form_name(args: argparse.Namespace) -> str:
    """The name of the format; a usage error if the options do not agree on one."""
    parser: Parser = args.parser
    try:
        name = form_for(args.format, args.file)
    except ValueError as error:
        parser.error(str(error))
    if INTERCHANGES[name].write_table is None and (args.layout is not None or args.max_columns is not None):
        option = "--max-columns" if args.layout is None else f"--{args.layout}"
        tables = ", ".join(name for name, form in INTERCHANGES.items() if form.write_table is not None)
        parser.error(f"{option} is for tables, and {name} is none; use --format {tables}")
    if args.layout == "raw" and args.max_columns is not None:
        parser.error("--raw has no columns of fields; leave --max-columns out")
    return name


def _source(args: argparse.Namespace) -> tuple[Reader | LogSet, int]:
    """One log, or a set: a directory or a pattern is a set even if it has one log. And the status for places without logs."""
    args.path = one_log(args.paths)  # of which errors are
    if args.path is not None:
        return open(args.path, "r"), OK
    places, status = set_named(args.paths)
    return LogSet(places), status


def _check_target(parser: Parser, file: str | None, source: Reader | LogSet) -> None:
    if file is None or not os.path.exists(file):
        return
    for path in source.logs if isinstance(source, LogSet) else (source.path,):
        if os.path.exists(path) and os.path.samefile(path, file):
            parser.error("-o names the log itself; choose another file")


def _write(args: argparse.Namespace, form: Interchange, chosen: _Chosen, passes: LogPasses | SetPasses, stream: BinaryIO) -> str:
    """Write the records; what was written, in words."""
    if form.write_table is None:
        assert form.write is not None
        watch = _Watch()
        form.write(watch.records(chosen.records(passes.read())), stream)
        if watch.kinds and not form.has_kinds:
            say(f"{passes.name}: {watch.kinds} records have a kind, which {args.format} leaves out; jsonl and tables keep it")
        return passes.in_words(watch.count)
    layout = _layout(args, chosen, passes)
    if isinstance(layout, PayloadLayout):
        return passes.in_words(form.write_table(layout, chosen.records(passes.read()), stream))
    count = form.write_table(layout, layout.rows(chosen.entries(passes.read())), stream)
    if layout.left_out:
        say(f"{passes.name}: {layout.left_out} fields are in the column rest; --max-columns N lets more have a column of their own")
    return f"{passes.in_words(count)}, in {len(layout.columns)} columns"


def _layout(args: argparse.Namespace, chosen: _Chosen, passes: LogPasses | SetPasses) -> PayloadLayout | ColumnLayout:
    """The layout of a table. Columns take a pass over all records, to find the fields and their types."""
    layout = args.layout
    if layout is None:
        layout = "columns" if any(map(chosen.is_structured, islice(passes.look(), _SAMPLE))) else "raw"
    if layout == "raw":
        return PayloadLayout(several=passes.several)
    survey = Survey()
    for entry in chosen.entries(passes.look()):
        survey.add(row_of(entry))
    limit = COLUMNS_MAX if args.max_columns is None else args.max_columns
    return survey.layout(several=passes.several, payloads=layout == "payloads", limit=limit)


class _Chosen:
    """What the filters let pass that look into the records."""

    def __init__(self, choice: Choice, entries: Entries) -> None:
        self.is_structured = entries.is_structured
        self._entries = entries
        self._choice = choice if choice.needs_entry else None

    def records(self, records: Iterable[Record]) -> Iterable[Record]:
        """Those that pass."""
        choice, entries = self._choice, self._entries
        return records if choice is None else (record for record in records if choice.takes_record(record, entries))

    def entries(self, records: Iterable[Record]) -> Iterable[Entry]:
        """The entries of those that pass."""
        entries = map(self._entries.entry, records)
        return entries if self._choice is None else filter(self._choice.takes, entries)


@contextlib.contextmanager
def _target(path: str | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
    else:
        with replacing(path) as file:
            yield file


class _Watch:
    """Counts the records, and those that have a kind."""

    def __init__(self) -> None:
        self.count = self.kinds = 0

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self.count += 1
            self.kinds += record.kind != 0
            yield record
