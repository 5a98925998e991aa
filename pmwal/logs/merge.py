"""Merging the records of several logs by effective time.

Invariants
----------
- The records of one log are handed out in its order, each once: a merge compares the next records of the logs only.
- A merge of logs as they are now is complete: the next record handed out has the least effective time among the next ones; of
  the same time, that of the log whose path sorts first. So the order depends neither on how much is read at once nor on the order
  in which the logs were found.
- What cannot be read is counted (``missed``) or a problem of the set, and the others continue. A number that is missed, and after a
  rollback missed again, counts once.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, cast

from pmwal.cursor import parse_cursor
from pmwal.errors import CorruptWal, Overrun, PersistError, ShortenedWal
from pmwal.format.ring import Clock, Selected
from pmwal.logs.archives.names import divergence
from pmwal.logs.archives.reader import ring_of
from pmwal.logs.sources import Log, Sources
from pmwal.reading.internals import Look, bounds_of, epochs_of, look, newest_epoch, runs_of, selected
from pmwal.reading.selection import Selection
from pmwal.records import SetRecord

SLACK_NS = 10_000_000
"""Between a writer's look at its clock and its record being stored: longer than that, and a record may come late."""

_FAILURES = (CorruptWal, ShortenedWal, PersistError)  # of one log, which leave the others readable
_PIECE_MIN, _PIECE_MAX = 1, 1024  # records of one log that are read at once, in runs
_PIECE_BYTES = 1 << 20


class Member:
    """One log in a merge: what was read of it, and not yet handed out."""

    def __init__(self, log: Log, chosen: Selection, start: str | int | None, counted: int = 0) -> None:
        """``start``: a cursor, or the number of the first record.

        ``counted``: of the records missed after ``start``, how many an earlier merge has counted.
        """
        self.log = log
        self.last: SetRecord | None = None  # handed out
        self.begun = start
        self.missed = 0
        self._counted = counted
        self._gaps: list[range] = []  # the numbers of records that were missed
        self._again: list[range] = []  # those that were counted before a rollback went back before them
        self.failed: Exception | None = None  # why no more can be read
        self.taken = 0  # the latest effective time so far of what was taken
        self.more = True
        self._chosen = chosen
        self._filter = chosen.filter
        self._clock = Clock(0)  # after the last record that was read
        self._piece = _PIECE_MIN
        self._records: list[SetRecord] = []  # those of one epoch that were read and not handed out, and their effective times
        self._times: list[int] = []
        ring = ring_of(log.reader)
        self._epoch = 0 if ring is None else newest_epoch(ring)[0]  # in which it had the record that the cursor names
        self.first, self.stop = self._begin(start)
        self.next = self.first

    def _begin(self, start: int | str | None) -> tuple[int, int]:
        while True:
            try:
                return selected(self.log.reader, self._chosen, start)
            except Overrun as error:
                if not error.missed and not isinstance(start, int):
                    raise Overrun(f"{self.log.path}: {error}") from None
                if error.missed and start is not None:  # and more may go before the next try
                    first = parse_cursor(start).seq + 1 if isinstance(start, str) else start
                    self._miss(first, error.missed)
                    start = first + error.missed

    def _miss(self, first: int, count: int) -> None:
        known = min(count, self._counted)
        self._counted -= known
        again = sum(len(range(max(first, each.start), min(first + count, each.stop))) for each in self._again)
        self.missed += max(0, count - known - again)
        if count:
            self._gaps.append(range(first, first + count))

    @property
    def missed_after_cursor(self) -> int:
        """Records that were missed after the last one that was handed out: whoever begins at its cursor misses them, too."""
        last = 0 if self.last is None else self.last.seq
        return sum(len(gap) for gap in self._gaps if gap.start > last)

    @property
    def handed_out(self) -> int:
        """The number up to which the log was handed out."""
        if self.last is not None:
            return self.last.seq
        return self.first - 1 if self.begun is None else number_before(self.begun)

    @property
    def latest(self) -> int | None:
        """Effective time of the last record that was read, selected or not."""
        return self._clock.latest if self._clock.epoch else None

    def look(self) -> Look | None:
        """What the log shows; None if it cannot be read any more."""
        ring = ring_of(self.log.reader)
        try:
            return Look(living=False, settled=True, next_seq=0) if ring is None else look(ring)
        except _FAILURES as error:
            self.failed, self.more = error, False
            return None

    def pull(self, stop: int | None = None, now: int | None = None) -> None:
        """Read some more records, of one epoch, after those that wait; ``more`` says whether there are others before ``stop``.

        A stamp past ``now`` counts as now.
        """
        try:
            end = bounds_of(self.log.reader)[1] if stop is None else stop
            # After the end: what is there by then has no later stamp, however long the reading takes.
            clock = self._clock._replace(now=time.time_ns() if now is None else now)
            count = size = 0
            try:
                for run in runs_of(self.log.reader, self._filter, clock, self.next, end):
                    if not self._take(run):
                        break
                    if run.records:
                        count += len(run.records)
                        size += run.end - run.records[0][1]  # where the first begins
                    if count >= self._piece:
                        break
            except Overrun as error:
                self._skip(error)
            if count:
                self._piece = min(_PIECE_MAX, max(_PIECE_MIN, _PIECE_BYTES * count // size))
            self.more = self.next < end
        except _FAILURES as error:
            self.failed, self.more = error, False

    def _skip(self, error: Overrun) -> None:
        """Continue after records that were overwritten before they were read, or where others took the place of those read."""
        if error.missed:
            self._miss(self.next, error.missed)
            self.next += error.missed
        else:
            back = self._discarded_from()
            self._again = [*_from(self.next, self._again), *_from(back, self._gaps)]
            self._gaps = [range(gap.start, min(gap.stop, back)) for gap in self._gaps if gap.start < back]
            self.next = back

    def _discarded_from(self) -> int:
        """The first number that the log has discarded since it was read; the next one if it has discarded none.

        The oldest that it has if it no longer says, after many epochs: rather twice than not at all.
        """
        ring = ring_of(self.log.reader)
        if ring is None:
            return self.next
        epochs, epoch = epochs_of(ring), self._clock.epoch or self._epoch
        if epoch < min(epochs) - 1:
            return min(self.next, bounds_of(ring)[0])
        return divergence(epochs, epoch, self.next - 1) or self.next

    def _take(self, run: Selected) -> bool:
        """Let these records wait, too; False if those that wait are of another epoch."""
        if self._records and run.clock.epoch != self._clock.epoch:
            return False
        self._records += [cast("SetRecord", record) for record, _, _, _ in run.records]
        self._times += run.times
        self._clock, self.next = run.clock, run.seq + 1
        return True

    @property
    def waiting(self) -> bool:
        """Whether records wait to be handed out."""
        return bool(self._records)

    def take(self, horizon: int | None) -> tuple[list[SetRecord], list[int]]:
        """The waiting records up to this effective time, and their times; all if None."""
        count = len(self._times) if horizon is None else bisect_right(self._times, horizon)
        records, times = self._records, self._times
        self._records, self._times = records[count:], times[count:]
        if count:
            self.taken = max(self.taken, times[count - 1])
        return records[:count], times[:count]

    def cursor(self) -> str | None:
        """A cursor after the last record that was handed out, or before the first; None if that is the oldest."""
        if self.last is not None:
            return self.last.cursor
        if isinstance(self.begun, str):
            return self.begun
        try:
            return self.log.reader[self.first - 1].cursor
        except (IndexError, Overrun, *_FAILURES):
            return None


def number_before(start: str | int) -> int:
    """The number after which a log begins with this start."""
    return parse_cursor(start).seq if isinstance(start, str) else start - 1


def _from(seq: int, gaps: list[range]) -> list[range]:
    """The part of these numbers from this one on."""
    return [range(max(gap.start, seq), gap.stop) for gap in gaps if gap.stop > seq]


class Batch(NamedTuple):
    """Records in order, with their effective times, and the last one of each log that has some."""

    records: list[SetRecord]
    times: list[int]
    ends: list[tuple[Member, SetRecord]]


def _by_path(members: Iterable[Member]) -> list[Member]:
    return sorted(members, key=lambda member: member.log.path)


def _taken(members: list[Member], horizon: int | None, *, strict: bool = False) -> Batch:
    """The waiting records up to this time; all if None. Of the same time, in the order of the members.

    ``strict``: also if a member has more of that time than was read; then those of the members after it keep waiting.
    """
    records: list[SetRecord] = []
    times: list[int] = []
    ends = []
    for member in members:
        taken, stamps = member.take(horizon)
        if taken:
            records += taken
            times += stamps
            ends.append((member, taken[-1]))
        if horizon is not None and strict and member.more and member.latest == horizon:
            horizon -= 1  # this one may have more of that time, which precede those of the logs after it
            strict = False
    if len(ends) > 1:
        order = sorted(range(len(times)), key=times.__getitem__)  # stable: within a log and a time, the order is as above
        records, times = list(map(records.__getitem__, order)), list(map(times.__getitem__, order))
    return Batch(records, times, ends)


class Merge:
    """One iteration over the logs of a set. ``starts``, by uuid: a cursor, or the number of the first record."""

    def __init__(self, sources: Sources, chosen: Selection, starts: dict[str, str | int], before: Merge | None = None) -> None:
        """``before``: the merge that may have counted what is missed after ``starts``."""
        self.late = 0
        self.given = 0  # records of the batch that were handed out
        self.batch: list[SetRecord] = []
        self._starts = starts
        self._counted = {} if before is None else before.missed_after(starts)
        self._sources = sources
        self._chosen = chosen
        self._members: dict[str, Member] = {}
        self._ended: dict[str, str | int | None] = {}  # where logs ended that are gone
        self._unreadable: set[str] = set()
        self._ends: list[tuple[Member, SetRecord]] = []  # the last record of each log that the newest batch has
        self._missed = 0
        self._latest: dict[str, int] = {}  # effective time handed out so far of each log, by its uuid

    def refresh(self, *, turn: bool = False) -> None:
        """Take part of what is new in the set; with ``turn`` of the new file of a log before the old one was read."""
        if turn:
            self._sources.turn()
        else:
            self._sources.refresh()
        for uuid, log in list(self._sources.logs.items()):
            ended = uuid in self._ended and ring_of(log.reader) is None  # and its archives have no more
            if uuid not in self._members and uuid not in self._unreadable and not ended:
                try:
                    start = self._ended.get(uuid) or self._starts.get(uuid)
                    self._members[uuid] = Member(log, self._chosen, start, self._counted.pop(uuid, 0))
                except _FAILURES as error:
                    if log.gone:  # its path leads to another log, whose problem this is not
                        self._sources.drop(log)
                        continue
                    self._unreadable.add(uuid)
                    self._sources.note(log.path, error)

    @property
    def missed(self) -> int:
        """Records that were overwritten before they were read."""
        return self._missed + sum(member.missed for member in self._members.values())

    def cursors(self) -> dict[str, str]:
        """A cursor for each log, after what was handed out."""
        self._note_given()
        found = self._starts | self._ended | {uuid: member.cursor() for uuid, member in self._members.items()}
        return {uuid: cursor for uuid, cursor in found.items() if isinstance(cursor, str)}

    def missed_after(self, starts: Mapping[str, str | int]) -> dict[str, int]:
        """How many records of each log were missed after its start, if that is the place to which the log was handed out."""
        self._note_given()
        numbers = {uuid: number_before(start) for uuid, start in starts.items() if uuid in self._members}
        found = {uuid: self._members[uuid] for uuid, number in numbers.items() if self._members[uuid].handed_out == number}
        return {uuid: member.missed_after_cursor for uuid, member in found.items()}

    def _note_given(self) -> None:
        """What was handed out of the batch is no longer to be."""
        if self.given == len(self.batch):
            for member, record in self._ends:
                member.last = record
            return
        left = {member.log.path: member for member, _ in self._ends}
        for record in reversed(self.batch[: self.given]):
            if record.log in left:
                left.pop(record.log).last = record

    def hand_out(self, batch: Batch) -> Iterator[SetRecord]:
        """These records, noting how far it has come."""
        self._note_given()
        self.batch, self._ends, self.given = batch.records, batch.ends, 0
        for self.given, record in enumerate(self.batch, 1):  # noqa: B020
            yield record

    # -- the logs as they are now

    def batches(self) -> Iterator[Batch]:
        """All records of the logs as they are at the first call."""
        members, now = _by_path(self._members.values()), time.time_ns()
        for member in members:
            member.more = member.next < member.stop
        while members:
            for member in members:
                while member.more and not member.waiting:
                    member.pull(member.stop, now)
                if member.failed is not None:
                    self._sources.note(member.log.path, member.failed)
            ends = [member.latest for member in members if member.more and member.latest is not None]
            yield _taken(members, min(ends) if ends else None, strict=True)
            members = [member for member in members if member.more or member.waiting]

    # -- the logs as they grow

    def poll(self, wait_ns: int | None) -> Batch:
        """What may be handed out now, in order; everything that was read if ``wait_ns`` is None."""
        horizon = before = time.time_ns() - SLACK_NS
        self.refresh()
        members = _by_path(self._members.values())
        for member in members:
            if member.failed is not None:
                if member.log.gone and not member.waiting:
                    self._end(member)
                continue
            seen = member.look()  # before the pull: what a killed writer left shows in the pull after it
            if seen is not None:
                member.pull()
            if seen is None or member.failed is not None:
                assert member.failed is not None
                self._sources.note(member.log.path, member.failed)
            elif not seen.living and member.log.gone and not member.more and not member.waiting:
                self._end(member)
            else:
                # What is still to come of this log has no earlier time than this.
                sure = seen.settled and not member.more and member.next >= seen.next_seq
                horizon = min(horizon, max(member.latest or 0, before if sure else 0))
        if wait_ns is not None:
            horizon = max(horizon, before - wait_ns)
        batch = _taken(members, None if wait_ns is None else horizon)
        self._count_late(batch)
        return batch

    def _count_late(self, batch: Batch) -> None:
        """Count the records with an earlier effective time than another log's record that was handed out before this batch.

        After a later one of its own log a record is in its place: its clock was set back.
        """
        latest = sorted(self._latest.values())
        if latest and batch.times and batch.times[0] < latest[-1]:
            uuids = {member.log.path: member.log.uuid for member, _ in batch.ends}
            for record, time in zip(batch.records[: bisect_left(batch.times, latest[-1])], batch.times, strict=False):
                own_is_latest = self._latest.get(uuids[record.log]) == latest[-1]
                others = latest[:-1] if own_is_latest else latest
                self.late += bool(others) and time < others[-1]
        for member, _ in batch.ends:
            self._latest[member.log.uuid] = member.taken

    @property
    def behind(self) -> bool:
        """Whether records are there that were not read yet."""
        return any(member.more for member in self._members.values())

    @property
    def waiting(self) -> bool:
        """Whether records that were read wait for others."""
        return any(member.waiting for member in self._members.values())

    def _end(self, member: Member) -> None:
        self._note_given()
        self._ended[member.log.uuid] = member.cursor()
        self._missed += member.missed
        del self._members[member.log.uuid]
        self._sources.drop(member.log)
