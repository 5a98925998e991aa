"""How far the consumers of a log have come: what its writer frees for ``truncate(consumed=True)`` and ``on_full="consumed"``.

Invariants
----------
- Only what every consumer has acknowledged is free: each that has a position beside the log, and each that ``open(consumers=)``
  names. Without any, nothing is.
- A position that is missing, damaged, of another log or another history, or cannot be read or synced, holds everything back.
- Every position that frees something is durable before the tail moves, or after a power cut it could lie before the tail.
  It is synced after it was read, so what is on the medium by then is that position or a later one.
- A position is read before the history that it is compared with, and the caller, with the lock held, looks whether an epoch has
  begun since: a rollback may have discarded what a consumer had acknowledged.
"""

from __future__ import annotations

from typing import NamedTuple

from pmwal.errors import WalFull
from pmwal.format.control import first_seqs, read_slots
from pmwal.format.position import Position
from pmwal.format.scan import scan_for
from pmwal.reading.consumed import problem_of
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound, Record
from pmwal.storage.name import links_of
from pmwal.storage.positions import Look, directory_of, names_in
from pmwal.writing.engine import Engine


class Limit(NamedTuple):
    """The first record that may not be freed, the epoch for which that is true, and who needs the record, in words."""

    next_seq: int
    epoch: int
    holders: list[str]


class Consumed:
    """The consumers of one log, as its writer sees them. ``required``: those without which nothing is free."""

    def __init__(self, path: str, engine: Engine, required: tuple[str, ...]) -> None:
        self._path = path
        self._engine = engine
        self._required = required
        self._directory = directory_of(path)

    def limit(self) -> Limit:
        """How far the tail may move. Every position that this rests on has been made durable."""
        ring, view = self._engine.look()  # first: whatever epoch begins later, the caller notices
        first_seq = view.tail.next_seq
        try:
            links, names = links_of(ring.mapping.fd), sorted({*self._required, *names_in(self._directory)})
        except OSError as error:
            return Limit(first_seq, view.epoch, [f"{self._directory}, where positions are, cannot be read: {error.strerror}"])
        if links > 1:
            return Limit(first_seq, view.epoch, ["the file has several hard links, and who reads under another name is not known"])
        if not names:
            return Limit(first_seq, view.epoch, ["no consumer has begun; the first one is made by reader.consumer(NAME)"])
        found = [self._passed(name) for name in names]
        next_seq = min(passed for passed, _ in found)
        return Limit(max(next_seq, first_seq), view.epoch, [why for passed, why in found if passed == next_seq])

    def refusal(self, limit: Limit, seconds: float | None) -> WalFull:
        """The error of a call that has waited so long for consumers."""
        return WalFull(
            f"{self._path}: still full after {seconds} seconds, and no more is consumed: {'; '.join(limit.holders)}. Let the "
            "consumers acknowledge, or remove one with pmwal consumers PATH --forget NAME"
        )

    def _passed(self, name: str) -> tuple[int, str]:
        """The first record that this consumer needs, 0 if it needs all, and in words what it has done."""
        try:
            with Look(self._directory, name) as look:
                position, view = look.position, self._engine.view
                if position is None:
                    return 0, f"consumer {name!r}: its position is damaged"
                problem = problem_of(position, self._engine.block.uuid, view, self._read, self._epochs)
                if problem is not None:
                    return 0, f"consumer {name!r}: {problem}"
                if position.released >= view.tail.next_seq:
                    self._engine.seam.sync_data(look.fd)
        except FileNotFoundError:
            return 0, f"consumer {name!r} has not begun"
        except OSError as error:
            return 0, f"consumer {name!r}: its position cannot be relied on: {error.strerror}"
        return position.released + 1, _called(name, position)

    def _read(self, seq: int, view: View) -> Record:
        ring, found = self._engine.locate(seq)
        walker = Walker(ring.block, ring.mapping.load, self._engine.explain, scan=scan_for(ring.block))
        # It may have moved since the view was taken; its number and its epoch have not changed.
        return walker.read_one(view._replace(end=Bound(found.end, seq + 1)), Bound(found.position, seq))[0]

    def _epochs(self) -> dict[int, int]:
        ring = self._engine.ring
        return first_seqs(read_slots(ring.mapping.load, ring.block, scan_for(ring.block)))


def _called(name: str, position: Position) -> str:
    if not position.seq:
        return f"consumer {name!r} has acknowledged nothing"
    return f"consumer {name!r} has {'released' if position.released < position.seq else 'acknowledged'} record {position.released}"
