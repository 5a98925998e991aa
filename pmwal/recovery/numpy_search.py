"""The search of the reference engine, in numpy: what pmwal/native/search.c does, one load at a time."""

from __future__ import annotations

from pmwal.format import linear
from pmwal.format.layout import HEADER, POSITION_MAX, SEQ_MAX, Superblock, uuid_crc
from pmwal.format.numerics import np, npt
from pmwal.recovery.spans import Limits, Span

Words = npt.NDArray[np.uint64]

_HOLE = 1 << 31  # bytes of a hole that are passed at once
_ONES = 0xFFFFFFFF
_COVERED = HEADER - 4  # bytes of a header that its checksum covers
_LAP_UNKNOWN_MAX = POSITION_MAX // 2  # the greatest ``durable`` that is believed to tell a record's lap


def nearest(durable: Words, offsets: Words, capacity: int) -> Words:
    """The first positions from ``durable`` on at these ring offsets."""
    lap = np.uint64(capacity)
    return (durable + (offsets + (lap - durable % lap)) % lap).astype(np.uint64)


class NumpySearch:
    """The search of one span after the other."""

    def __init__(self, block: Superblock, limits: Limits, spans: list[Span], piece: int) -> None:
        """``piece``: bytes of a span that each call of ``data`` takes."""
        self.at = spans[0].start
        self._register = 0
        self.pending = 0
        self._block = block
        self._limits = limits
        self._spans = spans
        self._piece = piece
        self._starts = np.array([span.start for span in spans], np.uint64)
        self._waiting: dict[int, list[npt.NDArray[np.void]]] = {}  # by where the piece begins in which they end

    def hole(self) -> bytes:
        """Pass over the hole that is due."""
        end, found = self._spans[self._span_at(self.at)].end, []
        for piece in [piece for piece in self._waiting if piece < end]:
            waiting = self._take(piece)
            there = linear.shift(np.full(len(waiting), self._register, np.uint32), waiting["end"] - np.uint64(self.at))
            found.append(waiting["start"][there == waiting["wanted"]].tobytes())
        self._register = int(linear.shift(np.array([self._register], np.uint32), np.array([end - self.at], np.uint64))[0])
        self.at = end
        return b"".join(found)

    def data(self, raw: bytes | memoryview, length: int, starts: int, /) -> bytes:
        """Search these bytes, which are due. Headers start in the first ``starts`` of them."""
        words = np.frombuffer(raw, "<u8", len(raw) // 8)
        indexes = self._candidates(words, starts)
        if not self.pending and not len(indexes):
            self.at += length
            return b""
        registers = linear.registers(self._register, memoryview(raw)[:length])
        if len(indexes):
            self._join(words, indexes, registers)
        waiting = self._take(self.at)
        ends = waiting["end"] - np.uint64(self.at)
        rows, counts = (ends // np.uint64(8)).astype(np.intp), ends % np.uint64(8)
        # The word after the last one is not read: nothing of it counts where a record ends at a word's start.
        there = linear.step(registers[rows], words[np.minimum(rows, length // 8 - 1)], counts)
        self.at += length
        self._register = int(registers[-1])
        found: bytes = waiting["start"][there == waiting["wanted"]].tobytes()
        return found

    def rewind(self, at: int, /) -> None:
        """Resume the search where it was. Nothing is pending, so registers may begin with any value again."""
        self.at = at

    def _span_at(self, offset: int) -> int:
        return int(np.searchsorted(self._starts, offset, "right")) - 1

    def _candidates(self, words: Words, starts: int) -> npt.NDArray[np.intp]:
        """The words at which a record may start."""
        limits, block, step = self._limits, self._block, self._block.alignment // 8
        count = min(starts // 8, len(words) - HEADER // 8 + 1)
        if count <= 0:
            return np.empty(0, np.intp)
        columns = [words[column : column + count : step] for column in range(HEADER // 8)]
        least = np.uint64(max(1, min(limits.seq_min, limits.newer_seq_min)))
        likely = np.flatnonzero(
            (columns[1] >= least) & (columns[1] <= np.uint64(SEQ_MAX)) & (columns[2] <= self._durable_max(count))
        )
        first, seq, durable, _, marks, batch = (column[likely] for column in columns)
        epoch, length = marks & np.uint64(_ONES), first >> np.uint64(32)
        possible = (marks >> np.uint64(48) == 0) & ((batch & np.uint64(_ONES)) < (batch >> np.uint64(32)))
        possible &= (epoch >= 1) & (length <= np.uint64(block.payload_max))
        align = np.uint64(block.alignment - 1)
        size = (np.uint64(HEADER) + length + align) & ~align
        offsets = np.uint64(self.at) + likely.astype(np.uint64) * np.uint64(block.alignment)
        possible &= size <= np.uint64(block.capacity) - offsets
        if limits.placed:
            possible &= durable <= np.uint64(limits.base) + offsets
        else:
            possible &= durable <= np.uint64(_LAP_UNKNOWN_MAX)
        this = (epoch == np.uint64(limits.epoch)) & (seq >= np.uint64(limits.seq_min))
        newer = (epoch > np.uint64(limits.epoch)) & (seq >= np.uint64(limits.newer_seq_min))
        indexes: npt.NDArray[np.intp] = likely[possible & (this | newer)] * step
        return indexes

    def _durable_max(self, count: int) -> np.uint64:
        return np.uint64(self._limits.base + self.at + 8 * count if self._limits.placed else _LAP_UNKNOWN_MAX)

    def _join(self, words: Words, indexes: npt.NDArray[np.intp], registers: linear.Registers) -> None:
        """Let these candidates wait for the pieces in which they end."""
        block = self._block
        first, durable = words[indexes], words[indexes + 2]
        starts = np.uint64(self.at) + indexes.astype(np.uint64) * np.uint64(8)
        placed = self._limits.placed
        places = starts + np.uint64(self._limits.base) if placed else nearest(durable, starts, block.capacity)
        distances = np.uint64(_COVERED) + (first >> np.uint64(32))
        seed = np.full(len(indexes), uuid_crc(block.uuid) ^ _ONES, np.uint32)
        eight, four = np.full(len(indexes), 8), np.full(len(indexes), 4)
        differences = linear.step(seed, places, eight) ^ linear.step(registers[indexes], first, four)
        waiting = np.empty(len(indexes), [("start", np.uint64), ("end", np.uint64), ("wanted", np.uint32)])
        waiting["start"] = starts
        waiting["end"] = starts + np.uint64(4) + distances
        waiting["wanted"] = linear.shift(differences, distances) ^ ~first.astype(np.uint32)
        self.pending += len(indexes)
        self._put(waiting)

    def _put(self, waiting: npt.NDArray[np.void]) -> None:
        lasts = waiting["end"] - np.uint64(1)
        spans = np.searchsorted(self._starts, lasts, "right") - 1
        begins = self._starts[spans]
        sizes = np.array([self._piece if span.data else _HOLE for span in self._spans], np.uint64)[spans]
        pieces = begins + (lasts - begins) // sizes * sizes
        order = np.argsort(pieces, kind="stable")
        pieces, waiting = pieces[order], waiting[order]
        firsts = np.flatnonzero(np.concatenate([[True], pieces[1:] != pieces[:-1]]))
        for piece, part in zip(pieces[firsts].tolist(), np.split(waiting, firsts[1:]), strict=True):
            self._waiting.setdefault(piece, []).append(part)

    def _take(self, piece: int) -> npt.NDArray[np.void]:
        """What waits for this piece."""
        parts = self._waiting.pop(piece, [])
        waiting = np.concatenate(parts) if parts else np.empty(0, [("start", np.uint64), ("end", np.uint64), ("wanted", np.uint32)])
        self.pending -= len(waiting)
        return waiting
