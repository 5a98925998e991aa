"""One run of ``pmwal logs``: what is there, from one log or merged from several, and then what comes.

Invariants
----------
- A single log is read directly; its errors end the command. Of several logs those that cannot be read are reported, and the others
  are shown.
- A cursor is saved only after everything up to its records was written and flushed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.filters import choice_of, selection_of
from pmwal.cli.reading.spans import Span
from pmwal.cli.streams import refuse_closed_output
from pmwal.cli.terminal import say
from pmwal.cli.viewing.forms import Cat, Form, Json, JsonPretty, Label, Logfmt, Verbose, in_pieces
from pmwal.cli.viewing.output import Output, paged
from pmwal.cli.viewing.short import Short, ShortIso, ShortIsoPrecise, ShortPrecise
from pmwal.cli.viewing.style import Style, safe
from pmwal.errors import Overrun, PmwalError
from pmwal.events.entries import Entries
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.records import Record, SetRecord

if TYPE_CHECKING:
    from pmwal.cli.reading.bookmark import Bookmark
    from pmwal.cli.reading.sets import SetReader
    from pmwal.logs.log_set import LogSet

FORMS: dict[str, type[Form]] = {
    "short": Short,
    "short-iso": ShortIso,
    "short-precise": ShortPrecise,
    "short-iso-precise": ShortIsoPrecise,
    "verbose": Verbose,
    "json": Json,
    "json-pretty": JsonPretty,
    "logfmt": Logfmt,
    "cat": Cat,
}

_TICK = 1.0  # seconds between saving the cursor and looking whether anybody reads the output
_TAIL = 10
_LABEL_MAX = 24


class Lines(NamedTuple):
    """How many entries, None for all: the newest, or the ``oldest``."""

    number: int | None
    oldest: bool = False


class View:
    """The logs that the arguments name, and how they are shown."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._path: str | None = args.path  # of a single log
        self._choice = choice_of(args)
        self._chosen = selection_of(args)
        self._bookmark: Bookmark[dict[str, str]] | None = None
        self._kept: dict[str, str] = {}  # what the bookmark has
        self._missed = self._printed = False
        self._pager_failed = False
        self._worst = OK  # of the places
        self._logs: LogSet | None = None

    def run(self) -> int:
        """Show, follow, and return the exit status."""
        args = self._args
        with (
            contextlib.ExitStack() as stack,
            paged(wanted=not (args.follow or args.no_pager), to_end=args.pager_end) as output,
        ):
            source = self._opened(stack)
            readers = {source.path: source} if isinstance(source, Reader) else dict(source.logs)
            label = _no_label if isinstance(source, Reader) else _labels(readers)
            starts = self._starts(readers)
            records = self._records(source, starts)
            form = FORMS[args.output](Entries(source), self._choice, self._style(), label)
            cursors = starts | records.ends if args.follow or self._bookmark is not None else {}
            self._show(records, form, output, all_of_it=bool(starts))
            if self._logs is not None and not isinstance(records, Span) and records.merged:
                cursors = self._logs.cursor
            self._report_missed(0)
            output.flush()
            self._missed |= records.missed
            self._remark(records)
            if args.follow:
                self._follow(cursors, label, output, stack)
            self._save(cursors)
        self._pager_failed = output.failed
        return self._status()

    def _opened(self, stack: contextlib.ExitStack) -> Reader | LogSet:
        if self._path is not None:
            reader = open(self._path, "r")
            return stack.enter_context(reader)
        self._logs = stack.enter_context(self._log_set())
        return self._logs

    # What only several logs and cursors need is imported here: a single log is shown sooner.

    def _log_set(self) -> LogSet:
        from pmwal.cli.places import set_named  # noqa: PLC0415
        from pmwal.logs.log_set import LogSet  # noqa: PLC0415

        places, missing = set_named(self._args.paths, follow=self._args.follow)
        self._worst = max(self._worst, missing)
        return LogSet(places)

    def _records(self, source: Reader | LogSet, starts: dict[str, str]) -> Span | SetReader:
        if isinstance(source, Reader):
            return Span(source.path, source, self._chosen, starts.get(source.uuid))
        from pmwal.cli.reading.sets import SetReader  # noqa: PLC0415

        return SetReader(source, self._chosen, starts)

    def _style(self) -> Style:
        args, terminal = self._args, sys.stdout.isatty()
        wanted = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        colour = wanted if args.color == "auto" else args.color == "always"
        return Style(colour, brief=terminal and not args.all, utc=args.utc)

    def _starts(self, readers: dict[str, Reader]) -> dict[str, str]:
        """The cursors of the last run, by uuid; only those whose records are still there."""
        if self._args.cursor_file is None:
            return {}
        from pmwal.cli.reading.bookmark import set_bookmark  # noqa: PLC0415

        uuids = [reader.uuid for reader in readers.values()]
        self._bookmark = set_bookmark(self._args.cursor_file, uuids[0] if len(uuids) == 1 else None)
        self._kept = dict(self._bookmark.load() or {})
        return self._usable(self._kept, readers)

    def _usable(self, starts: dict[str, str], readers: dict[str, Reader]) -> dict[str, str]:
        from pmwal.cli.reading.bookmark import usable_cursors  # noqa: PLC0415

        usable, gone = usable_cursors(starts, readers, alone=self._path is not None)
        self._missed |= gone
        return usable

    # -- what is there

    def _show(self, records: Span | SetReader, form: Form, output: Output, *, all_of_it: bool) -> None:
        """Print what the logs have."""
        args = self._args
        lines = args.lines or Lines(_TAIL if args.follow and not args.no_tail and not all_of_it else None)
        if lines.number is None:
            self._print(records.newest_first() if args.reverse else records.oldest_first(), form, output)
            return
        takes = self._choice.takes_record
        batches = records.oldest_first() if lines.oldest else records.newest_first()
        matching = (record for batch in batches for record in batch if takes(record, form.entries))
        found = list(islice(matching, lines.number))
        self._print(in_pieces(found if args.reverse != lines.oldest else found[::-1]), form, output)

    def _print(self, batches: Iterable[Iterable[Record]], form: Form, output: Output) -> None:
        for batch in batches:
            text = form.text(batch)
            if text:
                self._printed = True
                output.write(text)

    # -- what comes

    def _follow(self, cursors: dict[str, str], label: Callable[[Record], str], output: Output, stack: contextlib.ExitStack) -> None:
        """Print new records until interrupted."""
        logs = self._logs or stack.enter_context(self._log_set())
        self._logs = logs
        form = FORMS[self._args.output](Entries(logs), self._choice, self._style(), label)
        missed, written = logs.missed, True
        shown: dict[str, Record] = {}  # the last record of each log that was written, or left out
        try:
            while True:
                save_at = time.monotonic() + _TICK
                try:
                    for record in logs.follow(cursors, since=self._chosen.since, kind=self._chosen.kinds, timeout=_TICK):
                        text = form.text((record,))
                        if text:
                            written = False
                            output.write(text)
                            output.flush()
                            written = True
                        shown[record.log] = record
                        if self._bookmark is not None and time.monotonic() >= save_at:
                            self._save(logs.cursor)
                            save_at = time.monotonic() + _TICK
                    cursors = logs.cursor
                except Overrun:
                    cursors = self._usable(cursors, dict(logs.logs))
                    shown.clear()
                missed = self._report_missed(missed)
                self._save(cursors)
                refuse_closed_output()
        finally:
            # An entry that may have been written in part, or not at all, is shown again by the next run.
            self._save(logs.cursor if written else cursors | _cursors_after(shown.values(), logs))

    def _report_missed(self, before: int) -> int:
        """Say how many records were overwritten before they were read; how many in all."""
        missed = 0 if self._logs is None else self._logs.missed
        if missed > before:
            self._missed = True
            count = missed - before
            what = f"{count} records were overwritten before they" if count > 1 else "1 record was overwritten before it"
            say(f"{what} could be shown")
        return missed

    # -- afterwards

    def _save(self, cursors: dict[str, str]) -> None:
        if self._bookmark is not None:
            self._kept |= cursors  # those of logs that were not read stay
            self._bookmark.save(dict(self._kept))

    def _remark(self, records: Span | SetReader) -> None:
        if self._args.quiet:
            return
        from pmwal.cli.inspection import mention_torn_end  # noqa: PLC0415 - after the records, which need not wait for it

        spans = [records] if isinstance(records, Span) else records.spans
        for span in spans:
            with contextlib.suppress(OSError, PmwalError):  # gone meanwhile
                mention_torn_end(span.path, span.reader)
        if spans and not self._printed and not self._args.follow:
            say(
                "no entries"
                if self._choice.takes_text
                else "no entries; --logger and --field select structured records and events only"
            )

    def _status(self) -> int:
        status = max(FAILED if self._missed or self._pager_failed else OK, self._worst)
        if self._logs is None:
            return status
        from pmwal.cli.reading.sets import status_of_problems  # noqa: PLC0415

        return max(status, status_of_problems(self._logs))


def _labels(paths: Iterable[str]) -> Label:
    """The short name of a record's log, padded to one width."""
    from pmwal.cli.places import ShortNames  # noqa: PLC0415

    names = ShortNames(paths)
    width = min(_LABEL_MAX, names.width)
    return lambda record: safe(names[record.log]).ljust(width) if isinstance(record, SetRecord) else ""


def _cursors_after(records: Iterable[Record], logs: LogSet) -> dict[str, str]:
    """The cursors of these records by the logs' uuids."""
    uuids = {path: reader.uuid for path, reader in logs.logs.items()}
    return {uuids[record.log]: record.cursor for record in records if isinstance(record, SetRecord) and record.log in uuids}


def _no_label(record: Record) -> str:
    return ""
