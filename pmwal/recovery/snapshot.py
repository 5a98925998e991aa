"""The verdict on a log that another process may write meanwhile.

Invariants
----------
- Without a living writer the log is judged as recovery would. That verdict is final if afterwards there is still no writer, and
  neither the slots nor the live page have changed, both of which a writer stores to before it stores a record. Otherwise what lies
  past the commit pointer may be a new writer's, not durable yet and not kept.
- Beside a living writer only the records that it shows as durable are judged, once, from the tail on. A record that is not whole
  is damage only if it lay between tail and durable end, in one epoch of one open, before it was read and afterwards. A writer
  shows a new tail and a new epoch before it stores into the space that they free; so anything else is the writer's doing, and the
  judge continues where the log begins by then. What lies past the durable end is the writer's, and no evidence of anything.
- Every step of that pass is past the one before, and its end is fixed when it begins: it ends however fast the writer is.
- When a writer came or went meanwhile the verdict is begun again, ``_TRIES`` times at most. After that, what was judged whole, up
  to the commit pointer, is all that is reported.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from pmwal.format.control import Control, read_control, read_slots
from pmwal.format.epochs import starts_through
from pmwal.format.layout import HEADER, LIVE_FOLLOWERS_OFFSET, LIVE_OFFSET, Slot, Superblock, slot_index
from pmwal.format.ring import Load, RingReader, Rules, Run, Scan
from pmwal.format.scan import scan_for
from pmwal.records import START, Bound, Progress, RecoveryReport
from pmwal.recovery.chain import another_chain, certain_end
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity
from pmwal.recovery.verdict import Facts, Row, classify
from pmwal.storage.live_page import LiveBounds, LiveWriter, read_bounds
from pmwal.storage.liveness import Liveness
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import Seam

_TRIES = 16  # verdicts that a writer who comes or goes may undo


def judge_beside(
    mapping: Mapping, identity: Identity, seam: Seam, progress: Progress | None = None, liveness: Liveness | None = None
) -> Judgement:
    """The verdict on a log that may be written meanwhile; see the invariants above."""
    liveness = Liveness(mapping, seam) if liveness is None else liveness
    scan = scan_for(identity.block)
    for _ in range(_TRIES):
        before = _traces(mapping.load, identity.block)
        writer = liveness.writer()
        if writer is None:
            judgement = judge(mapping.load, identity, progress, scan)
            if _is_undisturbed(mapping, identity, liveness, before):
                return judgement
        else:
            beside = _Beside(mapping, identity, liveness, writer, scan, progress)
            judgement = beside.run()
            if beside.final:
                return judgement
    return _without_verdict(judgement)


def _is_undisturbed(mapping: Mapping, identity: Identity, liveness: Liveness, before: bytes) -> bool:
    """Whether no writer has come since these traces were loaded, nor come and gone."""
    return liveness.writer() is None and _traces(mapping.load, identity.block) == before


def shown_bounds(load: Load, block: Superblock, scan: Scan | None, *, doubted: bool = False) -> LiveBounds | None:
    """What a living writer has made durable: as the live page says, or else the newest commit slot, which may lag. None without.

    ``doubted``: a record is not where the page says. Then the slot is believed where it is ahead: tail and epoch change there
    first, and a writer of version 0.1 may be stopped while its line looks whole and is not.
    """
    bounds = read_bounds(load)
    if bounds is not None and not bounds.possible(block):
        bounds = None
    if bounds is not None and not doubted:
        return bounds
    control = read_control(*read_slots(load, block, scan))
    slot = control.newest
    if slot is None or control.impossible is not None:
        return bounds
    tail, durable = Bound(slot.tail_position, slot.tail_seq), Bound(slot.commit_position, slot.commit_seq + 1)
    named = LiveBounds(tail, durable, slot.epoch, slot.epoch_first_seq)
    return bounds if bounds is not None and bounds.follows(named) else named


def _traces(load: Load, block: Superblock) -> bytes:
    """What a writer stores to before it reuses space: its lines of the live page, and the slots."""
    return load(LIVE_OFFSET, LIVE_FOLLOWERS_OFFSET - LIVE_OFFSET) + load(block.control_offset, block.control_size)


def _without_verdict(judgement: Judgement) -> Judgement:
    """What is left of a verdict that each time a writer may have caused: the records found whole, as far as a slot names them."""
    reason = "writers came and went while the log was judged; only these records were"
    row = classify(Facts(superblocks=2))
    slot, tail, end = judgement.control.newest, judgement.tail, judgement.end
    if slot is not None:
        end = min(end, Bound(slot.commit_position, slot.commit_seq + 1))
    report = replace(
        judgement.report,
        outcome=row.outcome,
        case=row.label,
        reason=reason,
        last_seq=end.next_seq - 1,
        records=end.next_seq - tail.next_seq,
        judged=(tail.position, end.position),
        kept_past_pointer=0,
        dropped_records=0,
        dropped_bytes=0,
        maybe_acknowledged=False,
        damage=None,
        lost_first_seq=None,
        lost_last_seq=None,
        live=True,
    )
    index = [bound for bound in judgement.index if bound < end]
    return replace(judgement, row=row, report=report, end=end, index=index)


class _Beside:
    """One pass over what a living writer shows as durable. ``final``: the verdict does not depend on what it did meanwhile."""

    def __init__(
        self,
        mapping: Mapping,
        identity: Identity,
        liveness: Liveness,
        writer: LiveWriter,
        scan: Scan | None,
        progress: Progress | None,
    ) -> None:
        self.identity = identity
        self.block = identity.block
        self.load = mapping.load
        self.liveness = liveness
        self.writer = writer
        self.scan = scan
        self.progress = progress
        self.final = True
        self.started = perf_counter()
        self.bytes_scanned = 0
        self.shown, self.first, self.end_seq = LiveBounds(START, START, 0, 1), START, START.next_seq

    def run(self) -> Judgement:
        self.control, self.lost = self._lost_slots()
        shown = shown_bounds(self.load, self.block, self.scan)
        impossible = self.control.impossible is not None
        if shown is None or impossible or self.control.newest is None:
            row = classify(Facts(self.identity.copies, impossible, self.control.newest is not None, reaches_pointer=False))
            return self._verdict(row, START, reason=self.control.impossible or "no commit slot is valid")
        return self._judge_records(shown)

    def _lost_slots(self) -> tuple[Control, int]:
        """The slots, and how many have a wrong checksum twice in a row; not counting the one that the writer stores next."""
        first, second = (read_slots(self.load, self.block, self.scan) for _ in range(2))
        control = read_control(*second)
        lost = {index for index in second.rows()[0] if not first.checks[index] and not second.checks[index]}
        if control.newest is not None:
            lost.discard(slot_index(control.newest.generation + 1, self.block.control_pages))
        return control, len(lost)

    def _judge_records(self, shown: LiveBounds) -> Judgement:
        self.shown, self.first, self.end_seq = shown, shown.tail, shown.durable.next_seq
        at, ring = shown.tail, RingReader(self.block, self.load, scan=self.scan)
        while at.next_seq < self.end_seq:
            after = self._walk(ring, at, self.shown.durable.position)
            self.bytes_scanned += after.position - at.position
            at = after
            if at.next_seq >= self.end_seq and (at == self.shown.durable or self.end_seq != self.shown.durable.next_seq):
                break
            now = self._shown_now()
            if now is None:
                self.final = False
                break
            passed = at.next_seq < now.tail.next_seq or at.position < now.tail.position
            if not passed and now.epoch == self.shown.epoch:
                return self._damaged(at) if at.next_seq < self.end_seq else self._another_chain(at)
            if passed:  # overwritten or truncated meanwhile
                at = self.first = now.tail
            if now.epoch != self.shown.epoch:  # a rollback: older records than those of its epoch are as they were
                self.end_seq = min(self.end_seq, now.epoch_first_seq)
            self.shown, ring = now, RingReader(self.block, self.load, scan=self.scan)
        row = classify(Facts(self.identity.copies, slots_lost=min(self.lost, 1)))
        return self._verdict(row, at, reason="a writer is running; what it shows as durable is whole")

    def _walk(self, ring: RingReader, at: Bound, limit: int) -> Bound:
        """The end of the unbroken run of whole records from ``at`` on, none of which ends after position ``limit``."""
        shown = self.shown
        starts = starts_through(self.control.starts, shown.epoch)
        rules = Rules(self.end_seq, limit, shown.epoch, shown.epoch_first_seq, starts=starts)
        while at.next_seq < self.end_seq:
            run = ring.run(at, rules, 1, 0, None)
            if run.at == at:
                found = ring.numbered(*at)
                if found is None or found.end > rules.limit or not rules.takes_epoch(found):
                    return at
                run = Run(Bound(found.end, found.header.seq + 1), found.header.epoch, 0, [])
            at = run.at
            if self.progress is not None:
                done, total = at.position - shown.tail.position, shown.durable.position - shown.tail.position
                self.progress(max(0, min(done, total)), total)
        return at

    def _shown_now(self) -> LiveBounds | None:
        """What the writer shows by now; None if it is not the same open any more, or shows nothing."""
        now = shown_bounds(self.load, self.block, self.scan, doubted=True)
        writer = self.liveness.writer()
        same = writer is not None and writer.same_process(self.writer)
        return now if now is not None and same and now.epoch >= self.shown.epoch else None

    def _damaged(self, stop: Bound) -> Judgement:
        from pmwal.recovery.evidence import resync  # noqa: PLC0415 - a sound log does without

        tail, pointer = self.shown.tail, self.shown.durable
        slot = Slot(
            epoch=self.shown.epoch,
            generation=0,
            epoch_first_seq=self.shown.epoch_first_seq,
            commit_position=pointer.position,
            commit_seq=pointer.next_seq - 1,
            tail_position=tail.position,
            tail_seq=tail.next_seq,
            flags=0,
        )
        starts = starts_through(self.control.starts, slot.epoch)
        resumed = next(resync(self.block, self.load, stop, pointer, slot, starts), None)
        last, end = (pointer.next_seq - 1, pointer.position) if resumed is None else (resumed.header.seq - 1, resumed.position)
        what = f"number {stop.next_seq} is" if last <= stop.next_seq else f"numbers {stop.next_seq} to {last} are"
        reason = f"{what} not whole at position {stop.position}, which the running writer shows as durable"
        return self._lost(stop, last, max(end, stop.position + HEADER), reason)

    def _another_chain(self, stop: Bound) -> Judgement:
        """All numbers are there, but the last record does not end where it did: a discarded one was taken for one that is lost."""
        durable = self.shown.durable
        limit = certain_end(self.block, self.shown.tail, durable)
        certain = self._walk(RingReader(self.block, self.load, scan=self.scan), self.shown.tail, limit)
        reason = f"{another_chain(certain, stop, durable)}, the durable end that the running writer shows"
        return self._lost(certain, durable.next_seq - 1, durable.position, reason)

    def _lost(self, stop: Bound, last: int, end: int, reason: str) -> Judgement:
        """The verdict that records from ``stop`` to number ``last`` are lost, in the ring up to position ``end``."""
        damage = tuple(self.block.ring_offset + at % self.block.capacity for at in (stop.position, end - 1))
        return self._verdict(
            classify(Facts(self.identity.copies, slots_lost=min(self.lost, 1), reaches_pointer=False)),
            stop,
            reason=reason,
            damage=(damage[0], damage[1] + 1),
            lost=(stop.next_seq, last),
        )

    def _verdict(
        self,
        row: Row,
        end: Bound,
        *,
        reason: str,
        damage: tuple[int, int] | None = None,
        lost: tuple[int | None, int | None] = (None, None),
    ) -> Judgement:
        report = RecoveryReport(
            outcome=row.outcome,
            case=row.label,
            epoch=self.shown.epoch,
            first_seq=self.first.next_seq,
            last_seq=end.next_seq - 1,
            records=end.next_seq - self.first.next_seq,
            slots_lost=self.lost,
            superblocks_lost=2 - self.identity.copies,
            reason=reason,
            damage=damage,
            lost_first_seq=lost[0],
            lost_last_seq=lost[1],
            bytes_scanned=self.bytes_scanned + self.block.control_size,
            seconds=perf_counter() - self.started,
            live=True,
            judged=(self.first.position, end.position),
        )
        epoch_max = max(self.control.epoch_max, self.shown.epoch)
        return Judgement(self.identity, self.control, row, report, self.first, end, epoch_max)
