"""What shippers of one log and of a set have in common: the connection, the thread that reads, the task in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from pmwal.errors import WalClosed
from pmwal.logs.reports import warn
from pmwal.reading.reader import Reader
from pmwal.ship.chain import Source
from pmwal.ship.link import Link
from pmwal.ship.settings import Settings

T = TypeVar("T")


class Service(ABC):
    """Ships in a task of the running event loop while it is entered, or in ``run``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._notify: Callable[[str], None] = settings.notify or warn
        self._link: Link = settings.link()
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None

    async def run(self, once: bool = False) -> None:
        """Ship until it is cancelled; with ``once`` only what there is at the call, until it is acknowledged.

        Use it instead of ``async with``. Raises what ``async with`` raises; with ``once`` also ``ShipError`` if the servers do not
        answer for half a minute.
        """
        await self._start()
        try:
            await self._main(once)
        finally:
            await self._stop()

    async def __aenter__(self) -> Self:
        await self._start()
        self._task = asyncio.create_task(self._main(False))
        self._task.add_done_callback(self._tell_failure)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        task, self._task = self._task, None
        assert task is not None
        failed = task.done()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if failed:
                raise
        except Exception:
            if error is None:
                raise
        finally:
            await self._stop()

    def _tell_failure(self, task: asyncio.Task[None]) -> None:
        """Shipping has ended: whoever waits for a record is told why."""
        error = None if task.cancelled() else task.exception()
        self._fail(error or WalClosed("the shipper was closed before the stream had this record"))

    async def _start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("this shipper runs already; make another one for another event loop")
        self._thread = ThreadPoolExecutor(1, "pmwal-ship")
        try:
            await self._open()
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        thread, self._thread = self._thread, None
        self._close()
        if thread is not None:
            thread.shutdown(wait=False)
        await self._link.close()

    async def _call(self, action: Callable[[], T]) -> T:
        """Do something in the thread that reads."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    # -- what a shipper does

    @abstractmethod
    async def _open(self) -> None:
        """Open what is shipped."""

    @abstractmethod
    async def _main(self, once: bool) -> None:
        """Ship it, until it is cancelled; with ``once`` what there is now."""

    @abstractmethod
    def _fail(self, error: BaseException) -> None:
        """Tell those who wait for a record that it is not shipped."""

    @abstractmethod
    def _close(self) -> None:
        """Close what was opened. Idempotent."""


def source_of(reader: Reader) -> Source:
    """Names for people: of this host, and of the log: its label, or its path."""
    with contextlib.suppress(OSError):
        return Source(socket.gethostname(), reader.label or os.path.abspath(reader.path))
    return Source("", reader.label or reader.path)
