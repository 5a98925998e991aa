"""The loop behind ``follow``: hand out what is durable, sleep until there is more, end when there will be no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pmwal.records import Record
from pmwal.storage.live_page import Bell

Look = Callable[[int], Iterator[Record] | None]
"""The durable records from a number on, none when there are none yet; None when there will never be another one."""


def follow(hang_up: Callable[[], Bell], look: Look, next_seq: int, timeout: float | None) -> Iterator[Record]:
    """Records from ``next_seq`` on as they become durable; ``timeout`` seconds without one are the end, too."""
    with hang_up() as bell:
        waiting_since = time.monotonic()
        version: int | None = None
        while True:
            records = look(next_seq)
            if records is None:
                return
            before = next_seq
            for record in records:
                next_seq = record.seq + 1
                yield record
            now = time.monotonic()
            if next_seq > before:
                bell.rang()
                waiting_since, version = now, None
                continue
            if version is None:
                version = bell.version()  # and one more look: what is shown after it rings
                continue
            left = Bell.PATIENCE if timeout is None else waiting_since + timeout - now
            if left <= 0:
                return
            bell.wait(version, left)
            version = None  # no call between the ring and the look
