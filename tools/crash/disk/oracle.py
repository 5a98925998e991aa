"""The contents that a log may have after a power cut, derived from the notes that the program under test had made by then.

The oracle uses the notes alone and shares no code with recovery. At any time:

- every record up to the acknowledged sequence number (``through``) is there, byte for byte, unless a truncate, rollback, overwrite
  or repair that was noted before may have removed it;
- the records after it were noted before they were stored; there is no hole, and batches are whole;
- the first record is the acknowledged one or, during a call that changes it, the one that the call will leave.

While several threads make calls at once, a call that has not returned has no known sequence number: its records, whose payloads
are unique, may be at any free numbers, consecutively. Each thread has at most one such call. An acknowledgement to any thread
covers all records up to its number, those of other threads included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crash.disk.program import NOTE_SIZE, payload
from crash.disk.writelog import Entry
from pmwal.testing.stress.violation import Violation

STAGES = {
    "creation": "the creation",
    "open": "the open of a closed log",
    "recovery": "the recovery from a kill or a cut",
    "threads": "commits of several threads",
    "repair": "a repair",
    "repaired": "the use of a repaired log",
}
"""Stages of the program that the summary counts."""


class Found(NamedTuple):
    """The result of an open: the first sequence number and all payloads, or why there are none."""

    first: int
    records: list[bytes]
    missing: bool = False  # the file does not exist
    corrupt: str = ""  # the verdict

    @property
    def last(self) -> int:
        """Number of the last record."""
        return self.first + len(self.records) - 1

    @property
    def summary(self) -> str:
        """A short text."""
        return self.corrupt or f"records {self.first} to {self.last}"


class Note(NamedTuple):
    """A note, and the number of log entries up to and including it."""

    time: int
    facts: dict[str, Any]


def notes_in(entries: Sequence[Entry], area: int) -> list[Note]:
    """The notes in a disk's log, in order."""
    notes: list[Note] = []
    for index, entry in enumerate(entries):
        if not entry.is_flush and entry.offset >= area:
            facts = json.loads(entry.data.rstrip(b"\0"))
            if facts["note"] != len(notes) or entry.offset != area + len(notes) * NOTE_SIZE:
                raise ValueError(f"entry {index} holds note {facts['note']} instead of {len(notes)}")
            notes.append(Note(index + 1, facts))
    return notes


def critical_spans(notes: Sequence[Note]) -> list[tuple[int, int]]:
    """The time spans of creations, recoveries and repairs."""
    spans, begin, before = [], None, ""
    for time, facts in notes:
        event = facts["event"]
        if event == "damage" or (event == "open" and before != "closed"):
            begin = time
        elif event in ("repaired", "opened") and begin is not None:
            spans.append((begin, time))
            begin = None
        before = event
    return spans


@dataclass
class Model:
    """The log as described by the notes so far."""

    seed: int
    later: Sequence[Note]  # all notes of the run
    exists: bool = False
    first: int = 1
    through: int = 0  # acknowledged
    records: dict[int, bytes] = field(default_factory=dict)  # those that may be there, by sequence number
    ends: set[int] = field(default_factory=set)  # last numbers of batches that are not acknowledged
    overwrites: bool = False  # a full ring overwrites its oldest records
    change: dict[str, Any] | None = None  # the call under way
    calls: dict[int, list[bytes]] = field(default_factory=dict)  # calls of threads that have no number yet: their payloads
    life: int = 0
    opening: str = ""  # the kind of open under way
    closed: bool = True
    repaired: bool = False
    seen: int = 0  # notes processed
    acknowledged: int = 0  # calls acknowledged
    slots: int = 0  # written by calls that store
    writes: int = 0  # calls that stored by write(2)
    writes_in_pieces: int = 0  # those of them that took several

    def advance(self, time: int) -> None:
        """Process the notes made until then."""
        while self.seen < len(self.later) and self.later[self.seen].time <= time:
            note = self.later[self.seen].facts
            self.seen += 1
            getattr(self, f"_{note['event']}")(note)

    @property
    def last(self) -> int:
        """The last sequence number noted before a store."""
        return max(self.records, default=self.through)

    @property
    def stage(self) -> str:
        """The key of the stage in ``STAGES``, or ""."""
        event = "" if self.change is None else self.change["event"]
        if event in ("damage", "damaged"):
            return "repair"
        return self.opening or ("threads" if event == "crowd" else "repaired" if self.repaired else "")

    def problem(self, found: Found) -> str | None:
        """Why the log cannot have these contents; None if it can."""
        if found.missing:
            return "the log was created, but there is no file" if self.exists else None
        damaged = self.change is not None and self.change["event"] in ("damage", "damaged")
        if found.corrupt:
            return None if damaged else f"open: {found.corrupt}"
        records, ends = self._numbered(found)
        if found.last < self.through and found.last not in ends:
            return f"records {found.last + 1} to {self.through} were acknowledged, and are missing"
        if found.last not in ends:
            return f"it ends with {found.last}, which is not the end of a call; expected one of {sorted(ends)}"
        if not self._first_may_be(found.first):
            return f"it begins with {found.first} instead of {self.first} ({self.change})"
        for seq, data in enumerate(found.records, found.first):
            if records.get(seq) != data:
                return f"record {seq} is not what was stored: {data[:16]!r}, {len(data)} bytes"
        return None

    def _numbered(self, found: Found) -> tuple[dict[int, bytes], set[int]]:
        """The records and the ends that are allowed, with calls that have no number yet placed where they were found."""
        ends = self._ends()
        if not self.calls:
            return self.records, ends
        records = dict(self.records)
        calls = {items[0]: items for items in self.calls.values()}
        for seq, data in enumerate(found.records, found.first):
            if seq not in records and data in calls:
                items = calls.pop(data)
                for index, item in enumerate(items):
                    records.setdefault(seq + index, item)
                if seq + len(items) > self.through:
                    ends.add(seq + len(items) - 1)
        return records, ends

    def _ends(self) -> set[int]:
        """The last sequence numbers that the log may have."""
        ends = {self.through, *self.ends}
        match self.change:
            case {"event": "rollback", "after": after}:
                ends.add(after)
            case {"event": "damage" | "damaged", "seq": seq}:
                ends.add(seq - 1)  # a repair keeps all before the damage, also of a batch
        return ends

    def _first_may_be(self, first: int) -> bool:
        match self.change:
            case {"event": "truncate", "before": before}:
                return first in (self.first, before)
            case {"event": "store" | "crowd"} if self.overwrites:  # the next acknowledgement says how far
                return self.first <= first <= self._first_next()
        return first == self.first

    def _first_next(self) -> int:
        """The first number in the next acknowledgement; without one, any number is allowed."""
        for note in self.later[self.seen :]:
            if "first" in note.facts and note.facts["event"] in ("done", "opened"):
                return int(note.facts["first"])
        return self.last + 1

    def _settle(self, first: int, through: int) -> None:
        """From now on the log has at least what an acknowledgement said."""
        self.first, self.through = first, through
        self.records = {seq: data for seq, data in self.records.items() if seq >= first}
        self.ends = {end for end in self.ends if end > through}

    # -- one method for each kind of note; ``advance`` calls them by name

    def _open(self, note: dict[str, Any]) -> None:
        """The call under way when the last life ended may still have taken effect or not."""
        self.life = note["life"]
        self.opening = "creation" if not self.exists else "open" if self.closed else "recovery"

    def _opened(self, note: dict[str, Any]) -> None:
        last = note["next"] - 1
        for seq, call in enumerate(note["kinds"], note["next"] - len(note["kinds"])):
            if seq not in self.records and call in self.calls:
                self._number(call, seq)
        self.calls.clear()
        wrong = self.problem(Found(note["first"], [self.records.get(seq, b"") for seq in range(note["first"], last + 1)]))
        if wrong and self.exists:
            raise Violation(f"note {note['note']}, opening after a close or a kill: {wrong}")
        self.exists, self.change, self.overwrites = True, None, note["overwrites"]
        self.opening, self.closed = "", False
        self.records = {seq: data for seq, data in self.records.items() if seq <= last}
        self.ends.clear()
        self._settle(note["first"], last)

    def _store(self, note: dict[str, Any]) -> None:
        self.change = note
        for index, size in enumerate(note["sizes"]):
            self.records[note["first"] + index] = payload(self.seed, self.life, note["note"], index, size)
        self.ends.add(note["first"] + len(note["sizes"]) - 1)

    def _crowd(self, note: dict[str, Any]) -> None:
        self.change = note

    def _call(self, note: dict[str, Any]) -> None:
        sizes = enumerate(note["sizes"])
        self.calls[note["note"]] = [payload(self.seed, self.life, note["note"], index, size) for index, size in sizes]

    def _stored(self, note: dict[str, Any]) -> None:
        self._number(note["call"], note["first"])

    def _answered(self, note: dict[str, Any]) -> None:
        self.acknowledged += 1
        if note["call"] in self.calls:
            self._number(note["call"], note["first"])
        self._settle(self.first, max(self.through, note["through"]))

    def _number(self, call: int, first: int) -> None:
        """The sequence number of a thread's call is known."""
        items = self.calls.pop(call)
        for seq, data in enumerate(items, first):
            self.records[seq] = data
        self.ends.add(first + len(items) - 1)

    def _commit(self, note: dict[str, Any]) -> None:
        self.change = note

    def _truncate(self, note: dict[str, Any]) -> None:
        self.change = note

    def _rollback(self, note: dict[str, Any]) -> None:
        self.change = note

    def _close(self, note: dict[str, Any]) -> None:
        self.change = note

    def _done(self, note: dict[str, Any]) -> None:
        self.acknowledged += 1
        self.slots += note.get("slots", 0)
        self.writes += note.get("writes", 0) > 0
        self.writes_in_pieces += note.get("writes", 0) > 1
        if self.change is not None and self.change["event"] == "rollback":
            after = self.change["after"]
            self.records = {seq: data for seq, data in self.records.items() if seq <= after}
            self.ends = {end for end in self.ends if end <= after}
        assert not self.calls
        self.change = None
        self._settle(note["first"], note["through"])

    def _closed(self, _: dict[str, Any]) -> None:
        self.acknowledged += 1
        self.change, self.closed = None, True
        self._settle(self.first, self.last)

    def _damage(self, note: dict[str, Any]) -> None:
        self.change = note

    def _damaged(self, note: dict[str, Any]) -> None:
        assert self.change is not None
        self.change = {**self.change, "event": "damaged"}

    def _repaired(self, _: dict[str, Any]) -> None:
        assert self.change is not None
        last = self.change["seq"] - 1
        self.change, self.repaired = None, True
        self.records = {seq: data for seq, data in self.records.items() if seq <= last}
        self._settle(self.first, last)
