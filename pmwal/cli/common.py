"""What the commands share: exit statuses, options, notes on standard error, a look at a log, the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NoReturn, TypeAlias

from pmwal.format.layout import CAPACITY_MAX
from pmwal.opening.files import inspect, map_for_reading
from pmwal.opening.options import ORDERINGS
from pmwal.records import Progress, RecoveryReport
from pmwal.recovery.judge import Judgement
from pmwal.storage.live_page import LiveWriter, living_writer
from pmwal.storage.medium import MEDIUMS
from pmwal.storage.seam import SYSTEM
from pmwal.units import format_size, parse_size

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

OK = 0
FAILED = 1  # something is torn, lost or refused, and no other status fits
CORRUPT = 2
UNREADABLE = 3
LOCKED = 4
USAGE = 64  # EX_USAGE of sysexits(3); argparse's own 2 would read as "corrupt"
INTERRUPTED = 130
BROKEN_PIPE = 141

_BAR_DELAY = 1.0  # seconds after which work counts as long
_JUDGE_TRIES = 5


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors end with status 64."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and stop."""
        self.exit(USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str
) -> Parser:
    """A parser for one command; what it parses is handed to ``run``."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_json(parser: argparse.ArgumentParser, meaning: str = "print JSON, for scripts") -> None:
    """The option ``--json``."""
    parser.add_argument("--json", action="store_true", help=meaning)


def add_medium(parser: argparse.ArgumentParser) -> None:
    """The option ``--medium``."""
    parser.add_argument("--medium", choices=MEDIUMS, default="auto", help="what the file lies on (default: auto)")


def add_ordering(parser: argparse.ArgumentParser) -> None:
    """The option ``--ordering``."""
    parser.add_argument(
        "--ordering",
        choices=ORDERINGS,
        default="auto",
        help="strict: the commit pointer follows every record; pipelined: it lags, one barrier less (default: auto)",
    )


def size_option(text: str) -> int:
    """A capacity with units, for argparse."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size > CAPACITY_MAX:
        raise argparse.ArgumentTypeError(f"{text} is more than a log can have, {format_size(CAPACITY_MAX)}")
    return size


def number_option(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number within bounds, for argparse."""

    def number(text: str) -> int:
        limits = f"a whole number from {low}" + ("" if high is None else f" to {high}")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {limits}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return number


def say(message: str) -> None:
    """One line for people, beside the output: on standard error."""
    sys.stdout.flush()
    print(f"pmwal: {message}", file=sys.stderr)


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    print(json.dumps(value, ensure_ascii=False))


def records_in_words(first: int, last: int) -> str:
    """``"no records"``, ``"1 record, 7"`` or ``"3 records, 7 to 9"``."""
    count = last - first + 1
    if count <= 0:
        return "no records"
    return f"1 record, {first}" if count == 1 else f"{count} records, {first} to {last}"


def numbers_in_words(first: int, last: int | None) -> str:
    """``"record 7"``, ``"records 7 to 9"`` or ``"records from 7 on"``."""
    if last is None:
        return f"records from {first} on"
    return f"record {first}" if last <= first else f"records {first} to {last}"


def durability_in_words(durability: str) -> str:
    """What an acknowledged record survives."""
    return "a power cut" if durability == "power" else "the death of the process only, not a power cut"


def torn_in_words(report: RecoveryReport, offset: int | None = None) -> list[str]:
    """What a crash or the medium left torn in a log that can be used: one phrase each, none when nothing is.

    ``offset`` is the place in the file where the kept records end.
    """
    phrases = []
    if report.dropped_records:
        what = "1 unfinished record" if report.dropped_records == 1 else f"{report.dropped_records} unfinished records"
        place = "" if offset is None else f", file offset {offset}"
        doubt = "; it may have been acknowledged" if report.maybe_acknowledged else ""
        phrases.append(f"{what} ({format_size(report.dropped_bytes)}) dropped from number {report.last_seq + 1} on{place}{doubt}")
    if report.slots_lost:
        phrases.append("1 commit slot is torn or lost; its neighbour stands in")
    if report.superblocks_lost:
        phrases.append("1 of 2 superblock copies is damaged; the other is used")
    return phrases


def end_offset(judgement: Judgement) -> int:
    """The place in the file where the kept records end."""
    block = judgement.identity.block
    return block.ring_offset + judgement.end.position % block.capacity


def running_writer(path: str) -> LiveWriter | None:
    """The log's writer, when one is running."""
    mapping, _ = map_for_reading(path, "auto", SYSTEM)
    try:
        return living_writer(mapping.load, mapping.inode, SYSTEM)
    finally:
        mapping.close()


def look(path: str, progress: Progress | None = None) -> tuple[Judgement, LiveWriter | None]:
    """The verdict on a log, and its writer when one is running. It never writes.

    Beside a running writer a slot may be read while it is stored, so a loss counts only when it stays.
    """
    for attempt in range(1, _JUDGE_TRIES + 1):
        with inspect(path, SYSTEM, progress) as (mapping, judgement):
            writer = living_writer(mapping.load, mapping.inode, SYSTEM)
        if writer is None or not judgement.report.slots_lost or attempt == _JUDGE_TRIES:
            break
    return judgement, writer


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Progress | None]:
    """A callback that draws a bar when standard error is a terminal and the work takes longer than a second."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra: everything works without it
    except ImportError:
        yield _hint(what)
        return
    with tqdm(desc=what, unit="B", unit_scale=True, unit_divisor=1024, delay=_BAR_DELAY, leave=False, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            if 0 <= done - bar.n < total >> 8:
                return
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _hint(what: str) -> Progress:
    """A callback that says once, when the work is long, how to get a bar."""
    said_after: float | None = monotonic() + _BAR_DELAY

    def progress(done: int, total: int) -> None:
        nonlocal said_after
        if said_after is not None and monotonic() > said_after:
            said_after = None
            say(f"{what}: this takes a while; for a progress bar: pip install 'pmwal[cli]'")

    return progress
