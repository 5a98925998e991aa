"""The model: what a log may hold after a crash, derived from what its calls have said.

Invariants
----------
- ``acknowledged`` is what the handle calls durable. ``pending`` are groups that were stored after it, in this order, each
  whole or absent after a crash. ``strays`` are groups of calls that ended with an exception: one of them may follow all others
  until the next call that stores or commits.
- An expectation is fixed before its operation begins; afterwards it may only become narrower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Item = tuple[int, bytes]
"""A record: its number and its payload."""
Items = tuple[Item, ...]
_SHOWN = 6


class Found(NamedTuple):
    """What a log holds: the records from ``first_seq`` on, in order."""

    first_seq: int
    items: Items

    @property
    def next_seq(self) -> int:
        """The number after the last."""
        return self.first_seq + len(self.items)


@dataclass(frozen=True)
class Expectation:
    """What a crash may leave now: one of ``contents``, without what its front lost to a tail from ``first_min`` to ``first_max``.

    ``jumps`` says that the tail moves in one step: it is at one of the two, and nowhere between.
    ``acknowledged`` is in all of them. ``lied`` says that an msync returned 0 and had failed: then a verdict may be loud, too.
    ``sure_seq`` is the last number that two later barriers, or a slot, vouch for: damage to it must be loud in any log.
    """

    contents: frozenset[Items]
    acknowledged: Items
    first_min: int
    first_max: int
    lied: bool = False
    sure_seq: int = 0
    jumps: bool = False

    @property
    def firsts(self) -> Sequence[int]:
        """The numbers with which the log may begin."""
        return (self.first_min, self.first_max) if self.jumps else range(self.first_min, self.first_max + 1)

    def allows(self, found: Found) -> bool:
        """Whether this is one of the states that a crash may leave."""
        if found.first_seq not in self.firsts:
            return False
        return any(_fits(content, found, self.first_min) for content in self.contents)

    def states(self) -> frozenset[Found]:
        """All states that a crash may leave."""
        states = (Found(first, _from(first, content)) for first in self.firsts for content in self.contents)
        return frozenset(state for state in states if self.allows(state))

    def begins_with(self, found: Found) -> bool:
        """Whether this is the beginning of such a state, and nothing that damage must not take is missing."""
        if found.first_seq not in self.firsts:
            return False
        trimmed = (_from(found.first_seq, content) for content in self.contents)
        begins = any(found.items == content[: len(found.items)] for content in trimmed)
        return begins and self.holds_acknowledged(found, self.sure_seq)

    def holds_acknowledged(self, found: Found, last: int | None = None) -> bool:
        """Whether every acknowledged record that its tail keeps is there, unchanged; up to number ``last``."""
        there = set(found.items)
        wanted = (item for item in self.acknowledged if item[0] >= found.first_seq and (last is None or item[0] <= last))
        return all(item in there for item in wanted)

    @property
    def digest(self) -> int:
        """64 bits that tell expectations apart."""
        firsts = (self.first_min, self.first_max, self.jumps)
        text = repr((sorted(map(_brief, self.contents)), _brief(self.acknowledged), *firsts, self.lied))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def __str__(self) -> str:
        allowed = "; ".join(sorted(brief(content) for content in self.contents))
        last = f"{' or ' if self.jumps else '..'}{self.first_max}" if self.first_max > self.first_min else ""
        return f"from {self.first_min}{last}: {allowed}"


def _fits(content: Items, found: Found, first_min: int) -> bool:
    end = content[-1][0] + 1 if content else first_min
    # A tail past the end of a content cannot belong to it, but that of an empty log.
    if found.first_seq > max(end, first_min) or found.next_seq != max(end, found.first_seq):
        return False
    return found.items == _from(found.first_seq, content)


def _from(first_seq: int, items: Items) -> Items:
    return tuple(item for item in items if item[0] >= first_seq)


def _brief(items: Items) -> list[tuple[int, int, bytes]]:
    return [(seq, len(data), data[:16]) for seq, data in items]


def brief(items: Items) -> str:
    """Numbers, sizes and how the payloads begin; of many records the last."""
    shown = [f"{seq}:{len(data)}:{data[:5].decode('latin-1')}" for seq, data in items[-_SHOWN:]]
    return f"[{'... ' if len(items) > _SHOWN else ''}{' '.join(shown)}]"


@dataclass
class Model:
    """The log of one session."""

    acknowledged: Items = ()
    pending: list[Items] = field(default_factory=list)
    strays: list[Items] = field(default_factory=list)
    first_seq: int = 1
    lied: bool = False
    _committed: list[int] = field(default_factory=lambda: [0])  # what was durable after each barrier, as its caller saw it

    @property
    def stored(self) -> Items:
        """Everything that the writer's own handle shows."""
        return tuple(item for group in (self.acknowledged, *self.pending) for item in group)

    @property
    def next_seq(self) -> int:
        """Number of the next record."""
        stored = self.stored
        return stored[-1][0] + 1 if stored else self.first_seq

    def expectation(
        self, *, adding: Items | None = None, first_max: int | None = None, cut_after: int | None = None, jumps: bool = True
    ) -> Expectation:
        """What a crash may leave while a call adds a group, moves the tail to ``first_max``, or discards after a number.

        ``jumps``: the tail moves in one step.
        """
        states = [self.acknowledged]
        for group in self.pending:
            states.append(states[-1] + group)
        everything = states[-1]
        states += [everything + group for group in (*self.strays, adding) if group]
        acknowledged = self.acknowledged
        if cut_after is not None:
            states += [_up_to(state, cut_after) for state in states]
            acknowledged = _up_to(acknowledged, cut_after)
        first_max = max(first_max or 0, self.first_seq)
        sure_seq = self._committed[max(len(self._committed) - 3, 0)]
        return Expectation(frozenset(states), acknowledged, self.first_seq, first_max, self.lied, sure_seq, jumps)

    def advance(self, first_seq: int, committed_seq: int) -> None:
        """A call has returned, and this is what the handle calls its first and its last durable record."""
        groups = (self.acknowledged, *self.pending)
        kept = [_from(first_seq, group) for group in groups]
        self.first_seq = first_seq
        self.acknowledged = tuple(item for group in kept for item in group if item[0] <= committed_seq)
        self.pending = [group for group in kept[1:] if group and group[-1][0] > committed_seq]
        if committed_seq > self._committed[-1]:
            self._committed.append(committed_seq)

    def discard(self, after: int) -> None:
        """A rollback has returned: the rest is durable."""
        self.acknowledged, self.pending, self.strays = _up_to(self.stored, after), [], []
        self._committed = [after]

    def settle(self, found: Found) -> None:
        """A recovery has returned: what it found is durable, and nothing else is ever there."""
        self.acknowledged, self.pending, self.strays, self.first_seq = found.items, [], [], found.first_seq
        self._committed = [found.next_seq - 1]


def _up_to(items: Items, last: int) -> Items:
    return tuple(item for item in items if item[0] <= last)
