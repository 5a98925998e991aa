"""Which entries are shown: by level, logger, field and pattern."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pmwal.events.definition import DEFINITION_KIND, plain

if TYPE_CHECKING:
    from pmwal.cli.entries import Entries, Entry
    from pmwal.cli.levels import Levels
    from pmwal.records import Record


def pattern_option(text: str) -> re.Pattern[str]:
    """A regular expression, for argparse; upper and lower case differ only if it has a capital."""
    try:
        return re.compile(text, re.IGNORECASE if text == text.lower() else 0)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def field_option(text: str) -> tuple[str, str | None]:
    """``NAME=VALUE``, or ``NAME`` for any value, for argparse."""
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} names no field; use NAME=VALUE, or NAME for any value")
    return name, value if equals else None


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


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values as text; the fields of an object inside have dotted names, as ``--field`` takes them.

    >>> list(flat({"user": {"id": 7, "tags": ["new"]}}))
    [('user.id', '7'), ('user.tags', '["new"]')]
    """
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", text_of(value)


def text_of(value: Any) -> str:
    """A field's value as text: objects, lists, true, false and null as in JSON."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False)
    return plain(value)
