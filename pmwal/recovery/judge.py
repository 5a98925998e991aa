"""The verdict on a log: superblock, commit pointer, whole records, end. It reads and never writes.

Invariants
----------
- The live page is never read: after a crash its contents are undefined.
- A record is kept only at the end of an unbroken run of whole records from the tail on: each has the next number, the epoch that
  its number calls for, and starts where the one before ended or at the start of the next lap.
- Past the slot's pointer a batch counts from its first record to its last or not at all.
- Nothing past the end is ignored: a record there that a torn tail cannot explain makes the verdict corrupt (evidence.py).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING

from pmwal.errors import CorruptWal
from pmwal.format.control import Control, read_control
from pmwal.format.index import SparseIndex
from pmwal.format.layout import HEADER, SEQ_MAX, SLOT_CLEAN, SLOT_PIPELINED, Slot, record_size
from pmwal.format.ring import Found, Load, RingReader, Rules, Scan
from pmwal.records import START, Bound, Progress, RecoveryReport
from pmwal.recovery.chain import another_chain, certain_end
from pmwal.recovery.superblock import Identity
from pmwal.recovery.verdict import Facts, Row, classify

if TYPE_CHECKING:
    from pmwal.recovery.evidence import Evidence

_PROGRESS_STEP = 8192  # records between two progress reports


@dataclass(slots=True)
class Judgement:
    """The verdict, and what a writer needs to continue the log. The records from ``tail`` to ``end`` are kept."""

    identity: Identity
    control: Control
    row: Row
    report: RecoveryReport
    tail: Bound = START
    end: Bound = START
    epoch_max: int = 0
    index: list[Bound] = field(default_factory=list)

    def error(self, path: str) -> CorruptWal:
        """The exception for a corrupt verdict."""
        report = self.report
        start, end = report.damage if report.damage is not None else (None, None)
        return CorruptWal(
            f"{path}: {report.reason} ({report.case}: {self.row.meaning}). Nothing was changed. "
            f'Read the whole records with pmwal.open(path, "r", recover="salvage"), or run: pmwal repair {path}',
            first_seq=report.lost_first_seq,
            last_seq=report.lost_last_seq,
            start=start,
            end=end,
            reason=report.reason,
        )


def judge(load: Load, identity: Identity, progress: Progress | None = None, scan: Scan | None = None) -> Judgement:
    """The verdict on a log. Damage raises nothing."""
    started = perf_counter()
    judgement = _Judge(load, identity, progress, scan).run()
    judged = judgement.tail.position, judgement.end.position
    judgement.report = replace(judgement.report, seconds=perf_counter() - started, judged=judged)
    return judgement


class _Judge:
    """One pass over a log: slots, records from the tail on, then the search past their end."""

    def __init__(self, load: Load, identity: Identity, progress: Progress | None, scan: Scan | None) -> None:
        self.identity = identity
        self.block = identity.block
        self.load = load
        self.progress = progress
        self.start = 0  # position at which the walk began
        self.total = 0  # bytes that this verdict will read
        self.scan = scan
        self.ring = RingReader(self.block, load, scan=scan)
        self.searched = 0  # bytes that the search past the end read
        self.index = SparseIndex()
        self.mark = 0  # the highest durable mark (``durable``) among the records reached
        self.epoch_met = 0  # the greatest epoch of a whole record

    def run(self) -> Judgement:
        block = self.block
        raw = self.load(block.control_offset, block.control_size)
        self.control = read_control(raw, block, *(() if self.scan is None else self.scan.scanner.slots(raw)))
        slot = self.control.newest
        slots = Facts(
            superblocks=self.identity.copies,
            slot_impossible=self.control.impossible is not None,
            slots=slot is not None,
            slots_lost=self.control.lost,
        )
        if slot is None or slots.slot_impossible or slots.slots_lost >= 2:
            reason = self.control.impossible or f"{slots.slots_lost} of {block.turn} commit slots are lost"
            return self._verdict(slots, slot, reason=reason)
        return self._judge_records(slots, slot)

    def _judge_records(self, slots: Facts, slot: Slot) -> Judgement:
        tail = Bound(slot.tail_position, slot.tail_seq)
        pointer = Bound(slot.commit_position, slot.commit_seq + 1)
        clean = bool(slot.flags & SLOT_CLEAN) and slots.slots_lost == 0
        self.start = tail.position
        self.total = pointer.position - tail.position if clean else self.block.capacity
        rules = Rules(pointer.next_seq, pointer.position, slot.epoch, slot.epoch_first_seq, starts=self.control.starts)
        stop = self._walk_to_pointer(tail, rules)
        if stop.next_seq < pointer.next_seq:
            return self._damaged_before_pointer(slots, slot, stop, pointer)
        if stop != pointer:
            certain = rules._replace(limit=certain_end(self.block, tail, pointer))
            return self._another_chain(slots, slot, self._walk_to_pointer(tail, certain), stop, pointer)
        if clean:
            newer = self._impossible_at(pointer, slot)
            facts = replace(slots, clean=True, newer_past_stop=newer is not None)
            return self._verdict(facts, slot, tail, pointer, reason=newer or "")
        stop = self._walk_past_pointer(pointer, slot)
        return self._judge_tail(slots, slot, tail, stop)

    def _walk_to_pointer(self, tail: Bound, rules: Rules) -> Bound:
        """The end of the unbroken run from the tail: the pointer, if nothing before it is damaged."""
        at, epoch = tail, 1
        while at.next_seq < rules.stop_seq:
            at, epoch = self._run(at, rules, epoch)
            if at.next_seq >= rules.stop_seq:
                break
            found = self.ring.numbered(*at)
            if found is None or found.end > rules.limit:
                return at
            if found.header.epoch < epoch or not rules.takes_epoch(found):
                return at
            epoch = found.header.epoch
            self._reached(found)
            at = Bound(found.end, found.header.seq + 1)
            if found.header.seq % _PROGRESS_STEP == 0:
                self._report(at.position - tail.position)
        return at

    def _run(self, at: Bound, rules: Rules, epoch: int) -> tuple[Bound, int]:
        """Continue with the native engine, as far as the ordinary case goes."""
        while True:
            starts = self.index.entries
            last = starts[-1].position if starts else None
            run = self.ring.run(at, rules, epoch, self.mark, last)
            starts += run.starts
            if run.at == at:
                return at, epoch
            assert run.at > at, "a run only advances"
            assert run.epoch >= epoch, "epochs never fall"
            at, epoch, self.mark = run.at, run.epoch, run.mark
            self.epoch_met = max(self.epoch_met, epoch)
            self._report(at.position - self.start)

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.total)

    def _walk_past_pointer(self, pointer: Bound, slot: Slot) -> Bound:
        """The end of the whole records past the pointer. An unfinished batch does not count."""
        end, limit = pointer, slot.tail_position + self.block.capacity
        rules = Rules(SEQ_MAX + 1, limit, slot.epoch, slot.epoch_first_seq, batches=True)
        while True:
            end, _ = self._run(end, rules, slot.epoch)
            batch = self._whole_batch(end, slot)
            if not batch:
                return end
            for found in batch:
                self._reached(found)
            end = Bound(batch[-1].end, batch[-1].header.seq + 1)

    def _whole_batch(self, start: Bound, slot: Slot) -> list[Found]:
        """The batch that starts at ``start``; empty unless it is whole from its first to its last record."""
        batch: list[Found] = []
        at = start
        while not batch or len(batch) < batch[0].header.batch_count:
            found = self.ring.numbered(*at)
            # Past one lap from the tail the ring contains the oldest records, which are not past the end but before it.
            if found is None or found.end - slot.tail_position > self.block.capacity:
                return []
            header = found.header
            count = batch[0].header.batch_count if batch else header.batch_count
            if header.epoch != slot.epoch or header.batch_index != len(batch) or header.batch_count != count:
                return []
            batch.append(found)
            at = Bound(found.end, header.seq + 1)
        return batch

    def _reached(self, found: Found) -> None:
        header = found.header
        self.mark = max(self.mark, header.durable)
        self.epoch_met = max(self.epoch_met, header.epoch)
        self.index.add(Bound(found.position, header.seq))

    def _impossible_at(self, stop: Bound, slot: Slot) -> str | None:
        """Which record at the end no crash can have left there: one of a newer epoch, or of this one with another number."""
        here = self.ring.whole(stop.position)
        if here is not None and here.header.epoch >= slot.epoch:
            epoch, seq = here.header.epoch, here.header.seq
            if epoch > slot.epoch or seq != stop.next_seq or slot.flags & SLOT_CLEAN:
                return f"record {seq} of epoch {epoch} lies where number {stop.next_seq} of epoch {slot.epoch} belongs"
        there = self.ring.numbered(*stop)
        if there is not None and there.header.epoch > slot.epoch:
            return f"record {there.header.seq} of epoch {there.header.epoch} follows a log of epoch {slot.epoch}"
        return None

    def _judge_tail(self, slots: Facts, slot: Slot, tail: Bound, stop: Bound) -> Judgement:
        """Rows R2, R3, R5, R6, R7 and R10: the walk reached the pointer and stopped at ``stop``."""
        newer = self._impossible_at(stop, slot)
        evidence = self._search(stop, tail, slot)
        torn_end = self._torn_end(stop, slot)
        dropped_records = evidence.dropped_records + (torn_end > 0)
        dropped_end = max(torn_end, evidence.dropped_end)
        facts = replace(
            slots,
            acknowledged_past_stop=evidence.acknowledged is not None,
            newer_past_stop=newer is not None or evidence.newer is not None,
            dropped=dropped_records > 0,
        )
        reason = evidence.acknowledged or newer or evidence.newer or ""
        return self._verdict(
            facts,
            slot,
            tail,
            stop,
            reason=reason,
            dropped=(dropped_records, max(0, dropped_end - stop.position)),
            lost=(stop.next_seq, evidence.seq - 1 if evidence.seq > stop.next_seq else None),
            evidence_end=evidence.position,
        )

    def _torn_end(self, stop: Bound, slot: Slot) -> int:
        """Where the torn record at ``stop`` would end; 0 if no record of this epoch was begun there."""
        if self.ring.numbered(*stop) is not None:
            return 0  # it is whole, so the search counts it
        for position in (stop.position, self.ring.next_lap(stop.position)):
            header = None if position is None else self.ring.peek(position)
            if position is not None and header is not None and (header.seq, header.epoch) == (stop.next_seq, slot.epoch):
                return position + record_size(header.length, self.block.alignment)
        return 0

    def _search(self, stop: Bound, tail: Bound, slot: Slot) -> Evidence:
        """What whole records past ``stop`` prove."""
        from pmwal.recovery.evidence import search_past  # noqa: PLC0415 - a log that was closed does without

        limit = tail.position + self.block.capacity
        evidence = search_past(
            self.block, self.load, stop, limit, slot, lambda position: self._report(position - tail.position), self.scan
        )
        self.epoch_met = max(self.epoch_met, evidence.epoch_max)
        self.searched += max(0, limit - stop.position)
        return evidence

    def _damaged_before_pointer(self, slots: Facts, slot: Slot, stop: Bound, pointer: Bound) -> Judgement:
        from pmwal.recovery.evidence import resync  # noqa: PLC0415 - a log that was closed does without

        resumed = next(resync(self.block, self.load, stop, pointer, slot, self.control.starts, self.scan), None)
        last = pointer.next_seq - 1 if resumed is None else resumed.header.seq - 1
        end = pointer.position if resumed is None else resumed.position
        tail = Bound(slot.tail_position, slot.tail_seq)
        what = f"number {stop.next_seq} is" if last <= stop.next_seq else f"numbers {stop.next_seq} to {last} are"
        return self._verdict(
            replace(slots, reaches_pointer=False),
            slot,
            tail,
            stop,
            reason=f"{what} not whole at position {stop.position}, before the commit pointer {pointer.position}",
            lost=(stop.next_seq, last),
            evidence_end=end,
        )

    def _another_chain(self, slots: Facts, slot: Slot, certain: Bound, stop: Bound, pointer: Bound) -> Judgement:
        """All numbers are there, but the last record does not end where it did: a discarded one was taken for one that is lost."""
        return self._verdict(
            replace(slots, reaches_pointer=False),
            slot,
            Bound(slot.tail_position, slot.tail_seq),
            certain,
            reason=f"{another_chain(certain, stop, pointer)}, the commit pointer",
            lost=(certain.next_seq, pointer.next_seq - 1),
            evidence_end=pointer.position,
        )

    def _verdict(
        self,
        facts: Facts,
        slot: Slot | None,
        tail: Bound = START,
        end: Bound = START,
        *,
        reason: str = "",
        dropped: tuple[int, int] = (0, 0),
        lost: tuple[int | None, int | None] = (None, None),
        evidence_end: int = 0,
    ) -> Judgement:
        assert tail <= end, "the tail never passes the end"
        self._report(self.total)
        row = classify(facts)
        corrupt = row.outcome == "corrupt"
        outcome = "clean" if facts.clean and row.outcome == "recovered" else row.outcome
        flags = 0 if slot is None else slot.flags
        unclean_pipelined = bool(flags & SLOT_PIPELINED) and not flags & SLOT_CLEAN
        pointer = max(self.mark, 0 if slot is None else slot.commit_position)
        report = RecoveryReport(
            outcome=outcome,
            case=row.label,
            epoch=0 if slot is None else slot.epoch,
            first_seq=tail.next_seq,
            last_seq=end.next_seq - 1,
            records=end.next_seq - tail.next_seq,
            kept_past_pointer=self._count_past(pointer, end),
            dropped_records=dropped[0],
            dropped_bytes=dropped[1],
            maybe_acknowledged=unclean_pipelined and not corrupt,
            slots_lost=facts.slots_lost,
            superblocks_lost=2 - facts.superblocks,
            reason=reason or row.meaning,
            damage=self._file_range(end.position, evidence_end) if row.label in ("R4", "R5", "R6") else None,
            lost_first_seq=lost[0] if corrupt else None,
            lost_last_seq=lost[1] if corrupt else None,
            bytes_scanned=end.position - tail.position + self.searched + self.block.control_size,
        )
        epoch_max = max(self.control.epoch_max, self.epoch_met)
        return Judgement(self.identity, self.control, row, report, tail, end, epoch_max, self.index.entries)

    def _count_past(self, pointer: int, end: Bound) -> int:
        """How many kept records end past ``pointer``: the commit pointer, or the highest durable mark if that is further."""
        starts = self.index.entries
        if end.position <= pointer or not starts:
            return 0
        at = starts[max(bisect_right(starts, pointer, key=_position) - 1, 0)]
        while at.position < pointer:
            found = self.ring.numbered(*at)
            if found is None or found.end > pointer:
                break
            at = Bound(found.end, found.header.seq + 1)
        return end.next_seq - at.next_seq

    def _file_range(self, start: int, end: int) -> tuple[int, int]:
        """The damage as byte offsets in the file. If it wraps, its end lies before its start."""
        block = self.block
        end = max(end, start + HEADER)
        return block.ring_offset + start % block.capacity, block.ring_offset + (end - 1) % block.capacity + 1


def _position(bound: Bound) -> int:
    return bound.position
