"""Which records are printed: the options ``--kind``, ``--level`` and ``--grep``, and the test that a record passes.

Kinds are selected where the log is read, in C. What is left to test here is what only the payload says: the level of an event, and
the pattern.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeAlias

from pmwal.cli.levels import Levels, levels_option
from pmwal.cli.parser import Parser
from pmwal.format.layout import KIND_MAX
from pmwal.records import Record

if TYPE_CHECKING:
    from pmwal.cli.formats.event_forms import EventForms

Matches: TypeAlias = Callable[[Record], bool]

LEVEL_HELP = """\
LEVEL is a name (debug, info, notice, warning, err, crit), a priority of syslog
from 0 (emerg) to 7 (debug), or a number as in Python's logging: this level and
more severe ones; FROM..TO is a range of levels. The level of a record is its
kind, that of an event is in its definition.
"""


def add_selection(parser: Parser) -> None:
    """The options that ``kinds_of`` and ``matches_of`` read."""
    parser.add_argument("-p", "--level", type=levels_option, metavar="LEVEL", help="print only records of LEVEL or more severe")
    parser.add_argument(
        "--kind",
        type=_kinds,
        action="append",
        metavar="KIND",
        help="print only records of this kind, or FROM..TO; may be repeated",
    )
    parser.add_argument(
        "-g", "--grep", type=_pattern, metavar="REGEX", help="print only records whose payload or event text contains a match"
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def _kinds(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        low, high = int(first), int(last if dots else first)
    except ValueError:
        low, high = -1, -1
    if not 0 <= low <= high <= KIND_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no kind: use a number from 0 to {KIND_MAX}, or FROM..TO")
    return range(low, high + 1)


def kinds_of(args: argparse.Namespace) -> Collection[int] | None:
    """The kinds of the records that may match; None for all."""
    level: Levels | None = args.level
    if args.kind is None:
        return None if level is None else level.kinds
    kinds = frozenset().union(*args.kind)
    return kinds if level is None else kinds & level.kinds


def matches_of(args: argparse.Namespace, events: EventForms) -> Matches:
    """Whether a record of these kinds is of the level and contains the pattern."""
    tests: list[Matches] = []
    if args.level is not None:
        levels: Levels = args.level
        tests.append(lambda record: events.level(record) in levels)
    if args.grep is not None:
        search = args.grep.search
        tests.append(lambda record: search(events.searched(record)) is not None)
    return lambda record: all(test(record) for test in tests)
