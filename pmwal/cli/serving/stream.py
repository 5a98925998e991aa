"""Entries on their way from the logs to a client: JSON lines, or server-sent events.

Invariants
----------
- What waits for a client is limited (``WAITING_MAX`` bytes and ``COUNT_MAX`` entries), however slow it is.
- The walk waits for its client, so that the log is the buffer: what is overwritten meanwhile is counted as missed. A client that
  gives a rate wants what is new: of what it follows, entries past the rate and those that find no room are dropped and counted.
- The client is told the counts, between the entries.
- An event has the cursor of its entry as its id, so that a client that connects again continues after the last one it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

from pmwal.cli.serving.documents import document_of
from pmwal.cli.serving.names import Names
from pmwal.cli.serving.queries import Query
from pmwal.cli.serving.walks import Pool, StoppableSet, Stopped, Walk
from pmwal.cli.terminal import say
from pmwal.errors import Overrun

WAITING_MAX = 1 << 20
COUNT_MAX = 2000

_GATHER = 0.02  # seconds in which entries gather to be sent at once
_HEARTBEAT = 10.0  # seconds of silence after which a client is sent something, to find out whether it is there
_SLICE = 0.25  # seconds whose entries together are limited by a rate


class Outbox:
    """Chunks between a thread and a client of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._dropped = self._missed = 0
        self._closed = self._gone = False
        self._news = asyncio.Event()

    # -- the thread

    def put(self, chunk: bytes, *, wait: bool) -> bool:
        """Add a chunk. Without room, wait for it, or return False. ``Stopped`` if the client has gone."""
        with self._room:
            while not self._gone and self._chunks and (self._size + len(chunk) > WAITING_MAX or len(self._chunks) >= COUNT_MAX):
                if not wait:
                    return False
                self._room.wait()
            if self._gone:
                raise Stopped
            self._chunks.append(chunk)
            self._size += len(chunk)
        self._tell()
        return True

    def note(self, *, dropped: int = 0, missed: int = 0) -> None:
        """Entries that the client does not get: dropped here, or overwritten before they were read."""
        with self._room:
            self._dropped += dropped
            self._missed += missed
        self._tell()

    def close(self) -> None:
        """There will be nothing more."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        if not self._news.is_set() and not self._gone:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._news.set)

    # -- the event loop

    async def take(self, seconds: float) -> tuple[bytes, int, int] | None:
        """What has gathered: chunks, and how many were dropped and missed. Nothing after these seconds; None at the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return b"", 0, 0
        await asyncio.sleep(_GATHER)
        self._news.clear()
        with self._room:
            ended = self._closed
            taken = b"".join(self._chunks), self._dropped, self._missed
            self._chunks.clear()
            self._size = self._dropped = self._missed = 0
            self._room.notify_all()
        if ended:
            if not any(taken):
                return None
            self._news.set()  # the next call tells of the end
        return taken

    def abandon(self) -> None:
        """The client takes nothing more."""
        with self._room:
            self._gone = self._closed = True
            self._chunks.clear()
            self._room.notify_all()
        self._news.set()


class Stream:
    """The answer to one query."""

    def __init__(self, pool: Pool, names: Names, query: Query, count_drops: Callable[[int], None]) -> None:
        self._pool = pool
        self._names = names
        self._query = query
        self._count_drops = count_drops
        self._frame = _as_event if query.events else _as_line
        self._outbox = Outbox(asyncio.get_running_loop())
        self._begun: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._logs: StoppableSet | None = None
        self._lock = threading.Lock()  # of the set: it is stopped only while it is ours
        self._stopped = self._said = False
        self._thread = threading.Thread(target=self._run, name="pmwal-serve-walk", daemon=True)

    async def begin(self) -> None:
        """Start, and wait for the first entry, the end, or a little. Raises what a query meets that can only be refused."""
        self._thread.start()
        await asyncio.wait({self._begun}, timeout=1.0 if self._query.follow else None)
        if self._begun.done():
            error = self._begun.result()
            if error is not None:
                raise error

    async def chunks(self) -> AsyncIterator[bytes]:
        """What the client gets."""
        if self._query.events:
            yield b"retry: 2000\n\n"
        while (taken := await self._outbox.take(_HEARTBEAT)) is not None:
            chunk, dropped, missed = taken
            if dropped or missed:
                self._count_drops(dropped + missed)
                chunk += self._frame({"dropped": dropped, "missed": missed}, "drop")
            if chunk:
                yield chunk
            elif self._query.events:
                yield b":\n\n"

    def stop(self) -> None:
        """End the walk, from any thread."""
        self._outbox.abandon()
        with self._lock:
            self._stopped = True
            if self._logs is not None:
                self._logs.stopped.set()

    # -- the thread

    def _run(self) -> None:
        reusable = False
        try:
            logs = self._pool.take()
            with self._lock:
                self._logs = logs
                if self._stopped:
                    logs.stopped.set()
            self._walk(logs)
            reusable = True
        except Stopped:
            reusable = True
        except Overrun:
            self._fail(Gone("the entry of this cursor is no longer in the log, or was rolled back; begin without a cursor"))
        except Exception as error:
            say(f"a request failed: {type(error).__name__}: {error}")
            self._fail(Unreadable("the logs cannot be read; see the messages of pmwal serve"))
        finally:
            self._say_begun(None)
            self._outbox.close()
            with self._lock:
                free, self._logs = self._logs, None
            if free is not None and reusable:
                self._pool.give_back(free)
            elif free is not None:
                free.close()

    def _walk(self, logs: StoppableSet) -> None:
        query, missed = self._query, 0
        limiter = _Limiter(query.rate if query.follow else None)
        walk = Walk(logs, self._names, query, lambda: self._tell_unfinished(walk))
        for record, entry in walk.found():
            if walk.missed != missed:
                self._outbox.note(missed=walk.missed - missed)
                missed = walk.missed
            if not limiter.allows():
                self._outbox.note(dropped=1)
                continue
            cursor = str(walk.position_at(record))
            document = document_of(entry or walk.entry(record), self._names.of(record.log), cursor, query.cut)
            chunk = b"id: %b\ndata: %b\n\n" % (cursor.encode(), document) if query.events else document + b"\n"
            if not self._outbox.put(chunk, wait=limiter.rate is None):
                self._outbox.note(dropped=1)
            self._say_begun(None)
        self._outbox.note(missed=walk.missed - missed)

    def _tell_unfinished(self, walk: Walk) -> None:
        told = {"unfinished": "the search took too long; narrow it, or continue at the cursor", "cursor": str(walk.position)}
        self._outbox.put(self._frame(told, "unfinished"), wait=True)

    def _fail(self, error: Exception) -> None:
        """Refuse the request, or tell the client in the stream if it has begun."""
        if not self._say_begun(error):
            with contextlib.suppress(Stopped):
                self._outbox.put(self._frame({"error": str(error)}, "error"), wait=False)

    def _say_begun(self, error: Exception | None) -> bool:
        """Whether this was the first time."""
        first, self._said = not self._said, True
        if first:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._begun.get_loop().call_soon_threadsafe(self._set_begun, error)
        return first

    def _set_begun(self, error: Exception | None) -> None:
        if not self._begun.done():
            self._begun.set_result(error)


class Gone(Exception):
    """What a cursor names is not there."""


class Unreadable(Exception):
    """Why nothing can be read was said on standard error."""


class _Limiter:
    """Lets at most ``rate`` entries a second pass, and the first second's at once."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._left = float(rate or 0)
        self._at = time.monotonic()

    def allows(self) -> bool:
        """Whether one more may pass."""
        if self.rate is None:
            return True
        if self._left < 1:
            now = time.monotonic()
            if now - self._at < _SLICE:
                return False
            self._left = min(float(self.rate), self._left + (now - self._at) * self.rate)
            self._at = now
        self._left -= 1
        return self._left >= 0


def _as_line(value: Mapping[str, object], event: str) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _as_event(value: Mapping[str, object], event: str) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), json.dumps(value).encode())
