"""Records into a log, for ``write`` and ``import``.

Invariants
----------
- A number is printed only when its record is durable, and it is flushed at once.
- What was appended before an error is committed, and acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from pmwal.cli.common import (
    OK,
    Parser,
    add_json,
    add_medium,
    add_ordering,
    number_option,
    print_json,
    progress_bar,
    records_in_words,
    say,
    size_option,
    torn_in_words,
)
from pmwal.errors import Overrun, PmwalError, RecordTooLarge
from pmwal.format.layout import KIND_MAX
from pmwal.opening import open_log
from pmwal.writing.wal import Wal

Items = Iterable[tuple[int, bytes]]
"""Kinds and payloads."""


def add_target(parser: Parser, kind_help: str, json_help: str) -> None:
    """The log that is appended to, and how."""
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--size", type=size_option, metavar="SIZE", help="capacity when the log is created (default: 64MiB)")
    parser.add_argument("--kind", type=number_option(0, KIND_MAX), default=0, metavar="N", help=kind_help)
    parser.add_argument(
        "--on-full",
        choices=("raise", "overwrite"),
        default="raise",
        help="a full log ends the command, or loses its oldest records (default: raise)",
    )
    add_medium(parser)
    add_ordering(parser)
    add_json(parser, json_help)


def append_to(
    args: argparse.Namespace, items: Callable[[int], Items], noun: str, *, commit: str | float = "manual", ack: bool = False
) -> int:
    """Append what ``items`` makes for a log of this capacity, and say what that was; the exit status.

    ``ack``: print each number once its record is durable. ``noun``: what one of them is called in the input.
    """
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
    with wal:
        for phrase in torn_in_words(wal.recovery):
            say(f"{args.path}: recovered: {phrase}")
        first = wal.next_seq
        with _acknowledging(wal, commit) if ack else contextlib.nullcontext(_nothing) as acknowledge:
            last = _append_all(wal, items(wal.capacity), noun, acknowledge)
        overwritten = wal.stats().overwritten
    if args.json:
        print_json({"path": args.path, "first_seq": first, "last_seq": last, "records": last - first + 1})
    elif not ack:
        lost = f"; {overwritten} old ones overwritten" if overwritten else ""
        print(f"{args.path}: appended {records_in_words(first, last)}{lost}")
    return OK


def _append_all(wal: Wal, items: Items, noun: str, acknowledge: Callable[[int], None]) -> int:
    """The last number; ``acknowledge`` is told now and then through which one everything is durable."""
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


def _nothing(seq: int) -> None:
    pass


@contextlib.contextmanager
def _acknowledging(wal: Wal, commit: str | float) -> Iterator[Callable[[int], None]]:
    """A function that prints the numbers up to one that is durable.

    With a background committer a thread calls it as well: else the last line of a slow producer would wait for the next one.
    """
    printed = wal.next_seq - 1
    lock = threading.Lock()

    def acknowledge(seq: int) -> None:
        nonlocal printed
        with lock:
            if seq > printed:
                sys.stdout.write("".join(f"{number}\n" for number in range(printed + 1, seq + 1)))
                sys.stdout.flush()
                printed = seq  # not before: what could not be printed here, the main thread tries again, and ends by the error

    if not isinstance(commit, str):
        threading.Thread(target=_follow, args=(wal, wal.next_seq, acknowledge), name="pmwal-acknowledge", daemon=True).start()
    yield acknowledge


def _follow(wal: Wal, seq: int, acknowledge: Callable[[int], None]) -> None:
    """Acknowledge what becomes durable until the log is closed. Errors of the log are the main thread's to say."""
    with contextlib.suppress(PmwalError, OSError):
        while not wal.closed:
            try:
                for record in wal.follow(seq):
                    acknowledge(record.seq)
                    seq = record.seq + 1
            except Overrun as error:  # overwritten, and so durable
                seq += error.missed
                acknowledge(seq - 1)
