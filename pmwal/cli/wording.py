"""Sentences that several commands print: counts of records, what a record survives, what a crash left torn; and printable text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pmwal.opening.units import format_size

if TYPE_CHECKING:
    from pmwal.records import RecoveryReport

HIGH_CONTROL = r"\x7f-\x9f\u2028-\u202e\u2066-\u2069"
"""For a pattern: delete, C1, the separators of lines and paragraphs, and what overrides the direction of text, so that a line shows
what it does not say (CVE-2021-42574). The direction marks, which Hebrew and Arabic text has, override nothing."""

CONTROL = r"\x00-\x08\x0a-\x1f" + HIGH_CONTROL
"""For a pattern: all characters that a terminal obeys instead of showing them, but for the tab."""

_CONTROL = re.compile(f"[{CONTROL}]")


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


def lost_in_words(first: int, last: int | None) -> str:
    """Which records are lost: ``last`` is the last one that anything whole names, and later ones may be lost, too."""
    words = numbers_in_words(first, last)
    return words if last is None else f"at least {words}"


def durability_in_words(durability: str) -> str:
    """What an acknowledged record survives."""
    if durability == "unknown":
        return "the death of the process; whether a power cut, is up to the server of the file system"
    return "a power cut" if durability == "power" else "the death of the process only, not a power cut"


def writer_in_words(writer: Mapping[str, Any] | None) -> str:
    """The writer that the live page names, as ``info`` and ``stat`` describe it in JSON."""
    if writer is None:
        return "none"
    state = "running" if writer["alive"] else "gone without closing the log"
    return f"process {writer['pid']}, " + (state if writer["of_this_file"] else "of the file that this is a copy of")


def torn_in_words(report: RecoveryReport, offset: int | None = None) -> list[str]:
    """What is torn in a log that is usable, one phrase each; empty if nothing is.

    ``offset`` is the file offset where the kept records end.
    """
    phrases = []
    if report.dropped_records:
        what = "1 unfinished record" if report.dropped_records == 1 else f"{report.dropped_records} unfinished records"
        where = "" if offset is None else f", file offset {offset}"
        doubt = "; it may have been acknowledged" if report.maybe_acknowledged else ""
        phrases.append(f"{what} ({format_size(report.dropped_bytes)}) dropped from number {report.last_seq + 1} on{where}{doubt}")
    if report.slots_lost:
        phrases.append("1 commit slot is torn or lost; its neighbour is used")
    if report.superblocks_lost:
        phrases.append("1 of 2 superblock copies is damaged; the other is used")
    return phrases


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns. The first and the last one are aligned to the left, those between, figures, to the right.

    >>> table(("log", "records", "verdict"), [("00", "7", "clean"), ("shop", "12", "in use")])
    ['log   records  verdict', '00          7  clean', 'shop       12  in use']
    """
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in (heading, *rows)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    last = len(row) - 1
    return [
        f"{cell:<{width}}" if at in (0, last) else f"{cell:>{width}}"
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def count_in_words(count: int, what: str) -> str:
    """``"1 log"`` or ``"3 logs"``."""
    return f"{count} {what}" if count == 1 else f"{count:,} {what}s"


def decoded(data: bytes) -> str:
    """Bytes as UTF-8 text, with invalid bytes as ``\\xNN``."""
    return data.decode(errors="backslashreplace")


def printable(text: str) -> str:
    """Text safe for one line of a terminal: control characters except tabs become ``\\xNN`` or ``\\uNNNN``.

    >>> printable("two\\nlines \\x1b[31m \\u202e")
    'two\\\\x0alines \\\\x1b[31m \\\\u202e'
    """
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_printable(text: str) -> bool:
    """Whether ``printable`` leaves a text as it is."""
    return _CONTROL.search(text) is None
