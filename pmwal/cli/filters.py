"""Which records are shown: the options that select, and the tests that a record passes.

Times and kinds are selected where a log is read, in C. What is left to test here is what only the payload says: of a record as it
is stored (``cat``, ``tail``) its level and a pattern; of an entry (``logs``, ``export``) its logger and fields, too.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from pmwal.cli.entries import text_of
from pmwal.cli.levels import levels_option
from pmwal.cli.parser import Parser
from pmwal.cli.times import check_order, since_option, until_option
from pmwal.events.definition import DEFINITION_KIND
from pmwal.format.layout import KIND_MAX
from pmwal.reading.selection import Selection
from pmwal.records import Record

if TYPE_CHECKING:
    from pmwal.cli.formats.event_forms import EventForms
    from pmwal.cli.levels import Levels
    from pmwal.events.entries import Entries, Entry

Matches: TypeAlias = Callable[[Record], bool]

LEVEL_HELP = """\
LEVEL is a name (debug, info, notice, warning, err, crit, alert, emerg), a
priority of syslog from 7 (debug) to 0 (emerg), or a number as in logging: this
level and more severe ones; FROM..TO is a range of levels.
"""


# -- options


def add_times(parser: argparse._ActionsContainer) -> None:
    """The options ``--since`` and ``--until``."""
    parser.add_argument("-S", "--since", type=since_option, metavar="TIME", help="only records stored at TIME or later")
    parser.add_argument("-U", "--until", type=until_option, metavar="TIME", help="only records stored at TIME or earlier")


def add_levels(parser: argparse._ActionsContainer) -> None:
    """The option ``--level``, or ``--priority`` as journalctl calls it."""
    parser.add_argument(
        "-p", "--level", "--priority", type=levels_option, metavar="LEVEL", help="only LEVEL and more severe ones, or FROM..TO"
    )


def add_kinds(parser: Parser) -> None:
    """The option ``--kind``."""
    parser.add_argument(
        "--kind", type=_kinds, action="append", metavar="KIND", help="only records of this kind, or FROM..TO; repeatable"
    )


def add_record_filters(parser: Parser) -> None:
    """The options that ``matches_of`` reads."""
    add_levels(parser)
    parser.add_argument(
        "-g", "--grep", type=pattern_option, metavar="REGEX", help="only records whose payload or event text contains a match"
    )


def add_entry_filters(parser: argparse._ActionsContainer) -> None:
    """The options that ``choice_of`` reads."""
    add_levels(parser)
    parser.add_argument("--logger", action="append", default=[], metavar="GLOB", help="only entries of these loggers; repeatable")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        type=field_option,
        metavar="NAME[=VALUE]",
        help="only entries with this field; dots lead into objects; repeatable",
    )
    parser.add_argument(
        "-g", "--grep", type=smart_pattern_option, metavar="REGEX", help="only entries whose message contains a match"
    )


def pattern_option(text: str, flags: int = 0) -> re.Pattern[str]:
    """A regular expression, for argparse."""
    try:
        return re.compile(text, flags)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def smart_pattern_option(text: str) -> re.Pattern[str]:
    """The same; upper and lower case differ only if it has a capital."""
    return pattern_option(text, re.IGNORECASE if text == text.lower() else 0)


def field_option(text: str) -> tuple[str, str | None]:
    """``NAME=VALUE``, or ``NAME`` for any value, for argparse."""
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} names no field; use NAME=VALUE, or NAME for any value")
    return name, value if equals else None


def _kinds(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        low, high = int(first), int(last if dots else first)
    except ValueError:
        low, high = -1, -1
    if not 0 <= low <= high <= KIND_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no kind: use a number from 0 to {KIND_MAX}, or FROM..TO")
    return range(low, high + 1)


# -- what they select


def selection_of(args: argparse.Namespace) -> Selection:
    """What is selected where the logs are read: by time, and the kinds of the records that may pass the other filters."""
    given = vars(args)  # not every command has every option
    since, until = given.get("since"), given.get("until")
    check_order(args.parser, since, until)
    return Selection(since, until, kinds_of(args), given.get("exact", False))


def kinds_of(args: argparse.Namespace) -> Collection[int] | None:
    """The kinds of the records that may pass; None for all."""
    named: list[range] | None = vars(args).get("kind")
    level: Levels | None = args.level
    if named is None:
        return None if level is None else level.kinds
    kinds = frozenset().union(*named)
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


def choice_of(args: argparse.Namespace) -> Choice:
    """What the options of ``add_entry_filters`` select."""
    return Choice(args.level, args.logger, args.field, args.grep)


class Choice:
    """What the options select. Values of one field are alternatives; everything else must hold together."""

    def __init__(
        self,
        levels: Levels | None = None,
        loggers: Collection[str] = (),
        fields: Iterable[tuple[str, str | None]] = (),
        pattern: re.Pattern[str] | None = None,
    ) -> None:
        """``pattern``: any object with a method ``search``, such as a pattern of RE2."""
        self.pattern = pattern
        self._levels = levels
        self._logger = _any_of(loggers)
        self._fields: dict[str, set[str | None]] = {}
        for name, value in fields:
            self._fields.setdefault(name, set()).add(value)

    @property
    def kinds(self) -> Collection[int] | None:
        """The kinds of records that can be selected; None for all."""
        return None if self._levels is None else self._levels.kinds

    @property
    def needs_entry(self) -> bool:
        """Whether it takes more than a record's kind to tell."""
        return self._levels is not None or not self.takes_text or self.pattern is not None

    @property
    def takes_text(self) -> bool:
        """Whether an entry without logger and fields can be selected."""
        return self._logger is None and not self._fields

    def takes_kind(self, kind: int) -> bool:
        """Whether an entry of this level can be selected."""
        return self._levels is None or kind in self._levels

    def takes(self, entry: Entry) -> bool:
        """Whether an entry is selected."""
        if entry.record.kind == DEFINITION_KIND and entry.event is None:
            return False  # what events mean is part of how they are stored
        if self._levels is not None and entry.level not in self._levels:
            return False
        if self._logger is not None and self._logger.fullmatch(entry.logger) is None:
            return False
        if self._fields and not all(_has(entry, name, values) for name, values in self._fields.items()):
            return False
        return self.pattern is None or any(map(self.pattern.search, (entry.message, entry.traceback)))

    def takes_record(self, record: Record, entries: Entries) -> bool:
        """Whether the entry of a record is selected."""
        if record.kind < DEFINITION_KIND and record.data[:1] != b"{":  # text: no entry is needed
            if not (self.takes_text and self.takes_kind(record.kind)):
                return False
            return self.pattern is None or self.pattern.search(record.data.decode(errors="backslashreplace")) is not None
        return self.takes(entries.entry(record))


def _any_of(globs: Collection[str]) -> re.Pattern[str] | None:
    if not globs:
        return None
    from fnmatch import translate  # noqa: PLC0415 - most runs have none

    return re.compile("|".join(map(translate, globs)))


def _has(entry: Entry, name: str, values: set[str | None]) -> bool:
    for source in (entry.fields, entry.origin):
        found, value = _looked_up(source, name)
        if found:
            return None in values or text_of(value) in values
    return False


def _looked_up(source: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether there is a field of this name, which may be dotted for one inside another, and its value."""
    if name in source:
        return True, source[name]
    at = name.find(".")
    while at >= 0:
        inner = source.get(name[:at])
        if isinstance(inner, dict):
            found, value = _looked_up(inner, name[at + 1 :])
            if found:
                return True, value
        at = name.find(".", at + 1)
    return False, None
