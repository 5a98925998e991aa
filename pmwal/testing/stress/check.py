"""The contents that a log may have after a life, derived from the journal of its writer, and the check of a log against them.

Invariants
----------
- The expected contents follow from the journal, the contents before the life, and the seed; never from the log itself.
- A call that returned has taken effect, committed or not: a kill keeps the page cache, so everything stored is there.
- A call under way at the kill has taken effect as a whole or not at all. Each thread has at most one.
- A rollback discards the records with higher numbers whose calls returned before it began, and none whose call began after it
  returned. A call that overlapped it and got a higher number came before or after it as a whole: its presence shows which. A
  rollback under way at the kill has taken effect or not: there are two expectations, and one must be met.

This oracle differs from ``crash.disk.oracle``, where a power cut may take everything that was not acknowledged. Here nothing that
was stored may be lost, but threads overlap freely, so the order and the numbers of their calls must be derived from times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pmwal import Record
from pmwal.testing.stress.journal import STORES, Entries, Op, Opened, State
from pmwal.testing.stress.payloads import STEP, Payloads, life_of
from pmwal.testing.stress.violation import Violation


@dataclass(frozen=True)
class Contents:
    """The contents of the log after the previous life: the tickets of its records."""

    first_seq: int = 1
    tickets: tuple[int, ...] = ()

    @property
    def next_seq(self) -> int:
        """The sequence number of the next record."""
        return self.first_seq + len(self.tickets)


class Look(NamedTuple):
    """The contents of the log now."""

    first_seq: int
    next_seq: int
    records: list[Record]
    used: int
    capacity: int
    case: str  # row of docs/recovery.md


class Unsure(NamedTuple):
    """A call that may have taken effect, as a whole: its first record then has a number from ``lowest`` to ``highest``."""

    ticket: int
    records: int
    lowest: int
    highest: float

    def index_of(self, record: Record, payloads: Payloads, *, oldest: bool) -> int | None:
        """The index in the call that this record can have: 0, or any if it is the oldest record, because the front was freed."""
        for index in range(self.records if oldest else 1):
            if self.lowest <= record.seq - index <= self.highest and _is(record, self.ticket + index * STEP, payloads):
                return index
        return None


@dataclass
class Expectation:
    """The contents that the acknowledgements allow."""

    owners: dict[int, int | None] = field(default_factory=dict)  # sequence number -> ticket; None: of a call in ``beside``
    next_seq: int = 1
    first_min: int = 1
    first_others: set[int] = field(default_factory=set)  # first numbers that truncates under way would leave
    overwrites: bool = False
    under_way: list[Unsure] = field(default_factory=list)  # calls that had not returned
    beside: list[Unsure] = field(
        default_factory=list
    )  # calls that returned, but overlapped a rollback that may have discarded them
    cut: int | None = None  # first number discarded by a rollback that may have cut a batch under way
    durable: set[int] = field(default_factory=set)  # first tickets of calls that returned durable
    issued: set[int] = field(default_factory=set)  # first tickets of all calls
    discarded: set[tuple[int, int]] = field(default_factory=set)  # numbers and tickets that rollbacks discarded, or may have
    exposed: set[int] = field(default_factory=set)  # tickets of calls under way that a rollback may have discarded
    rolled_back: bool = False


def expect(before: Contents, entries: Entries, opened: Opened | None, *, overwrites: bool) -> list[Expectation]:
    """Apply the calls of a life to the contents before it. A rollback under way has taken effect or not."""
    if opened is not None and (opened.first_seq, opened.next_seq) != (before.first_seq, before.next_seq):
        raise Violation(
            f"the writer found records {opened.first_seq} to {opened.next_seq - 1}; "
            f"a reader before it found {before.first_seq} to {before.next_seq - 1}",
            "wrong-bounds",
        )
    rollbacks = entries[(entries["op"] == Op.ROLLBACK) & (entries["state"] != State.REFUSED)]
    returned = rollbacks[rollbacks["state"] == State.DONE]
    found, problems = [], []
    for effective in (returned, rollbacks) if len(returned) < len(rollbacks) else (rollbacks,):
        try:
            expected = Expectation(overwrites=overwrites, rolled_back=len(rollbacks) > 0)
            _follow(expected, before, entries, effective)
            found.append(expected)
        except Violation as violation:
            problems.append(violation)
    if not found:
        raise problems[0]
    return found


def _follow(expected: Expectation, before: Contents, entries: Entries, rollbacks: Entries) -> None:
    """Apply all phases of a life in which these rollbacks took effect."""
    expected.owners = dict(enumerate(before.tickets, before.first_seq))
    expected.next_seq = before.next_seq
    done = entries["state"] == State.DONE
    stores = np.isin(entries["op"], STORES)
    expected.durable = set(entries["ticket"][done & stores & (entries["durable"] == 1)].tolist())
    expected.issued = set(entries["ticket"][stores | (entries["op"] == Op.ABORT)].tolist())
    ends = entries[done & (entries["op"] == Op.NEXT_SEQ)]
    last_phase = int(entries["phase"].max()) if len(entries) else 0
    for phase in range(last_phase + 1):
        calls = entries[done & stores & (entries["phase"] == phase)]
        rollback = next(iter(rollbacks[rollbacks["phase"] == phase]), None)
        if rollback is None:
            _follow_stores(expected, calls, before.first_seq)
        else:
            _follow_rollback(expected, calls, rollback, before.first_seq)
        for end in ends[ends["phase"] == phase]:
            _follow_end(expected, int(end["first"]), before.first_seq)
    _follow_truncates(expected, entries, before.first_seq)
    last_rollback = rollbacks[rollbacks["phase"] == last_phase]
    expected.cut = int(last_rollback["argument"][0]) + 1 if len(last_rollback) else None
    exposing = bool(((entries["op"] == Op.ROLLBACK) & (entries["phase"] == last_phase)).any())
    for entry in entries[stores & (entries["state"] == State.INTENDED)]:
        own = entries[done & stores & (entries["lane"] == entry["lane"]) & (entries["phase"] == entry["phase"])]
        lowest = int(own["last"].max()) + 1 if len(own) else 0
        if expected.cut is not None:  # which may have discarded its thread's last record
            lowest = min(lowest, expected.cut)
        ticket, count = int(entry["ticket"]), int(entry["count"])
        expected.under_way.append(Unsure(ticket, count, lowest, math.inf))
        if exposing:
            expected.exposed.update(ticket + index * STEP for index in range(count))


def _follow_rollback(expected: Expectation, calls: Entries, rollback: np.void, first_seq: int) -> None:
    """Apply a phase with a rollback: calls before it, what it discards, calls after it, and calls that overlap it."""
    cut = int(rollback["argument"]) + 1
    returned = rollback["state"] == State.DONE
    after = calls["start_ns"] > rollback["end_ns"] if returned else np.zeros(len(calls), bool)
    kept = calls["first"] < cut
    if (after & kept).any():
        seq = int(calls["first"][after & kept][0])
        raise Violation(f"record {seq} was appended after a rollback had returned {cut}", "wrong-order")
    earlier = kept | (calls["end_ns"] < rollback["start_ns"])
    _follow_stores(expected, calls[earlier], first_seq)
    _discard_from(expected, cut)
    _follow_stores(expected, calls[after], first_seq)
    for call in calls[~earlier & ~after]:
        ticket, count, first = int(call["ticket"]), int(call["count"]), int(call["first"])
        expected.beside.append(Unsure(ticket, count, first, first))
        expected.discarded.update((first + index, ticket + index * STEP) for index in range(count))


def _discard_from(expected: Expectation, cut: int) -> None:
    """Discard all records of this number or a higher one."""
    for seq in [seq for seq in expected.owners if seq >= cut]:
        ticket = expected.owners.pop(seq)
        if ticket is not None:
            expected.discarded.add((seq, ticket))
    expected.next_seq = cut
    kept = [call for call in expected.beside if call.lowest < cut]
    expected.beside = [call._replace(records=min(call.records, cut - call.lowest)) for call in kept]


def _follow_end(expected: Expectation, next_seq: int, first_seq: int) -> None:
    """Apply the end of a phase, at which ``next_seq`` is known: every call has returned, so each record belongs to one."""
    if next_seq < expected.next_seq:
        raise Violation(f"a call returned record {expected.next_seq - 1}, but after it next_seq was {next_seq}", "wrong-order")
    owners = expected.owners
    expected.beside = [
        call
        for call in expected.beside
        if call.lowest + call.records <= next_seq
        and all(owners.get(seq) is None for seq in range(call.lowest, call.lowest + call.records))
    ]
    for call in expected.beside:
        for seq in range(call.lowest, call.lowest + call.records):
            owners[seq] = None
    expected.next_seq = next_seq
    if len(owners) != next_seq - first_seq:
        raise Violation(f"next_seq is {next_seq}, but no call returned some of the numbers below it", "wrong-order")


def _follow_stores(expected: Expectation, calls: Entries, first_seq: int) -> None:
    """Apply the stores of a phase: no number twice, and calls that did not overlap have numbers in their order."""
    calls = np.sort(calls, order="first")
    starts, ends = calls["start_ns"], calls["end_ns"]
    if len(calls) > 1:
        earliest_end = np.minimum.accumulate(ends[::-1])[::-1]
        late = np.flatnonzero(earliest_end[1:] < starts[:-1])
        if len(late):
            seq = int(calls["first"][late[0]])
            raise Violation(f"record {seq} was appended after a call with a higher number had returned", "wrong-order")
    owners = expected.owners
    size = len(owners)
    for ticket, count, first, last in zip(
        calls["ticket"].tolist(), calls["count"].tolist(), calls["first"].tolist(), calls["last"].tolist(), strict=True
    ):
        if last - first + 1 != count:
            raise Violation(f"a call that stored {count} records was given numbers {first} to {last}", "wrong-order")
        for index in range(count):
            owners[first + index] = ticket + index * STEP
        size += count
        if len(owners) != size:
            raise Violation(f"two calls were given number {first}, or one between it and {last}", "wrong-order")
        expected.next_seq = max(expected.next_seq, last + 1)
    if len(calls) and int(calls["first"][0]) < first_seq:
        raise Violation(f"a call was given number {int(calls['first'][0])}, before the first one {first_seq}", "wrong-order")


def _follow_truncates(expected: Expectation, entries: Entries, first_seq: int) -> None:
    """Derive the first numbers that the log may have."""
    truncates = entries[entries["op"] == Op.TRUNCATE]
    returned = truncates["first"][truncates["state"] == State.DONE]
    expected.first_min = max(first_seq, int(returned.max()) if len(returned) else 0)
    under_way = truncates["argument"][truncates["state"] == State.INTENDED].tolist()
    expected.first_others = {before for before in under_way if before > expected.first_min}


def compare(expectations: Sequence[Expectation], look: Look, payloads: Payloads) -> tuple[Expectation, Contents]:
    """The expectation that is met, and the new contents; ``Violation`` if none is met."""
    problems = []
    for expected in expectations:
        try:
            return expected, _compare(expected, look, payloads)
        except Violation as violation:
            problems.append(violation)
    raise problems[0]


def _compare(expected: Expectation, look: Look, payloads: Payloads) -> Contents:
    _check_bounds(expected, look)
    if look.next_seq < expected.next_seq:
        seq = look.next_seq
        raise Violation(f"record {seq} is missing: {_account(expected, seq)}; the log ends before it", "missing-record")
    waiting = expected.under_way + expected.beside
    tickets: list[int] = []
    left = 0  # records of the current call still to come
    for seq, record in zip(range(look.first_seq, look.next_seq), look.records, strict=True):
        if record.seq != seq:
            raise Violation(f"found record {record.seq} in the place of {seq}", "wrong-order")
        if seq == expected.cut:
            left = 0
        ticket = expected.owners.get(seq)
        if left:
            if ticket is not None or not _is(record, tickets[-1] + STEP, payloads):
                raise Violation(f"record {seq} should belong to a batch, {left} records of which are missing", "torn-batch")
            ticket, left = tickets[-1] + STEP, left - 1
        elif ticket is None:
            call, index = _find(waiting, record, payloads, oldest=seq == look.first_seq)
            if call is None:
                raise _stranger(record, expected, payloads)
            waiting.remove(call)
            ticket, left = call.ticket + index * STEP, call.records - index - 1
        elif not _is(record, ticket, payloads):
            raise _other(record, ticket, expected, payloads)
        tickets.append(ticket)
    if left and look.next_seq != expected.cut:
        raise Violation(f"the log ends at record {look.next_seq - 1}, {left} records before the end of its batch", "torn-batch")
    return Contents(look.first_seq, tuple(tickets))


def _find(waiting: list[Unsure], record: Record, payloads: Payloads, *, oldest: bool) -> tuple[Unsure | None, int]:
    """The call of a record, and its index there."""
    for call in waiting:
        index = call.index_of(record, payloads, oldest=oldest)
        if index is not None:
            return call, index
    return None, 0


def _is(record: Record, ticket: int, payloads: Payloads) -> bool:
    return record.data == payloads.of(ticket) and record.kind == payloads.kind(ticket)


def _check_bounds(expected: Expectation, look: Look) -> None:
    first = look.first_seq
    if first == expected.first_min or first in expected.first_others:
        return
    allowed = " or ".join(map(str, sorted({expected.first_min, *expected.first_others})))
    if not expected.overwrites or first < expected.first_min:
        raise Violation(f"the log begins at record {first} and should begin at {allowed}", "wrong-bounds")
    # Overwriting frees an eighth of the ring and less than a record more; a call and a gap need less than a quarter together.
    if look.used < look.capacity // 2 and not expected.rolled_back:
        raise Violation(f"the log begins at record {first}, not {allowed}: only {look.used} bytes are in use", "wrong-bounds")


def _account(expected: Expectation, seq: int) -> str:
    """What the journal says about a record."""
    ticket = expected.owners.get(seq)
    if ticket is None:
        return "a call returned a later one"
    if ticket not in expected.issued:
        return "it was there before this life, or belongs to a batch"
    return "its call returned, so it was durable" if ticket in expected.durable else "its call returned, without a commit"


def _other(record: Record, ticket: int, expected: Expectation, payloads: Payloads) -> Violation:
    """Why a record is not the expected one."""
    account = _account(expected, record.seq)
    found = payloads.genuine(record.data)
    if found is not None and found != ticket:
        return Violation(f"record {record.seq} is another stored record ({found:#x}): {account}", "misplaced-record")
    due = payloads.of(ticket)
    at = next((i for i, (a, b) in enumerate(zip(due, record.data, strict=False)) if a != b), min(len(due), len(record.data)))
    return Violation(
        f"record {record.seq} of {len(record.data)} bytes, kind {record.kind}, should have {len(due)} bytes, "
        f"kind {payloads.kind(ticket)}; the first difference is at byte {at}: {account}",
        "changed-record",
    )


def _stranger(record: Record, expected: Expectation, payloads: Payloads) -> Violation:
    """Why a record should not exist."""
    ticket = payloads.genuine(record.data)
    if ticket is None:
        return Violation(f"record {record.seq} ({len(record.data)} bytes) was stored by no call under way", "foreign-record")
    of_this_life = life_of(ticket) in map(life_of, expected.issued)
    known = "was abandoned or refused, or this is another part of it" if of_this_life else "is from before this life"
    return Violation(f"record {record.seq} came back: its call {known} (ticket {ticket:#x})", "resurrected-record")


def shown(sightings: Sequence[tuple[int, int]], expected: Expectation, now: Contents) -> None:
    """Records (number, ticket) that readers saw during this life must be there, unless they were freed or rolled back."""
    for seq, ticket in sightings:
        if (seq, ticket) in expected.discarded or ticket in expected.exposed:
            continue
        if seq >= now.next_seq:
            raise Violation(f"a reader was shown record {seq}; the log ends at {now.next_seq - 1}", "ghost-of-a-reader")
        if seq >= now.first_seq and now.tickets[seq - now.first_seq] != ticket:
            raise Violation(f"a reader was shown another record {seq} than the log has", "ghost-of-a-reader")
