"""Appends records to a log, for ``write`` and ``import``.

Invariants
----------
- A number is printed only after its record is durable, and is flushed at once.
- ``write``: records appended before an error are committed, and acknowledged or reported. ``import``: an error, Ctrl-C, SIGTERM or
  SIGHUP discards all of them. A log that the failed command created, and that has no record of it, is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator

from pmwal.cli.exit_status import OK
from pmwal.cli.options import add_medium, add_ordering, size_option
from pmwal.cli.parser import Parser, add_json, add_path, number_option
from pmwal.cli.terminal import print_json, progress_bar, say
from pmwal.cli.wording import records_in_words, torn_in_words
from pmwal.errors import Overrun, PmwalError, RecordTooLarge, WalFull
from pmwal.format.layout import KIND_MAX, PAGE, record_size
from pmwal.opening import open_log
from pmwal.writing.wal import Wal

Items = Iterable[tuple[int, bytes]]
"""Kinds and payloads."""

_READ_MAX = 16 << 20  # an import reads payloads of this length even for a smaller log, to say how large it must be


def add_target(parser: Parser, kind_help: str, json_help: str) -> None:
    """The arguments that say which log to append to, and how."""
    add_path(parser)
    parser.add_argument("--size", type=size_option, metavar="SIZE", help="capacity, if the log is created (default: 64MiB)")
    parser.add_argument("--kind", type=number_option(0, KIND_MAX), default=0, metavar="N", help=kind_help)
    parser.add_argument(
        "--on-full",
        choices=("raise", "overwrite"),
        default="raise",
        help="if the log is full: fail, or overwrite the oldest records (default: raise)",
    )
    add_medium(parser)
    add_ordering(parser)
    add_json(parser, json_help)


def append_to(
    args: argparse.Namespace,
    items: Callable[[int], Items],
    noun: str,
    *,
    commit: str | float = "manual",
    ack: bool = False,
    whole: bool = False,
) -> int:
    """Append ``items(limit)``, report what was appended, and return the exit status.

    ``limit``: the longest payload worth reading. ``noun``: what the input calls an item, for error messages. ``ack``: print each
    number once its record is durable. ``whole``: append all or nothing.
    """
    with _ended_by_signals() if whole else contextlib.nullcontext():
        wal = _open(args, commit)
        with wal:
            for phrase in torn_in_words(wal.recovery):
                say(f"{args.path}: recovered: {phrase}")
            first = wal.next_seq
            with _undoing(wal, whole=whole, report=not ack and not whole):
                if whole:
                    last = _append_whole(wal, items(max(wal.capacity, _READ_MAX)), noun)
                else:
                    with _acknowledging(wal, commit) if ack else contextlib.nullcontext(_nothing) as acknowledge:
                        last = _append_each(wal, items(wal.capacity), noun, acknowledge)
            overwritten = wal.stats().overwritten
    if args.json:
        print_json({"path": args.path, "first_seq": first, "last_seq": last, "records": last - first + 1})
    elif not ack:
        lost = f"; {overwritten} old ones overwritten" if overwritten else ""
        print(f"{args.path}: appended {records_in_words(first, last)}{lost}")
    return OK


def _open(args: argparse.Namespace, commit: str | float) -> Wal:
    with progress_bar("open") as progress:
        wal = open_log(
            args.path,
            size=args.size,
            medium=args.medium,
            ordering=args.ordering,
            commit=commit,
            on_full=args.on_full,
            progress=progress,
        )
    assert isinstance(wal, Wal)
    return wal


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block by an exception, so that it can be undone, with the status that a shell would show."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    own = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)} if own else {}
    try:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _undoing(wal: Wal, *, whole: bool, report: bool) -> Iterator[None]:
    """If the block fails, discard what it appended (``whole``) or report it, and remove a log that was created in vain."""
    first = wal.next_seq
    target = os.path.realpath(wal.path)
    created = os.stat(target) if wal.recovery.outcome == "created" else None
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(PmwalError, OSError):  # the medium failed: what was appended is as uncertain as after a crash
            if whole:
                wal.rollback(after=max(first, wal.first_seq) - 1)
        if created is not None and (whole or wal.committed_seq < first):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(created, os.stat(target)):  # its lock is still held
                    os.unlink(target)
            with warnings.catch_warnings(), contextlib.suppress(PmwalError, OSError):
                warnings.simplefilter("ignore")
                wal.close()
        elif report and wal.committed_seq >= first and not isinstance(error, KeyboardInterrupt):
            say(f"{wal.path}: appended {records_in_words(first, wal.committed_seq)}, before the error")
        raise


def _append_each(wal: Wal, items: Items, noun: str, acknowledge: Callable[[int], None]) -> int:
    """Append all and return the last number; ``acknowledge(seq)`` is called as everything up to ``seq`` becomes durable."""
    first, last = wal.next_seq, wal.next_seq - 1
    try:
        for kind, data in items:
            try:
                last = wal.append(data, kind=kind)
            except RecordTooLarge as error:
                raise RecordTooLarge(f"{noun} {last - first + 2} of the input: {error}") from None
            acknowledge(wal.committed_seq)
    finally:
        if wal.committed_seq < last:
            wal.commit()
        acknowledge(wal.committed_seq)
    return last


def _append_whole(wal: Wal, items: Items, noun: str) -> int:
    """Append all with one commit and return the last number. If they do not fit, read on to say how large a log must be."""
    alignment = wal.stats().alignment
    problem: PmwalError | None = None
    last, count, total, largest = wal.next_seq - 1, 0, 0, 0
    for kind, data in items:
        count += 1
        size = record_size(len(data), alignment)
        total, largest = total + size, max(largest, size)
        if problem is None:
            try:
                last = wal.append(data, kind=kind)
            except RecordTooLarge as error:
                problem = RecordTooLarge(f"{noun} {count} of the input: {error}")
            except WalFull:
                problem = WalFull(f"{wal.path}: the input does not fit: {noun} {count} found the log full")
    if problem is not None:
        pages = -(-max(total, 2 * largest) // PAGE)
        advice = f"the whole input ({count} records) fits into a new log of --size {pages * PAGE // 1024}KiB"
        raise type(problem)(f"{problem}. Nothing was imported; {advice}")
    wal.commit()
    return last


def _nothing(seq: int) -> None:
    pass


@contextlib.contextmanager
def _acknowledging(wal: Wal, commit: str | float) -> Iterator[Callable[[int], None]]:
    """A function that prints all numbers up to a durable one, each once.

    With a background committer a thread calls it too: otherwise the last line of a slow producer would be acknowledged only
    with the next one.
    """
    printed = wal.next_seq - 1
    lock = threading.Lock()

    def acknowledge(seq: int) -> None:
        nonlocal printed
        with lock:
            if seq > printed:
                sys.stdout.write("".join(f"{number}\n" for number in range(printed + 1, seq + 1)))
                sys.stdout.flush()
                printed = seq  # only now: after an error here the main thread prints them again, and reports the error

    if not isinstance(commit, str):
        threading.Thread(target=_follow, args=(wal, wal.next_seq, acknowledge), name="pmwal-acknowledge", daemon=True).start()
    yield acknowledge


def _follow(wal: Wal, seq: int, acknowledge: Callable[[int], None]) -> None:
    """Acknowledge records as they become durable, until the log is closed. The main thread reports errors of the log."""
    with contextlib.suppress(PmwalError, OSError):
        while not wal.closed:
            try:
                for record in wal.follow(seq):
                    acknowledge(record.seq)
                    seq = record.seq + 1
            except Overrun as error:  # overwritten, and therefore durable
                seq += error.missed
                acknowledge(seq - 1)
