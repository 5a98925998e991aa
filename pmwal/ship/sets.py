"""``SetShipper``: ships the logs of many processes, each on a subject of its own.

Invariants
----------
- Each log has its own chain, and so its own order. A log that cannot be shipped holds none of the others up.
- One thread reads all logs, and looks at those that are idle: the longer one is idle, the more rarely.
- Of each log at most one frame is in memory, or a few that have ``_AHEAD`` bytes together.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Unpack

from pmwal.errors import PmwalError, ShipError
from pmwal.logs.archives.reader import ring_of
from pmwal.logs.log_set import LogSet, drop_log
from pmwal.reading.reader import Reader
from pmwal.ship.relay import Progress, Relay
from pmwal.ship.service import Service, source_of
from pmwal.ship.settings import Keywords, Settings
from pmwal.ship.source import ShippedLog, Taken

_AHEAD = 256 << 10  # bytes of frames of one log
_LOOK_MIN, _LOOK_MAX = 0.01, 1.0  # seconds between two looks at an idle log
_REFRESH = 1.0  # seconds between two looks for new logs
_RETRY = 10.0  # seconds after which a log that failed is tried again
_IDLE = 10.0  # seconds in which a relay looks at least once itself

Place = str | os.PathLike[str]


@dataclass(eq=False)
class _Idle:
    """A log that waits for the record of this number."""

    log: ShippedLog
    first: int
    since: float
    look_at: float
    version: bytes | None = None  # at the last look
    news: asyncio.Event = field(default_factory=asyncio.Event)


class SetShipper(Service):
    """Ships all logs of a set (directories, files, patterns: what ``pmwal.LogSet`` takes) to one stream.

    Each log has a subject of its own, and ships as ``Shipper`` does, which has the same options. Logs that are new in the set
    follow within a second or two, and so does the first record of a log that was idle. A log that fails is in ``problems`` and
    tried again.
    """

    def __init__(self, logs: Place | Iterable[Place], *, to: str | Sequence[str], stream: str, **options: Unpack[Keywords]) -> None:
        """Raises ``FileNotFoundError`` for a directory or a file that is not there."""
        super().__init__(Settings(to, stream, **options))
        self._places = logs
        self._set: LogSet | None = None
        self._relays: dict[str, Relay] = {}  # by uuid
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._idle: dict[str, _Idle] = {}
        self._tried: dict[str, float] = {}  # when a log has failed
        self._failed: dict[str, Progress] = {}  # how far logs were that failed, by path
        self._said: dict[str, str] = {}  # why, as it was said
        self._problems: dict[str, Exception] = {}
        self._changed = asyncio.Event()

    async def acked(self, log: str | os.PathLike[str], seq: int) -> None:
        """Return once the stream has acknowledged this record of the log with this path, or uuid.

        Raises ``KeyError`` if the set has no such log (yet), and what ended the shipper.
        """
        if self._task is None:
            raise RuntimeError("nothing is shipped: enter the shipper with async with")
        if self._task.done():
            await self._task
        name = os.fsdecode(log)
        for relay in self._relays.values():
            if name in (relay.uuid, relay.path):
                await relay.acked(seq)
                return
        raise KeyError(f"no log {name!r} is shipped")

    @property
    def progress(self) -> Mapping[str, Progress]:
        """How far each log is shipped, by its path."""
        return MappingProxyType(self._failed | {relay.path: relay.progress for relay in self._relays.values()})

    @property
    def problems(self) -> Mapping[str, Exception | str]:
        """Why logs are not shipped at the moment, by path."""
        found: dict[str, Exception | str] = {relay.path: relay.problem for relay in self._relays.values() if relay.problem}
        if self._set is not None:
            found |= self._set.problems
        return MappingProxyType(found | self._problems)

    # -- the set

    async def _open(self) -> None:
        self._set = await self._call(partial(LogSet, self._places))

    async def _main(self, once: bool) -> None:
        loop = asyncio.get_running_loop()
        refresh_at = 0.0
        try:
            while True:
                now = loop.time()
                if now >= refresh_at:
                    await self._refresh(once)
                    refresh_at = loop.time() + _REFRESH
                await self._reap(once)
                if once and not self._tasks:
                    break
                pause = min(await self._look(), refresh_at) - loop.time()
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(pause, _LOOK_MIN)):
                        await self._changed.wait()
        finally:
            await self._end_tasks()
        for error in self._problems.values():
            raise error

    async def _refresh(self, once: bool) -> None:
        """Begin to ship what is new in the set."""
        logs = self._set
        assert logs is not None
        if once and self._relays:
            return
        now = asyncio.get_running_loop().time()
        found = await self._call(lambda: dict(logs.logs))
        for path, reader in found.items():
            ring = ring_of(reader)
            waits = now - self._tried.get(reader.uuid, -_RETRY) < _RETRY
            if ring is None or ring.closed or reader.uuid in self._tasks or waits:
                continue
            try:
                log = await self._call(partial(ShippedLog, ring, self._settings.consumer))
            except (PmwalError, OSError, ValueError) as error:
                self._note_failure(path, reader.uuid, error)
                continue
            self._begin(path, reader, log, once)

    def _begin(self, path: str, reader: Reader, log: ShippedLog, once: bool) -> None:
        self._problems.pop(path, None)
        self._failed.pop(path, None)
        wait = partial(self._wait, reader.uuid, log)
        relay = Relay(log, self._link, self._settings.rules, source_of(log.reader), self._call, wait, self._notify, _AHEAD)
        self._relays[reader.uuid] = relay
        task = asyncio.create_task(relay.run(once=once, ended=lambda: log.gone))
        task.add_done_callback(lambda _: self._changed.set())
        self._tasks[reader.uuid] = task

    def _note_failure(self, path: str, uuid: str, error: Exception) -> None:
        self._problems[path] = error
        self._tried[uuid] = asyncio.get_running_loop().time()
        before, self._said[path] = self._said.get(path), str(error)
        if before != str(error):
            self._notify(str(error) if path in str(error) else f"{path}: {error}")

    async def _reap(self, once: bool) -> None:
        """Take leave of logs that are gone and shipped, and of those that failed."""
        logs = self._set
        assert logs is not None
        for uuid, task in [(uuid, task) for uuid, task in self._tasks.items() if task.done()]:
            del self._tasks[uuid]
            relay = self._relays[uuid]
            error = task.exception()
            if error is not None:
                if not isinstance(error, PmwalError | OSError | ValueError):
                    raise error
                if relay.progress.frames:
                    self._said.pop(relay.path, None)
                self._note_failure(relay.path, uuid, error)
                self._failed[relay.path] = relay.progress
                relay.fail(error)
            if not once:
                del self._relays[uuid]
                relay.fail(ShipError(f"{relay.path}: the log is gone, and all of it is shipped"))
            await self._call(relay.log.release)
            if error is None and not once:
                await self._call(partial(drop_log, logs, uuid))

    async def _wait(self, uuid: str, log: ShippedLog, first: int, _size_max: int) -> Taken | None:
        now = asyncio.get_running_loop().time()
        idle = self._idle.get(uuid)
        if idle is None or idle.first != first:
            idle = self._idle[uuid] = _Idle(log, first, now, now + _LOOK_MIN)
            self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_IDLE):
                await idle.news.wait()
        return None

    async def _look(self) -> float:
        """Look at the idle logs whose time has come; when to look again."""
        now = asyncio.get_running_loop().time()
        due = [(uuid, idle) for uuid, idle in self._idle.items() if now >= idle.look_at and not idle.news.is_set()]
        if due:
            has_news = await self._call(lambda: [_has_news(idle) for _, idle in due])
            for (uuid, idle), news in zip(due, has_news, strict=True):
                pause = pause_of(now - idle.since)
                idle.look_at = math.ceil((now + pause) / (pause / 4)) * (pause / 4)  # so that one look is at many
                if news:
                    idle.news.set()
                    self._idle.pop(uuid, None)
        return min((idle.look_at for idle in self._idle.values()), default=now + _REFRESH)

    async def _end_tasks(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _fail(self, error: BaseException) -> None:
        for relay in self._relays.values():
            relay.fail(error)

    def _close(self) -> None:
        for relay in self._relays.values():
            relay.log.close()
        if self._set is not None:
            self._set.close()


def pause_of(idle: float) -> float:
    """Seconds until the next look at a log that has been idle for these seconds.

    >>> pause_of(0.0), pause_of(2.0), pause_of(3600.0)
    (0.01, 0.25, 1.0)
    """
    return min(max(idle / 8, _LOOK_MIN), _LOOK_MAX)


def _has_news(idle: _Idle) -> bool:
    """In the thread: whether the log has the record, or a change or an error that its relay is to find."""
    try:
        before, idle.version = idle.version, idle.log.version
        if before is None:  # the record may have come since the relay has looked
            return idle.log.next_seq > idle.first
        return before != idle.version
    except (PmwalError, OSError):
        return True
