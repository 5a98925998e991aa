"""One line for an entry: when, from which log, how severe, from which logger, what, and with which fields.

A text record, by far the commonest in large logs, takes a short way: no entry is made of it, and what precedes its text is made
once for each second and each level.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pmwal.cli.entries import flat
from pmwal.cli.filters import Choice
from pmwal.cli.viewing.clock import NS, Stamps
from pmwal.cli.viewing.forms import Form, Label, pair
from pmwal.cli.viewing.style import RESET, Style, level_colour, message_colour, safe
from pmwal.events.definition import DEFINITION_KIND
from pmwal.events.entries import Entries, Entry, level_name
from pmwal.records import Record, SetRecord

_WIDTH = 8  # of the longest name of a level that logging has
_INDENT = "    "
_PLAIN_MAX = 4096  # bytes of a text that is shown as it is, in every style
_AFTER_LEVEL = (" ", ":")


class _Head(NamedTuple):
    """What is between the time and the text for a log and a level; the level's name, the text's colour and its end."""

    text: str
    name: str
    colour: str
    end: str


class Short(Form):
    """``Nov 30 08:21:44 00 WARNING  shop.orders: late  order=7``."""

    pattern = "%b %d %H:%M:%S"
    digits = 0
    offset = False

    def __init__(self, entries: Entries, choice: Choice, style: Style, label: Label) -> None:
        super().__init__(entries, choice, style, label)
        self._stamps = Stamps(self.pattern, utc=style.utc, offset=self.offset)
        self._heads: dict[tuple[str, int], _Head] = {}
        self._dim, self._undim = ("\x1b[2m", f"{RESET} ") if style.colour else ("", " ")
        self._highlights = style.colour and choice.pattern is not None

    def text(self, records: Iterable[Record]) -> str:
        """The lines for these of the records that are chosen."""
        choice, entry_of, heads = self.choice, self.entries.entry, self._heads
        search = None if choice.pattern is None else choice.pattern.search
        takes_text, digits, second, stamp = choice.takes_text and not self._highlights, self.digits, None, ""
        log, lines = "", []
        for record in records:
            kind, data = record.kind, record.data
            if kind < DEFINITION_KIND and takes_text and data[:1] != b"{" and len(data) <= _PLAIN_MAX:
                try:
                    text = data.decode()
                except UnicodeDecodeError:
                    text = "\n"
                if text.isprintable():
                    if not choice.takes_kind(kind) or (search is not None and search(text) is None):
                        continue
                    if isinstance(record, SetRecord):
                        log = record.log
                    head = heads.get((log, kind)) or self._head(record, kind, level_name(kind))
                    if head.name and text.startswith(head.name):
                        text = _without(head.name, text)
                    if digits:
                        stamp = self._stamp(record.time_ns)
                    elif record.time_ns // NS != second:
                        second, stamp = record.time_ns // NS, self._stamp(record.time_ns)
                    lines.append(f"{stamp}{head.text}{text}{head.end}")
                    continue
            entry = entry_of(record)
            if choice.takes(entry):
                lines.append(self.shown(entry))
        return "".join(lines)

    def _stamp(self, time_ns: int) -> str:
        text = self._stamps.text(time_ns, self.digits) if self.digits else "".join(self._stamps.parts(time_ns // NS))
        return f"{self._dim}{text}{self._undim}"

    def _head(self, record: Record, level: int, name: str) -> _Head:
        label, style = self.label(record), self.style
        source = f"{style.source(label)} " if label else ""
        shown = f"{style.paint(level_colour(level), safe(name).ljust(_WIDTH))} " if name else ""
        colour = message_colour(level) if style.colour else ""
        text = f"{source}{shown}" + (f"\x1b[{colour}m" if colour else "")
        head = _Head(text, name, colour, f"{RESET}\n" if colour else "\n")
        if name == level_name(level):
            self._heads[record.log if isinstance(record, SetRecord) else "", level] = head
        return head

    def shown(self, entry: Entry) -> str:
        """The line, and indented under it further lines of the message, and the traceback."""
        record, style = entry.record, self.style
        head = self._head(record, entry.level, entry.level_name)
        message = entry.message
        if head.name and message.startswith(head.name) and entry.document is None and entry.event is None:
            message = _without(head.name, message)
        if style.brief and entry.document is None and entry.event is None and _is_binary(record.data):
            message = f"[{len(record.data)} bytes that are no text; -a shows them]"
        first, *more = style.lines(message)
        parts = [self._stamp(record.time_ns), head.text]
        if entry.logger:
            parts.append(style.paint("1", safe(entry.logger)) + ": " + (f"\x1b[{head.colour}m" if head.colour else ""))
        parts.append(self._marked(first, head.colour))
        if head.colour:
            parts.append(RESET)
        if entry.fields and entry.event is None:  # the text of an event has its arguments
            fields = " ".join([pair(name, value) for name, value in flat(entry.fields)])
            parts.append(f"  {style.dim(style.line(fields))}")
        parts.append("\n")
        if entry.traceback:
            *frames, last = style.lines(entry.traceback)
            more = [*more, *frames]
        parts += [f"{_INDENT}{self._marked(line, '')}\n" if line else "\n" for line in more]
        if entry.traceback:
            parts.append(f"{_INDENT}{style.paint(head.colour, self._marked(last, head.colour))}\n")
        return "".join(parts)

    def _marked(self, text: str, colour: str) -> str:
        """The text with what the pattern matches made conspicuous."""
        if not self._highlights:
            return text
        assert self.choice.pattern is not None
        back = RESET + (f"\x1b[{colour}m" if colour else "")
        return self.choice.pattern.sub(lambda match: f"\x1b[1;7m{match[0]}{back}" if match[0] else "", text)


class ShortPrecise(Short):
    """With microseconds."""

    digits = 6


class ShortIso(Short):
    """With the date and the offset from UTC as ISO 8601."""

    pattern = "%Y-%m-%dT%H:%M:%S"
    offset = True


class ShortIsoPrecise(ShortIso):
    """The same with microseconds."""

    digits = 6


def _without(name: str, text: str) -> str:
    """A text without the name of its level, which formatters like to put first: the line has it already."""
    at = len(name)
    return text[at + 1 :].lstrip() if text[at : at + 1] in _AFTER_LEVEL else text


def _is_binary(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return b"\x00" in data
