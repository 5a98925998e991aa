"""What a log may hold after a life, from what its writer was told; and whether it does.

Invariants
----------
- Nothing here asks the log what it should hold: that follows from the journal, from what the log held before, and from the seed.
- A call that returned is done, committed or not: a kill keeps the page cache, so what was stored is there.
- A call under way at the kill is done whole or not at all; there is one for each thread at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pmwal import Record
from stressing.journal import STORES, Entries, Op, Opened, State
from stressing.payloads import STEP, Payloads, life_of
from stressing.processes import Violation


@dataclass(frozen=True)
class Contents:
    """What the log held when it was last looked at: the tickets of its records, from the first on."""

    first_seq: int = 1
    tickets: tuple[int, ...] = ()

    @property
    def next_seq(self) -> int:
        """The number that the next record gets."""
        return self.first_seq + len(self.tickets)


class Look(NamedTuple):
    """What the log holds now."""

    first_seq: int
    next_seq: int
    records: list[Record]
    used: int
    capacity: int


class UnderWay(NamedTuple):
    """A call that stores and had not returned. Its records come after ``after``, the last one of its thread."""

    ticket: int
    records: int
    after: int


@dataclass
class Expectation:
    """What the acknowledgements allow."""

    owners: dict[int, int] = field(default_factory=dict)  # number -> ticket, of every record that a call returned
    next_seq: int = 1
    first_min: int = 1
    first_others: set[int] = field(default_factory=set)  # what truncates under way would make of ``first_min``
    overwrites: bool = False
    under_way: list[UnderWay] = field(default_factory=list)
    cut: int | None = None  # the next number, if a rollback under way has taken effect
    durable: set[int] = field(default_factory=set)  # first tickets of calls that returned durable
    issued: set[int] = field(default_factory=set)  # first tickets of calls, whatever became of them
    discarded: set[tuple[int, int]] = field(default_factory=set)  # numbers and tickets that rollbacks took, or may have
    rolled_back: bool = False


def expect(before: Contents, entries: Entries, opened: Opened | None, *, overwrites: bool) -> Expectation:
    """Follow the calls of a life from what the log held before it."""
    if opened is not None and (opened.first_seq, opened.next_seq) != (before.first_seq, before.next_seq):
        raise Violation(
            "wrong-bounds",
            f"the writer found records {opened.first_seq} to {opened.next_seq - 1}; "
            f"a look at the log before it found {before.first_seq} to {before.next_seq - 1}",
        )
    expected = Expectation(overwrites=overwrites)
    expected.owners = dict(enumerate(before.tickets, before.first_seq))
    expected.next_seq = before.next_seq
    done = entries["state"] == State.DONE
    stores = np.isin(entries["op"], STORES)
    expected.durable = set(entries["ticket"][done & stores & (entries["durable"] == 1)].tolist())
    expected.issued = set(entries["ticket"][stores | (entries["op"] == Op.ABORT)].tolist())
    rollbacks = np.sort(entries[entries["op"] == Op.ROLLBACK], order="phase")
    expected.rolled_back = len(rollbacks) > 0
    last_phase = int(entries["phase"].max()) if len(entries) else 0
    for phase in range(last_phase + 1):
        _follow_stores(expected, entries[done & stores & (entries["phase"] == phase)], before.first_seq)
        for rollback in rollbacks[rollbacks["phase"] == phase]:
            _check_no_hole(expected, before.first_seq)
            cut = int(rollback["argument"]) + 1
            expected.discarded.update((seq, expected.owners[seq]) for seq in range(cut, expected.next_seq))
            if rollback["state"] == State.INTENDED:
                expected.cut = cut
                continue
            for seq in range(cut, expected.next_seq):
                del expected.owners[seq]
            expected.next_seq = cut
    _follow_truncates(expected, entries, before.first_seq)
    for entry in entries[stores & (entries["state"] == State.INTENDED)]:
        own = entries[done & stores & (entries["lane"] == entry["lane"]) & (entries["phase"] == entry["phase"])]
        after = int(own["last"].max()) if len(own) else 0
        expected.under_way.append(UnderWay(int(entry["ticket"]), int(entry["count"]), after))
    return expected


def _follow_stores(expected: Expectation, calls: Entries, first_seq: int) -> None:
    """Records that calls of one phase returned: their numbers are their own, and in the order of calls that did not overlap."""
    calls = np.sort(calls, order="first")
    starts, ends = calls["start_ns"], calls["end_ns"]
    if len(calls) > 1:
        earliest_end = np.minimum.accumulate(ends[::-1])[::-1]
        late = np.flatnonzero(earliest_end[1:] < starts[:-1])
        if len(late):
            seq = int(calls["first"][late[0]])
            raise Violation("wrong-order", f"record {seq} was appended after a call had returned that got a higher number")
    owners = expected.owners
    size = len(owners)
    for ticket, count, first, last in zip(
        calls["ticket"].tolist(), calls["count"].tolist(), calls["first"].tolist(), calls["last"].tolist(), strict=True
    ):
        if last - first + 1 != count:
            raise Violation("wrong-order", f"a call that stored {count} records was given numbers {first} to {last}")
        for place in range(count):
            owners[first + place] = ticket + place * STEP
        size += count
        if len(owners) != size:
            raise Violation("wrong-order", f"two calls were given number {first}, or one between it and {last}")
        expected.next_seq = max(expected.next_seq, last + 1)
    if len(calls) and int(calls["first"][0]) < first_seq:
        raise Violation("wrong-order", f"a call was given number {int(calls['first'][0])}, before the first one {first_seq}")


def _check_no_hole(expected: Expectation, first_seq: int) -> None:
    """Before a rollback every call had returned, so no number is missing."""
    if len(expected.owners) != expected.next_seq - first_seq:
        raise Violation("wrong-order", f"numbers up to {expected.next_seq - 1} were given out, and some of them to no call")


def _follow_truncates(expected: Expectation, entries: Entries, first_seq: int) -> None:
    """Where the log may begin."""
    truncates = entries[entries["op"] == Op.TRUNCATE]
    returned = truncates["first"][truncates["state"] == State.DONE]
    expected.first_min = max(first_seq, int(returned.max()) if len(returned) else 0)
    under_way = truncates["argument"][truncates["state"] == State.INTENDED].tolist()
    expected.first_others = {before for before in under_way if before > expected.first_min}


def compare(expected: Expectation, look: Look, payloads: Payloads) -> Contents:
    """``Violation`` when the log holds anything else than it may; else what it holds."""
    _check_bounds(expected, look)
    owners, next_seq = expected.owners, expected.next_seq
    if look.next_seq < next_seq:
        if look.next_seq != expected.cut:
            seq = look.next_seq
            raise Violation("missing-record", f"record {seq} is missing: {_account(expected, seq)}; the log ends before it")
        next_seq = look.next_seq
    waiting = list(expected.under_way)
    tickets: list[int] = []
    left = 0  # records still due of the call that was under way
    for seq, record in zip(range(look.first_seq, look.next_seq), look.records, strict=True):
        if record.seq != seq:
            raise Violation("wrong-order", f"record {record.seq} stands where {seq} is due")
        ticket = owners.get(seq)
        if left:
            if ticket is not None or not _is(record, tickets[-1] + STEP, payloads):
                raise Violation("torn-batch", f"record {seq} should be one of a batch, {left} of which are missing")
            ticket, left = tickets[-1] + STEP, left - 1
        elif ticket is None:
            call = next((call for call in waiting if seq > call.after and _is(record, call.ticket, payloads)), None)
            if call is None:
                raise _stranger(record, expected, payloads)
            waiting.remove(call)
            ticket, left = call.ticket, call.records - 1
        elif not _is(record, ticket, payloads):
            raise _other(record, ticket, expected, payloads)
        tickets.append(ticket)
    if left:
        raise Violation("torn-batch", f"the log ends at record {look.next_seq - 1}, {left} records before the end of its batch")
    return Contents(look.first_seq, tuple(tickets))


def _is(record: Record, ticket: int, payloads: Payloads) -> bool:
    return record.data == payloads.of(ticket) and record.kind == payloads.kind(ticket)


def _check_bounds(expected: Expectation, look: Look) -> None:
    first = look.first_seq
    if first == expected.first_min or first in expected.first_others:
        return
    allowed = " or ".join(map(str, sorted({expected.first_min, *expected.first_others})))
    if not expected.overwrites or first < expected.first_min:
        raise Violation("wrong-bounds", f"the log begins at record {first} and should begin at {allowed}")
    # Overwriting frees an eighth of the ring and less than a record more, for a call and a gap of less than a quarter together.
    if look.used < look.capacity // 2 and not expected.rolled_back:
        raise Violation("wrong-bounds", f"the log begins at record {first}, not {allowed}: only {look.used} bytes are in use")


def _account(expected: Expectation, seq: int) -> str:
    """What is known of a record."""
    ticket = expected.owners.get(seq)
    if ticket is None:
        return "a later one was returned"
    if ticket not in expected.issued:
        return "it was there before this life, or is one of a batch"
    return "its call returned, and so it was durable" if ticket in expected.durable else "its call returned, without a commit"


def _other(record: Record, ticket: int, expected: Expectation, payloads: Payloads) -> Violation:
    """Why a record is not the one that its number belongs to."""
    account = _account(expected, record.seq)
    found = payloads.genuine(record.data)
    if found is not None and found != ticket:
        return Violation("misplaced-record", f"record {record.seq} is another one that was stored ({found:#x}): {account}")
    due = payloads.of(ticket)
    at = next((i for i, (a, b) in enumerate(zip(due, record.data, strict=False)) if a != b), min(len(due), len(record.data)))
    return Violation(
        "changed-record",
        f"record {record.seq} of {len(record.data)} bytes, kind {record.kind}, should have {len(due)} bytes, "
        f"kind {payloads.kind(ticket)}; the first difference is at byte {at}: {account}",
    )


def _stranger(record: Record, expected: Expectation, payloads: Payloads) -> Violation:
    """Why a record should not be there at all."""
    ticket = payloads.genuine(record.data)
    if ticket is None:
        return Violation("foreign-record", f"record {record.seq} ({len(record.data)} bytes) was stored by no call under way")
    of_this_life = life_of(ticket) in map(life_of, expected.issued)
    known = "was given up or refused, or is another part of a call" if of_this_life else "is from before this life"
    return Violation("resurrected-record", f"record {record.seq} came back: its call {known} (ticket {ticket:#x})")


def shown(sightings: Sequence[tuple[int, int]], expected: Expectation, now: Contents) -> None:
    """Records (number, ticket) that a reader was shown during this life must be there, but for what was freed or rolled back."""
    for seq, ticket in sightings:
        if (seq, ticket) in expected.discarded:
            continue
        if seq >= now.next_seq:
            raise Violation("ghost-of-a-reader", f"a reader was shown record {seq}; the log ends at {now.next_seq - 1}")
        if seq >= now.first_seq and now.tickets[seq - now.first_seq] != ticket:
            raise Violation("ghost-of-a-reader", f"a reader was shown another record {seq} than the one that is there")
