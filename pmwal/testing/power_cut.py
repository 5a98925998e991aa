"""The power-cut model: what a medium may hold after a power cut at any point of a recorded run.

Invariants
----------
- A unit (a 64-byte line, a 4 KiB page, a folio) that is not in ``open`` holds its bytes in ``held``, in every image.
- An open unit holds any of its versions, from the oldest that the medium may still have to the newest that was stored, which covers
  early eviction and any order of writing. The choices for two units are independent.
- Only a barrier that completed over a unit takes versions away from it, and it never takes the newest.
- The live page is zero in every image: no barrier includes it and no recovery reads it.

``digest`` is a sum over lines, so the digest of an image follows from the chosen versions before the image is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import NamedTuple

import numpy as np

from pmwal.format.layout import LINE, LIVE_OFFSET, PAGE, SECTOR
from pmwal.testing.recorder import Step

WORD = 8
DIGEST_MASK = (1 << 64) - 1
UNITS = {"pmem": LINE, "page": PAGE, "folio-64k": 64 * 1024, "folio-2m": 2 * 1024 * 1024}
"""The names of the media, and the size of the unit that each writes."""


class Version(NamedTuple):
    """What a unit may hold: its bytes, and what they add to the digest of an image with the oldest version instead."""

    data: bytes
    delta: int
    streamed: bool = False


class PowerCutModel:
    """One medium of a kind named in ``UNITS``. Everything in ``image`` is durable at first.

    >>> medium = PowerCutModel("page", bytes(16384))
    >>> medium.take(Step("store", 12288, 3, b"new"))
    >>> [version.data[:3] for version in medium.open[3]]
    [b'\\x00\\x00\\x00', b'new']
    >>> medium.take(Step("flush", 12288, 4096))
    >>> medium.open, bytes(medium.held[12288:12291])
    ({}, b'new')
    """

    def __init__(self, kind: str, image: bytes) -> None:
        self.kind = kind
        self.size = UNITS[kind]
        self.by_lines = kind == "pmem"
        self._piece = WORD if self.by_lines else SECTOR  # what is written as a whole or not at all
        self.open: dict[int, list[Version]] = {}
        self._reset(image)

    def _reset(self, image: bytes) -> None:
        self.held = bytearray(image)
        self.held[LIVE_OFFSET : LIVE_OFFSET + PAGE] = bytes(PAGE)
        self.cache = bytearray(self.held)
        self.digest = digest_of(image)
        self.cache_digest = self.digest
        self.open.clear()
        self._dirty: set[int] = set()  # by page cache: stored to since it was last written
        self._leaving: dict[int, int] = {}  # by line: the version that the next fence makes durable

    def take(self, step: Step) -> None:
        """Follow one step."""
        match step.name:
            case "store" | "write":
                self._store(step.offset, step.data, streamed=False)
            case "stream":
                self._store(step.offset, step.data, streamed=True)
                self._write_back(step.offset, step.length)
            case "write_back":
                self._write_back(step.offset, step.length)
            case "fence":
                self._fence()
            case "flush":
                self._sync(step.offset, step.offset + step.length)
            case "sync":
                self._sync(0, len(self.held))
            case "failed" | "lied":
                self._dirty.difference_update(self._units(step.offset, step.offset + step.length))
            case "evict":
                self._evict(step.offset // self.size, step.data)
            case "cut":
                self._reset(step.data)

    def settles(self, step: Step) -> bool:
        """Whether this step removes versions, so that a crash must be looked at before it."""
        return step.name in ("fence", "flush", "sync", "evict", "cut")

    def newest(self) -> dict[int, Version]:
        """The newest version of every open unit: all that was stored has reached the medium."""
        return {unit: versions[-1] for unit, versions in self.open.items()}

    def clean(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Offset and oldest version of each open page in this range that counts as clean: it may leave the cache."""
        units = (unit for unit in self._units(start, end) if unit in self.open and unit not in self._dirty)
        return [(unit * self.size, self.open[unit][0].data) for unit in units]

    def _units(self, start: int, end: int) -> range:
        return range(start // self.size, -(-end // self.size))

    def _bytes(self, image: bytearray, unit: int) -> bytes:
        return bytes(image[unit * self.size : (unit + 1) * self.size])

    def _store(self, offset: int, data: bytes, *, streamed: bool) -> None:
        if not data or LIVE_OFFSET <= offset < LIVE_OFFSET + PAGE:
            return
        units = self._units(offset, offset + len(data))
        for unit in units:
            self.open.setdefault(unit, [Version(self._bytes(self.cache, unit), 0)])
        self.cache[offset : offset + len(data)] = data
        for unit in units:
            versions, stored = self.open[unit], self._bytes(self.cache, unit)
            step = digest_change(unit * self.size, versions[-1].data, stored)
            if versions[-1].data != stored:
                versions.append(Version(stored, (versions[-1].delta + step) & DIGEST_MASK, streamed))
                self.cache_digest = (self.cache_digest + step) & DIGEST_MASK
        self._dirty.update(units)

    def _write_back(self, offset: int, length: int) -> None:
        for unit in self._units(offset, offset + length):
            if unit in self.open:
                self._leaving[unit] = len(self.open[unit]) - 1

    def _fence(self) -> None:
        for unit, place in self._leaving.items():
            self._settle(unit, place)
        self._leaving.clear()

    def _sync(self, start: int, end: int) -> None:
        for unit in [unit for unit in self._units(start, min(end, len(self.held))) if unit in self._dirty]:
            self._dirty.discard(unit)
            self._leaving.pop(unit, None)
            if unit in self.open:
                self._settle(unit, len(self.open[unit]) - 1)

    def _settle(self, unit: int, place: int) -> None:
        """The medium holds this version of the unit or a newer one."""
        versions = self.open[unit]
        oldest = versions[place]
        self.held[unit * self.size : unit * self.size + len(oldest.data)] = oldest.data
        self.digest = (self.digest + oldest.delta) & DIGEST_MASK
        if place == len(versions) - 1:
            del self.open[unit]
        else:
            kept = versions[place:]
            self.open[unit] = [version._replace(delta=(version.delta - oldest.delta) & DIGEST_MASK) for version in kept]

    def _evict(self, unit: int, data: bytes) -> None:
        """A clean page was read again: cache and medium agree on it now."""
        versions = self.open.pop(unit)
        self.cache_digest += digest_change(unit * self.size, versions[-1].data, data)
        self.digest += digest_change(unit * self.size, versions[0].data, data)
        for image in (self.cache, self.held):
            image[unit * self.size : unit * self.size + len(data)] = data
        self.cache_digest &= DIGEST_MASK
        self.digest &= DIGEST_MASK

    # -- torn units

    def prefixes(self, unit: int) -> Iterator[Version]:
        """Each state of a unit in the middle of a store to it: its words, or sectors, written from the front."""
        versions = self.open[unit]
        for before, after in pairwise(versions):
            pieces = self._differing(before, after, self._piece)
            for count in range(1, len(pieces)):
                yield self._mixed(unit, before, after, pieces[:count], self._piece)

    def mixture(self, unit: int, random: Random) -> Version:
        """Two versions of a unit, mixed: any words of one streamed store or of one memcpy; on a disk any sectors of any two."""
        versions = self.open[unit]
        if self.by_lines:
            place = random.randrange(1, len(versions))
            before, after = versions[place - 1], versions[place]
        else:
            before, after = random.sample(versions, 2)
        pieces = self._differing(before, after, self._piece)
        return self._mixed(unit, before, after, random.sample(pieces, random.randrange(len(pieces) + 1)), self._piece)

    def interrupted(self, unit: int, random: Random) -> Version:
        """A unit that was written in the middle of a store to it: words of the store from the front."""
        before, after = random.choice(list(pairwise(self.open[unit])))
        words = self._differing(before, after, WORD)
        return self._mixed(unit, before, after, words[: random.randrange(len(words) + 1)], WORD)

    def torn(self, unit: int, random: Random) -> Version:
        """A unit of more than one version that was written in part, or in the middle of a store."""
        return random.choice((self.mixture, self.interrupted))(unit, random)

    def _differing(self, before: Version, after: Version, size: int) -> list[int]:
        """Offsets of the words, or sectors, in which two versions differ."""
        if self.by_lines:
            return [at for at in range(0, LINE, WORD) if before.data[at : at + WORD] != after.data[at : at + WORD]]
        one, two = (np.frombuffer(version.data, dtype="<u8").reshape(-1, size // WORD) for version in (before, after))
        return [int(row) * size for row in np.flatnonzero((one != two).any(axis=1))]

    def _mixed(self, unit: int, before: Version, after: Version, pieces: list[int], size: int) -> Version:
        data = bytearray(before.data)
        for at in pieces:
            data[at : at + size] = after.data[at : at + size]
        change = digest_change(unit * self.size, before.data, bytes(data))
        return Version(bytes(data), (before.delta + change) & DIGEST_MASK)


@lru_cache(maxsize=1 << 16)
def _line_digest(offset: int, line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=8, salt=offset.to_bytes(8, "little")).digest(), "little")


@lru_cache(maxsize=16)
def digest_of(image: bytes) -> int:
    """64 bits that tell images of one size apart: a sum over the lines outside the live page."""
    lines = (at for at in range(0, len(image), LINE) if not LIVE_OFFSET <= at < LIVE_OFFSET + PAGE)
    return sum(_line_digest(at, image[at : at + LINE]) for at in lines) & DIGEST_MASK


def digest_change(offset: int, before: bytes, after: bytes) -> int:
    """What replacing these whole lines at this offset adds to the digest of an image."""
    if len(before) == LINE:
        return _line_digest(offset, after) - _line_digest(offset, before)
    one, two = (np.frombuffer(data, dtype="<u8").reshape(-1, LINE // WORD) for data in (before, after))
    lines = (int(line) * LINE for line in np.flatnonzero((one != two).any(axis=1)))
    return sum(_line_digest(offset + at, after[at : at + LINE]) - _line_digest(offset + at, before[at : at + LINE]) for at in lines)
