"""The engine in Python: stores records, makes them durable, moves the pointer, the tail and the epoch.

Invariants
----------
Those marked [c] are checked at run time in test builds: see ``pmwal/writing/checks.py``.

- [c] ``tail <= durable <= head``: where the log begins, how far it is durable, how far it is stored. They and the epoch live in one
  immutable ``State`` that is replaced by one assignment, so an exception between any two instructions leaves either the old
  state or the new one.
- [c] A state only grows, except that a new epoch may move the head back.
- [c] A slot names only what a completed barrier has made durable. Its generation is one more than that of the last slot whose own
  barrier completed, so an interrupted slot is stored again in its own place.
- [c] What a slot starts (an epoch), discards (a rollback) or frees (a tail) takes effect in ``State`` only after two slots
  carry it, in different pages, each followed by its own barrier: losing either one loses nothing.
- [c] Space is reused only below a tail that has taken effect.
- [c] ``durable`` in a record is what was durable before its store began. It never names what a barrier still under way will make
  durable, because the kernel may write the record's page before that barrier completes.
- A store that ended with an exception may have left whole records past the head. Before anything else is stored or made
  durable a new epoch begins, in which they no longer validate.
- A barrier that failed is noted before its exception leaves the engine, because an interrupt may take the place of the exception.
- [c] The index names only records between tail and head, in order. Entries are dropped before the tail or the epoch changes.
- A log that moves to another file does so in one step, under ``guard``. What reads the file that it had may read it to its end:
  nothing changes there any more.

Locks: a thread holds ``guard`` while it stores or changes the state, and ``writing`` while it intends to store and nobody else may
take its numbers or its space (a batch, a reserve, a wait for space). Order: ``writing`` before ``guard``.

This is the reference. ``pmwal.writing.native_engine`` derives from it and does in C what touches the medium: ``store``, ``commit``
and the methods under "the medium" below. The rules (epochs, tails, stray records, changes carried by two slots) are here only.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from pmwal.errors import Overrun, PmwalError, WalFull
from pmwal.format.epochs import add_start
from pmwal.format.index import SparseIndex
from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    HEADER,
    LINE,
    POINTER_LAG_MAX,
    POSITION_MAX,
    SEQ_MAX,
    SLOT_CLEAN,
    SLOT_PIPELINED,
    TIME_MAX,
    TIME_MIN,
    Header,
    Slot,
    Superblock,
    encode_header,
    encode_slot,
    place_record,
    record_size,
    slot_index,
    slot_offset,
)
from pmwal.format.ring import Found
from pmwal.format.rows import Rows
from pmwal.format.scan import scan_for
from pmwal.latency import SAMPLE_STEP, LatencyHistogram, LatencyRecorder
from pmwal.reading.walk import View, Walker, gone, missing, rolled_back
from pmwal.records import Bound
from pmwal.storage.live_page import LiveBounds, LivePage
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import Seam
from pmwal.storage.seek_points import SeekPoints

_PREFETCH = 1 << 20  # bytes ahead of the head that are kept resident
_FREE_AHEAD_MAX = 1 << 20  # bytes: overwriting frees an eighth of the ring at a time, at most this


class State(NamedTuple):
    """The bounds of the log and its epoch. Each bound is a position and the number of the first record after it."""

    tail: Bound
    head: Bound
    durable: Bound
    epoch: int
    epoch_first_seq: int


class Need(NamedTuple):
    """What storing some records takes: their count, their bytes without and with headers and padding, the log's end after them."""

    records: int
    payload_bytes: int
    stored_bytes: int
    end: int


class Ring:
    """The ring of one file, for what reads it. It stays mapped while somebody has this object, also when the log has moved."""

    __slots__ = ("__weakref__", "block", "mapping")

    def __init__(self, block: Superblock, mapping: Mapping) -> None:
        self.block = block
        self.mapping = mapping


class Engine:
    """One log, opened for writing. The caller checks arguments, forks and closing, and turns ``OSError`` into poison."""

    name = "python"
    lock_type: Callable[[], Any] = staticmethod(threading.RLock)  # reentrant, and fit for threading.Condition
    upkeep_due = False  # the fast path found that it is time for what ``Upkeep`` does
    headroom = 0  # bytes of the ring that the handle leaves free for copies of retained records

    def __init__(
        self,
        mapping: Mapping,
        block: Superblock,
        seam: Seam,
        *,
        pipelined: bool,
        state: State,
        slot: Slot,
        index: Sequence[Bound] = (),
        starts: bytes = b"",
        moving: Engine | None = None,
    ) -> None:
        """Take over a log that is durable up to ``state.head``. ``start_first_epoch`` must follow before anything is stored.

        ``starts``: the epochs that are known, as ``pack_starts`` packs them. ``moving``: the engine that is to continue with this
        file, whose locks and counters this one has.
        """
        self.ring = Ring(block, mapping)
        self.mapping = mapping
        self.block = block
        self._scan = scan_for(block)
        self.pipelined = pipelined
        self.index = self._new_index(index)
        self._starts = starts
        if moving is None:
            self.writing = self.lock_type()
            self.guard = self.lock_type()
            self.changed = threading.Condition(self.guard)
        else:
            self.writing, self.guard, self.changed = moving.writing, moving.guard, moving.changed
        self.seam = seam
        self._live = LivePage(mapping, seam)
        self._seek_points = SeekPoints(mapping, block, self._live.open_id)
        self.timing_step = 1 if mapping.medium.flush == "msync" else SAMPLE_STEP  # one commit in this many is timed
        self._begin(state, slot)
        if moving is not None:
            mapping.barriers = moving.mapping.barriers
            self._continue(moving)

    def _new_index(self, entries: Sequence[Bound]) -> SparseIndex:
        """Where some records start. An engine may keep it in its own way."""
        return SparseIndex(entries)

    def _begin(self, state: State, slot: Slot) -> None:
        """Set what changes while the log is open."""
        self.state = state
        self.failure: OSError | None = None  # of a barrier: it is final
        self.generation = slot.generation  # of the newest slot
        self.pointer = slot.commit_position  # what the newest slot names
        self.appends = self.stored_bytes = self.commits = self.slots_written = 0
        self._latencies = LatencyRecorder()
        self._stray_records = False  # there may be whole records past the head
        self._stray_slot = False  # the newest slot may differ from the state
        self._prefetched = state.head.position

    def _continue(self, moving: Engine) -> None:
        """Count on from what another engine has counted."""
        self.appends, self.stored_bytes = moving.appends, moving.stored_bytes
        self.commits, self.slots_written = moving.commits, moving.slots_written
        self._latencies = moving._latencies
        self.headroom = moving.headroom

    def moving(self, mapping: Mapping, block: Superblock, state: State, slot: Slot, index: Sequence[Bound]) -> Engine:
        """An engine for another file of this log, for ``move_to``. The caller holds ``guard``."""
        return type(self)(
            mapping,
            block,
            self.seam,
            pipelined=self.pipelined,
            state=state,
            slot=slot,
            index=index,
            starts=self._starts,
            moving=self,
        )

    def move_to(self, other: Engine) -> Engine:
        """Continue with the file of ``other``, which ``moving`` made. The caller holds ``guard``.

        What it returns has the file that this engine had, to end it, and keeps it mapped.
        """
        before = copy.copy(self)
        before.halt()  # first: nothing may be stored there once ``guard`` is released
        vars(self).update(vars(other))  # one step, which no interrupt divides
        return before

    def let_go(self) -> None:
        """Nothing uses the file any more but what reads its ring."""

    @property
    def barriers(self) -> int:
        """Barriers since the log was opened."""
        return self.mapping.barriers

    @property
    def latency(self) -> LatencyHistogram:
        """How long commits took."""
        return self._latencies.snapshot(self.timing_step)

    def halt(self) -> None:
        """The handle takes no more calls that store. An engine with a fast path past the handle closes it."""

    def note_upkeep(self) -> None:
        """``Upkeep`` begins. An engine with a fast path past the handle measures from now on when it is due again."""

    def yield_at_barriers(self) -> None:
        """Let other threads run Python during every barrier, also where it would be faster to keep them waiting."""

    def wait_for_change(self, timeout: float | None) -> None:
        """Wait until something is stored, committed or freed, or the time is over. The caller holds ``guard`` once."""
        self.changed.wait(timeout)

    # -- storing: the caller holds ``writing`` and ``guard``

    def need_of(self, sizes: Sequence[int] | Rows) -> Need:
        """What records with payloads of these sizes, or of these rows, take."""
        if isinstance(sizes, Rows):
            return self._need_of_rows(sizes)
        stored = [record_size(length, self.block.alignment) for length in sizes]
        return Need(len(sizes), sum(sizes), sum(stored), self._end_after(stored))

    def _need_of_rows(self, rows: Rows) -> Need:
        """In constant time, however many there are."""
        capacity, size = self.block.capacity, record_size(rows.length, self.block.alignment)
        position = self.state.head.position
        before_gap = min(rows.records, (capacity - position % capacity) // size)
        rest = rows.records - before_gap
        end = position + before_gap * size
        if rest:
            end = place_record(end, size, capacity) + rest * size  # past the next gap only when they cannot fit anyway
        return Need(rows.records, rows.records * rows.length, rows.records * size, end)

    def check_limits(self, need: Need) -> None:
        """``WalFull`` where a number or a position would pass the limits of the format."""
        if self.state.head.next_seq + need.records - 1 > SEQ_MAX or need.end > POSITION_MAX:
            raise WalFull("the log has used up its sequence numbers or positions; start a new one")

    def _end_after(self, stored: Sequence[int]) -> int:
        position, capacity = self.state.head.position, self.block.capacity
        for size in stored:
            position = place_record(position, size, capacity) + size
        return position

    def store(self, payloads: Sequence[bytes], kinds: Sequence[int]) -> tuple[int, int]:
        """Store one batch at the head and publish it; its first and last number. There must be room for it."""
        self._settle()
        state, block = self.state, self.block
        time_ns = min(max(self.seam.now_ns(), TIME_MIN), TIME_MAX)
        position, seq = state.head
        self._prefetch(position)
        self._stray_records = True
        records: list[tuple[Bound, int]] = []  # where each starts and ends
        for place, payload in enumerate(payloads):
            size = record_size(len(payload), block.alignment)
            position = place_record(position, size, block.capacity)
            header = Header(
                crc=0,
                length=len(payload),
                seq=seq,
                durable=state.durable.position,
                time_ns=time_ns,
                epoch=state.epoch,
                kind=kinds[place],
                flags=0,
                batch_index=place,
                batch_count=len(payloads),
            )
            self._store_record(position, header, payload)
            records.append((Bound(position, seq), position + size))
            position, seq = position + size, seq + 1
        # They become part of the log in one assignment.
        head = Bound(position, seq)
        self.state = self.state._replace(head=head)
        self._stray_records = False
        self.appends += len(payloads)
        self.stored_bytes += sum(map(len, payloads))
        for start, end in records:
            self.index.add(start)
            self._seek_points.note(start, end)
        self._live.publish(head, time_ns)
        self.changed.notify_all()
        return state.head.next_seq, seq - 1

    def store_rows(self, rows: Rows, kind: int) -> tuple[int, int]:
        """Like ``store``, for the rows of an array."""
        return self.store(rows.payloads(), (kind,) * rows.records)

    def _store_record(self, position: int, header: Header, payload: bytes) -> None:
        """Store one record, with its padding, at this position."""
        block = self.block
        padding = bytes(-(HEADER + len(payload)) % block.alignment)
        stored = encode_header(header, payload, block.uuid, position) + payload + padding
        self.mapping.store(block.ring_offset + position % block.capacity, stored)

    def _prefetch(self, position: int) -> None:
        """Keep the pages ahead of the writer resident: a cold page costs a read before its first store."""
        if position + _PREFETCH // 2 < self._prefetched:
            return
        offset = position % self.block.capacity
        length = min(_PREFETCH, self.block.capacity - offset)
        self.mapping.prefetch(self.block.ring_offset + offset, length)
        if length < _PREFETCH:
            self.mapping.prefetch(self.block.ring_offset, min(_PREFETCH - length, self.block.capacity))
        self._prefetched = position + _PREFETCH

    # -- durability: the caller holds ``guard``

    def commit(self) -> None:
        """Make all that is published durable. In a strict log the slot names it; in a pipelined one it may lag."""
        self._settle()
        head = self.state.head
        if head.position == self.state.durable.position:
            return
        start = None if self.commits % self.timing_step else self.seam.monotonic_ns()
        self._flush_records()
        lag = head.position - self.pointer
        if not self.pipelined or lag > POINTER_LAG_MAX:
            self._write_slot(self.state._replace(durable=head))
        self._become(self.state._replace(durable=head))
        self.commits += 1
        if start is not None:
            took = self.seam.monotonic_ns() - start
            self._latencies.add(took)
            self._live.count(took)

    def catch_up(self) -> None:
        """Let the pointer catch up with what is durable."""
        self.commit()
        if self.pointer != self.state.durable.position:
            self._write_slot(self.state)
            self._become(self.state)

    def start_first_epoch(self, end: Bound, announce: Callable[[], bool]) -> None:
        """Begin the epoch of this open at ``end``. The live page names this writer only then; ``announce`` locks its byte."""
        self._check_epochs()
        self._live.begin(self.timing_step, announce)
        self._seek_points.fill(self.index.entries)
        self.start_epoch(end)

    def start_epoch(self, end: Bound) -> None:
        """Begin a new epoch at ``end``, which is the head or, for a rollback, before it."""
        self._flush_records()
        state = self.state
        self._check_epochs()
        self._seek_points.erase_from(end.next_seq)  # before the epoch's slots: see its invariants
        self._change(state._replace(head=end, durable=end, epoch=state.epoch + 1, epoch_first_seq=end.next_seq))
        self._starts = add_start(self._starts, state.epoch + 1, end.next_seq)
        self._stray_records = False

    def move_tail(self, tail: Bound) -> None:
        """Free the space before ``tail``."""
        self.commit()
        self.index.drop_before(tail.next_seq)  # first: an interrupt may keep this from being reached after the change
        self._change(self.state._replace(tail=tail))

    def roll_back(self, end: Bound) -> None:
        """Discard everything from ``end`` on. The caller holds ``writing`` too."""
        self._settle()
        self.index.drop_from(end.next_seq)  # first, as in ``move_tail``: an entry of a discarded record would mislead ``find``
        self.start_epoch(end)

    def close(self) -> None:
        """Commit what is pending and write the slot that says "closed cleanly"."""
        self.commit()
        self._write_slot(self.state, SLOT_CLEAN)

    def retire(self) -> None:
        """Take the writer's name off the live page."""
        self._live.retire()

    def _settle(self) -> None:
        """Undo what an exception may have left on the medium."""
        if self._stray_slot:
            self._change(self.state)
        if self._stray_records:
            self.start_epoch(self.state.head)

    def _change(self, state: State) -> None:
        """Let a state with another tail or epoch take effect, once two slots carry it."""
        self._stray_slot = True
        self._write_slot(state)
        self._write_slot(state)
        self._become(state)
        self._stray_slot = False

    # -- the medium

    def _flush_records(self) -> None:
        """Barrier over all that is published and not yet durable."""
        start, end = self.state.durable.position, self.state.head.position
        if start == end:
            return
        base, capacity = self.block.ring_offset, self.block.capacity
        first, length = start % capacity, end - start
        if first + length <= capacity:
            self._barrier((base + first, base + first + length))
        else:
            self._barrier((base + first, base + capacity), (base, base + first + length - capacity))

    def _write_slot(self, state: State, flags: int = 0) -> None:
        """Store this state in the next slot, and wait for its barrier."""
        self._check_generations()
        slot = Slot(
            epoch=state.epoch,
            generation=self.generation + 1,
            epoch_first_seq=state.epoch_first_seq,
            commit_position=state.durable.position,
            commit_seq=state.durable.next_seq - 1,
            tail_position=state.tail.position,
            tail_seq=state.tail.next_seq,
            flags=flags | (SLOT_PIPELINED if self.pipelined else 0),
        )
        index = slot_index(slot.generation, self.block.control_pages)
        offset = slot_offset(index)
        self.mapping.store(offset, encode_slot(slot, self.block.uuid, index))
        self._barrier((offset, offset + LINE))
        self.generation, self.pointer = slot.generation, slot.commit_position
        self.slots_written += 1

    def _barrier(self, *ranges: tuple[int, int]) -> None:
        try:
            self.mapping.barrier(*ranges)
        except OSError as error:  # CPython notices no signal between the failed call and the next statement
            self.failure = error
            raise

    def _check_epochs(self) -> None:
        if self.state.epoch >= EPOCH_MAX:
            raise WalFull("the log has used up its epochs; start a new one")

    def _check_generations(self) -> None:
        if self.generation >= GENERATION_MAX:
            raise WalFull("the log has used up its slot generations; start a new one")

    def _become(self, state: State) -> None:
        """Let a state take effect, and show it."""
        self.state = state
        self._live.show(LiveBounds(state.tail, state.durable, state.epoch, state.epoch_first_seq), state.head)
        self.changed.notify_all()

    # -- finding records

    @property
    def view(self) -> View:
        """What this process's readers may read: all that is published."""
        state = self.state
        return View(state.tail, state.head, state.epoch, state.epoch_first_seq, None, self._starts)

    def look(self) -> tuple[Ring, View]:
        """The ring of the log's file, and what this process's readers may read there."""
        while True:
            ring, view = self.ring, self.view
            if ring is self.ring:
                return ring, view

    def find(self, seq: int) -> Found:
        """The record with this number; ``Overrun`` when it is not there any more, ``CorruptWal`` when it is damaged."""
        return self.locate(seq)[1]

    def locate(self, seq: int) -> tuple[Ring, Found]:
        """``find``, and the ring in which it was found."""
        while True:
            with self.guard:
                ring, view, scan = self.ring, self.view, self._scan
                near = self.index.floor(seq, view.tail)
            if seq < view.tail.next_seq:
                raise gone(seq, view.tail)
            if seq >= view.end.next_seq:
                raise rolled_back(seq)
            walker = Walker(ring.block, ring.mapping.load, self.explain, scan=scan, now=partial(self._now, ring))
            try:
                return ring, walker.locate(view, near, seq)
            except Overrun:
                if self.ring is ring:
                    raise  # else the log has another file by now

    def _now(self, ring: Ring) -> View | None:
        now, view = self.look()
        return view if now is ring else None

    def bound(self, seq: int) -> Bound:
        """Where the record with this number starts, or the next one that is stored; raises what ``find`` raises."""
        head = self.state.head
        return head if seq == head.next_seq else Bound(self.find(seq).position, seq)

    def check_kept(self, seq: int, view: View) -> None:
        """Raise ``Overrun`` when this record of an earlier view has been rolled back.

        Its bytes may still be in place. The record that has its number now, if any, is of a later epoch.
        """
        if self.state.epoch != view.epoch and self.find(seq).header.epoch > view.epoch:
            raise rolled_back(seq)

    def free_ahead(self, end: int) -> Bound:
        """The tail that lets the log end at ``end`` with some room to spare, for ``on_full="overwrite"``."""
        view, capacity = self.view, self.block.capacity
        wanted = end - capacity + min(capacity // 8, _FREE_AHEAD_MAX)
        return Walker(self.block, self.mapping.load, self.explain, scan=self._scan).end_from(view, wanted)

    def explain(self, at: Bound, view: View) -> PmwalError:
        """Why the record that a walk over this view expected at this bound is not there."""
        state = self.state
        return missing(self.block, at, state.tail, cut=state.epoch > view.epoch)
