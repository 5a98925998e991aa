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
import heapq
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pmwal.cli.entries import Entries
from pmwal.cli.exit_status import CORRUPT, FAILED, OK, UNREADABLE
from pmwal.cli.hints import for_command_line
from pmwal.cli.streams import refuse_closed_output
from pmwal.cli.terminal import say
from pmwal.cli.viewing.choice import Choice
from pmwal.cli.viewing.forms import Cat, Form, Json, JsonPretty, Label, Logfmt, Verbose, in_pieces
from pmwal.cli.viewing.output import Output, paged
from pmwal.cli.viewing.short import Short, ShortIso, ShortIsoPrecise, ShortPrecise
from pmwal.cli.viewing.spans import Span
from pmwal.cli.viewing.style import Style
from pmwal.errors import CorruptWal, FormatError, Overrun, PersistError, PmwalError, ShortenedWal
from pmwal.opening import open
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.records import Record

if TYPE_CHECKING:
    from pmwal.cli.viewing.bookmark import Bookmark
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

_FAILURES = (CorruptWal, ShortenedWal, PersistError)  # of one log, which leave the others readable
_BATCH = 1024  # records of a set that are printed at once
_TICK = 1.0  # seconds between saving the cursor and looking whether anybody reads the output
_TAIL = 10
_T = TypeVar("_T")


class Lines(NamedTuple):
    """How many entries, None for all: the newest, or the ``oldest``."""

    number: int | None
    oldest: bool = False


class View:
    """The logs that the arguments name, and how they are shown."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._path: str | None = args.path  # of a single log
        self._choice = Choice(args.priority, args.logger, args.field, args.grep)
        self._chosen = Selection(args.since, args.until, self._choice.kinds)
        self._bookmark = None if args.cursor_file is None else _bookmark(args.cursor_file)
        self._failures: dict[str, Exception] = {}
        self._missed = self._printed = self._nothing = False
        self._logs: LogSet | None = None

    def run(self) -> int:
        """Show, follow, and return the exit status."""
        args = self._args
        with (
            contextlib.ExitStack() as stack,
            paged(wanted=not (args.follow or args.no_pager), to_end=args.pager_end) as output,
        ):
            readers, entries = self._opened(stack)
            label = _labels(readers) if self._path is None else _no_label
            starts = self._starts(readers)
            spans = self._spans(readers, starts)
            form = FORMS[args.output](entries, self._choice, self._style(), label)
            cursors = self._show(spans, starts, form, output)
            output.flush()
            self._remark(spans)
            if args.follow:
                self._follow(cursors, label, output, stack)
            self._save(cursors)
            self._report_failures(readers)
        return self._status()

    def _opened(self, stack: contextlib.ExitStack) -> tuple[dict[str, Reader], Entries]:
        if self._path is not None:
            reader = stack.enter_context(open(self._path, "r"))
            return {self._path: reader}, Entries(reader)
        self._logs = stack.enter_context(_log_set(self._args.places))
        return dict(self._logs.logs), Entries(self._logs)

    def _style(self) -> Style:
        args, terminal = self._args, sys.stdout.isatty()
        wanted = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        colour = wanted if args.color == "auto" else args.color == "always"
        return Style(colour, brief=terminal and not args.all, utc=args.utc)

    def _starts(self, readers: dict[str, Reader]) -> dict[str, str]:
        """The cursors of the last run, by uuid; only those whose records are still there."""
        starts = {} if self._bookmark is None else self._bookmark.load([reader.uuid for reader in readers.values()])
        return self._usable(starts, readers)

    def _usable(self, starts: dict[str, str], readers: dict[str, Reader]) -> dict[str, str]:
        starts = dict(starts)
        for path, reader in readers.items():
            if reader.uuid in starts:
                with self._reporting(path):
                    try:
                        reader.read(starts[reader.uuid])
                    except Overrun as error:
                        self._lost()
                        del starts[reader.uuid]
                        say(f"{path}: {error}; continuing with the oldest record")
        return starts

    def _spans(self, readers: dict[str, Reader], starts: dict[str, str]) -> list[Span]:
        spans = []
        for path, reader in readers.items():
            with self._reporting(path):
                spans.append(Span(path, reader, self._chosen, starts.get(reader.uuid), self._lost))
        return spans

    @contextlib.contextmanager
    def _reporting(self, path: str) -> Iterator[None]:
        """Of several logs, one that cannot be read leaves the others."""
        try:
            yield
        except _FAILURES as error:
            if self._path is not None:
                raise
            self._failures[path] = error

    def _lost(self) -> None:
        self._missed = True

    # -- what is there

    def _show(self, spans: list[Span], starts: dict[str, str], form: Form, output: Output) -> dict[str, str]:
        """Print what the logs have; return the cursors after that."""
        args = self._args
        lines = args.lines or Lines(_TAIL if args.follow and not args.no_tail and not starts else None)
        cursors = starts | {span.reader.uuid: cursor for span in spans if (cursor := span.cursor) is not None}
        if lines.number is None and not args.reverse:
            if len(spans) > 1:
                return self._merged(starts, form, output)
            self._print((batch for span in spans for batch in self._guarded(span.path, span.oldest_first())), form, output)
        elif lines.number is None:
            self._print(self._newest_first(spans), form, output)
        else:
            oldest = self._oldest_first(spans, starts) if lines.oldest else None
            matching = self._matching(self._newest_first(spans) if oldest is None else oldest, form.entries)
            found = list(islice(matching, lines.number))
            self._print(in_pieces(found if args.reverse != lines.oldest else found[::-1]), form, output)
        return cursors

    def _print(self, batches: Iterable[Iterable[Record]], form: Form, output: Output) -> None:
        for batch in batches:
            text = form.text(batch)
            if text:
                self._printed = True
                output.write(text)

    def _matching(self, batches: Iterable[Iterable[Record]], entries: Entries) -> Iterator[Record]:
        takes = self._choice.takes_record
        return (record for batch in batches for record in batch if takes(record, entries))

    def _merged(self, starts: dict[str, str], form: Form, output: Output) -> dict[str, str]:
        """Print all logs of the set from the oldest record on."""
        assert self._logs is not None
        self._print(self._of_set(starts), form, output)
        self._report_missed(0)
        return self._logs.cursor

    def _oldest_first(self, spans: list[Span], starts: dict[str, str]) -> Iterable[Iterable[Record]]:
        return self._of_set(starts) if len(spans) > 1 else (batch for span in spans for batch in span.oldest_first())

    def _of_set(self, starts: dict[str, str]) -> Iterator[list[Record]]:
        assert self._logs is not None
        chosen = self._chosen
        records = self._logs.read(starts, since=chosen.since, until=chosen.until, kind=chosen.kinds)
        while batch := list(islice(records, _BATCH)):
            yield [*batch]

    def _newest_first(self, spans: list[Span]) -> Iterator[list[Record]]:
        if len(spans) == 1:
            yield from self._guarded(spans[0].path, spans[0].newest_first())
            return
        # Of records with one time those of the last log come first: the order is that of oldest first, turned round.
        streams = [self._guarded(span.path, chain.from_iterable(span.newest_first())) for span in reversed(spans)]
        records = heapq.merge(*streams, key=attrgetter("time_ns"), reverse=True)
        while batch := list(islice(records, _BATCH)):
            yield batch

    def _guarded(self, path: str, items: Iterator[_T]) -> Iterator[_T]:
        with self._reporting(path):
            yield from items

    # -- what comes

    def _follow(self, cursors: dict[str, str], label: Callable[[Record], str], output: Output, stack: contextlib.ExitStack) -> None:
        """Print new records until interrupted."""
        logs = self._logs or stack.enter_context(_log_set(self._args.places))
        self._logs = logs
        form = FORMS[self._args.output](Entries(logs), self._choice, self._style(), label)
        missed, written = logs.missed, True
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
                        if self._bookmark is not None and time.monotonic() >= save_at:
                            self._save(logs.cursor)
                            save_at = time.monotonic() + _TICK
                    cursors = logs.cursor
                except Overrun:
                    cursors = self._usable(cursors, dict(logs.logs))
                missed = self._report_missed(missed)
                self._save(cursors)
                refuse_closed_output()
        finally:
            if written:
                self._save(logs.cursor)

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
            self._bookmark.save(cursors)

    def _remark(self, spans: list[Span]) -> None:
        if self._args.quiet:
            return
        from pmwal.cli.range_reader import mention_torn_end  # noqa: PLC0415 - after the records, which need not wait for it

        for span in spans:
            with contextlib.suppress(OSError, PmwalError):  # gone meanwhile
                mention_torn_end(span.path, span.reader)
        if spans and not self._printed and not self._args.follow:
            say(
                "no entries"
                if self._choice.takes_text
                else "no entries; --logger and --field select structured records and events only"
            )

    def _report_failures(self, readers: dict[str, Reader]) -> None:
        reported = {} if self._logs is None else self._logs.problems
        for path, error in self._failures.items():
            if path not in reported:
                say(for_command_line(error, f"{path}: {error}"))
        self._failures |= reported
        if not readers and not self._failures:
            self._nothing = True
            say(f"no log in {', '.join(self._args.places)}")

    def _status(self) -> int:
        status = UNREADABLE if self._nothing else FAILED if self._missed else OK
        for error in self._failures.values():
            status = max(status, CORRUPT if isinstance(error, CorruptWal) and not isinstance(error, FormatError) else UNREADABLE)
        return status


# What most runs do not need is imported by those that do.


def _bookmark(path: str) -> Bookmark:
    from pmwal.cli.viewing.bookmark import Bookmark  # noqa: PLC0415

    return Bookmark(path)


def _log_set(places: list[str]) -> LogSet:
    from pmwal.logs.log_set import LogSet  # noqa: PLC0415

    return LogSet(places)


def _labels(paths: Iterable[str]) -> Label:
    from pmwal.cli.viewing.labels import Labels  # noqa: PLC0415

    return Labels(paths)


def _no_label(record: Record) -> str:
    return ""
