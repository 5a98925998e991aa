"""The writer: threads that make every kind of call, and note each in the journal before and after it."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pmwal
from pmwal.storage.lock import WriterLock
from pmwal.testing.process import using_engine
from pmwal.testing.stress.full_disk import limit_files, refuse_creation, unlimit_files
from pmwal.testing.stress.journal import Journal, Op, Opened
from pmwal.testing.stress.payloads import STEP, TICKETED, Payloads, first_ticket
from pmwal.testing.stress.plan import LifePlan
from pmwal.testing.stress.reader import Board
from pmwal.testing.stress.violation import Violation

WAIT_SECONDS = 300.0  # for space, with on_full="wait"
SWITCH_SECONDS = 0.0002  # frequent switches: more interleavings of calls
ALONE_SHARE = 0.3  # of rollbacks that no other call overlaps
_PAUSE = 0.002  # seconds by which planted mistakes widen the window for a kill, and a timeout that must not expire


class Aborted(Exception):
    """Raised in the block of a batch or reservation to abandon it."""


class Gate:
    """Divides the calls into phases with at most one rollback, so that the journal shows what each can have discarded.

    While a rollback waits to be alone, only calls that free space may enter, because others may wait for that. ``turns`` counts
    the starts and ends of rollbacks: while it is even and unchanged, no rollback has discarded what was stored.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._ending = self._closed = self._alone = False
        self.phase = self.turns = 0

    @contextlib.contextmanager
    def shared(self, *, frees: bool = False) -> Iterator[int]:
        """Make a call that may overlap others; yields the phase."""
        with self._changed:
            while self._alone or (self._closed and not frees):
                self._changed.wait()
            self._inside += 1
        try:
            yield self.phase
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def ending(self) -> Iterator[int]:
        """Make the rollback of this phase, which ends with the block. Others may overlap it until ``wait_until_alone``."""
        with self._changed:
            while self._ending:
                self._changed.wait()
            self._ending = True
            self.turns += 1
        try:
            yield self.phase
        finally:
            with self._changed:
                self._ending = self._closed = self._alone = False
                self.phase += 1
                self.turns += 1
                self._changed.notify_all()

    def wait_until_alone(self) -> None:
        """Wait until no other call is under way, and keep others out until the phase ends."""
        with self._changed:
            self._closed = True
            while self._inside:
                self._changed.wait()
            self._alone = True


class Worker:
    """One thread. ``_last`` is the number of the last record it stored, ``_last_turn`` the gate's ``turns`` at that time."""

    def __init__(
        self, plan: LifePlan, number: int, wal: pmwal.Wal, journal: Journal, payloads: Payloads, gate: Gate, stop: threading.Event
    ) -> None:
        self._plan = plan
        self._wal = wal
        self._lane = journal.lane(number)
        self._payloads = payloads
        self._gate = gate
        self._stop = stop
        self._rng = random.Random(f"{plan.seed} {number}")
        self._ticket = first_ticket(plan.number, number)
        self._last = self._last_turn = 0

    def work(self) -> None:
        """Make random calls until the life ends or the lane is full."""
        actions = [action for action, _ in WEIGHTS]
        weights = [weight for _, weight in WEIGHTS]
        while not self._stop.is_set() and not self._lane.full:
            for action in self._rng.choices(actions, weights, k=50):
                action(self)
                if self._stop.is_set() or self._lane.full:
                    break

    def make_room(self) -> None:
        """Free the front regularly, for calls that wait for space."""
        while not self._stop.is_set() and not self._lane.full:
            if self._wal.free < self._wal.capacity // 2:
                self.truncate()
            time.sleep(0.001)

    # -- storing

    def _take(self, count: int) -> int:
        """Tickets for this many records of one size class."""
        few = count > 1
        size_class = min(self._rng.randint(0, self._plan.log.class_max - 3 * few), self._rng.randint(0, 12))
        ticket = self._ticket | size_class
        self._ticket += count * STEP
        return ticket

    def _data(self, ticket: int) -> bytes:
        data = self._payloads.of(ticket)
        if self._plan.control == "changed-byte" and data and ticket // STEP % 20 == 0:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def _store(self, op: Op, count: int, durable: bool, call: Callable[[int, int], tuple[int, int]]) -> None:
        """Note the intent, make the call, note the result. ``WalFull`` is expected with on_full="raise"."""
        ticket = self._take(count)
        full = False
        with self._gate.shared() as phase:
            turn = self._gate.turns
            self._lane.intend(op, phase, durable=durable, ticket=ticket, count=count)
            if self._plan.control == "early-ack":
                first = self._wal.next_seq
                self._lane.done(first, first + count - 1)
                time.sleep(_PAUSE)
                call(ticket, count)
                return
            try:
                first, last = call(ticket, count)
            except pmwal.WalFull:
                if self._plan.on_full != "raise":
                    raise
                self._lane.refused()
                full = True
            else:
                self._lane.done(first, last)
                self._last, self._last_turn = last, turn
        if full:
            self.truncate()

    def append(self) -> None:
        """Append one record, durable by policy or by argument."""
        commit = self._rng.choice((None, None, None, True, False))
        durable = self._plan.commit == "each" if commit is None else commit

        def call(ticket: int, _: int) -> tuple[int, int]:
            seq = self._wal.append(self._data(ticket), kind=self._payloads.kind(ticket), commit=commit)
            return seq, seq

        self._store(Op.APPEND, 1, durable, call)

    def extend(self) -> None:
        """Append several records with ``extend``."""

        def call(ticket: int, count: int) -> tuple[int, int]:
            items = [self._data(ticket + index * STEP) for index in range(count)]
            kind = self._payloads.kind(ticket)
            if self._plan.control != "split-batch":
                return self._wal.extend(items, kind=kind)
            seqs = []
            for item in items:
                seqs.append(self._wal.append(item, kind=kind))
                time.sleep(_PAUSE)
            return seqs[0], seqs[-1]

        self._store(Op.EXTEND, self._rng.randint(2, 12), self._plan.commit == "each", call)

    def batch(self) -> None:
        """Append several records with ``batch``."""

        def call(ticket: int, count: int) -> tuple[int, int]:
            with self._wal.batch() as batch:
                self._stage(batch, ticket, count)
            return batch.first, batch.last

        self._store(Op.BATCH, self._rng.randint(1, 12), self._plan.commit == "each", call)

    def _stage(self, batch: pmwal.Batch, ticket: int, count: int) -> None:
        for index in range(count):
            batch.append(self._data(ticket + index * STEP), kind=self._payloads.kind(ticket))

    def reserve(self) -> None:
        """Append one record with ``reserve``."""

        def call(ticket: int, _: int) -> tuple[int, int]:
            data = self._data(ticket)
            reservation = self._wal.reserve(len(data), kind=self._payloads.kind(ticket))
            with reservation as view:
                view[:] = data
            return reservation.seq, reservation.seq

        self._store(Op.RESERVE, 1, self._plan.commit == "each", call)

    def abort(self) -> None:
        """Abandon a batch or a reservation: nothing of it may ever be seen."""
        count = self._rng.randint(1, 5)
        ticket = self._take(count)
        with self._gate.shared() as phase:
            self._lane.intend(Op.ABORT, phase, ticket=ticket, count=count)
            with contextlib.suppress(Aborted, pmwal.WalFull):
                if count == 1:
                    data = self._data(ticket)
                    with self._wal.reserve(len(data), kind=self._payloads.kind(ticket)) as view:
                        view[:] = data
                        raise Aborted
                with self._wal.batch() as batch:
                    self._stage(batch, ticket, count)
                    if self._plan.control != "kept-batch":
                        raise Aborted
            self._lane.refused()

    # -- durability, front and end

    def commit(self) -> None:
        """Commit; the result must cover this thread's own records."""
        with self._gate.shared() as phase:
            self._lane.intend(Op.COMMIT, phase)
            through = self._wal.commit()
            self._lane.done(through)
            if self._stands and through < self._last:
                raise Violation(f"commit() returned {through} after record {self._last} was stored", "commit-too-early")

    def wait(self) -> None:
        """Wait until this thread's last record is durable. The timeout is for future records; this one is stored already."""
        with self._gate.shared() as phase:
            if self._last and self._stands:
                self._lane.intend(Op.WAIT, phase, argument=self._last)
                durable = self._wal.wait_durable(self._last, timeout=_PAUSE)
                self._lane.done()
                if not durable and self._stands:
                    raise Violation(f"wait_durable({self._last}) timed out, although the record is there", "commit-too-early")

    @property
    def _stands(self) -> bool:
        """Whether no rollback can have discarded this thread's last record."""
        return self._gate.turns == self._last_turn and self._last_turn % 2 == 0

    def truncate(self) -> None:
        """Truncate part of the log. Another thread may have truncated more meanwhile."""
        with self._gate.shared(frees=True) as phase:
            first, after = self._wal.first_seq, self._wal.next_seq
            before = first + int((after - first) * self._rng.uniform(0.2, 1.05))
            before = min(before, after)
            self._lane.intend(Op.TRUNCATE, phase, argument=before)
            if self._plan.control == "ignored-truncate":
                self._lane.done(before)
                return
            try:
                found = self._wal.truncate(before)
            except ValueError:
                self._lane.refused()
                return
            self._lane.done(found)
            if found < before:
                raise Violation(f"truncate(before={before}) returned {found}", "wrong-bounds")

    def rollback(self) -> None:
        """Roll back some of the newest records, alone or while others make calls; finally note ``next_seq``."""
        with self._gate.ending() as phase:
            if self._rng.random() < ALONE_SHARE:
                self._gate.wait_until_alone()
            after = self._wal.next_seq - 1 - self._rng.randint(0, min(len(self._wal), 40))
            self._lane.intend(Op.ROLLBACK, phase, argument=after)
            try:
                found = after + 1 if self._plan.control == "ignored-rollback" else self._wal.rollback(after)
            except ValueError:
                self._lane.refused()
                if self._wal.first_seq <= after + 1:
                    raise
            else:
                self._lane.done(found)
                if found != after + 1:
                    raise Violation(f"rollback(after={after}) returned {found}", "wrong-bounds")
                if self._plan.control == "repeated-rollback":
                    time.sleep(_PAUSE)
                    with contextlib.suppress(ValueError):
                        self._wal.rollback(after)
            self._gate.wait_until_alone()
            self._lane.intend(Op.NEXT_SEQ, phase)
            self._lane.done(self._wal.next_seq)

    # -- reading

    def read(self) -> None:
        """Read some records. They may disappear meanwhile, but not differ from what was stored."""
        first, after = self._wal.first_seq, self._wal.next_seq
        start = self._rng.randint(first, after)
        due = start
        try:
            for record in self._wal.read(start, start + 20):
                if record.seq != due:
                    raise Violation(f"read() gave record {record.seq}; expected {due}", "wrong-order")
                due += 1
                if len(record.data) >= TICKETED and self._payloads.genuine(record.data) is None:
                    raise Violation(f"record {record.seq}, read by its writer, is not what any call stored", "changed-record")
        except pmwal.Overrun:
            pass

    def look_up(self) -> None:
        """Look up one record. It may be gone, but not be another one."""
        seq = self._rng.randint(self._wal.first_seq, self._wal.next_seq)
        with contextlib.suppress(IndexError, pmwal.Overrun):
            record = self._wal[seq]
            if record.seq != seq:
                raise Violation(f"wal[{seq}] gave record {record.seq}", "wrong-order")
            if len(record.data) >= TICKETED and self._payloads.genuine(record.data) is None:
                raise Violation(f"record {seq}, looked up by its writer, is not what any call stored", "changed-record")

    def open_again(self) -> None:
        """Open a second writer, which must be refused without harm to the first."""
        try:
            pmwal.open(self._plan.log.path, "r+").close()
        except pmwal.WalLocked as error:
            if error.pid != os.getpid():
                raise Violation(f"WalLocked names process {error.pid}; the writer is {os.getpid()}", "wrong-owner") from error
        else:
            raise Violation("the log was opened for writing a second time", "two-writers")


WEIGHTS: tuple[tuple[Callable[[Worker], None], float], ...] = (
    (Worker.append, 60),
    (Worker.extend, 8),
    (Worker.batch, 6),
    (Worker.reserve, 6),
    (Worker.abort, 3),
    (Worker.commit, 5),
    (Worker.wait, 2),
    (Worker.read, 5),
    (Worker.look_up, 2),
    (Worker.open_again, 0.3),
    (Worker.truncate, 0.3),
    (Worker.rollback, 0.3),
)


def live(plan: LifePlan, journal: Journal, payloads: Payloads, board: Board) -> None:
    """Live until the kill, or until the time is over or a lane is full; then close the log."""
    with using_engine(plan.engine):
        _live(plan, journal, payloads, board)


def _run_short(plan: LifePlan) -> None:
    """Leave no space for this life: a creation is refused, and a log that is there is used as always."""
    if plan.space == "file size limit":
        limit_files()
    refuse_creation(plan.log.path.with_suffix(".refused"))
    if plan.space == "file size limit" and not plan.log.path.exists():
        unlimit_files()


def _live(plan: LifePlan, journal: Journal, payloads: Payloads, board: Board) -> None:
    if plan.control == "unlocked-writer":
        WriterLock.announce = lambda self: True  # type: ignore[method-assign]
    sys.setswitchinterval(SWITCH_SECONDS)
    if plan.space != "plenty":
        _run_short(plan)
    start_ns = time.perf_counter_ns()
    wal = pmwal.open(
        plan.log.path,
        size=plan.log.capacity,
        align=plan.log.alignment,
        medium=plan.medium,
        ordering=plan.ordering,
        commit=plan.commit,
        on_full=plan.on_full,
        timeout=WAIT_SECONDS,
    )
    assert isinstance(wal, pmwal.Wal)
    if plan.readable:
        plan.log.path.chmod(0o644)
    board.serve(plan.number)
    end_ns = time.perf_counter_ns()
    journal.opened(Opened(wal.first_seq, wal.next_seq, start_ns, end_ns, wal.recovery.bytes_scanned))

    stop, stop_making_room, ended = threading.Event(), threading.Event(), threading.Event()
    gate = Gate()
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        ended.set()

    def start(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, args=(work,))
        thread.start()
        return thread

    workers = [Worker(plan, number, wal, journal, payloads, gate, stop) for number in range(plan.threads)]
    room = Worker(plan, plan.threads, wal, journal, payloads, gate, stop_making_room)
    maker = start(room.make_room) if plan.on_full == "wait" else None
    threads = [start(worker.work) for worker in workers]
    ended.wait(plan.seconds if plan.clean else None)
    board.serve(0)
    stop.set()
    for thread in threads:
        thread.join()
    stop_making_room.set()
    if maker is not None:
        maker.join()
    if failures:
        raise failures[0]
    wal.close()
    journal.closed()
