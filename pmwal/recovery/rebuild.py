"""What of a damaged log was live, and which unbroken run of it a repair keeps. Pure but for ``load``.

Invariants
----------
- Where a slot can be believed and its records are whole up to its pointer, the judge decides as if no other slot were lost.
- Elsewhere the kept run is the one around the highest durable mark of the greatest epoch: ``durable`` of its records says how far
  the log was durable, and so in order.
- What a rollback or a recovery discarded is recognised by what was stored later. When an epoch began at position p with number n,
  every older record that was kept ended at or before p and had a lower number. Each record of the epoch says ``durable`` >= p and
  has at least number n. So a record of an older epoch that ends past such a mark, or has such a number, is no part of the log.
- What was truncated is recognised by the tail of the believed slot, which never moves back, and by ``durable`` less the capacity.
- Batch fields count past the commit pointer only: before it a rollback or a truncate may have cut a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pmwal.format.control import Pointer, filled_region, find_pointer
from pmwal.format.layout import POSITION_MAX, SLOT_CLEAN, Slot, Superblock
from pmwal.format.numerics import np, npt
from pmwal.format.ring import Found, Load, Scan, overlay
from pmwal.records import START, Bound
from pmwal.recovery.evidence import everything
from pmwal.recovery.judge import Judgement, judge

_FIELDS = np.dtype([(name, "<u8") for name in ("seq", "position", "end", "durable", "epoch", "batch_index", "batch_count")])
_Records = npt.NDArray[np.void]
_Numbers = npt.NDArray[np.uint64]
_Mask = npt.NDArray[np.bool_]
_NEVER = np.uint64((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The choice. The records from ``tail`` to ``end`` are kept.

    ``before`` and ``after`` are the positions of whole live records that the damage separates from the kept ones, and ``last_seq``
    the last number that was in the log, as far as is known. ``slot`` is the slot that was believed, if any. ``doubtful``: records
    that were truncated or discarded may be among all these, because no slot says what was. ``of_batch``: how many records at the
    end are of a batch of which later ones are not kept. ``epoch_max`` is the greatest epoch met.
    """

    tail: Bound
    end: Bound
    before: tuple[int, ...]
    after: tuple[int, ...]
    last_seq: int
    slot: Slot | None
    doubtful: bool
    of_batch: int
    epoch_max: int


def rebuild(load: Load, judgement: Judgement, scan: Scan | None = None) -> Rebuilt:
    """Choose what to keep of a corrupt log."""
    block = judgement.identity.block
    pointer = find_pointer(load(block.control_offset, block.control_size), block)
    whole = _columns(everything(block, load, scan))
    newest_epoch = int(whole["epoch"].max(initial=0))
    remains = _remains(whole, block, pointer)
    if pointer is None:
        return _chosen(*_run_at_mark(remains, block), remains, None, newest_epoch, overtaken=False, doubtful=True)
    slot = pointer.slot
    if not judgement.row.by_pointer:
        judgement = judge(overlay(load, [(block.control_offset, filled_region(slot, block))]), judgement.identity, None, scan)
    tail, end = judgement.tail, judgement.end
    reached = end.position >= slot.commit_position
    if not reached:
        end = min(end, _run_from(tail, _remains(whole[whole["epoch"] <= slot.epoch], block, pointer).live, block))
    overtaken = newest_epoch > slot.epoch
    if overtaken or not (reached or pointer.certain):
        first, last = _run_at_mark(remains, block)
        if first != last and (first.next_seq == tail.next_seq or not reached):
            tail, end = first, last
    epoch_max = max(newest_epoch, *(epoch for epoch, _ in pointer.epochs))
    return _chosen(tail, end, remains, slot, epoch_max, overtaken=overtaken, doubtful=overtaken or not pointer.certain)


def _chosen(
    tail: Bound, end: Bound, remains: _Remains, slot: Slot | None, epoch_max: int, *, overtaken: bool, doubtful: bool
) -> Rebuilt:
    """``overtaken``: records of a later epoch than the slot's were met, so a newer slot was lost."""
    live = remains.live
    before = live["position"][live["seq"] < tail.next_seq]
    left = np.concatenate((live, remains.begun)) if slot is None or overtaken else live
    after = left[(left["seq"] >= end.next_seq) & (left["position"] >= end.position)]
    last_seq = max(end.next_seq - 1, int(after["seq"].max(initial=0)), 0 if slot is None else slot.commit_seq)
    last = live[(live["seq"] == end.next_seq - 1) & (live["end"] == end.position)]
    index, count = (int(last[name].max(initial=0)) for name in ("batch_index", "batch_count"))
    return Rebuilt(
        tail=tail,
        end=end,
        before=tuple(before.tolist()),
        after=tuple(after["position"].tolist()),
        last_seq=last_seq,
        slot=slot,
        doubtful=doubtful,
        of_batch=min(index + 1, end.next_seq - tail.next_seq) if index + 1 < count else 0,
        epoch_max=epoch_max,
    )


class _Remains(NamedTuple):
    """The whole records that were live, in order of their numbers; the highest durable mark, and the epoch that it is of.

    ``start``: where the next record goes if there are none. ``begun``: whole records past the pointer that form no whole batch: a
    crash leaves such, and only where no slot can be believed they may have been more than begun.
    """

    live: _Records
    begun: _Records
    mark: int
    epoch: int
    start: Bound


def _remains(whole: _Records, block: Superblock, pointer: Pointer | None) -> _Remains:
    """What was live, as far as records and slots can say."""
    live = _not_discarded(whole, () if pointer is None else pointer.epochs)
    epoch = int(live["epoch"].max(initial=0))
    mark = int(live["durable"][live["epoch"] == epoch].max(initial=0))
    empty = mark == 0
    if pointer is not None:
        slot = pointer.slot
        live = live[(live["position"] >= slot.tail_position) & (live["seq"] >= slot.tail_seq)]
        if slot.epoch >= epoch:
            mark = max(slot.commit_position, mark if slot.epoch == epoch else 0)
            if slot.flags & SLOT_CLEAN and pointer.certain:
                live = live[live["end"] <= mark]  # nothing was stored after the close
            epoch = slot.epoch
        empty = mark == slot.tail_position
    live = live[live["position"] >= max(0, mark - block.capacity)]
    before, past = live[live["end"] <= mark], live[(live["position"] >= mark) & (live["epoch"] == epoch)]
    start = Bound(int(past["position"][0]), int(past["seq"][0])) if len(past) else START
    joins = empty or (len(before) > 0 and int(before["end"][-1]) == mark)
    finished = _whole_batches(past, block, mark if joins else None)
    return _Remains(np.concatenate((before, past[:finished])), past[finished:], mark, epoch, start)


def _not_discarded(whole: _Records, slots: Iterable[tuple[int, int]]) -> _Records:
    """The records that no newer epoch excludes, in order of their numbers, each of which occurs once.

    ``slots``: the (epoch, first number) that slots name.
    """
    epochs, group = np.unique(whole["epoch"], return_inverse=True)
    marks = np.full(len(epochs), _NEVER)
    np.minimum.at(marks, group, whole["durable"])
    live = whole[whole["end"] <= _least_from(marks)[group + 1]]
    named = sorted(slots)
    epochs = np.array([epoch for epoch, _ in named], np.uint64)
    numbers = np.array([number for _, number in named], np.uint64)
    live = live[live["seq"] < _least_from(numbers)[np.searchsorted(epochs, live["epoch"], "right")]]
    live = live[np.lexsort((~live["position"], ~live["epoch"], live["seq"]))]
    live = live[live["epoch"] == np.maximum.accumulate(live["epoch"])]  # no number is followed by one of an older epoch
    first = np.ones(len(live), bool)
    first[1:] = live["seq"][1:] != live["seq"][:-1]
    once: _Records = live[first]
    return once


def _least_from(values: _Numbers) -> _Numbers:
    """For each index, the least value from there on; one more item, for the index past the last."""
    return np.minimum.accumulate(np.append(values, _NEVER)[::-1])[::-1]


def _adjoin(records: _Records, block: Superblock) -> _Mask:
    """For each record but the first, whether it directly follows the one before."""
    earlier, later = records[:-1], records[1:]
    gap = later["position"] - earlier["end"]  # wraps around zero if they overlap
    wrapped = (later["position"] % np.uint64(block.capacity) == 0) & (gap < later["end"] - later["position"])
    adjoin: _Mask = (later["seq"] == earlier["seq"] + np.uint64(1)) & ((gap == 0) | wrapped)
    return adjoin


def _whole_batches(past: _Records, block: Superblock, mark: int | None) -> int:
    """How many of these records past the commit pointer form whole batches, without a gap.

    ``mark``: where the first one begins a batch; None if the damage may have taken the beginning.
    """
    if not len(past):
        return 0
    position, size = int(past["position"][0]), int(past["end"][0] - past["position"][0])
    if mark is not None and (
        past["batch_index"][0] or (position != mark and (position % block.capacity or position - mark >= size))
    ):
        return 0  # the record there is torn, so no later one was acknowledged
    index, count = past["batch_index"], past["batch_count"]
    ends = index + np.uint64(1) == count
    continues = (index[1:] == index[:-1] + np.uint64(1)) & (count[1:] == count[:-1])
    sound = _adjoin(past, block) & np.where(ends[:-1], index[1:] == 0, continues)
    length = len(past) if sound.all() else int(sound.argmin()) + 1
    last = np.flatnonzero(ends[:length])
    return int(last[-1]) + 1 if len(last) else 0


def _run_from(tail: Bound, live: _Records, block: Superblock) -> Bound:
    """Where the unbroken run of live records from the tail ends.

    A walk by numbers alone may end later: where the record at the next lap's start is damaged, one that was discarded and has its
    number may lie in the gap before it.
    """
    if not len(live) or live["seq"][0] != tail.next_seq:
        return tail
    length = int(np.append(_adjoin(live, block), False).argmin()) + 1
    return Bound(int(live["end"][length - 1]), int(live["seq"][length - 1]) + 1)


def _run_at_mark(remains: _Remains, block: Superblock) -> tuple[Bound, Bound]:
    """The unbroken run around the highest durable mark; else the first one after it that has records of the greatest epoch."""
    live, mark, epoch, start = remains.live, remains.mark, remains.epoch, remains.start
    if not len(live):
        return start, start
    breaks = np.flatnonzero(~_adjoin(live, block)) + 1
    runs = np.split(live, breaks)
    at = max((number for number, run in enumerate(runs) if run["position"][0] <= mark), default=0)
    if runs[at]["end"][-1] < mark and runs[at]["epoch"][-1] < epoch:
        at = next((number for number in range(at, len(runs)) if runs[number]["epoch"][-1] == epoch), at)
    run = runs[at]
    run = run[run["position"] >= max(0, int(run["end"][-1]) - block.capacity)]
    return Bound(int(run["position"][0]), int(run["seq"][0])), Bound(int(run["end"][-1]), int(run["seq"][-1]) + 1)


def _columns(records: Iterable[Found]) -> _Records:
    rows = (
        (header.seq, position, end, header.durable, header.epoch, header.batch_index, header.batch_count)
        for position, end, header in records
        if end <= POSITION_MAX
    )
    columns: _Records = np.fromiter(rows, _FIELDS)
    return columns
