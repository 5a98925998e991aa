"""The live page: hints from a running writer to readers in other processes.

Invariants
----------
- It is volatile: no barrier includes it and recovery never reads it. A reader believes it only while the process it names is alive
  (same process id, start time and boot id) and the page names the inode of this very file: a copy of a log has no writer.
- The bounds are one 64-byte line with the same version at both ends. A reader accepts it when two loads in a row agree, and still
  validates every record within the bounds.
- Each latency counter is stored on its own from the writer's copy, so a reader may see one commit more or less. Nothing depends on
  them.
"""

from __future__ import annotations

import struct
import time
from array import array
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

_TRIES = 1000
_NOBODY = bytes(LIVE_FOLLOWERS.size)
_VERSION = LIVE_BOUNDS.field_size("version_begin")
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


class LiveWriter(NamedTuple):
    """The writer's line: its process, its heartbeat, and how far it has stored."""

    pid: int
    start_time: int
    boot_id: bytes
    heartbeat_ns: int
    published: Bound
    inode: int

    @property
    def line(self) -> bytes:
        """The line as bytes of the live page."""
        position, next_seq = self.published
        return LIVE_WRITER.struct.pack(
            self.pid, self.start_time, self.boot_id, self.heartbeat_ns, position, next_seq - 1, self.inode
        )

    def same_process(self, other: LiveWriter) -> bool:
        """Whether both name the same process, writing the same file."""
        return (self.pid, self.start_time, self.boot_id, self.inode) == (
            other.pid, other.start_time, other.boot_id, other.inode
        )  # fmt: skip


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

    def clear_latency(self, timing_step: int) -> None:
        """Clear the latency counters, and publish that one commit in ``timing_step`` will be timed."""
        self._mapping.store(LIVE_LATENCY_OFFSET, LIVE_LATENCY.struct.pack(timing_step, *self._counters))

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
        self._mapping.store(LIVE_OFFSET, line + self.writer_line(published))
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


def _clamped(time_ns: int) -> int:
    return min(max(time_ns, TIME_MIN), TIME_MAX)


def read_writer(load: Load) -> LiveWriter:
    """The writer that the live page names, alive or not."""
    return decode_writer(load(LIVE_WRITER_OFFSET, LIVE_WRITER.size))


def decode_writer(line: bytes) -> LiveWriter:
    """The writer that this line names."""
    pid, start_time, boot_id, heartbeat, position, seq, inode = LIVE_WRITER.struct.unpack(line)
    return LiveWriter(pid, start_time, boot_id, heartbeat, Bound(position, seq + 1), inode)


def living_writer(load: Load, inode: int, seam: Seam) -> LiveWriter | None:
    """The writer that the live page names, if that process is alive and writes the file with this inode."""
    writer = read_writer(load)
    if not 0 < writer.pid < 1 << 31 or writer.boot_id != seam.boot_id() or writer.inode != inode:
        return None
    start_time = process_start_time(writer.pid)
    return writer if start_time is not None and start_time == writer.start_time else None


def read_bounds(load: Load) -> LiveBounds | None:
    """The published bounds; None if the line kept changing."""
    page = _stable(load, LINE)
    return None if page is None else _bounds(page)


def read_both(load: Load) -> tuple[LiveBounds, bytes] | None:
    """The published bounds, and the writer's line as of then or earlier; None if the bounds kept changing."""
    page = _stable(load, 2 * LINE)
    return None if page is None else (_bounds(page[:LINE]), page[LINE:])


def _stable(load: Load, length: int) -> bytes | None:
    """The first ``length`` bytes of the live page, if the bounds were unchanged right after the load."""
    before = b""
    for _ in range(_TRIES):
        page = load(LIVE_OFFSET, length)
        line = page[:LINE]
        if line == before[:LINE] and line[:_VERSION] == line[-_VERSION:]:
            return before
        if line[:_VERSION] != line[-_VERSION:]:
            time.sleep(0.0001)
        before = page
    return None


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
    """Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22); None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(_STAT_MAX)
    except OSError:
        return None
    state, *fields = stat[stat.rindex(b")") + 2 :].split()
    return None if state in (b"Z", b"X") else int(fields[18])
