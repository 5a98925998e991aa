"""What makes text safe and easy to read on a terminal: escapes, colours, and where to cut."""

from __future__ import annotations

import re
from typing import NamedTuple
from zlib import crc32

from pmwal.cli.formats.printing import printable

_SOURCES = ("36", "35", "34", "32", "96", "95", "94", "92")  # neither red nor yellow, which are levels
_BREAK = re.compile(r"\r?\n")
_LONG = 4096  # characters of a line
_LINES_MAX = 200  # of one entry

RESET = "\x1b[0m"


class Style(NamedTuple):
    """Whether colours are used, and whether long and binary text is cut because a person looks at it."""

    colour: bool = False
    brief: bool = False
    utc: bool = False

    def paint(self, code: str, text: str) -> str:
        """The text in a colour."""
        return f"\x1b[{code}m{text}{RESET}" if self.colour and code and text else text

    def dim(self, text: str) -> str:
        """The text in the background."""
        return self.paint("2", text)

    def source(self, label: str) -> str:
        """The label of a log, in a colour that is always the same."""
        return self.paint(_SOURCES[crc32(label.rstrip().encode(errors="surrogatepass")) % len(_SOURCES)], label)

    def lines(self, text: str) -> list[str]:
        """The lines of a text, without control characters."""
        lines = _BREAK.split(text)
        while len(lines) > 1 and not lines[-1]:
            lines.pop()
        if self.brief and len(lines) > _LINES_MAX:
            half = _LINES_MAX // 2
            lines[half:-half] = [f"[{len(lines) - 2 * half} more lines; -a shows them]"]
        return [self.line(line) for line in lines]

    def line(self, text: str) -> str:
        """A text on one line, without control characters."""
        if self.brief and len(text) > _LONG:
            return f"{safe(text[:_LONG])}... [{len(text) - _LONG} more characters; -a shows them]"
        return safe(text)


def safe(text: str) -> str:
    """Text without control characters except tabs: they become ``\\xNN``.

    >>> safe("two\\nlines \\x1b[31m")
    'two\\\\x0alines \\\\x1b[31m'
    """
    return text if text.isprintable() else printable(text)


def level_colour(level: int) -> str:
    """The colour of a level."""
    if level >= 50:
        return "1;97;41"
    if level >= 40:
        return "1;31"
    if level >= 30:
        return "1;33"
    if level >= 25:
        return "1"
    return "32" if level >= 20 else "2" if level else ""


def message_colour(level: int) -> str:
    """The colour of what an entry of a level says: only what needs attention has one, or needs none."""
    return "31" if level >= 40 else "33" if level >= 30 else "2" if 0 < level < 20 else ""
