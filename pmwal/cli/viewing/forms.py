"""The forms in which entries are printed, all but the short ones."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pmwal.cli.entries import flat, json_object, json_text, text_of
from pmwal.cli.filters import Choice
from pmwal.cli.times import utc_text
from pmwal.cli.viewing.clock import Stamps
from pmwal.cli.viewing.style import Style, level_colour, safe
from pmwal.cli.wording import CONTROL
from pmwal.events.entries import Entries, Entry
from pmwal.records import Record, SetRecord

_BARE = re.compile(rf"[^\s\"\\={CONTROL}]+")
_KEY = re.compile(rf"[\s\"={CONTROL}]")
_QUOTED = re.compile(rf"[\"\\\t{CONTROL}]")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

Label = Callable[[Record], str]
"""The short name of a record's log; empty where there is only one."""


class Form(ABC):
    """Makes text of records: of those that are chosen."""

    def __init__(self, entries: Entries, choice: Choice, style: Style, label: Label) -> None:
        self.entries = entries
        self.choice = choice
        self.style = style
        self.label = label

    def text(self, records: Iterable[Record]) -> str:
        """The text for these of the records that are chosen."""
        entry_of, takes = self.entries.entry, self.choice.takes
        return "".join([self.shown(entry) for entry in map(entry_of, records) if takes(entry)])

    @abstractmethod
    def shown(self, entry: Entry) -> str:
        """The text for an entry, with the newline at its end."""


class Json(Form):
    """An object on a line."""

    indent: int | None = None

    def shown(self, entry: Entry) -> str:
        """The object of ``json_object``."""
        return json_text(json_object(entry), self.indent).decode() + "\n"


class JsonPretty(Json):
    """An object on several lines."""

    indent = 4


class Logfmt(Form):
    """``key=value`` on a line, as programs of the Grafana family and others read it."""

    def shown(self, entry: Entry) -> str:
        """Time, level, log, logger and message; then the fields."""
        record = entry.record
        pairs = [("time", utc_text(record.time_ns)), ("level", entry.level_name.lower())]
        if isinstance(record, SetRecord) and self.label(record):
            pairs.append(("log", record.log))
        pairs += [("logger", entry.logger), ("msg", entry.message)]
        taken = {"time", "level", "log", "logger", "msg", "traceback"}
        named = [*flat(entry.origin), *flat(entry.fields)]
        pairs += [(f"fields.{name}" if name in taken else name, value) for name, value in named]
        pairs.append(("traceback", entry.traceback))
        return " ".join([pair(name, value) for name, value in pairs if value or name == "msg"]) + "\n"


def pair(name: str, value: str) -> str:
    """``name=value``, quoted where that is needed.

    >>> pair("a b", "x"), pair("a", 'say "no"')
    ('a_b=x', 'a="say \\\\"no\\\\""')
    """
    return f"{_KEY.sub('_', name) or '_'}={quoted(value)}"


def quoted(value: str) -> str:
    """A value, in quotes with escapes unless it is one word."""
    return value if _BARE.fullmatch(value) else f'"{_QUOTED.sub(_escaped, value)}"'


def _escaped(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}"


class Cat(Form):
    """The message alone, with its traceback."""

    def shown(self, entry: Entry) -> str:
        """Its lines."""
        lines = self.style.lines(entry.message)
        if entry.traceback:
            lines += self.style.lines(entry.traceback)
        return "\n".join(lines) + "\n"


class Verbose(Form):
    """A line about the record, then each of its parts on a line of its own."""

    def __init__(self, entries: Entries, choice: Choice, style: Style, label: Label) -> None:
        super().__init__(entries, choice, style, label)
        self._stamps = Stamps("%a %Y-%m-%d %H:%M:%S", utc=style.utc, offset=True)

    def shown(self, entry: Entry) -> str:
        """All that is known."""
        record, style = entry.record, self.style
        head = [self._stamps.text(record.time_ns, 9), f"record {record.seq}", f"kind {record.kind}", f"{len(record.data)} bytes"]
        if isinstance(record, SetRecord):
            head.insert(1, style.source(safe(record.log)))
        parts: list[tuple[str, Any]] = [
            ("level", entry.level_name),
            ("logger", entry.logger),
            ("message", entry.message),
            ("format", "" if entry.event is None else entry.event.format or ""),
        ]
        parts = [(name, value) for name, value in parts if value or name == "message"]
        lines = ["  ".join(head), *(self._part(name, value, entry.level if name == "level" else 0) for name, value in parts)]
        lines += [self._part(f"{name}", value, 0) for name, value in entry.origin.items()]
        lines += [self._part(f"fields.{name}", value, 0) for name, value in entry.fields.items()]
        if entry.traceback:
            lines.append(self._part("traceback", entry.traceback, 0))
        return "\n".join(lines) + "\n"

    def _part(self, name: str, value: Any, level: int) -> str:
        first, *more = self.style.lines(text_of(value))
        head = f"    {self.style.dim(safe(name) + '=')}{self.style.paint(level_colour(level), first) if level else first}"
        return "\n".join([head, *(f"        {line}" for line in more)])


def in_pieces(records: Sequence[Record], size: int = 1024) -> Iterable[Sequence[Record]]:
    """These records, some at a time."""
    return (records[at : at + size] for at in range(0, len(records), size))
