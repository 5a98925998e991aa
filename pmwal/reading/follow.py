"""The loop of ``follow``: deliver what is durable, sleep until there is more, end when there will be no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from pmwal.errors import PersistError
from pmwal.format.layout import LIVE_FOLLOWERS, LIVE_FOLLOWERS_OFFSET, LIVE_OFFSET, PAGE
from pmwal.native import native
from pmwal.records import Record
from pmwal.storage.mapping import Mapping, SharedPage
from pmwal.storage.seam import Seam

_WAITING = LIVE_FOLLOWERS.struct.pack(1)
_PAUSE_MIN = 0.001  # seconds

PAUSE_MAX = 0.1
"""The longest sleep in seconds: a writer that does not know of followers wakes none."""

Poll = Callable[[int], Iterator[Record] | None]
"""The durable records from a number on, none if there are none yet; None when there will never be another one."""

Look = Callable[[], Iterator[Record] | None]
"""A quick look for the records from a number on, prepared before a wait; None if there are none, or if it takes a poll to tell.

Waking up finds the caches of the processor cold, and then each function that runs takes several times as long. So what can be
worked out before the wait is.
"""

Prepare = Callable[[int], Look | None]
"""Prepares the look for the records from a number on; None if only a poll can find them."""


class Waiter:
    """Waits (futex) until a writer, in any process, shows new bounds; without futex or write access, polls.

    It announces that it waits by a word in the live page, which needs permission to write to the file.
    """

    def __init__(self, mapping: Mapping, seam: Seam) -> None:
        self._page = SharedPage(mapping.fd, LIVE_OFFSET + PAGE, seam)
        self._pause = _PAUSE_MIN

    def version(self) -> int:
        """Version of the bounds, modulo 2**32."""
        return int.from_bytes(self._page.load(LIVE_OFFSET, 4), "little")

    def reset(self) -> None:
        """Wait briefly again: there was a record, so more may come soon."""
        self._pause = _PAUSE_MIN

    def wait(self, version: int, seconds: float) -> None:
        """Sleep while the bounds have this version, at most this long; longer from call to call, until ``reset``."""
        pause = min(self._pause, seconds)
        self._pause = min(2 * self._pause, PAUSE_MAX)
        if native is None or self._page.map is None:
            time.sleep(pause)
        else:
            self._page.write(LIVE_FOLLOWERS_OFFSET, _WAITING)
            try:
                native.futex_wait(self._page.map, LIVE_OFFSET, version, pause)
            except OSError as error:  # EFAULT: the file was shortened
                raise PersistError(error.errno, f"cannot wait on the live page: {error.strerror}") from error

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *error: object) -> None:
        self._page.close()


def follow(
    mapping: Mapping, seam: Seam, poll: Poll, next_seq: int, timeout: float | None, prepare: Prepare | None = None
) -> Iterator[Record]:
    """Records from ``next_seq`` on as they become durable. It also ends after ``timeout`` seconds without one."""
    with Waiter(mapping, seam) as waiter:
        waiting_since = time.monotonic()
        version: int | None = None
        look: Look | None = None
        while True:
            records = None if look is None else look()
            if records is None:
                records = poll(next_seq)
            if records is None:
                return
            before, look = next_seq, None
            for record in records:
                next_seq = record.seq + 1
                yield record
            now = time.monotonic()
            if next_seq > before:
                waiter.reset()
                waiting_since, version = now, None
                continue
            if version is None:
                version = waiter.version()  # and poll once more: bounds that are shown later have another version and end the wait
                continue
            left = PAUSE_MAX if timeout is None else waiting_since + timeout - now
            if left <= 0:
                return
            look = None if prepare is None else prepare(next_seq)
            waiter.wait(version, left)
            version = None  # poll at once after waking; read the version again only if nothing is found
