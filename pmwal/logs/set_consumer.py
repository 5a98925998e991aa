"""A named consumer of a set: one name, and a position beside each log.

Invariants
----------
- Each log has its own position, so its writer frees what this consumer has acknowledged, and a log that leaves the set takes its
  position along.
- An acknowledgement is a cursor of the set: for each log, the record up to which its records were handed out. So it covers what was
  handed out in the order of the set, and nothing else.
- A log that joins the set has a position as soon as it is seen, and begins with its oldest record. So does a log in whose place
  another one was before: a position says nothing about another log. A log that was resized is the same one, and continues.
- A log in whose place another one is has no position beside it any more. While the set still has it open, how far it was
  acknowledged is in memory, so that the rest of it is handed out, and nothing twice.
- A set goes back where records that it has handed out were rolled back. What is acknowledged then takes its position back, too.
- What was freed after a position is counted as missed, also where the position names a record that was freed itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Protocol

from pmwal.errors import CorruptWal, Overrun, PersistError, ShortenedWal, WalClosed, WalUnlinked
from pmwal.format.position import check_name
from pmwal.logs.merge import number_before
from pmwal.logs.sources import Sources
from pmwal.reading.consumer import Consumer
from pmwal.reading.internals import bounds_of, problem_with, renewed_consumer
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Kinds, Time
from pmwal.records import Lag, SetRecord


class Logs(Protocol):
    """What a consumer uses of its ``LogSet``."""

    @property
    def _sources(self) -> Sources: ...
    @property
    def cursor(self) -> dict[str, str]:
        """After what was handed out."""

    def _follow_from(
        self, start: Mapping[str, str | int] | None, since: Time | None, kind: Kinds | None, wait: float, timeout: float | None
    ) -> Iterator[SetRecord]: ...
    def _check_open(self) -> None: ...


class _Held(NamedTuple):
    """A consumer of one log, and its reader, which is closed once it has read a file to whose name there is another one."""

    path: str
    reader: Reader
    consumer: Consumer


def _acknowledge(held: _Held, text: str, *, durable: bool) -> None:
    """Acknowledge the record of this cursor, and all before it; also one before the position, if that was rolled back: the set
    went back then, and has handed out what is there now."""
    reader, consumer = held.reader, held.consumer
    passed = number_before(text) <= consumer.position and text != consumer.cursor
    if passed and problem_with(reader, consumer) is not None:
        consumer.seek(text)
    else:
        consumer.ack(text, durable=durable)


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
        self._left: dict[str, str | int] = {}  # where to begin, by uuid, in logs that have no position beside them any more
        try:
            self._join(start)
        except BaseException:
            self.close()
            raise

    def _join(self, start: str) -> None:
        """Have a position beside each log that is in the set by now, and none beside those that are not."""
        sources = self._logs._sources
        self._logs._check_open()
        sources.refresh()
        by_path = {log.path: log for log in sorted(sources.logs.values(), key=lambda log: not log.gone)}
        for uuid, held in list(self._held.items()):
            log = sources.logs.get(uuid)
            if log is None or log.reader is not held.reader or by_path.get(held.path, log) is not log:
                del self._held[uuid]
                if log is not None and log.reader is held.reader:
                    self._left[uuid] = held.consumer.cursor or held.consumer.position + 1
                held.consumer.close()
        for path, log in by_path.items():
            if log.uuid not in self._held:
                with contextlib.suppress(WalUnlinked):  # its records are still handed out
                    self._held[log.uuid] = _Held(path, log.reader, renewed_consumer(log.reader, self._name, start))
                    self._left.pop(log.uuid, None)
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
        self._consumers()
        starts = self._left | {uuid: self._start_of(held) for uuid, held in self._held.items()}
        return self._hand_out(self._logs._follow_from(starts, None, None, wait, timeout))

    def _start_of(self, held: _Held) -> str | int:
        """Where to begin in a log. ``Overrun`` if its position is after a record that was rolled back, and is gone."""
        path, reader, consumer = held
        with contextlib.suppress(CorruptWal, ShortenedWal, PersistError):  # a problem of the set once the log is read
            if not consumer.cursor or consumer.position < reader.first_seq:
                problem = problem_with(reader, consumer)
                if problem is not None:
                    raise Overrun(f"{path}: consumer {self._name!r}: {problem}; continue with seek()")
        return consumer.cursor or consumer.position + 1

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
        consumers = self._consumers()
        for uuid, text in acknowledged.items():
            if uuid in consumers:
                _acknowledge(self._held[uuid], text, durable=durable)
            elif number_before(self._left.get(uuid, 0)) < number_before(text):  # the log has left the set, and its position with it
                self._left[uuid] = text

    def seek(self, start: str) -> None:
        """Move all positions, durably: before the ``"oldest"`` record of each log, or to its end (``"newest"``)."""
        self._check()
        if start not in ("oldest", "newest"):
            raise ValueError(f"a consumer of a set seeks 'oldest' or 'newest', not {start!r}")
        self._join(start)
        for consumer in self._consumers().values():
            consumer.seek(start)
        for uuid in self._left.keys() & self._logs._sources.logs.keys():
            self._left[uuid] = bounds_of(self._logs._sources.logs[uuid].reader)[start == "newest"]

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
