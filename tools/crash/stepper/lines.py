"""The contents that persistent memory may have after each step: the x86 persistency model, for each cache line.

Invariants
----------
- Durable in a line are the cached stores before a write-back that a fence followed, and the streaming stores that a fence followed.
  A store that is not durable yet may be on the medium all the same: any line may be evicted at any time.
- Cached stores to a line become durable in program order. A store of more than 8 bytes may be torn into its words, and the stores
  of one string instruction or system call have no order. Streaming stores have no order until a fence.
- CLFLUSH counts as CLWB: durable only at the next fence. That allows states that cannot occur, which may cause a false alarm, but
  misses none.
- The contents of a line are an integer: its 64 bytes in little-endian order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from random import Random
from typing import NamedTuple

from crash.stepper.trace import TraceEvent, What
from pmwal.format.layout import LINE

EXHAUSTIVE = 64  # up to this many combinations of lines, all are tried
SUBSETS_MAX = 3  # up to this many words of a torn store, every subset is tried
SAMPLES = 8  # random combinations otherwise

_WORD = (1 << 64) - 1
_WORDS = tuple(_WORD << (64 * word) for word in range(LINE // 8))

State = Mapping[int, int]
"""Contents of some lines, by offset in the file; all others have their durable contents."""


class Piece(NamedTuple):
    """An aligned word, or part of one, stored by one instruction. Pieces of one ``run`` become durable in any order."""

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
    """A line whose contents in the cache are not durable yet."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.pending: list[Piece] = []  # in program order
        self.written_back = 0  # the last run that a write-back covers
        self.versions: list[int] = [base]  # possible contents of the medium, the durable ones first, the newest last

    @property
    def newest(self) -> int:
        """The contents in the cache."""
        return self.versions[-1]

    @property
    def waits_for(self) -> str:
        """Why the oldest pending store is not durable."""
        first = self.pending[0]
        if first.streamed:
            return "streamed, but no fence"
        return "written back, but no fence" if first.run <= self.written_back else "not written back"

    def store(self, mask: int, data: int, streamed: bool, run: int) -> list[int]:
        """Apply a store; the versions that it made possible, the newest last."""
        for word in _WORDS:
            if mask & word:
                self.pending.append(Piece(mask & word, data & mask & word, streamed, run))
        known = set(self.versions)
        self._find_versions()
        return [version for version in self.versions if version not in known]

    def write_back(self) -> None:
        """Write back the stores so far; they are durable at the next fence."""
        self.written_back = self.pending[-1].run

    def fence(self) -> None:
        """Make durable what was streamed or written back."""
        done = [piece.streamed or piece.run <= self.written_back for piece in self.pending]
        rest = []
        for at, piece in enumerate(self.pending):
            later = zip(self.pending[at + 1 :], done[at + 1 :], strict=True)
            hidden = 0  # bytes of durable later streaming stores, which this older cached store cannot undo
            for other, is_done in later:
                hidden |= other.mask if is_done else 0
            if not done[at] and piece.mask & ~hidden:
                rest.append(piece._replace(mask=piece.mask & ~hidden, data=piece.data & ~hidden))
        self.base = applied(self.base, [piece for piece, is_done in zip(self.pending, done, strict=True) if is_done])
        self.pending = rest
        self._find_versions()

    def any_version(self, rng: Random) -> int:
        """A random version that the medium may have; ``versions`` does not list all."""
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
    """Subsets of unordered pieces: all of them if few; else each prefix, each one lost, each one alone."""
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
    """A file on persistent memory, updated event by event, except for ``ignored`` lines, which nothing depends on."""

    def __init__(self, image: bytes, ignored: range) -> None:
        self.durable = bytearray(image)
        self.lines: dict[int, Line] = {}
        self.key = 0  # a hash of the durable bytes
        self._ignored = ignored
        self._run = 0
        self._last = (0, 0)  # rip and step of the last unordered store

    def take(self, event: TraceEvent) -> list[int]:
        """Apply an event; the versions of its line that it made possible."""
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
        """States that a crash may leave now: all combinations if few; else none, all, each line alone, and samples."""
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
        """The states that a store made possible: those in which its line has one of the new versions, the newest last."""
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
        """A hash of the image of a state."""
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
