"""What the log hands out: records, the report of a recovery, and counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from pmwal.cursor import cursor_of
from pmwal.latency import LatencyHistogram
from pmwal.native import native

Progress = Callable[[int, int], None]
"""Called now and then with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class _PlainRecord:
    seq: int
    kind: int
    time_ns: int
    data: bytes


if TYPE_CHECKING or native is None:  # noqa: SIM108  (a type checker takes no conditional expression for a base)
    _RecordBase = _PlainRecord
else:
    _RecordBase = native.Record  # the same, made a hundred times faster


class Record(_RecordBase):
    """One record, equal by value. ``time_ns`` is wall clock, ns since 1970: information, never an order.

    >>> import pmwal
    >>> with pmwal.open(path, size="64KiB") as wal:
    ...     seq = wal.append(b"hello", kind=7)
    ...     record = wal[seq]
    >>> record.seq, record.kind, record.data
    (1, 7, b'hello')
    """

    __slots__ = ()
    __match_args__ = ("seq", "kind", "time_ns", "data")

    @property
    def cursor(self) -> str:
        """Short text to keep, so as to go on later behind this very record: ``read(start=cursor)``, ``follow(start=cursor)``.

        Unlike a number it does not name another record after a rollback, or in a new log.

        >>> import pmwal
        >>> with pmwal.open(path, size="64KiB") as wal:
        ...     first, last = wal.extend([b"a", b"b", b"c"])
        ...     cursor = wal[first].cursor
        ...     [record.data for record in wal.read(start=cursor)]
        [b'b', b'c']
        """
        return str(cursor_of(self.seq, self.kind, self.time_ns, self.data))


class Bound(NamedTuple):
    """A place between two records: a logical position, and the number of the first record at or after it."""

    position: int
    next_seq: int


START = Bound(0, 1)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What an open or a verify found, kept and dropped.

    - ``outcome``: ``"created"``, ``"clean"``, ``"recovered"`` or ``"corrupt"``; ``case``: the row of docs/recovery.md.
    - ``epoch``: of the newest slot; ``first_seq`` to ``last_seq``: the ``records`` that are kept.
    - ``kept_past_pointer``: whole records kept although no pointer had named them yet.
    - ``dropped_records``, ``dropped_bytes``: what a crash left unfinished past the end. None of it was acknowledged,
      unless ``maybe_acknowledged``: in a pipelined log that ended uncleanly, damage to what the last two barriers
      carried cannot be told from a torn tail.
    - ``slots_lost``, ``superblocks_lost``: damaged copies that a whole one stood in for.
    - ``reason``: in words; ``damage``: byte range of the file; ``lost_first_seq`` to ``lost_last_seq``: numbers lost to it.
    - ``bytes_scanned`` and ``seconds``: what it cost.

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

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class WalStats:
    """Where a handle writes, and what it has done since it was opened. Sizes in bytes.

    ``durability`` is ``"power"`` where an acknowledged record survives a power cut, ``"process"`` where it survives
    only the death of the process; ``assumptions`` names what the file system weakens. ``flush`` is what a barrier does.

    - ``appends``, ``bytes``: records stored, and their payload; ``used`` of ``capacity``: what records take in the ring.
    - ``commits`` that made something durable, the ``barriers`` they took, ``slots_written``, and ``commit_latency`` in ns.
    - ``overwritten``: records that made room for newer ones; ``dropped``: records that were refused with ``WalFull``;
      ``waits``: calls that waited for room; ``errors``: 1 when the medium has failed.
    - ``recovery``: what this open found, None for a reader, which finds out when it is asked.

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

    def as_dict(self) -> dict[str, Any]:
        """The counters as plain values, ready for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        recovery = None if self.recovery is None else self.recovery.as_dict()
        return values | {"commit_latency": self.commit_latency.as_dict(), "recovery": recovery}


@dataclass(frozen=True, slots=True)
class SinkStats:
    """What became of the records of a logging library since the log was opened.

    ``written``: stored. ``overwritten``: older records that were overwritten, also those of earlier runs. ``dropped``: not stored
    because the log was full (``on_full="raise"``). ``errors``: not stored, or not durable as asked, for any other reason.
    """

    written: int = 0
    overwritten: int = 0
    dropped: int = 0
    errors: int = 0
