"""What a request for ``/entries`` asks for, from its parameters and headers. ``ValueError`` says what is wrong, for the client."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pmwal.cli.filters import Choice, field_option
from pmwal.cli.levels import levels_option
from pmwal.cli.serving.names import Position, parse_position
from pmwal.cli.serving.patterns import compile_pattern
from pmwal.cli.times import parse_period

PARAMETERS = ("since", "until", "level", "logger", "field", "grep", "cursor", "limit", "follow", "rate", "cut")
"""All parameters; ``field`` may occur more than once."""

FIELDS_MAX = 16
"""Fields that a request may name."""

_TEXT_MAX = 500
_NUMBER = re.compile(r"[0-9]{1,18}")
_SKIP = re.compile(r"-?[0-9]{1,18}")
_BACK_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Query:
    """``position``: where to begin, after it or, if ``including``, with the record itself. ``skip`` counts matching entries, and a
    negative one goes back from the position, or from the end without one. ``rate``: the most entries a second that are sent of
    those that are followed. ``cut``: the most characters of an entry."""

    choice: Choice = field(default_factory=Choice)
    since: int | None = None
    until: int | None = None
    position: Position | None = None
    including: bool = False
    skip: int = 0
    limit: int | None = None
    follow: bool = False
    events: bool = False
    rate: int | None = None
    cut: int | None = None


class Range(NamedTuple):
    """The header ``Range: entries=CURSOR[[:SKIP]:COUNT]``, as systemd-journal-gatewayd has it."""

    position: Position | None
    skip: int
    limit: int | None


def parse_range(text: str) -> Range:
    """The range that the header names.

    >>> parse_range("entries=:-10:5")
    Range(position=None, skip=-10, limit=5)
    """
    unit, equals, rest = text.strip().partition("=")
    parts = rest.strip().split(":")
    if unit != "entries" or not equals or len(parts) > 3:
        raise ValueError("Range is entries=CURSOR[[:SKIP]:COUNT]")
    cursor, skip, count = parts[0], parts[1] if len(parts) == 3 else "", parts[-1] if len(parts) > 1 else ""
    skipped = _number("the SKIP of Range", skip or "0", _SKIP)
    if skipped < -_BACK_MAX:
        raise ValueError(f"the SKIP of Range goes back by at most {_BACK_MAX} entries")
    counted = _number("the COUNT of Range", count, _NUMBER) if count else None
    return Range(parse_position(cursor) if cursor else None, skipped, counted)


def parse_query(parameters: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> Query:
    """The query of a request."""
    given: dict[str, list[str]] = {}
    for name, value in parameters:
        if name not in PARAMETERS:
            raise ValueError(f"{name[:50]!r} is no parameter; there are {', '.join(PARAMETERS)}")
        if len(value) > _TEXT_MAX and name != "cursor":
            raise ValueError(f"{name} has more than {_TEXT_MAX} characters")
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > (FIELDS_MAX if name == "field" else 1):
            raise ValueError(f"{name} is given too often")
    single = {name: values[0] for name, values in given.items() if name != "field"}
    events = "text/event-stream" in headers.get("accept", "")
    query = Query(
        choice=_choice(single, given.get("field", ())),
        since=parse_period(single["since"]).first if single.get("since") else None,
        until=parse_period(single["until"]).last if single.get("until") else None,
        position=parse_position(single["cursor"]) if single.get("cursor") else None,
        limit=_optional(single, "limit"),
        follow=_flag(single, events),
        events=events,
        rate=_optional(single, "rate"),
        cut=_optional(single, "cut"),
    )
    if query.follow and query.until is not None:
        raise ValueError("until is for entries that are there; leave it out to follow")
    return _placed(query, headers)


def _placed(query: Query, headers: Mapping[str, str]) -> Query:
    """The query with the headers that say where it begins. A browser that connects again repeats them all, with Last-Event-ID."""
    last = headers.get("last-event-id")
    if last:
        return replace(query, position=parse_position(last))
    if "range" not in headers:
        return query
    asked = parse_range(headers["range"])
    if query.position is not None or query.limit is not None:
        raise ValueError("give Range, or cursor and limit, not both")
    return replace(query, position=asked.position, including=asked.position is not None, skip=asked.skip, limit=asked.limit)


def _choice(single: Mapping[str, str], fields: Sequence[str]) -> Choice:
    try:
        levels = levels_option(single["level"]) if single.get("level") else None
        pairs = [field_option(text) for text in fields]
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None
    pattern = compile_pattern(single["grep"]) if single.get("grep") else None
    return Choice(levels, [single["logger"]] if single.get("logger") else (), pairs, pattern)


def _flag(single: Mapping[str, str], default: bool) -> bool:
    text = single.get("follow")
    if text is None:
        return default
    if text.lower() not in ("", "1", "true", "0", "false"):
        raise ValueError("follow is 1 or 0")
    return text.lower() not in ("0", "false")


def _optional(single: Mapping[str, str], name: str) -> int | None:
    return _number(name, single[name], _NUMBER) if single.get(name) else None


def _number(what: str, text: str, form: re.Pattern[str]) -> int:
    if not form.fullmatch(text):
        raise ValueError(f"{what} is a whole number, not {text[:50]!r}")
    return int(text)
