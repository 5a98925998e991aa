"""A named consumer of a set: one name, and a position beside each log.

Invariants
----------
- Each log has its own position, so its writer frees what this consumer has acknowledged, and a log that leaves the set takes its
  position along.
- An acknowledgement is a cursor of the set: for each log, the record up to which its records were handed out. So it covers what was
  handed out in the order of the set, and nothing else.
- A log that joins the set has a position as soon as it is seen, and begins with its oldest record. So does a log in whose place
  another one was before: a position says nothing about another log. A log that was resized is the same one, and continues.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Protocol

from pmwal.errors import WalClosed, WalUnlinked
from pmwal.format.position import check_name
from pmwal.reading.consumer import Consumer
from pmwal.reading.internals import renewed_consumer
from pmwal.reading.reader import Reader
from pmwal.records import Lag, SetRecord


class Logs(Protocol):
    """What a consumer uses of its ``LogSet``."""

    @property
    def logs(self) -> Mapping[str, Reader]:
        """Its readers, looked up anew."""

    @property
    def cursor(self) -> dict[str, str]:
        """After what was handed out."""

    def follow(
        self, start: Mapping[str, str] | None = None, *, wait: float = 1.5, timeout: float | None = None
    ) -> Iterator[SetRecord]:
        """As ``LogSet.follow``."""


class _Held(NamedTuple):
    """A consumer of one log, and its reader, which is closed once it has read a file to whose name there is another one."""

    reader: Reader
    consumer: Consumer


class SetConsumer:
    """A named consumer of a set of logs; made by ``LogSet.consumer``. It keeps a position beside each log.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b", b"c"])
    >>> with pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
    ...     records = consumer.follow(timeout=0)
    ...     next(records).data, next(records).data
    ...     consumer.ack()
    (b'a', b'b')
    >>> with pmwal.LogSet(path) as logs, logs.consumer("mail") as consumer:
    ...     [record.data for record in consumer.follow(timeout=0)]
    [b'c']
    """

    def __init__(self, logs: Logs, name: str, start: str) -> None:
        self._name = check_name(name)
        if start not in ("oldest", "newest"):
            raise ValueError(f"a consumer of a set starts with 'oldest' or 'newest', not {start!r}")
        self._logs = logs
        self._closed = False
        self._held: dict[str, _Held] = {}  # by uuid
        self._paths: set[str] = set()
        self._left: set[str] = set()  # logs that were removed before what was handed out of them was acknowledged
        try:
            self._join(start)
        except BaseException:
            self.close()
            raise

    def _join(self, start: str) -> None:
        """Have a position beside each log that is in the set by now, and none beside those that are not."""
        readers = {reader.uuid: (path, reader) for path, reader in self._logs.logs.items()}
        for uuid, held in list(self._held.items()):
            if uuid not in readers or readers[uuid][1] is not held.reader:
                self._held.pop(uuid).consumer.close()
        for uuid, (path, reader) in readers.items():
            if uuid not in self._held:
                with contextlib.suppress(WalUnlinked):  # its records are still handed out
                    self._held[uuid] = _Held(reader, renewed_consumer(reader, self._name, start))
            self._paths.add(path)

    def _consumers(self) -> dict[str, Consumer]:
        """By uuid: one for each log that it knows, in the file in which the log is by now."""
        if not self._closed and any(held.reader.closed for held in self._held.values()):
            self._join("oldest")
        return {uuid: held.consumer for uuid, held in self._held.items()}

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def cursor(self) -> dict[str, str]:
        """After what the newest ``follow`` has handed out; ``ack`` takes it."""
        return self._logs.cursor

    @property
    def lag(self) -> Lag:
        """Records and bytes of all logs that are not acknowledged, and the age of the oldest."""
        lags = [consumer.lag for consumer in self._consumers().values()]
        return Lag(
            sum(lag.records for lag in lags), sum(lag.bytes for lag in lags), max([lag.seconds for lag in lags], default=0.0)
        )

    def follow(self, *, wait: float = 1.5, timeout: float | None = None) -> Iterator[SetRecord]:
        """The records of all logs after the positions, then new ones, merged as by ``LogSet.follow``.

        Each call begins after the last acknowledgement. Raises ``Overrun`` if the record of a position was rolled back: continue
        with ``seek``.
        """
        self._check()
        self._join("oldest")
        starts = {uuid: consumer.cursor for uuid, consumer in self._consumers().items() if consumer.cursor}
        return self._hand_out(self._logs.follow(starts, wait=wait, timeout=timeout))

    def _hand_out(self, records: Iterator[SetRecord]) -> Iterator[SetRecord]:
        for record in records:
            self._check()
            if record.log not in self._paths:
                self._join("oldest")
            yield record

    def ack(self, cursor: Mapping[str, str] | None = None, *, durable: bool = False) -> None:
        """Acknowledge all that was handed out so far, or up to an earlier ``cursor`` of this consumer.

        Durability is that of ``Consumer.ack``, for each log.
        """
        self._check()
        acknowledged = self.cursor if cursor is None else cursor
        if not acknowledged.keys() <= self._held.keys() | self._left:
            self._join("oldest")
            self._left |= acknowledged.keys() - self._held.keys()
        consumers = self._consumers()
        for uuid, text in acknowledged.items():
            if uuid in consumers:  # else the log has left the set, and its position with it
                consumers[uuid].ack(text, durable=durable)

    def seek(self, start: str) -> None:
        """Move all positions, durably: before the ``"oldest"`` record of each log, or to its end (``"newest"``)."""
        self._check()
        if start not in ("oldest", "newest"):
            raise ValueError(f"a consumer of a set seeks 'oldest' or 'newest', not {start!r}")
        self._join(start)
        for consumer in self._consumers().values():
            consumer.seek(start)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Let another process be this consumer. Idempotent."""
        self._closed = True
        for held in self._held.values():
            held.consumer.close()

    def __enter__(self) -> SetConsumer:
        self._check()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pmwal.SetConsumer {self._name!r} of {self._logs!r}{' closed' if self._closed else ''}>"

    def _check(self) -> None:
        if self._closed:
            raise WalClosed("this consumer is closed; begin it again with logs.consumer()")
