"""Counts in the words of a report."""

from __future__ import annotations


def counted(count: float, what: str) -> str:
    """A number of things, in the plural but for one.

    >>> counted(1, "kill"), counted(0, "kill"), counted(1.0, "flush"), counted(2.5, "flush")
    ('1 kill', '0 kills', '1 flush', '2.5 flushes')
    """
    number = f"{count:g}" if isinstance(count, float) else f"{count}"
    return f"{number} {what}" if count == 1 else f"{number} {what}{'es' if what.endswith('sh') else 's'}"
