"""The log of a disk's writes and flushes (the format of dm-log-writes), and the states that a power cut leaves of the disk.

``logdisk.py`` writes the log. Its order implies:

- Requests are executed one at a time. So a write precedes a flush in the log only if it reached the disk before the flush began,
  and a request made after an answer follows the request that was answered.
- After a cut at time *t*, exactly the first *t* entries have happened. All writes before the last flush among them are durable;
  each sector of the later writes has the durable version or any version written since.
- An acknowledgement is a write into a reserved area of the same disk, made by the program under test after the call returned. The
  flush that the call waited for was logged before it was answered, so it precedes the acknowledgement. Therefore a record whose
  acknowledgement is among the first *t* entries must be in every state of a cut at *t*, whichever versions the later sectors have.
  It counts from the acknowledgement on, not from the next flush on: a program that acknowledges too early is caught between the
  two.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import NamedTuple

from crash.disk.logdisk import ENTRY, FLUSH, MAGIC, SECTOR, SUPER, VERSION

MODES = ("flushed", "subset", "torn", "prefix", "all")
"""What survives of the writes after the last flush: none, whole writes, sectors, whole writes up to a torn one, all."""

FAVOURED_EVERY = 4  # coprime to the number of modes, so favoured cuts get every mode
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """A write, or a flush (which has no data)."""

    offset: int
    data: bytes

    @property
    def is_flush(self) -> bool:
        """Whether this is a flush."""
        return not self.data


class Cut(NamedTuple):
    """A power cut after ``time`` entries: the first ``durable`` are durable; ``mode`` and ``seed`` select the rest."""

    time: int
    durable: int
    mode: str
    seed: int


def parse(path: Path) -> list[Entry]:
    """All entries of a log; ``ValueError`` if it is incomplete or has an entry that is neither a write nor a flush."""
    raw = memoryview(path.read_bytes())
    if len(raw) < SECTOR:
        raise ValueError(f"{path}: no entry was logged")
    magic, version, count, size = SUPER.unpack_from(raw)
    if (magic, version, size) != (MAGIC, VERSION, SECTOR):
        raise ValueError(f"{path}: not a log of writes in sectors of {SECTOR} bytes")
    entries, at = [], SECTOR
    for number in range(count):
        if at + SECTOR > len(raw):
            raise ValueError(f"{path}: it ends before entry {number} of {count}")
        first, sectors, flags, _ = ENTRY.unpack_from(raw, at)
        if flags & ~FLUSH or bool(flags) == bool(sectors):
            raise ValueError(f"{path}: entry {number} is neither a write nor a flush (flags {flags:#x}, {sectors} sectors)")
        at += SECTOR
        data = bytes(raw[at : at + sectors * SECTOR]).ljust(sectors * SECTOR, b"\0")  # trailing zeros may be a hole
        entries.append(Entry(first * SECTOR, data))
        at += sectors * SECTOR
    return entries


def save(entries: Sequence[Entry], path: Path) -> None:
    """Write entries as a log."""
    with path.open("xb") as log:
        log.write(SUPER.pack(MAGIC, VERSION, len(entries), SECTOR).ljust(SECTOR, b"\0"))
        for offset, data in entries:
            log.write(ENTRY.pack(offset // SECTOR, len(data) // SECTOR, 0 if data else FLUSH, 0).ljust(SECTOR, b"\0"))
            log.write(data)


def cut_off(entries: Sequence[Entry], cut: Cut, limit: int, unit: int) -> list[Entry]:
    """The log of a disk after this power cut: what survived, and a flush that makes it durable.

    The notes made between the last flush and the cut precede the writes that survived of that time, so a cut among these writes
    also leaves a state that the power cut could have left.
    """
    noted = [entry for entry in entries[cut.durable : cut.time] if entry.data and entry.offset >= limit]
    survived = [Entry(*piece) for piece in survivors(entries, cut, limit, unit)]
    return [*entries[: cut.durable], *noted, *survived, Entry(0, b"")]


def sample(entries: Sequence[Entry], limit: int, random: Random, count: int, favoured: Sequence[tuple[int, int]] = ()) -> list[Cut]:
    """Random cuts, ordered by time, some within the ``favoured`` spans. Writes at or past ``limit`` are not part of the disk."""
    flushes = [index for index, entry in enumerate(entries) if entry.is_flush]
    starts, ends = [0, *(index + 1 for index in flushes)], [*flushes, len(entries)]
    windows = range(len(starts))
    written = [
        window for window in windows if any(entry.data and entry.offset < limit for entry in entries[starts[window] : ends[window]])
    ]
    lengths = [ends[window] - starts[window] for window in written]  # a longer window can leave more states
    unseen = random.sample(windows, len(windows))  # each has exactly one state with nothing but what was flushed
    cuts = []
    for number in range(count):
        mode = MODES[number % len(MODES)] if written else "flushed"
        if favoured and number % FAVOURED_EVERY == 0:
            time = random.randint(*random.choice(favoured))
            window = bisect_right(starts, time) - 1
        elif mode == "flushed":
            # With nothing but durable writes, the latest time checks most: all acknowledgements before the next flush count.
            window = unseen.pop() if unseen else random.choice(windows)
            time = ends[window]
        else:
            (window,) = random.choices(written, lengths)
            time = random.randint(starts[window], ends[window])
        cuts.append(Cut(time, starts[window], mode, random.getrandbits(32)))
    return sorted(cuts)


def survivors(entries: Sequence[Entry], cut: Cut, limit: int, unit: int) -> Iterator[tuple[int, bytes]]:
    """What survives of the writes after the last flush, torn at multiples of ``unit``, in log order."""
    random = Random(cut.seed)
    share = random.choice((0.1, 0.5, 0.9))
    writes = [entry for entry in entries[cut.durable : cut.time] if not entry.is_flush and entry.offset < limit]
    last = random.randrange(len(writes)) if writes else 0
    for number, (offset, data) in enumerate(writes):
        if cut.mode == "all" or (cut.mode == "prefix" and number < last) or (cut.mode == "subset" and random.random() < share):
            yield offset, data
        elif cut.mode == "torn" or (cut.mode == "prefix" and number == last):
            at = 0
            while at < len(data):
                size = unit - (offset + at) % unit
                if random.random() < share:
                    yield offset + at, data[at : at + size]
                at += size


def copy_sparse(source: int, target: int) -> None:
    """Make a file the copy of another, holes included."""
    size = os.fstat(source).st_size
    os.ftruncate(target, 0)
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole follows
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.pwrite(target, os.pread(source, min(_CHUNK, end - at), at), at)


def copy_file(source: Path, target: Path) -> None:
    """Make a new file the copy of another, holes included."""
    with source.open("rb") as old, target.open("xb") as new:
        copy_sparse(old.fileno(), new.fileno())


class Disk:
    """A disk that is advanced through the log: its durable contents and their digest."""

    def __init__(self, initial: Path, image: Path, limit: int) -> None:
        """Start with a copy of ``initial`` in ``image``; bytes at or past ``limit`` are not part of the disk."""
        copy_file(initial, image)
        self._fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._limit = limit
        self._applied = 0
        self._digest = 0

    def close(self) -> None:
        """Close the image."""
        os.close(self._fd)

    def advance(self, entries: Sequence[Entry], durable: int) -> None:
        """Apply all writes of the first ``durable`` entries."""
        pieces = [(offset, data) for offset, data in entries[self._applied : durable] if data and offset < self._limit]
        self._digest ^= self._change(pieces)
        for offset, data in pieces:
            os.pwrite(self._fd, data, offset)
        self._applied = max(self._applied, durable)

    def digest(self, pieces: Iterable[tuple[int, bytes]]) -> int:
        """The digest of the contents with these pieces applied."""
        return self._digest ^ self._change(pieces)

    def make(self, pieces: Iterable[tuple[int, bytes]], target: int) -> None:
        """Make ``target`` the image with these pieces applied."""
        copy_sparse(self._fd, target)
        for offset, data in pieces:
            os.pwrite(target, data, offset)

    def _change(self, pieces: Iterable[tuple[int, bytes]]) -> int:
        """What pieces change in the digest, which is the exclusive or of all sectors' hashes."""
        sectors = {offset + at: data[at : at + SECTOR] for offset, data in pieces for at in range(0, len(data), SECTOR)}
        change = 0
        for offset, new in sectors.items():
            old = os.pread(self._fd, SECTOR, offset)
            if old != new:
                change ^= _digest(offset, old) ^ _digest(offset, new)
        return change


def _digest(offset: int, sector: bytes) -> int:
    return int.from_bytes(blake2b(sector, digest_size=16, salt=offset.to_bytes(8, "little")).digest(), "little")
