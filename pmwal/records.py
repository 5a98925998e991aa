"""What a log hands out: records, the report of a recovery, and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pmwal.cursor import cursor_of
from pmwal.latency import LatencyHistogram
from pmwal.native import native

if TYPE_CHECKING:
    from datetime import datetime

_SHOWN = 64  # bytes of a long payload in its repr

Progress = Callable[[int, int], None]
"""Called from time to time with (bytes done, bytes in total)."""


@dataclass(frozen=True, slots=True, repr=False)
class _PlainRecord:
    seq: int
    kind: int
    time_ns: int
    data: bytes


if TYPE_CHECKING or native is None:  # noqa: SIM108  (a type checker takes no conditional expression for a base)
    _RecordBase = _PlainRecord
else:
    _RecordBase = native.Record  # the same, created a hundred times faster


class Record(_RecordBase):
    """One record, compared by value.

    ``seq`` is its number, ``kind`` a number that the application gave it, ``data`` its payload. ``time_ns`` is the wall clock in ns
    since 1970, and ``time`` the same as a datetime, both for information only: ``seq`` gives the order.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"hello", kind=7)
    ...     record = wal[seq]
    >>> record.seq, record.kind, record.data
    (1, 7, b'hello')
    """

    __slots__ = ()
    __match_args__ = ("seq", "kind", "time_ns", "data")

    def __repr__(self) -> str:
        more = len(self.data) - _SHOWN
        text = f"{self.data[:_SHOWN]!r} and {more} bytes more" if more > _SHOWN // 4 else repr(self.data)
        return f"Record(seq={self.seq}, kind={self.kind}, time_ns={self.time_ns}, data={text})"

    @property
    def cursor(self) -> str:
        """An opaque token: pass it as ``start`` to ``read`` or ``follow`` to resume after this record.

        A sequence number may name another record after a rollback, or in a new log; a cursor does not.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     cursor = wal[first].cursor
        ...     [record.data for record in wal.read(start=cursor)]
        [b'b', b'c']
        """
        return str(cursor_of(self.seq, self.kind, self.time_ns, self.data))

    @property
    def time(self) -> datetime:
        """``time_ns`` as an aware datetime in UTC, rounded down to a microsecond; ``OverflowError`` for a year past 9999.

        >>> Record(1, 0, 1_700_000_000_000_000_999, b"").time.isoformat()
        '2023-11-14T22:13:20+00:00'
        """
        # Python 3.12 aborts at the end of a sub-interpreter with a lock of its own that has loaded it.
        from datetime import UTC, datetime, timedelta  # noqa: PLC0415

        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.time_ns // 1000)


class SetRecord(Record):
    """A record of a log set: a ``Record`` with ``log``, the path of its log, by which two of a set are compared, too.

    ``uuid`` is the identity of that log: another one may take its path.
    """

    __slots__ = ()

    log = uuid = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        if isinstance(other, SetRecord) and other.log != self.log:
            return False
        return (self.seq, self.kind, self.time_ns, self.data) == (other.seq, other.kind, other.time_ns, other.data)

    def __hash__(self) -> int:
        return hash((self.seq, self.kind, self.time_ns, self.data))

    def __reduce__(self) -> tuple[Any, ...]:
        return set_record, (self.log, self.seq, self.kind, self.time_ns, self.data, self.uuid)


@cache
def record_type_of(log: str, uuid: str = "") -> type[SetRecord]:
    """The type of the records of one log in a set: scans make them as fast as others, and each has the path and the uuid."""
    return type("SetRecord", (SetRecord,), {"__slots__": (), "log": log, "uuid": uuid})


def set_record(log: str, seq: int, kind: int, time_ns: int, data: bytes, uuid: str = "") -> SetRecord:
    """A record of a set, as pickle makes it."""
    return record_type_of(log, uuid)(seq, kind, time_ns, data)


class Bound(NamedTuple):
    """A boundary between records: a logical position, and the sequence number of the first record at or after it."""

    position: int
    next_seq: int


START = Bound(0, 1)


class Frame(NamedTuple):
    """Consecutive records in the form in which they are shipped: the numbers of the first and the last, and the last one's cursor.

    The ``body`` is, for each record, the length of its payload, its kind and its ``time_ns``, as ``struct.pack("<IHq", ...)`` packs
    them, and then the payload.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b"], kind=7)
    ...     with pmwal.open(path, "r") as reader:
    ...         frame = reader.frame(first, size_max=1024)
    >>> frame.first, frame.last, len(frame.body)
    (1, 2, 30)
    """

    first: int
    last: int
    cursor: str
    body: bytes


class Lag(NamedTuple):
    """What a consumer has yet to acknowledge: records, their bytes of the ring, and the age of the oldest in seconds.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     first, last = wal.extend([b"a", b"b"])
    ...     with pmwal.open(path, "r") as reader, reader.consumer("mail") as consumer:
    ...         records, size, seconds = consumer.lag
    >>> records, size, seconds > 0
    (2, 112, True)
    """

    records: int
    bytes: int
    seconds: float


def restore(report: Any, state: list[Any]) -> None:
    """Restore a pickled report. One that an older version made lacks the newest fields, which get their defaults."""
    for at, each in enumerate(fields(report)):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        object.__setattr__(report, each.name, state[at] if at < len(state) else default)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What ``open`` or ``verify`` found, kept and dropped.

    - ``outcome``: ``"created"``, ``"clean"``, ``"recovered"`` or ``"corrupt"``; ``case``: the row of docs/recovery.md.
    - ``epoch``: of the newest slot; ``first_seq`` to ``last_seq``: the ``records`` that are kept.
    - ``kept_past_pointer``: whole records that are kept although they end past the commit pointer and every durable mark, so
      that nothing in the log says that they were durable.
    - ``dropped_records``, ``dropped_bytes``: unfinished writes past the end. None of them was acknowledged, unless
      ``maybe_acknowledged``: after an unclean end of a pipelined log, damage to the last records cannot be distinguished from a
      torn tail: mostly to what the last two barriers wrote, at most to all since the newest slot (1 MiB).
    - ``slots_lost``, ``superblocks_lost``: damaged copies for which a whole one was used.
    - ``reason``: what was found, in words; ``damage``: its byte range in the file; ``lost_first_seq`` to ``lost_last_seq``: the
      sequence numbers that are lost, at least: what was stored after the last record that anything whole names may be lost, too.
    - ``bytes_scanned``, ``seconds``: what it cost.
    - ``unreadable``: byte ranges of the file that could not be read, which salvage and repair go around.
    - ``live``: a writer was running. Then only what was durable, and stayed in the log meanwhile, was judged. ``judged``: where
      the judged records start and where they end, as positions.

    >>> import pmwal
    >>> pmwal.open(path, size="64KiB").close()
    >>> report = pmwal.verify(path)
    >>> report.outcome, report.case, report.records
    ('clean', 'R1', 0)
    """

    outcome: str
    case: str
    epoch: int = 0
    first_seq: int = 1
    last_seq: int = 0
    records: int = 0
    kept_past_pointer: int = 0
    dropped_records: int = 0
    dropped_bytes: int = 0
    maybe_acknowledged: bool = False
    slots_lost: int = 0
    superblocks_lost: int = 0
    reason: str = ""
    damage: tuple[int, int] | None = None
    lost_first_seq: int | None = None
    lost_last_seq: int | None = None
    bytes_scanned: int = 0
    seconds: float = 0.0
    unreadable: tuple[tuple[int, int], ...] = ()
    live: bool = False
    judged: tuple[int, int] = (0, 0)

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class WalStats:
    """Where a handle writes, and what it has done since it was opened. Sizes are in bytes.

    ``durability`` is ``"power"`` if an acknowledged record survives a power cut, ``"process"`` if it survives only the death of the
    process, ``"unknown"`` if that is up to a server in user space (FUSE). ``assumptions`` names what the file system weakens.
    ``flush`` is how a barrier flushes.

    - ``appends``, ``bytes``: records stored, and their payload; ``used``: the part of ``capacity`` that records occupy.
    - ``commits``: those that made something durable; ``barriers``: what they took; ``slots_written``; ``commit_latency`` in ns.
    - ``overwritten``: records overwritten by newer ones; ``dropped``: records refused with ``WalFull``; ``waits``: calls that
      waited for space; ``errors``: 1 if the medium has failed, else 0.
    - ``unlinked``: whether the path leads to the log no more, looked up now; see ``on_unlinked`` of ``open``.
    - ``recovery``: the report of this open; None for a reader, which judges the log only when needed.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"x")
    ...     stats = wal.stats()
    >>> stats.engine, stats.appends, stats.capacity, stats.commit_latency.count, stats.recovery.outcome
    (..., 1, 65536, 1, 'created')
    """

    engine: str
    medium: str
    durability: str
    filesystem: str
    flush: str
    ordering: str
    capacity: int
    used: int
    appends: int
    bytes: int
    commits: int
    barriers: int
    overwritten: int
    waits: int
    errors: int
    slots_written: int = 0
    epoch: int = 0
    generation: int = 0
    alignment: int = 0
    assumptions: tuple[str, ...] = ()
    dropped: int = 0
    commit_latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    recovery: RecoveryReport | None = None
    unlinked: bool = False

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    def as_dict(self) -> dict[str, Any]:
        """The counters as plain values, ready for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        recovery = None if self.recovery is None else self.recovery.as_dict()
        return values | {"commit_latency": self.commit_latency.as_dict(), "recovery": recovery}


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What ``copy`` or a ``resize`` wrote: the records ``first_seq`` to ``last_seq``, in a ring of ``capacity`` bytes.

    ``used``: bytes of the ring that they take. ``backup``: where the old file of a resized log is, empty if it was not kept.

    >>> import pmwal
    >>> pmwal.open(path, size="64KiB").close()
    >>> pmwal.copy(path, f"{path}.copy").records
    0
    """

    path: str
    capacity: int
    used: int
    first_seq: int
    last_seq: int
    records: int
    backup: str = ""

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SinkStats:
    """What became of the records of a logging library since its handler was made, over all logs that it opened at its path.

    - ``written``: stored. ``overwritten``: older records that were overwritten, also those of earlier runs.
    - ``dropped``: not stored because the log was full (``on_full="raise"``). ``errors``: not stored as they were, or not durable as
      asked, for any other reason. ``reasons``: all of these, by the name of the exception.
    - ``queued``: logged while their thread was inside a call on the log (a signal handler, a ``__del__``), and stored after it.
    - ``cut``: stored with a mark in place of what was cut off: a cycle, too much depth, an object whose methods raised, or the rest
      of a record that is too large, which counts among the errors, too.
    - ``reopened``: how often the path was opened anew because its file was removed, renamed, replaced or shortened, or the medium
      failed.
    - ``lost``: stored in about the last second before it was noticed that the file had been shortened or emptied, and lost with
      what was cut off, at most; and stored but not found again after the medium failed.
    """

    written: int = 0
    overwritten: int = 0
    dropped: int = 0
    errors: int = 0
    queued: int = 0
    cut: int = 0
    reasons: dict[str, int] = field(default_factory=dict, compare=False)
    reopened: int = 0
    lost: int = 0

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)
