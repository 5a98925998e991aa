"""Times as the forms of output print them. What is the same for all records of a second is made once for each."""

from __future__ import annotations

import time

NS = 10**9


class Stamps:
    """The text before and after the fraction of a second, by second."""

    def __init__(self, pattern: str, *, utc: bool, offset: bool) -> None:
        self._pattern = pattern
        self._broken_down = time.gmtime if utc else time.localtime
        self._offset = offset
        self._second: int | None = None
        self._parts = "", ""

    def parts(self, second: int) -> tuple[str, str]:
        """What is before the fraction, and after it."""
        if second != self._second:
            moment = self._broken_down(second)
            self._parts = time.strftime(self._pattern, moment), _offset(moment.tm_gmtoff) if self._offset else ""
            self._second = second
        return self._parts

    def text(self, time_ns: int, digits: int) -> str:
        """A time with this many digits of a second, rounded down."""
        before, after = self.parts(time_ns // NS)
        return f"{before}.{time_ns % NS // 10 ** (9 - digits):0{digits}d}{after}"


def _offset(seconds: int) -> str:
    """An offset from UTC as ISO 8601 has it.

    >>> _offset(-16200)
    '-04:30'
    """
    minutes = abs(seconds) // 60
    return f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
