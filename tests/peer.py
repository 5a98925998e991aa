"""A process that writes, reads, follows and verifies logs with the pmwal of its own interpreter, told by JSON on standard input.

``released.Peer`` starts it, also with a released pmwal of an environment of its own: it uses nothing but pmwal's public names of
version 0.1, and the standard library. Each line is [method, arguments]; the answer is one line, the result or an error.
"""

from __future__ import annotations

import base64
import json
import sys
from itertools import islice
from typing import Any

import pmwal

Records = list[tuple[int, str]]


def told(records: Any) -> Records:
    """Records as numbers and payloads."""
    return [(record.seq, base64.b64encode(record.data).decode()) for record in records]


def given(payloads: list[str]) -> list[bytes]:
    """Payloads from the test."""
    return [base64.b64decode(payload) for payload in payloads]


class Commands:
    """What the test may ask for. One log is open for writing, and one for reading."""

    wal: Any
    reader: Any

    def hello(self) -> list[Any]:
        """Which pmwal this is, and its engine."""
        return [pmwal.__file__, getattr(pmwal, "__version__", "")]

    def open(self, path: str, options: dict[str, Any]) -> list[Any]:
        """Open for writing: what was found, and the row of the recovery table."""
        self.wal = pmwal.open(path, **options)
        return [self.wal.first_seq, told(self.wal), self.wal.recovery.case, self.wal.stats().engine]

    def _bounds(self) -> list[int]:
        return [self.wal.first_seq, self.wal.committed_seq, self.wal.next_seq]

    def append(self, payload: str, commit: bool) -> list[int]:
        """One record; the bounds of the log after it."""
        self.wal.append(*given([payload]), commit=None if commit else False)
        return self._bounds()

    def extend(self, payloads: list[str]) -> list[int]:
        """Records of one batch."""
        self.wal.extend(given(payloads))
        return self._bounds()

    def commit(self) -> list[int]:
        """Make everything durable."""
        self.wal.commit()
        return self._bounds()

    def truncate(self, before: int) -> list[int]:
        """Free the front."""
        self.wal.truncate(before=before)
        return self._bounds()

    def rollback(self, after: int) -> list[int]:
        """Discard the end."""
        self.wal.rollback(after=after)
        return self._bounds()

    def close(self) -> None:
        """Close the log that is open for writing."""
        self.wal.close()

    # -- reading

    def attach(self, path: str) -> None:
        """Open a reader that stays."""
        self.reader = pmwal.open(path, "r")

    def detach(self) -> None:
        """Close it."""
        self.reader.close()

    def look(self) -> list[Any]:
        """What it shows: its first number and its records."""
        return [self.reader.first_seq, told(self.reader)]

    def read(self, path: str) -> list[Any]:
        """What a new reader shows."""
        with pmwal.open(path, "r") as reader:
            return [reader.first_seq, told(reader)]

    def follow(self, start: int, count: int, timeout: float) -> Records:
        """The next records, for which the reader that stays waits."""
        return told(islice(self.reader.follow(start, timeout=timeout), count))

    def verify(self, path: str) -> dict[str, Any]:
        """The verdict."""
        report = pmwal.verify(path)
        names = ("outcome", "case", "first_seq", "last_seq", "slots_lost", "superblocks_lost", "reason")
        return {name: getattr(report, name) for name in names}


def main() -> None:
    """Answer until the input ends."""
    commands = Commands()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = ["result", getattr(commands, method)(*arguments)]
        except Exception as error:
            answer = ["error", type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
