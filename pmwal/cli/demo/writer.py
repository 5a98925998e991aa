"""The demo's writer: a separate process that appends lines until it is killed.

Invariants
----------
- A line is acknowledged only after ``append`` has returned its number, with commit="each": the guarantee under test.
- A truncation is announced before it starts, so that the parent knows which records may be gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import count
from pathlib import Path
from time import perf_counter_ns

from pmwal.cli.demo.protocol import ACKNOWLEDGED, EVENT, OPENED, TRUNCATED, TRUNCATING
from pmwal.cli.formats.framing import read_items
from pmwal.opening import open
from pmwal.writing.wal import Wal

AHEAD = 32  # lines that the sabotaged writer acknowledges before appending the first of them


def main(argv: list[str]) -> int:
    """Append until killed, or until the parent has closed the pipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("lines")
    for name in ("--start", "--kind", "--events"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--medium", "--ordering"):
        parser.add_argument(name, required=True)
    parser.add_argument("--sabotage", default="")
    args = parser.parse_args(argv)
    with Path(args.lines).open("rb") as stream:
        lines = list(read_items(stream, sys.maxsize))
    with open(args.path, "r+", medium=args.medium, ordering=args.ordering) as wal:
        writer = _Writer(wal, lines, args.start, args.kind, args.events)
        try:
            writer.tell(OPENED, wal.next_seq)
            if args.sabotage == "early-ack":
                writer.acknowledge_early()
            else:
                writer.append_until_killed()
        except BrokenPipeError:
            pass
    return 0


class _Writer:
    """Appends lines in turn, beginning with line ``start``, and reports to the parent."""

    def __init__(self, wal: Wal, lines: list[bytes], start: int, kind: int, events: int) -> None:
        self._wal = wal
        self._lines = lines
        self._start = start
        self._kind = kind
        self._events = events
        self._low_water = wal.capacity // 4

    def tell(self, what: int, number: int, value: int = 0) -> None:
        """Send one event to the parent."""
        os.write(self._events, EVENT.pack(what, number, value))

    def append_until_killed(self) -> None:
        """The correct order: append, then acknowledge."""
        wal, lines, kind = self._wal, self._lines, self._kind
        for at in count(self._start):
            line = lines[at % len(lines)]
            begin = perf_counter_ns()
            seq = wal.append(line, kind=kind)
            spent = perf_counter_ns() - begin
            self.tell(ACKNOWLEDGED, seq, spent)
            if wal.free < self._low_water:
                self._truncate()

    def acknowledge_early(self) -> None:
        """The fault that the demo must catch: lines are acknowledged before they are appended."""
        wal = self._wal
        for ahead in range(AHEAD):
            self.tell(ACKNOWLEDGED, wal.next_seq + ahead)
        for at in count(self._start):
            seq = wal.append(self._lines[at % len(self._lines)], kind=self._kind)
            self.tell(ACKNOWLEDGED, seq + AHEAD)
            if wal.free < self._low_water:
                self._truncate()

    def _truncate(self) -> None:
        """Free the older half, so that the ring wraps and the log never fills."""
        before = self._wal.first_seq + len(self._wal) // 2
        self.tell(TRUNCATING, before)
        self._wal.truncate(before=before)
        self.tell(TRUNCATED, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
