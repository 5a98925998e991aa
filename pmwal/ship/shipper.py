"""``Shipper``: ships one log to a stream of NATS JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Sequence
from functools import partial

from pmwal.errors import ShipError
from pmwal.opening import open_with
from pmwal.opening.options import Options
from pmwal.reading.reader import Reader
from pmwal.ship.forms import Form
from pmwal.ship.relay import Progress, Relay, RollbackPolicy, SizePolicy
from pmwal.ship.service import Service, source_of
from pmwal.ship.settings import Settings
from pmwal.ship.source import ShippedLog, Taken

_AHEAD = 2 << 20  # bytes of frames
_WAIT = 1.0  # seconds in one call of the thread that waits for records
_PAUSE_MIN, _PAUSE_MAX = 0.01, 0.25  # between two looks at a log without a writer
_READ = Options("r")


class Shipper(Service):
    """Ships a log to a stream of NATS JetStream, each record once and in order, also over kills of either side.

    ``async with`` it to ship in the background, or ``await run()``. It continues where the stream ends. For a guide see
    docs/guide-shipping.md. Needs nats-py: ``pip install 'pmwal[nats]'``, else ``ImportError``.

    >>> from pmwal.ship import Shipper
    >>> async def ship(path):
    ...     async with Shipper(path, to="nats://127.0.0.1:4222", stream="LOGS") as shipper:
    ...         await shipper.acked(1)
    ...         return shipper.progress.acknowledged
    """

    def __init__(
        self,
        log: str | os.PathLike[str],
        *,
        to: str | Sequence[str],
        stream: str,
        prefix: str = "pmwal",
        form: Form = "frame",
        frame: int | str = "256KiB",
        linger: float = 0.01,
        consumer: str = "nats",
        hold: float = 180.0,
        on_rollback: RollbackPolicy = "stop",
        too_large: SizePolicy = "split",
        tls: ssl.SSLContext | None = None,
        creds: str | None = None,
        nkey: str | None = None,
        user: str | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """``to``: addresses of servers, as a list or with commas in between. ``stream``: a stream that takes ``PREFIX.*``.

        - ``form``: a message of the stream is a "frame" of many records; with "atomic" it is one record, and many messages are an
          atomic batch. That needs ``allow_atomic`` of the stream and a server from 2.12 on.
        - ``frame``: bytes of records that go in one message, or in one batch, at most. ``linger``: seconds between two of them that
          are not full.
        - ``consumer``: the named consumer of the log whose position says what is shipped. ``hold``: records are freed for
          ``truncate(consumed=True)`` when the stream has had them for these seconds.
        - ``on_rollback``: what to do if the log does not have what it had shipped: "stop" with ``ShipError``, or "mark" it in the
          stream and go on.
        - ``too_large``: a record that is larger than a message may be is "split" into several, or a ``ShipError`` ("stop").
        - ``tls``: a context; ``creds``, ``nkey``: paths of files; ``user``: ``"NAME:PASSWORD"``.
        - ``notify``: is called with text that somebody should see; None: a ``RuntimeWarning``.
        """
        super().__init__(
            Settings(
                to,
                stream,
                prefix=prefix,
                form=form,
                frame=frame,
                linger=linger,
                consumer=consumer,
                hold=hold,
                on_rollback=on_rollback,
                too_large=too_large,
                tls=tls,
                creds=creds,
                nkey=nkey,
                user=user,
                notify=notify,
            )
        )
        self._path = os.fsdecode(log)
        self._relay: Relay | None = None
        self._pause = _PAUSE_MIN

    async def acked(self, seq: int) -> None:
        """Return once the stream has acknowledged the record of this number, and all before it.

        The record may be one that is not appended yet. Raises what ended the shipper.
        """
        if self._relay is None or self._task is None:
            raise RuntimeError("nothing is shipped: enter the shipper with async with")
        if self._task.done():
            await self._task
        await self._relay.acked(seq)

    @property
    def progress(self) -> Progress:
        """How far the log is shipped."""
        return Progress(0, 0) if self._relay is None else self._relay.progress

    @property
    def problem(self) -> str:
        """Why nothing is shipped at the moment, in words; empty if nothing is wrong."""
        return "" if self._relay is None else self._relay.problem

    async def _open(self) -> None:
        log = await self._call(self._open_log)
        wait = partial(self._wait, log)
        self._relay = Relay(log, self._link, self._settings.rules, source_of(log.reader), self._call, wait, self._notify, _AHEAD)

    def _open_log(self) -> ShippedLog:
        reader = open_with(self._path, _READ)
        assert isinstance(reader, Reader)
        try:
            return ShippedLog(reader, self._settings.consumer)
        except BaseException:
            reader.close()
            raise

    async def _main(self, once: bool) -> None:
        while True:
            relay = self._relay
            assert relay is not None
            await relay.run(once=once, ended=partial(self._is_replaced, relay.log))
            if once:
                return
            relay.fail(ShipError(f"{self._path}: the path leads to another log now, and no more is appended to the one before"))
            relay.log.close()
            await self._open()

    def _is_replaced(self, log: ShippedLog) -> bool:
        return log.gone and os.path.exists(self._path)

    async def _wait(self, log: ShippedLog, first: int, size_max: int) -> Taken | None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        taken = await self._call(partial(log.wait, first, size_max, _WAIT))
        if taken.frame is not None or taken.missed:
            self._pause = _PAUSE_MIN
            return taken
        if loop.time() - begun < _WAIT:  # the writer has closed it
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSE_MAX)
        return None

    def _fail(self, error: BaseException) -> None:
        if self._relay is not None:
            self._relay.fail(error)

    def _close(self) -> None:
        if self._relay is not None:
            with contextlib.suppress(OSError):
                self._relay.log.close()
