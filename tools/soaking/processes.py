"""The bodies of the processes: the writer and its threads, the readers, and the floor beside them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pmwal
from pmwal.testing.process import using_engine
from pmwal.testing.stress.payloads import STEP, Payloads, first_ticket
from pmwal.testing.stress.violation import Violation
from soaking.board import PACE, SEEKS, SLOT_NS, Board, Series

NS = 1_000_000_000
SIZE_CLASS = 3  # of the payloads: 64 to 127 bytes
STORED_MAX = 192  # bytes of the ring for each record
TICK_SECONDS = 0.001
COMPUTING_SECONDS = 0.02  # at a time
COUNTED = 20  # times a second: the barriers
_ROUND = 5000
_LOOKED_AT = 10  # records after a seek
_FLOOR_PAGE = bytes(4096)


class Plan(NamedTuple):
    """What all processes know."""

    path: Path
    engine: str
    rate: int
    records: int
    computing: float
    payloads: Payloads
    control: str | None

    def data(self, seq: int) -> bytes:
        """The payload of a record."""
        return self.payloads.of(first_ticket(1, 0) + seq * STEP | SIZE_CLASS)

    def check(self, record: pmwal.Record, seq: int, who: str) -> None:
        """``Violation`` unless it is the record with this number, byte for byte."""
        if record.seq != seq:
            raise Violation(f"{who} was shown record {record.seq}; expected {seq}", "wrong-order")
        if record.data != self.data(seq):
            raise Violation(f"{who} was shown record {seq}, which is not what was appended", "changed-record")


# -- the writer


def write(plan: Plan, board: Board) -> None:
    """Append each record when it is due, or at once when it is late; a thread computes meanwhile, and one sleeps."""
    size = max(1 << 20, plan.records * STORED_MAX)
    with using_engine(plan.engine), pmwal.open(plan.path, size=size) as wal:
        assert isinstance(wal, pmwal.Wal)
        store = _mistaken(plan, wal)
        board["start_ns"] = start = time.perf_counter_ns() + NS // 2
        threading.Thread(target=_compute, args=(board, plan.computing), daemon=True).start()
        threading.Thread(target=sleep_and_note, args=(board, board.pauses), daemon=True).start()
        for number in range(plan.records):
            due = start + number * NS // plan.rate
            if (early := due - time.perf_counter_ns()) > 0:
                time.sleep(early / NS)
            if board["stop"]:
                break
            data = plan.data(number + 1)
            called = time.perf_counter_ns()
            seq = store(data)
            board.appends.note(called, time.perf_counter_ns())
            if seq != number + 1:
                raise Violation(f"the append of record {number + 1} returned {seq}", "wrong-order")
            if number % (plan.rate // COUNTED or 1) == 0:
                board["barriers"] = wal.stats().barriers
        board["barriers"] = wal.stats().barriers
    board["closed"] = len(board.appends) + 1


def _compute(board: Board, share: float) -> None:
    """Compute in Python for this share of the time, endlessly."""
    rounds = 0
    while share:
        begin = time.perf_counter()
        while (took := time.perf_counter() - begin) < COMPUTING_SECONDS:
            for _ in range(_ROUND):
                pass
            rounds += 1
            board["rounds"] = rounds
        if share < 1:
            time.sleep(took * (1 / share - 1))


def sleep_and_note(board: Board, pauses: Series) -> None:
    """Sleep for 1 ms, over and over, and note the longest pause between two ticks of each slot."""
    slot, longest, ticks = 0, (0, 0), 0
    last = time.perf_counter_ns()
    while True:
        time.sleep(TICK_SECONDS)
        now = time.perf_counter_ns()
        if now // SLOT_NS != slot:
            if longest[1]:
                pauses.note(*longest)
            slot, longest = now // SLOT_NS, (0, 0)
        longest = max(longest, (last, now), key=lambda pause: pause[1] - pause[0])
        last = now
        ticks += 1
        if pauses is board.pauses:
            board["ticks"] = ticks


# -- mistakes


def _mistaken(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    """``append``, with the mistake of the run."""
    return wal.append if plan.control is None else CONTROLS[plan.control].make(plan, wal)


def _leaks_memory(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    kept: list[bytes] = []

    def store(data: bytes) -> int:
        kept.append(os.urandom(4096) * 16)
        return wal.append(data)

    return store


def _leaks_descriptors(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    def store(data: bytes) -> int:
        seq = wal.append(data)
        if seq % (plan.rate // 2) == 0:
            os.open(plan.path, os.O_RDONLY | os.O_CLOEXEC)
        return seq

    return store


def _grows_slower(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    """Each append takes longer, at the end twice as long as there is time for."""
    step = 2 / plan.rate / plan.records

    def store(data: bytes) -> int:
        seq = wal.append(data)
        time.sleep(seq * step)
        return seq

    return store


def _holds_the_interpreter(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    """Each append also writes to the disk by a call that does not let other threads run."""
    write = ctypes.PyDLL(None).write
    other = os.open(plan.path.with_name("held"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def store(data: bytes) -> int:
        write(other, b"x", 1)
        return wal.append(data)

    return store


def _changes_a_byte(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    def store(data: bytes) -> int:
        late = wal.next_seq == plan.records // 2
        return wal.append(data[:-1] + bytes([data[-1] ^ 1]) if late else data)

    return store


def _loses_a_record(plan: Plan, wal: pmwal.Wal) -> Callable[[bytes], int]:
    """The last one is not stored."""
    return lambda data: wal.append(data) if wal.next_seq < plan.records else plan.records


class Control(NamedTuple):
    """A mistake of the writer, and the kind of the failure that must be found."""

    what: str
    kind: str
    make: Callable[[Plan, pmwal.Wal], Callable[[bytes], int]]


CONTROLS = {
    "leak-memory": Control("each append leaks 64 KiB", "leak-of-memory", _leaks_memory),
    "leak-descriptors": Control("two descriptors a second are never closed", "leak-of-descriptors", _leaks_descriptors),
    "grow-slower": Control("each append takes longer than the one before", "growing-latency", _grows_slower),
    "hold-interpreter": Control("no other thread runs while the disk is frozen", "held-interpreter", _holds_the_interpreter),
    "lost-record": Control("one append is acknowledged and not made", "missing-record", _loses_a_record),
    "changed-byte": Control("one record is not what was to be appended", "changed-record", _changes_a_byte),
}


# -- beside the writer


def read(plan: Plan, board: Board, number: int) -> None:
    """Follow the log to its end; now and then look up a record with a reader of its own, as one that starts would."""
    rng, who = random.Random(number), f"reader {number + 1}"
    with using_engine(plan.engine), _open(plan.path) as reader:
        due = 1
        while not (closed := board["closed"]) or due < closed:
            begun_at = due
            until = time.perf_counter_ns() + NS // SEEKS
            for record in reader.follow(due, timeout=1 / SEEKS):
                plan.check(record, due, who)
                board.saw(number, due)
                due += 1
                if time.perf_counter_ns() > until:
                    break
            if closed and due == begun_at:
                raise Violation(f"{who} was shown {due - 1} of {closed - 1} records", "missing-record")
            if due > 1:
                begin, seq = time.perf_counter_ns(), rng.randrange(1, due)
                with _open(plan.path) as other:
                    plan.check(other[seq], seq, who)
                    board.seeks[number].note(begin, time.perf_counter_ns())
                    for at, record in enumerate(islice(other.read(seq), _LOOKED_AT), seq):
                        plan.check(record, at, who)


def _open(path: Path) -> pmwal.Reader:
    """The log, once it is there."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            reader = pmwal.open(path, "r")
            assert isinstance(reader, pmwal.Reader)
            return reader
        time.sleep(0.01)


def write_beside(plan: Plan, board: Board) -> None:
    """The floor: what a plain durable write takes on this disk and a pause in a process that does nothing else, meanwhile."""
    threading.Thread(target=sleep_and_note, args=(board, board.floor_pauses), daemon=True).start()
    fd = os.open(plan.path.with_name("floor"), os.O_RDWR | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC, 0o600)
    due = time.perf_counter_ns()
    while True:
        due = max(due + NS // PACE, time.perf_counter_ns())
        time.sleep(max(0, due - time.perf_counter_ns()) / NS)
        called = time.perf_counter_ns()
        os.pwrite(fd, _FLOOR_PAGE, 0)
        board.floor.note(called, time.perf_counter_ns())
