"""What persistent memory may hold after each step: the x86 persistency model, a cache line at a time.

Invariants
----------
- A line is durable up to the cached stores that preceded a write-back of it that was followed by a fence, and with all streaming
  stores that a fence followed. What is not yet durable may be on the medium all the same: any line may be evicted at any time.
- Cached stores of a line become durable in the order of the program. A store of more than 8 bytes may be torn into its words, and
  the stores of one string instruction or system call come in any order. Streaming stores are ordered with nothing before a fence.
- CLFLUSH counts as CLWB: durable at the next fence only. A state too many makes the model complain; it misses none.
- Numbers stand for lines: 64 bytes as a little-endian integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from random import Random
from typing import NamedTuple

from crash.stepper.trace import TraceEvent, What
from pmwal.format.layout import LINE

EXHAUSTIVE = 64  # combinations of lines up to which all of them are tried
SUBSETS_MAX = 3  # words of a torn store up to which every subset is tried
SAMPLES = 8  # random combinations beyond that

_WORD = (1 << 64) - 1
_WORDS = tuple(_WORD << (64 * word) for word in range(LINE // 8))

State = Mapping[int, int]
"""What some lines hold, by their offset in the file; all others are as durable."""


class Piece(NamedTuple):
    """An aligned word or a part of one, stored by one instruction. Pieces of one ``run`` become durable in any order."""

    mask: int
    data: int
    streamed: bool
    run: int


def applied(base: int, pieces: Iterator[Piece] | list[Piece]) -> int:
    """The line after these stores."""
    for piece in pieces:
        base = base & ~piece.mask | piece.data
    return base


class Line:
    """A line that is not durable as it is in the cache."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.pending: list[Piece] = []  # in the order of the program
        self.written_back = 0  # the run up to which a write-back has begun
        self.versions: list[int] = [base]  # what the medium may hold, the durable one first, the newest last

    @property
    def newest(self) -> int:
        """What the cache holds."""
        return self.versions[-1]

    @property
    def waits_for(self) -> str:
        """What keeps the oldest store from being durable."""
        first = self.pending[0]
        if first.streamed:
            return "streamed, but no fence"
        return "written back, but no fence" if first.run <= self.written_back else "not written back"

    def store(self, mask: int, data: int, streamed: bool, run: int) -> list[int]:
        """Take a store in; the versions that there were not before, the newest last."""
        for word in _WORDS:
            if mask & word:
                self.pending.append(Piece(mask & word, data & mask & word, streamed, run))
        known = set(self.versions)
        self._find_versions()
        return [version for version in self.versions if version not in known]

    def write_back(self) -> None:
        """Begin to write back what is stored so far."""
        self.written_back = self.pending[-1].run

    def fence(self) -> None:
        """Let what was streamed, and what was written back, be durable."""
        done = [piece.streamed or piece.run <= self.written_back for piece in self.pending]
        rest = []
        for at, piece in enumerate(self.pending):
            later = zip(self.pending[at + 1 :], done[at + 1 :], strict=True)
            hidden = 0  # a cached store is older than a streaming one that is durable now: it cannot undo that
            for other, is_done in later:
                hidden |= other.mask if is_done else 0
            if not done[at] and piece.mask & ~hidden:
                rest.append(piece._replace(mask=piece.mask & ~hidden, data=piece.data & ~hidden))
        self.base = applied(self.base, [piece for piece, is_done in zip(self.pending, done, strict=True) if is_done])
        self.pending = rest
        self._find_versions()

    def any_version(self, rng: Random) -> int:
        """One that the medium may hold; not all of them are among ``versions``."""
        runs = sorted({piece.run for piece in self.pending if not piece.streamed})
        last = rng.choice([*runs, -1])
        torn = rng.random() < 0.5

        def kept(piece: Piece) -> bool:
            if piece.streamed or (torn and piece.run == last):
                return rng.random() < 0.5
            return piece.run <= last

        return applied(self.base, [piece for piece in self.pending if kept(piece)])

    def _find_versions(self) -> None:
        streamed = [piece for piece in self.pending if piece.streamed]
        cached = [piece for piece in self.pending if not piece.streamed]
        runs: dict[int, list[Piece]] = {}
        for piece in cached:
            runs.setdefault(piece.run, []).append(piece)
        chosen: list[set[Piece]] = [set()]
        before: set[Piece] = set()
        for run in runs.values():
            chosen += [before | part for part in _parts(run)]
            before = before | set(run)
        chosen += [before | part for part in _parts(streamed)]
        if cached and streamed:
            chosen += [set(part) for part in _parts(streamed)]
        found = (applied(self.base, [piece for piece in self.pending if piece in kept]) for kept in chosen)
        newest = applied(self.base, self.pending)
        self.versions = [version for version in dict.fromkeys(found) if version != newest]
        self.versions.append(newest)


def _parts(pieces: list[Piece]) -> list[set[Piece]]:
    """Unordered pieces in part: every subset of few; else each prefix, each alone lost, each alone kept."""
    if len(pieces) <= SUBSETS_MAX:
        return [{piece for at, piece in enumerate(pieces) if bits >> at & 1} for bits in range(1, 1 << len(pieces))]
    whole = set(pieces)
    return [
        *({piece} for piece in pieces),
        *(set(pieces[:end]) for end in range(2, len(pieces))),
        *(whole - {piece} for piece in pieces),
        whole,
    ]


def _combinations(options: Mapping[int, list[int]]) -> Iterator[State]:
    for versions in product(*options.values()):
        yield dict(zip(options, versions, strict=True))


class Memory:
    """A file on persistent memory, followed event by event. ``ignored`` lines are left as they are: nothing depends on them."""

    def __init__(self, image: bytes, ignored: range) -> None:
        self.durable = bytearray(image)
        self.lines: dict[int, Line] = {}
        self.key = 0  # of the durable bytes; equal ones have equal keys
        self._ignored = ignored
        self._run = 0
        self._last = (0, 0)  # rip and step of the last unordered store

    def take(self, event: TraceEvent) -> list[int]:
        """Follow an event; the versions of its line that it made possible."""
        if event.what is What.FENCED:
            self._fence()
        elif event.offset in self._ignored:
            pass
        elif event.what is What.WRITTEN_BACK:
            if event.offset in self.lines:
                self.lines[event.offset].write_back()
        elif event.what in (What.STORED, What.STREAMED):
            rip, step = self._last
            if not (event.unordered and event.rip == rip and event.step <= step + 1):
                self._run += 1
            self._last = (event.rip, event.step) if event.unordered else (0, 0)
            line = self.lines.setdefault(event.offset, Line(self._durable_line(event.offset)))
            return line.store(event.mask, event.data, event.what is What.STREAMED, self._run)
        return []

    def _durable_line(self, offset: int) -> int:
        return int.from_bytes(self.durable[offset : offset + LINE], "little")

    def _fence(self) -> None:
        for offset, line in list(self.lines.items()):
            old = line.base
            line.fence()
            if line.base != old:
                self.key ^= hash((offset, old)) ^ hash((offset, line.base))
                self.durable[offset : offset + LINE] = line.base.to_bytes(LINE, "little")
            if not line.pending:
                del self.lines[offset]

    def states(self, rng: Random) -> Iterator[State]:
        """What a crash may leave now: all combinations of few lines; else none, all, each alone, and samples."""
        options = {offset: line.versions for offset, line in self.lines.items()}
        if prod(map(len, options.values())) <= EXHAUSTIVE:
            yield from _combinations(options)
            return
        kept = {offset: line.newest for offset, line in self.lines.items()}
        yield {}
        yield kept
        for offset, line in self.lines.items():
            yield {offset: kept[offset]}
            yield kept | {offset: line.base}
            yield kept | {offset: line.any_version(rng)}
        for _ in range(SAMPLES):
            yield {offset: line.any_version(rng) for offset, line in self.lines.items()}

    def states_with(self, rng: Random, changed: int, new: list[int]) -> Iterator[State]:
        """The states that a store made possible: those in which its line holds one of these versions, the newest last."""
        options = {offset: line.versions for offset, line in self.lines.items()} | {changed: new}
        if prod(map(len, options.values())) <= EXHAUSTIVE:
            yield from _combinations(options)
            return
        others = {offset: line for offset, line in self.lines.items() if offset != changed}
        kept = {offset: line.newest for offset, line in others.items()}
        yield {changed: new[-1]}
        yield kept | {changed: new[-1]}
        yield kept | {changed: rng.choice(new)}
        if others:
            lost = rng.choice(list(others))
            yield kept | {lost: others[lost].base, changed: new[-1]}
            yield {offset: line.any_version(rng) for offset, line in others.items()} | {changed: rng.choice(new)}

    def key_of(self, state: State) -> int:
        """A number that is equal for equal images."""
        key = self.key
        for offset, version in state.items():
            base = self.lines[offset].base
            if version != base:
                key ^= hash((offset, base)) ^ hash((offset, version))
        return key

    def image(self, state: State) -> bytearray:
        """The file in this state."""
        image = self.durable.copy()
        for offset, version in state.items():
            image[offset : offset + LINE] = version.to_bytes(LINE, "little")
        return image
