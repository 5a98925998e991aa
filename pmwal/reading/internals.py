"""What ``pmwal.logs``, ``pmwal.aio``, copies of logs and commands may do with a ``Reader`` beyond its public methods. They reach no
deeper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from pmwal.format.layout import LIVE_BOUNDS, LIVE_OFFSET, LIVE_OPEN, LIVE_OPEN_OFFSET, Superblock
from pmwal.format.ring import Clock, Filter, Selected
from pmwal.reading.consumer import Consumer, Standing, lay_anew, problem, standings
from pmwal.reading.place import Place
from pmwal.reading.reader import Reader
from pmwal.reading.selection import Selection
from pmwal.reading.walk import View, Walker
from pmwal.records import Frame, Record, SetRecord
from pmwal.storage.live_page import decode_writer, read_both


class Look(NamedTuple):
    """What a log showed: whether a writer was alive, whether all that it had stored was durable, and the next durable number."""

    living: bool
    settled: bool
    next_seq: int


def deliver_as(reader: Reader, record_type: type[SetRecord]) -> None:
    """Let the reader make records of this type."""
    reader._record_type = record_type


def runs_of(reader: Reader, chosen: Filter, clock: Clock, start: int, stop: int) -> Iterator[Selected]:
    """The selected records from ``start`` up to, not including, ``stop``, in runs of one epoch. Raises what ``read`` raises."""
    return reader._runs(chosen, clock, start, stop)


def bounds_of(reader: Reader) -> tuple[int, int]:
    """The first number in the log, and the one after the last."""
    view = reader._view()
    return view.tail.next_seq, view.end.next_seq


def snapshot(reader: Reader) -> tuple[Superblock, View, Walker]:
    """The log's superblock, what can be read now, and what reads it. Raises what ``read`` raises."""
    view = reader._view()
    return reader._block, view, replace(reader._walker(view, Place()), on_delivery=None)


def selected(reader: Reader, chosen: Selection, start: int | str | None) -> tuple[int, int]:
    """Where the selected run begins from ``start`` on, and the number after its last record. Raises what ``read`` raises."""
    view = reader._view()
    number = None if start is None else reader._first_number(start, view)
    _, first, end = reader._run(chosen, view, number, None)
    return first, end


def epoch_first_seq(reader: Reader) -> int:
    """The first number of the current epoch."""
    return reader._view().epoch_first_seq


def newest_epoch(reader: Reader) -> tuple[int, int]:
    """The current epoch, and its first number."""
    view = reader._view()
    return view.epoch, view.epoch_first_seq


def epochs_of(reader: Reader) -> dict[int, int]:
    """The first numbers of the epochs that are known of the log."""
    view = reader._view()
    begun = {epoch: first for epoch, first in reader._epochs().items() if epoch <= view.epoch}
    return begun | {view.epoch: view.epoch_first_seq}


def look(reader: Reader) -> Look:
    """What the live page says now."""
    reader._check_open()
    if reader._liveness.writer() is None:
        return Look(False, True, 0)
    live = read_both(reader._mapping.load)
    if live is None or not live[0].possible(reader._block):
        return Look(True, False, 0)
    bounds, line = live
    # The line may be a little older than the bounds; what was stored since has a stamp that is no older than this look.
    return Look(True, decode_writer(line).published.next_seq <= bounds.durable.next_seq, bounds.durable.next_seq)


def is_written(reader: Reader | None) -> bool:
    """Whether a living writer has its file open."""
    return reader is not None and reader._liveness.writer() is not None


def consumers_of(reader: Reader) -> list[Standing]:
    """What is known of the consumers of a log."""
    return standings(reader)


def lay_positions_anew(reader: Reader) -> None:
    """Correct the positions beside a log that was resized: their hints say where records were in the old file."""
    lay_anew(reader)


def renewed_consumer(reader: Reader, name: str, start: int | str) -> Consumer:
    """A consumer that begins at ``start`` if its position is damaged, or of another log that had the path before."""
    return Consumer(reader, name, start, renew=True)


def acknowledged_since(reader: Reader, consumer: Consumer) -> float:
    """For how many seconds the last record that this consumer has acknowledged has been acknowledged, by the wall clock."""
    return max(0.0, (reader._seam.now_ns() - consumer._current().time_ns) / 1e9)


def version_of(reader: Reader) -> bytes:
    """Bytes that change when a writer shows other bounds; they cost less than a look at these."""
    reader._check_open()
    load = reader._mapping.load
    return load(LIVE_OFFSET, LIVE_BOUNDS.field_size("version_begin")) + load(LIVE_OPEN_OFFSET, LIVE_OPEN.size)


def next_frame(reader: Reader, consumer: Consumer | None, first: int, size_max: int) -> tuple[Frame | None, int]:
    """What ``Reader.frame`` returns, and the number after the newest record. The consumer can then acknowledge the frame's last
    record without looking for it."""
    frame = reader.frame(first, size_max=size_max)
    if frame is None:
        return None, bounds_of(reader)[1]
    if consumer is not None:
        consumer._hand_out_frame(frame)
    view = reader._place.view
    return frame, frame.last + 1 if view is None else view.end.next_seq


def next_record(reader: Reader, consumer: Consumer | None, seq: int, timeout: float) -> tuple[Record | None, bool]:
    """What ``Reader.follow`` delivers first, from this number on, and whether the log is known to have no later record yet. The
    consumer can then acknowledge it without looking for it."""
    records = reader.follow(seq, timeout)
    record = next(records if consumer is None else consumer._hand_out(records), None)
    live = None if record is None else read_both(reader._mapping.load)
    return record, live is not None and live[0].durable.next_seq == seq + 1


def problem_with(reader: Reader, consumer: Consumer) -> str | None:
    """Why the position of this consumer says nothing about the log, in words; None if it does."""
    return problem(reader, consumer)


def created_ns(reader: Reader) -> int:
    """When the log was created, in ns since 1970."""
    return reader._block.created_ns


def is_elsewhere(reader: Reader) -> bool:
    """Whether the path, looked up now, does not lead to this log."""
    return reader._name.lost() is not None


def same_file(one: Reader, other: Reader) -> bool:
    """Whether both have one file open."""
    return one._mapping.inode == other._mapping.inode and one.uuid == other.uuid
