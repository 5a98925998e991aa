"""The loop behind ``follow``: hand out what is durable, sleep until there is more, end when there will be no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pmwal.format.layout import LIVE_FOLLOWERS, LIVE_FOLLOWERS_OFFSET, LIVE_OFFSET, PAGE
from pmwal.native import native
from pmwal.records import Record
from pmwal.storage.mapping import Mapping, SharedPage
from pmwal.storage.seam import Seam

_SOMEBODY = LIVE_FOLLOWERS.struct.pack(1)
_PAUSE_MIN = 0.001  # seconds

Look = Callable[[int], Iterator[Record] | None]
"""The durable records from a number on, none when there are none yet; None when there will never be another one."""


class Bell:
    """Sleeps until a writer shows new bounds, in this process or another; where that cannot be known, for a short time.

    It says that it sleeps in a word of the live page, for which it needs to be allowed to write to the file.
    """

    PATIENCE = 0.1
    """Seconds that it sleeps at most: a writer that knows no followers wakes none."""

    def __init__(self, mapping: Mapping, seam: Seam) -> None:
        self._page = SharedPage(mapping.fd, LIVE_OFFSET + PAGE, seam)
        self._pause = _PAUSE_MIN

    def version(self) -> int:
        """Of the bounds, modulo 2**32."""
        return int.from_bytes(self._page.load(LIVE_OFFSET, 4), "little")

    def rang(self) -> None:
        """There was something new: more may come soon."""
        self._pause = _PAUSE_MIN

    def wait(self, version: int, seconds: float) -> None:
        """Sleep while the bounds have this version, at most for so long; from call to call longer, until ``rang``."""
        pause = min(self._pause, seconds)
        self._pause = min(2 * self._pause, self.PATIENCE)
        if native is None or self._page.map is None:
            time.sleep(pause)
        else:
            self._page.write(LIVE_FOLLOWERS_OFFSET, _SOMEBODY)
            native.futex_wait(self._page.map, LIVE_OFFSET, version, pause)

    def __enter__(self) -> Bell:
        return self

    def __exit__(self, *error: object) -> None:
        self._page.close()


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
