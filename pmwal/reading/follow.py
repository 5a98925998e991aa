"""The loop of ``follow``: deliver what is durable, sleep until there is more, end when there will be no more."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, cast

from pmwal.errors import PersistError
from pmwal.format.layout import LIVE_FOLLOWERS, LIVE_FOLLOWERS_OFFSET, LIVE_OFFSET, PAGE
from pmwal.native import native
from pmwal.reading.walk import View
from pmwal.records import Bound, Record
from pmwal.storage.mapping import Mapping, SharedPage
from pmwal.storage.seam import Seam

_WAITING = LIVE_FOLLOWERS.struct.pack(1)

_PAUSE_MIN = 0.001
"""The shortest sleep in seconds: a wake-up may be missed."""

PAUSE_MAX = 0.1
"""The longest sleep in seconds: a writer that does not know of followers wakes none."""

Poll = Callable[[int], Iterator[Record] | None]
"""The durable records from a number on, none if there are none yet; None when there will never be another one."""

Request = tuple[Any, int, int, bytes, Bound, int, View, Callable[[], None], float, float]
"""What C needs to watch for the next records, and to deliver them without Python: the live page and a descriptor, where the ring is
in the file, the writer's line and the id of its open, where the next record starts, its epoch, the view that it belongs to; what
announces that a follower sleeps, and the seconds that it sleeps at first and in all."""

News = tuple[bytes, int, tuple[int, int, int, int]]
"""The writer's line and the id of its open, the first number in the log, and the record that was delivered last."""


Watch = Generator[Record | Request, News | bool | None, None]
"""Records for a native follower, and requests, which it answers: see ``watch``."""


class Watcher(Protocol):
    """Prepares what C does after a wait: waking up finds the caches of the processor cold, and then each function that runs takes
    several times as long as in a loop."""

    def request(self, next_seq: int, waiter: Waiter, seconds: float) -> Request | None:
        """For the records from a number on; None if only a poll can find them."""

    def deliver(self, news: News) -> int:
        """They were delivered. The number after the last one."""

    def is_idle(self) -> bool:
        """The page shows nothing new: whether that is all, because its writer is alive."""


class Waiter:
    """Waits (futex) until a writer, in any process, shows new bounds; without futex or write access, polls.

    It announces that it waits by a word in the live page, which needs permission to write to the file.
    """

    def __init__(self, mapping: Mapping, seam: Seam) -> None:
        self.page = SharedPage(mapping.fd, LIVE_OFFSET + PAGE, seam)
        self.pause = _PAUSE_MIN
        """Seconds of the next sleep."""

    def version(self) -> int:
        """Version of the bounds, modulo 2**32."""
        return int.from_bytes(self.page.load(LIVE_OFFSET, 4), "little")

    def reset(self) -> None:
        """Wait briefly again: there was a record, so more may come soon."""
        self.pause = _PAUSE_MIN

    def wait(self, version: int, seconds: float) -> None:
        """Sleep while the bounds have this version, at most this long; longer from call to call, until ``reset``."""
        pause = min(self.pause, seconds)
        self.pause = min(2 * self.pause, PAUSE_MAX)
        self.announce()
        if native is None or self.page.map is None:
            time.sleep(pause)
            return
        try:
            native.futex_wait(self.page.map, LIVE_OFFSET, version, pause)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise PersistError(error.errno, f"cannot wait on the live page: {error.strerror}") from error
            time.sleep(pause)  # the file was shortened, and the next poll says to how many bytes

    def announce(self) -> None:
        """Let the writer wake those who wait when it shows new bounds."""
        if native is not None:
            self.page.write(LIVE_FOLLOWERS_OFFSET, _WAITING)

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *error: object) -> None:
        self.page.close()


def follow(mapping: Mapping, seam: Seam, poll: Poll, next_seq: int, timeout: float | None) -> Iterator[Record]:
    """Records from ``next_seq`` on as they become durable. It also ends after ``timeout`` seconds without one."""
    return cast("Iterator[Record]", watch(mapping, seam, poll, next_seq, timeout, None))  # without a watcher, it requests nothing


def watch(mapping: Mapping, seam: Seam, poll: Poll, next_seq: int, timeout: float | None, watcher: Watcher | None) -> Watch:
    """The same for a native follower, which answers each request by what it has delivered meanwhile; by True if the page showed
    nothing new, and False if it takes a poll to tell."""
    with Waiter(mapping, seam) as waiter:
        waiting_since = time.monotonic()
        left = PAUSE_MAX if timeout is None else timeout
        version: int | None = None
        while True:
            before, idle = next_seq, False
            request = None if watcher is None else watcher.request(next_seq, waiter, min(left, PAUSE_MAX))
            if watcher is not None and request is not None:
                news = yield request
                if isinstance(news, tuple):
                    next_seq = watcher.deliver(news)
                idle = news is True and watcher.is_idle()
                if idle:
                    waiter.pause = PAUSE_MAX
            if next_seq == before and not idle:
                records = poll(next_seq)
                if records is None:
                    return
                for record in records:
                    next_seq = record.seq + 1
                    yield record
            now = time.monotonic()
            if next_seq > before:
                waiter.reset()
                waiting_since, version = now, None
            left = PAUSE_MAX if timeout is None else waiting_since + timeout - now
            if next_seq > before:
                continue
            if not idle and version is None:
                version = waiter.version()  # and poll once more: bounds that are shown later have another version and end the wait
            elif left <= 0:
                return
            elif not idle and version is not None:
                waiter.wait(version, left)
                version = None  # poll at once after waking; read the version again only if nothing is found
