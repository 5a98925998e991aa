"""The live page: hints from a running writer to readers in other processes.

Invariants
----------
- It is volatile: no barrier includes it and recovery never reads it. A reader believes it only while its writer is alive
  (liveness.py) and the page names the inode of this very file: a copy of a log has no writer.
- The bounds are one 64-byte line with the same version at both ends: ``version_begin`` is stored first, then the fields, then
  ``version_end``, each visible before the next (the native engine: live.h; here: ``_order``). A reader accepts a line whose
  versions are equal and that two loads in a row agree on. It still validates every record within the bounds.
- A second copy of the line is stored while the first is whole. So a writer that is stopped anywhere leaves one of them whole. The
  second counts only for the open that ``LIVE_OPEN`` names, because writers of version 0.1 do not store it, and only if its version
  is that of the torn line or the one before.
- An open takes its predecessor's name off the page and clears the second copy before it locks its byte and shows anything. So a
  page that names a writer is never a dead one's while another's byte is locked.
- Each latency counter is stored on its own from the writer's copy, so a reader may see one commit more or less. Nothing depends on
  them.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Callable
from typing import NamedTuple

from pmwal.format.layout import (
    EPOCH_MAX,
    LINE,
    LIVE_BOUNDS,
    LIVE_FOLLOWERS,
    LIVE_FOLLOWERS_OFFSET,
    LIVE_LATENCY,
    LIVE_LATENCY_OFFSET,
    LIVE_OFFSET,
    LIVE_OPEN,
    LIVE_OPEN_OFFSET,
    LIVE_SECOND_OFFSET,
    LIVE_WRITER,
    LIVE_WRITER_OFFSET,
    POSITION_MAX,
    SEQ_MAX,
    TIME_MAX,
    TIME_MIN,
    Superblock,
    record_size,
)
from pmwal.format.ring import Load
from pmwal.latency import COARSE, LiveLatency
from pmwal.native import native
from pmwal.records import Bound
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import Seam

_TRIES = 32  # loads while a writer changes the bounds; a line that does not change takes two
_NOBODY = bytes(LIVE_FOLLOWERS.size)
_VERSION = LIVE_BOUNDS.field_size("version_begin")
_OPEN_ID = LIVE_OPEN.field_size("id")
_SIZE = LIVE_OPEN_OFFSET + LIVE_OPEN.size - LIVE_OFFSET  # what a reader loads of the page
_PIDS = range(1, 1 << 31)
_STAT_MAX = 4096  # bytes: more than the 52 fields of /proc/PID/stat take
_PUBLISHED = struct.Struct("<QQ")
_COUNTER = struct.Struct("<I")
_COUNTERS_OFFSET = LIVE_LATENCY_OFFSET + LIVE_LATENCY.offsets["counters"]


class LiveBounds(NamedTuple):
    """What a running writer publishes: tail, durable end, epoch, and the first sequence number of the epoch."""

    tail: Bound
    durable: Bound
    epoch: int
    epoch_first_seq: int

    def possible(self, block: Superblock) -> bool:
        """Whether a writer of this log can have published them: the page has no checksum and may be old, zeros or damaged."""
        (start, first), (end, next_seq) = self.tail, self.durable
        records, used = next_seq - first, end - start
        return (
            1 <= first <= next_seq <= SEQ_MAX + 1
            and 0 <= used <= block.capacity
            and end <= POSITION_MAX
            and start % block.alignment == 0 == end % block.alignment
            and (records == 0) == (used == 0)
            and records <= used // record_size(0, block.alignment)
            and 1 <= self.epoch <= EPOCH_MAX
            and 1 <= self.epoch_first_seq <= next_seq
        )

    def follows(self, other: LiveBounds) -> bool:
        """Whether one writer can have shown these after the others: in a later epoch, or with bounds no less far."""
        pairs = (self.tail, other.tail), (self.durable, other.durable)
        further = all(new == old or (new.position > old.position and new.next_seq > old.next_seq) for new, old in pairs)
        return self.epoch > other.epoch or (self.epoch == other.epoch and further)


class LiveWriter(NamedTuple):
    """The writer's line: its process, its heartbeat, and how far it has stored; and its open, if that is known.

    ``open_id`` is empty for a writer of version 0.1. ``locked``: it keeps a byte of the file locked while it is alive.
    """

    pid: int
    start_time: int
    boot_id: bytes
    heartbeat_ns: int
    published: Bound
    inode: int
    open_id: bytes = b""
    locked: bool = False

    @property
    def named(self) -> bool:
        """Whether the page names a process: it may be zeros, or damaged."""
        return self.pid in _PIDS

    @property
    def line(self) -> bytes:
        """The line as bytes of the live page."""
        position, next_seq = self.published
        return LIVE_WRITER.struct.pack(
            self.pid, self.start_time, self.boot_id, self.heartbeat_ns, position, next_seq - 1, self.inode
        )

    def same_process(self, other: LiveWriter) -> bool:
        """Whether both name the same open of the same file, by the same process."""
        return self.identity == other.identity

    @property
    def identity(self) -> tuple[int, int, bytes, int, bytes]:
        """What another open or another process does not share."""
        return self.pid, self.start_time, self.boot_id, self.inode, self.open_id


class LivePage:
    """The writer's side."""

    def __init__(self, mapping: Mapping, seam: Seam) -> None:
        self._mapping = mapping
        self._pid = seam.pid()
        self._start_time = process_start_time(self._pid) or 0
        self._boot_id = seam.boot_id()
        self._inode = mapping.inode
        self._version = 0
        self._heartbeat_ns = _clamped(seam.now_ns())
        self._counters = array("I", bytes(_COUNTER.size * COARSE.counters))
        self.open_id = seam.new_uuid()

    def begin(self, timing_step: int, announce: Callable[[], bool]) -> None:
        """Make the page this open's, which it names with the first ``show``; one commit in ``timing_step`` will be timed.

        ``announce`` locks the writer's byte; whether it could.
        """
        self._mapping.store(LIVE_WRITER_OFFSET, bytes(LIVE_WRITER.size))
        self._mapping.store(LIVE_SECOND_OFFSET, bytes(LIVE_BOUNDS.size))
        self._mapping.store(LIVE_LATENCY_OFFSET, LIVE_LATENCY.struct.pack(timing_step, *self._counters))
        opened = LIVE_OPEN.struct.pack(self.open_id, self._pid, self._start_time, self._boot_id, announce())
        self._mapping.store(LIVE_OPEN_OFFSET, opened)

    def show(self, bounds: LiveBounds, published: Bound) -> None:
        """Publish new bounds and the writer's line, and wake waiting readers."""
        self._version += 1
        tail, durable = bounds.tail, bounds.durable
        line = LIVE_BOUNDS.struct.pack(
            self._version,
            *tail,
            durable.position,
            durable.next_seq - 1,
            bounds.epoch,
            bounds.epoch_first_seq,
            self._version,
        )
        for start, end in ((0, _VERSION), (_VERSION, LINE - _VERSION), (LINE - _VERSION, LINE)):
            _order()
            self._mapping.store(LIVE_OFFSET + start, line[start:end])
        _order()
        self._mapping.store(LIVE_SECOND_OFFSET, line)
        _order()
        self._mapping.store(LIVE_WRITER_OFFSET, self.writer_line(published))
        self._wake()

    def publish(self, published: Bound, time_ns: int) -> None:
        """Publish how far the log is stored, durable or not; ``time_ns`` becomes the heartbeat of the next ``show``."""
        self._heartbeat_ns = time_ns
        offset = LIVE_WRITER_OFFSET + LIVE_WRITER.offsets["published_position"]
        self._mapping.store(offset, _PUBLISHED.pack(published.position, published.next_seq - 1))

    def count(self, ns: int) -> None:
        """Count one commit. The native engine counts in C."""
        counter = COARSE.counter_of(ns)
        self._counters[counter] = (self._counters[counter] + 1) % (1 << 8 * _COUNTER.size)
        self._mapping.store(_COUNTERS_OFFSET + counter * _COUNTER.size, _COUNTER.pack(self._counters[counter]))

    def retire(self) -> None:
        """Take the writer's name off the page, and wake waiting readers."""
        self._mapping.store(LIVE_WRITER_OFFSET, bytes(LIVE_WRITER.size))
        self._wake()

    def _wake(self) -> None:
        """Wake the readers that wait for new bounds, if there are any."""
        if native is not None and self._mapping.load(LIVE_FOLLOWERS_OFFSET, LIVE_FOLLOWERS.size) != _NOBODY:
            self._mapping.store(LIVE_FOLLOWERS_OFFSET, _NOBODY)
            native.futex_wake(self._mapping.map, LIVE_OFFSET)

    def writer_line(self, published: Bound) -> bytes:
        """This writer's line."""
        return LiveWriter(self._pid, self._start_time, self._boot_id, self._heartbeat_ns, published, self._inode).line


def _order() -> None:
    """Let what was stored before be visible before what is stored afterwards.

    The interpreter makes each store a call of its own, in order, so only the processor could reorder them. Releasing a lock and
    taking it again is a release and then an acquire, which neither x86 nor aarch64 lets a store pass. The lock is a new one each
    time: an interrupt between the two must leave none taken.
    """
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()


def _clamped(time_ns: int) -> int:
    return min(max(time_ns, TIME_MIN), TIME_MAX)


def read_writer(load: Load) -> LiveWriter:
    """The writer that the live page names, alive or not."""
    return _writer(load(LIVE_OFFSET, _SIZE))


def decode_writer(line: bytes) -> LiveWriter:
    """The writer that this line names; the id of its open may follow the line."""
    pid, start_time, boot_id, heartbeat, position, seq, inode = LIVE_WRITER.struct.unpack_from(line)
    return LiveWriter(pid, start_time, boot_id, heartbeat, Bound(position, seq + 1), inode, line[LIVE_WRITER.size :])


def _writer(page: bytes) -> LiveWriter:
    """The writer that a page names, with its open if the page has that of this very writer."""
    writer = decode_writer(page[LINE : 2 * LINE])
    open_id, pid, start_time, boot_id, locked = LIVE_OPEN.struct.unpack_from(page, LIVE_OPEN_OFFSET - LIVE_OFFSET)
    if (pid, start_time, boot_id) != (writer.pid, writer.start_time, writer.boot_id):
        return writer
    return writer._replace(open_id=open_id, locked=locked == 1)


def read_bounds(load: Load) -> LiveBounds | None:
    """The published bounds; None if the line kept changing, or neither copy is whole."""
    live = read_both(load)
    return None if live is None else live[0]


def read_both(load: Load) -> tuple[LiveBounds, bytes] | None:
    """The published bounds; and as of then or earlier, the writer's line and the id of its open. None as for ``read_bounds``."""
    page = load(LIVE_OFFSET, _SIZE)
    for _ in range(_TRIES):
        before, page = page, load(LIVE_OFFSET, _SIZE)
        if before[:LINE] != page[:LINE]:
            continue
        second = load(LIVE_SECOND_OFFSET, LINE)
        if load(LIVE_OFFSET, LINE) != page[:LINE]:
            continue  # otherwise the second copy was not stored to while it was loaded, or the first is whole
        line = _choose(page[:LINE], second) if _writer(page).open_id else page[:LINE]
        if line is not None and _is_whole(line):
            opened = LIVE_OPEN_OFFSET - LIVE_OFFSET
            return _bounds(line), before[LINE : 2 * LINE] + before[opened : opened + _OPEN_ID]
        if load(LIVE_SECOND_OFFSET, LINE) == second:
            return None
    return None


def _choose(first: bytes, second: bytes) -> bytes | None:
    """Which of the two copies to believe; None for neither, as no writer leaves them so.

    The first is torn only while the second is whole, with the version before. The second is older or torn only while it is stored,
    and it is never newer.
    """
    begun, version = (int.from_bytes(line[:_VERSION], "little") for line in (first, second))
    if not _is_whole(second):
        return first
    if not _is_whole(first) or begun < version:
        return second if version in (begun - 1, begun, begun + 1) else None
    return first if begun == version + 1 or first == second else None


def _is_whole(line: bytes) -> bool:
    """Whether a copy of the bounds has been stored, and not only in part."""
    return line[:_VERSION] == line[-_VERSION:] != bytes(_VERSION)


def read_latency(load: Load) -> LiveLatency | None:
    """Commit latencies since the last writer opened the log, whether it is alive or not; None if the live page has none.

    Counters that change during the load may be off by one commit.
    """
    page = load(LIVE_LATENCY_OFFSET, LIVE_LATENCY.size)
    step, *_ = LIVE_LATENCY.struct.unpack(page)
    return LiveLatency(step, page[LIVE_LATENCY.offsets["counters"] :]) if step.bit_count() == 1 else None


def _bounds(line: bytes) -> LiveBounds:
    _, tail_position, tail_seq, position, seq, epoch, epoch_first_seq, _ = LIVE_BOUNDS.struct.unpack(line)
    return LiveBounds(Bound(tail_position, tail_seq), Bound(position, seq + 1), epoch, epoch_first_seq)


def process_start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22); None if it is gone, a zombie, or hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(_STAT_MAX)
        state, *fields = stat[stat.rindex(b")") + 2 :].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
