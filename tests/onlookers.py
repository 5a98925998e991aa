"""Readers of every kind that look at a log whose writer is stopped somewhere inside a call."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import pmwal

_LOOK_UP_STEP = 9  # one record in this many is looked up by its number
Numbered = tuple[int, int, bytes]
"""A record as (number, kind, payload)."""


class Misled(AssertionError):
    """A reader called a healthy log damaged, or two readers saw different logs."""


class Onlookers:
    """A reader that was there before, a follower, a reader that comes now, look-ups by number, and ``verify``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = pmwal.open(path, "r")
        self._follower = pmwal.open(path, "r")
        self._followed: list[Numbered] = []
        self.overruns = 0

    def look(self) -> tuple[int, list[Numbered]]:
        """The first number and the records that all of them see; ``Misled`` if one is."""
        try:
            report = pmwal.verify(self._path)
            if report.outcome == "corrupt":
                raise Misled(f"verify: {report.case}, {report.reason}")
            with pmwal.open(self._path, "r") as fresh:
                found = [fresh[seq] for seq in range(fresh.committed_seq, fresh.first_seq - 1, -_LOOK_UP_STEP)]  # before it walks
                first, seen = fresh.first_seq, [(record.seq, record.kind, record.data) for record in fresh]
            if any((record.seq, record.kind, record.data) not in seen for record in found):
                raise Misled(f"a look-up by number finds {found}")
            again = [(record.seq, record.kind, record.data) for record in self._reader]
            self._follow()
        except (pmwal.CorruptWal, pmwal.FormatError, pmwal.Overrun) as error:  # a stopped writer overwrites nothing
            raise Misled(f"{type(error).__name__}: {error}") from error
        if again != seen:
            raise Misled(f"one reader sees {numbers(seen)}, another {numbers(again)}")
        if report.live and (report.first_seq, report.records) != (first, len(seen)):
            raise Misled(f"readers see {numbers(seen)} from {first} on, verify judged {report.records} from {report.first_seq} on")
        if seen and self._followed[-1:] != seen[-1:]:
            raise Misled(f"a reader sees {numbers(seen)}, a follower ends with {numbers(self._followed[-1:])}")
        return first, seen

    def _follow(self) -> None:
        start = self._followed[-1][0] + 1 if self._followed else None
        try:
            self._followed += [(record.seq, record.kind, record.data) for record in self._follower.follow(start, timeout=0)]
        except pmwal.Overrun:
            self.overruns += 1
            self._followed = [(record.seq, record.kind, record.data) for record in self._follower.follow(timeout=0)]

    def __enter__(self) -> Onlookers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(pmwal.PmwalError):
            self._reader.close()
            self._follower.close()


def numbers(records: list[Numbered]) -> str:
    """A run of records, for a message."""
    return f"{records[0][0]} to {records[-1][0]}" if records else "nothing"
