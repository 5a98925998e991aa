"""``OtlpShipper``: sends the records of a log to an OpenTelemetry collector, each at least once and in order.

Invariants
----------
- One thread reads, sends and acknowledges; one request is under way at a time, so a request begins after what is before it was
  acknowledged, and a repetition is of the newest request.
- The position is moved, durably, only after the collector has answered a request with success: ``_deliver`` is the one place.
- What a stop, a kill or an error leaves without an acknowledgement is sent again by the next shipper of the same name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from pmwal.errors import CorruptWal, ShipError
from pmwal.format.payload import as_number
from pmwal.records import Record
from pmwal.ship.otlp.encoding import Item, request_of
from pmwal.ship.otlp.endpoint import endpoint_of, headers_of_environment, resource_of_environment
from pmwal.ship.otlp.exporter import Answer, Exporter, TransientError, pause_before
from pmwal.ship.otlp.modules import messages
from pmwal.ship.otlp.sources import LINGER, OneLog, Place, Source, source_of

if TYPE_CHECKING:
    import ssl

_BYTES_MAX = 1 << 20
"""Bytes of payload after which a request is sent. Collectors take requests of 4 to 20 MiB, proxies before them often 1 MiB."""

_PATIENCE = 30.0
"""Seconds for which a run that ends by itself repeats a request."""


class OtlpProgress(NamedTuple):
    """How far a shipper has come.

    ``acknowledged``: the last number that the collector has, 0 for a set. Since the shipper was made: ``records`` that it has, and
    the ``bytes`` of their payload; ``requests`` that succeeded, ``retries`` of those that failed, ``gaps`` (records that were gone
    before they were sent), ``rejected`` (records that the collector has taken and rejected, with its reason in ``rejection``).
    ``lag_records`` and ``lag_seconds``: what was not acknowledged at the last answer or repetition, and the age of the oldest.
    """

    acknowledged: int = 0
    records: int = 0
    bytes: int = 0
    requests: int = 0
    retries: int = 0
    gaps: int = 0
    rejected: int = 0
    rejection: str = ""
    lag_records: int = 0
    lag_seconds: float = 0.0


class _Run:
    """One run of a shipper: what its thread and its event loop share."""

    def __init__(self, exporter: Exporter, *, once: bool) -> None:
        self.exporter = exporter
        self.once = once
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def tell(self, action: Callable[[], None]) -> None:
        """On the thread: let the loop do something."""
        with contextlib.suppress(RuntimeError):  # the loop was closed, so no task waits any more
            self._loop.call_soon_threadsafe(action)


class OtlpShipper:
    """Sends the records of a log, or of a set of logs, to an OpenTelemetry collector as log records (OTLP over HTTP).

    ``log`` is the path of a log; a directory, a pattern or a list is a set. ``to`` is ``otlp+http://HOST[:PORT][/PATH]``, or
    ``otlp+https://...``. The position is that of the named ``consumer``. Use it as an async context manager, which ships in the
    background, or ``await run()``. Needs opentelemetry-proto: ``pip install 'pmwal[otlp]'``.

    - ``headers``: of each request, such as a key; None for those of the variable OTEL_EXPORTER_OTLP_HEADERS.
    - ``batch``: at most this many records in a request; ``timeout``: seconds to wait for its answer.
    - ``resource``: attributes of the resource beside ``service.name`` and ``host.name``, or in place of them.
    - ``tls``: an ``ssl.SSLContext`` with the certificates to use, in place of the system's.

    Answers 429, 502, 503 and 504 and failed connections are tried again, with pauses that grow to 30 s, or as long as the server
    asks. Any other answer but success stops it with ``ShipError``, and nothing more is acknowledged. For a guide see
    docs/guide-otlp.md.
    """

    def __init__(
        self,
        log: Place | Iterable[Place],
        *,
        to: str,
        consumer: str = "otlp",
        headers: Mapping[str, str] | None = None,
        batch: int = 512,
        timeout: float = 10.0,
        resource: Mapping[str, Any] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if as_number(batch) < 1:
            raise ValueError(f"batch={batch} is no number of records; use at least 1")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout} is no time to wait for an answer; use seconds, more than 0")
        messages()  # an extra that is missing is said here, not in the background
        self._log = log if isinstance(log, str | os.PathLike) else list(log)
        self._to = endpoint_of(to)
        if tls is not None and not self._to.tls:
            raise ValueError(f"tls= is given, and {self._to} would be spoken to in plain text; write otlp+https://")
        self._name = consumer
        self._headers = headers_of_environment() if headers is None else dict(headers)
        self._batch = batch
        self._timeout = timeout
        self._tls = tls
        self._resource = {"host.name": platform.node()} | resource_of_environment() | dict(resource or {})
        self._progress = OtlpProgress()
        self._problem = ""
        self._unreadable: Mapping[str, Exception] = {}
        self._one_log = True
        self._run: _Run | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    # -- for the tasks of an event loop

    async def __aenter__(self) -> OtlpShipper:
        await self._begin(once=False)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        failed = await self._finish()
        if failed is not None and kind is None:
            raise failed

    async def run(self, once: bool = False) -> OtlpProgress:
        """Ship until the task is cancelled, or with ``once`` until all that the log has was acknowledged; return the progress.

        Raises what stopped it: ``ShipError`` if the collector refuses the records, or with ``once`` does not take them for half a
        minute, and what reading the log raises.
        """
        run = await self._begin(once=once)
        try:
            await asyncio.wait([run.ended])
        finally:
            failed = await self._finish()
        if failed is not None:
            raise failed
        return self.progress

    async def acked(self, seq: int) -> None:
        """Return when the collector has the record with this number, and all before it. Raises what stopped the shipper.

        Only for a single log: in a set each log has numbers of its own.
        """
        seq = as_number(seq)
        if self._run is None:
            raise RuntimeError("this shipper is not running; use it in async with, or beside a task that awaits run()")
        if not self._one_log:
            raise ValueError("records of a set of logs have no common number to wait for; look at progress.lag_records")
        if self._progress.acknowledged >= seq:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((seq, waiter))
        self._tell()
        await waiter

    @property
    def progress(self) -> OtlpProgress:
        """How far it has come, over all runs."""
        return self._progress

    @property
    def problem(self) -> str:
        """Why the newest request has to be sent again, in words; empty if nothing is wrong."""
        return self._problem

    @property
    def unreadable(self) -> Mapping[str, Exception]:
        """Why logs of a set are left out, by path: they could not be read when they were looked at last."""
        return self._unreadable

    async def _begin(self, *, once: bool) -> _Run:
        """Start the thread, and return when it has opened the log."""
        if self._run is not None:
            raise RuntimeError("this shipper is running already; make another one, with another consumer=")
        run = self._run = _Run(Exporter(self._to, self._headers, self._timeout, self._tls), once=once)
        threading.Thread(target=self._work, args=(run,), name="pmwal-otlp", daemon=True).start()
        try:
            await run.opened
        except BaseException:
            await self._finish()
            raise
        return run

    async def _finish(self) -> BaseException | None:
        """End the thread; the error that had ended it before."""
        run = self._run
        assert run is not None
        run.stop.set()
        run.exporter.interrupt()
        try:
            await asyncio.wait([run.ended])
        finally:
            self._run = None
        return run.error

    def _end(self, run: _Run) -> None:
        """On the loop: the thread has ended. In one step, so that whoever waits for a record learns why before the run is gone."""
        _settle(run.opened, run.error)
        _settle(run.ended, None)
        self._tell()

    def _tell(self) -> None:
        """On the loop: end the wait for what was acknowledged by now, or will not be."""
        waiting, self._waiting = self._waiting, []
        run = self._run
        for seq, waiter in waiting:
            if waiter.done():  # cancelled
                continue
            if self._progress.acknowledged >= seq:
                waiter.set_result(None)
            elif run is not None and run.ended.done():
                waiter.set_exception(run.error or RuntimeError(f"this shipper has ended before record {seq} was acknowledged"))
            else:
                self._waiting.append((seq, waiter))

    # -- on the thread

    def _work(self, run: _Run) -> None:
        try:
            with contextlib.closing(source_of(self._log, self._name)) as source, contextlib.closing(run.exporter):
                self._one_log = isinstance(source, OneLog)
                self._note(source)
                run.tell(lambda: _settle(run.opened, None))
                self._ship(run, source)
        except BaseException as error:
            run.error = error
        finally:
            run.tell(lambda: self._end(run))

    def _ship(self, run: _Run, source: Source) -> None:
        while not run.stop.is_set():
            batch, begun, handed_out, missed = _Batch(), time.monotonic(), False, source.missed
            try:
                for record in source.follow(once=run.once):
                    if not batch.records:
                        begun = time.monotonic()
                    batch.add(record, source.item(record))
                    if batch.records >= self._batch or batch.bytes >= _BYTES_MAX or time.monotonic() - begun >= LINGER:
                        self._deliver(run, source, batch)
                        if run.stop.is_set():
                            return
                        batch, handed_out = _Batch(), True
            except CorruptWal:
                if batch.records:  # before the damage
                    self._deliver(run, source, batch)
                raise
            if batch.records:
                handed_out = True
                self._deliver(run, source, batch)
            self._unreadable = source.problems
            idle = not handed_out and source.missed == missed
            if source.missed != missed:
                self._note(source)
            if run.once and idle:
                return
            if not run.once:
                run.stop.wait(source.pause(idle=idle))

    def _deliver(self, run: _Run, source: Source, batch: _Batch) -> None:
        """Send the records, until the collector has them, and then acknowledge them."""
        answer = Answer(0, "")
        if batch.items:
            body = request_of(batch.items, self._resource, time.time_ns())
            taken = self._until_taken(run, source, body)
            if taken is None:
                return
            answer = taken
        source.ack()
        now = self._progress
        self._problem = ""
        self._progress = now._replace(
            records=now.records + len(batch.items),
            bytes=now.bytes + sum(len(item.entry.record.data) for item in batch.items),
            requests=now.requests + bool(batch.items),
            rejected=now.rejected + answer.rejected,
            rejection=answer.message or now.rejection,
        )
        self._note(source)
        run.tell(self._tell)

    def _until_taken(self, run: _Run, source: Source, body: bytes) -> Answer | None:
        """The answer of the collector; None if the shipper is to end first."""
        attempt, begun = 0, time.monotonic()
        while not run.stop.is_set():
            try:
                return run.exporter.send(body)
            except TransientError as error:
                attempt += 1
                if run.once and time.monotonic() - begun >= _PATIENCE:
                    raise ShipError(
                        f"{error}; given up after {_PATIENCE:.0f} seconds, what is left is sent by the next run"
                    ) from None
                if not run.stop.is_set():
                    self._problem = str(error)
                    self._progress = self._progress._replace(retries=self._progress.retries + 1)
                    self._note(source)
                    run.stop.wait(pause_before(attempt, error.after))
        return None

    def _note(self, source: Source) -> None:
        lag = source.lag
        self._progress = self._progress._replace(
            acknowledged=source.position, gaps=source.missed, lag_records=lag.records, lag_seconds=lag.seconds
        )


class _Batch:
    """What is sent in one request. ``records`` counts those that need not be sent, too."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.records = self.bytes = 0

    def add(self, record: Record, item: Item | None) -> None:
        self.records += 1
        self.bytes += len(record.data)
        if item is not None:
            self.items.append(item)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    """End the wait for a future, unless it has ended."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
