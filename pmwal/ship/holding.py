"""Which records the stream has had for so long that the writer may free them. Pure.

An acknowledgement of JetStream is not an fsync: a server that loses power may come back without what it acknowledged last.
"""

from __future__ import annotations

from collections import deque

_BUCKETS = 16  # acknowledgements within this part of the time are released together


class Holding:
    """Acknowledged records, until they are ``hold`` seconds old."""

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._waiting: deque[tuple[float, float, int]] = (
            deque()
        )  # when its first was acknowledged, when its last, and its last number
        self.released = 0
        """The last record that may be freed."""

    def add(self, seq: int, now: float) -> None:
        """The stream has acknowledged all up to this record."""
        if self._waiting and now - self._waiting[-1][0] < self._hold / _BUCKETS:
            begun, _, _ = self._waiting.pop()
            self._waiting.append((begun, now, seq))
        else:
            self._waiting.append((now, now, seq))

    def forget_after(self, seq: int) -> None:
        """The stream has no more than this."""
        while self._waiting and self._waiting[-1][2] > seq:
            self._waiting.pop()

    def due(self, now: float) -> bool:
        """Whether there is something to release, once it is known that the stream still has it."""
        return bool(self._waiting) and now >= self._waiting[0][1] + self._hold

    def release(self, now: float) -> int:
        """The stream was seen to have all that was added: the last record that may be freed by now."""
        while self.due(now):
            self.released = self._waiting.popleft()[2]
        return self.released
