"""All ways to compute a checksum give CRC-32C, for every length and alignment, and read nothing outside."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from pathlib import Path

import crc32c
import pytest

import pmwal
from pmwal.format.layout import HEADER
from pmwal.format.scan import scan_for
from pmwal.native import _native
from support import kill, superblock

WAYS = _native.CRC32C_WAYS
LENGTH_MAX = 4200
PROT_NONE = 0


def test_known_answer() -> None:
    """The check value of the catalogue of CRCs, by the way that was chosen and by each."""
    assert _native.crc32c(b"123456789") == 0xE3069283
    assert {_native.crc32c(b"123456789", 0, way) for way in WAYS} == {0xE3069283}
    with pytest.raises(ValueError, match="no way slide rule"):
        _native.crc32c(b"", 0, "slide rule")


@pytest.mark.parametrize("way", WAYS)
def test_every_length_and_alignment(way: str) -> None:
    """As the crc32c package says, for each length up to 4200 at each offset from a cache line."""
    rng = random.Random(1)
    data = memoryview(rng.randbytes(LENGTH_MAX + 128))
    for length in range(LENGTH_MAX + 1):
        seed = rng.getrandbits(32)
        for start in range(64):
            piece = data[start : start + length]
            assert _native.crc32c(piece, seed, way) == crc32c.crc32c(piece, seed), (length, start)


@pytest.mark.parametrize("way", WAYS)
def test_long_data_and_joins(way: str) -> None:
    """A checksum continued over the rest is the one over all, wherever the data is cut, from any seed."""
    rng = random.Random(2)
    data = memoryview(rng.randbytes(1 << 18))
    for length in [12288, 12289, 65535, 1 << 18, *(rng.randrange(1 << 18) for _ in range(150))]:
        piece, seed = data[len(data) - length :], rng.choice((0, 1, 0xFFFFFFFF, rng.getrandbits(32)))
        expected = crc32c.crc32c(piece, seed)
        assert _native.crc32c(piece, seed, way) == expected, length
        cut = rng.randrange(length + 1)
        assert _native.crc32c(piece[cut:], _native.crc32c(piece[:cut], seed, way), way) == expected, (length, cut)


@pytest.mark.parametrize("way", WAYS)
def test_words_and_records(way: str) -> None:
    """A slot, and a header with its payload, have the checksum of place, upper half of the first word, and the rest."""
    rng = random.Random(3)
    data = rng.randbytes(LENGTH_MAX)
    for count in range(1, 17):
        words, place, seed = rng.randbytes(8 * count), rng.getrandbits(64), rng.getrandbits(32)
        expected = crc32c.crc32c(place.to_bytes(8, "little") + words[4:], seed)
        assert _native.crc32c_words(seed, place, words, way) == expected, count
    for length in range(LENGTH_MAX + 1):
        header, place, seed = rng.randbytes(HEADER), rng.getrandbits(64), rng.getrandbits(32)
        payload = memoryview(data)[rng.randrange(LENGTH_MAX - length + 1) :][:length]
        expected = crc32c.crc32c(payload, crc32c.crc32c(place.to_bytes(8, "little") + header[4:], seed))
        assert _native.crc32c_words(seed, place, header, way, payload) == expected, length


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0, 7, 56, 136])
def test_what_is_no_slot_or_header_is_refused(way: str, size: int) -> None:
    """Only whole words, as many as a slot has at most; with a payload, a header."""
    with pytest.raises(ValueError, match="not the words"):
        _native.crc32c_words(0, 0, bytes(size), way, *([b""] if size == 56 else []))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_outside_is_read(way: str) -> None:
    """Between two pages that cannot be accessed, ranges that begin or end at either have their checksum."""
    page, pages = mmap.PAGESIZE, 4
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, (pages + 2) * page) as mapping:
        inner = memoryview(mapping)[page : (pages + 1) * page]
        inner[:] = random.Random(4).randbytes(len(inner))
        first = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        for outside in (first, first + (pages + 1) * page):
            assert libc.mprotect(ctypes.c_void_p(outside), ctypes.c_size_t(page), PROT_NONE) == 0
        for length in [*range(2200), *range(len(inner) - 300, len(inner) + 1)]:
            for piece in (inner[:length], inner[len(inner) - length :]):
                assert _native.crc32c(piece, 5, way) == crc32c.crc32c(bytes(piece), 5), length
        del piece
        inner.release()


@pytest.mark.parametrize("pages", [1, 3, 8])
def test_a_file_that_ends_inside_a_record_is_an_error(tmp_path: Path, pages: int) -> None:
    """A checksum of mapped bytes that a fault interrupts leaves nothing that a later one would notice."""
    path = tmp_path / "log"
    wal = pmwal.open(path, "x", size="256KiB")
    wal.append(bytes(range(256)) * 256)
    kill(wal)
    block = superblock(path)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
        _native.catch_faults()
        raw = bytes(view)
        scan = scan_for(block, view)
        assert scan is not None
        assert scan.file is not None
        os.ftruncate(file.fileno(), block.ring_offset + pages * mmap.PAGESIZE)
        window, rules = (view[block.ring_offset :], 0, 0), (2, block.capacity, 1, 1, False, b"")
        for _ in range(3):
            with pytest.raises(OSError, match="shortened"):
                scan.scanner.run(window, (0, 1), rules, 1, 0, None, block.capacity)
            assert _native.crc32c(raw) == crc32c.crc32c(raw)
        file.seek(0)
        file.write(raw)
        file.flush()
        assert scan.scanner.run(window, (0, 1), rules, 1, 0, None, block.capacity)[1] == 2
        window[0].release()
        scan.file.release()
