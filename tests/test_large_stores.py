"""Records and batches of many pages on a disk: whole wherever they begin, and built in little memory."""

from __future__ import annotations

import ctypes
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from preload import run
from processes import elsewhere
from support import payloads, resident_pages

pytestmark = pytest.mark.both_engines

PAGE = 4096
HEADER = 48
PIECE = 256 * 1024  # pmwal/native/disk.h
SYNCED_MAX = 1024 * 1024
FOLIO_MAX = 1024 * 1024
LENGTHS = [30_000, PIECE - HEADER - 8, PIECE - HEADER, PIECE - HEADER + 1, PIECE + PAGE, SYNCED_MAX - HEADER, SYNCED_MAX, 1_500_000]


def shift(wal: pmwal.Wal, offset: int) -> None:
    """Append a record after which the next one begins at this offset of a page."""
    gap = (offset - wal._engine.state.head.position) % PAGE
    wal.append(bytes((gap if gap >= HEADER else gap + PAGE) - HEADER))
    assert wal._engine.state.head.position % PAGE == offset


@pytest.mark.parametrize("where", ["disk", "tmpfs"])
@pytest.mark.parametrize("offset", [0, 8, PAGE - HEADER, PAGE - 8])
def test_long_record_is_whole_wherever_it_begins(
    tmp_path: Path, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str, offset: int
) -> None:
    """Committed at once or later, alone in one call or in pieces, and the other engine finds it, too."""
    path = (tmp_path if where == "disk" else shm_dir) / "log"
    data = random.Random(offset).randbytes(max(LENGTHS))
    expected: list[bytes] = []
    with pmwal.open(path, size="8MiB", medium="file", align=8, on_full="overwrite", commit="manual") as wal:
        for round_ in range(2):
            for _ in range(70 if round_ else 0):
                wal.append(b"alone", commit=True)
            for length in LENGTHS:
                wal.truncate(before=wal.next_seq)
                first = wal.next_seq
                shift(wal, offset)
                wal.append(data[:length], commit=bool(round_))
                wal.append(b"small", commit=True)
                expected = [data[:length], b"small"]
                assert [record.data for record in wal.read(first)][-2:] == expected
    monkeypatch.setenv("PMWAL_ENGINE", "python")
    assert pmwal.verify(path).case == "R1"
    with pmwal.open(path, "r") as reader:
        assert payloads(reader)[-2:] == expected


@pytest.mark.parametrize("make", [bytes, bytearray])
@pytest.mark.parametrize("commit", ["each", "manual"])
def test_long_batches_are_whole_over_the_rings_end(tmp_path: Path, commit: str, make: Callable[[bytes], Any]) -> None:
    """In pieces, some of them records that are longer than a piece; from where the bytes lie, if nobody can change them."""
    rng = random.Random(commit)
    with pmwal.open(tmp_path / "log", size="4MiB", align=8, commit=commit) as wal:
        for _ in range(70):
            wal.append(b"alone")
        for _ in range(8):
            items = [make(rng.randbytes(rng.choice((0, 100, 5000, 70_000, PIECE, 400_000)))) for _ in range(6)]
            wal.truncate(before=wal.next_seq)
            first, last = wal.extend(items)
            wal.append(b"small")
            assert [record.data for record in wal.read(first, last + 1)] == items
    assert pmwal.verify(tmp_path / "log").case == "R1"


@pytest.mark.native_engine
def test_batch_is_not_copied_as_a_whole(shm_dir: Path) -> None:
    """The memory that a batch of 48 MB takes does not grow with it."""

    def body() -> int:
        items: list[Any] = [bytes(100_000)] * 480
        with pmwal.open(shm_dir / "log", size="64MiB", medium="file") as wal:
            wal.extend(items[:10])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            wal.extend(items)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert elsewhere(body) < 16 * 1024


@pytest.mark.parametrize("make", [bytes, bytearray])
@pytest.mark.parametrize("commit", ["each", "manual"])
def test_full_ring_keeps_its_oldest_records(tmp_path: Path, commit: str, make: Callable[[bytes], Any]) -> None:
    """A large record ends in the page in which the oldest one begins, or right before it."""
    rng = random.Random(commit)
    kept: dict[int, bytes] = {}
    with pmwal.open(tmp_path / "log", size="512KiB", align=8, commit=commit) as wal:
        for _ in range(70):
            wal.append(b"alone", commit=True)
        wal.truncate(before=wal.next_seq)
        for round_ in range(60):
            while wal.free < 100_000:
                kept.pop(wal.first_seq)
                wal.truncate(before=wal.first_seq + 1)
            data = rng.randbytes(rng.choice((10, 3000, 5000, 40_000, 70_000)))
            kept[wal.append(make(data))] = data
            for less in range(0, 4096, 8):  # the longest that fits: the ring may end before it
                data = rng.randbytes(min(200_000, max(0, wal.free - HEADER - less))) if round_ % 2 else b""
                try:
                    kept[wal.append(make(data))] = data
                    break
                except pmwal.WalFull:
                    continue
            assert payloads(wal) == list(kept.values()), round_
    with pmwal.open(tmp_path / "log", "r") as reader:
        assert payloads(reader) == list(kept.values())


def dribbled(path: str) -> bool:
    """Whether a log is right whose writes take some bytes at a time."""
    rng = random.Random(path)
    items = [rng.randbytes(length) for length in (100, 20_000, 70_000, 100, 100, 300_000, 17_000)]
    with pmwal.open(path, size="8MiB", commit="manual") as wal:
        for take in (10, 5000, 30_000, 65_536):
            ctypes.CDLL(None).shim_dribble(ctypes.c_long(take))
            first, last = wal.extend(items[:3] if take == 10 else items)
            assert [record.data for record in wal.read(first)] == items[: last - first + 1]
        wal.commit()
        ctypes.CDLL(None).shim_dribble(ctypes.c_long(0))
    return pmwal.verify(path).case == "R1"


def test_short_writes_are_continued(library: Path, tmp_path: Path) -> None:
    """In the middle of a payload, of a header, and between two."""
    assert run(library, __name__, "dribbled", str(tmp_path / "log"))


def read_bytes() -> int:
    """What this process had to read from disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


@pytest.mark.native_engine
@pytest.mark.parametrize("make", [bytes, bytearray])
@pytest.mark.parametrize("commit", ["each", "manual"])
def test_large_records_read_nothing_in_the_first_lap(tmp_path: Path, commit: str, make: Callable[[bytes], Any]) -> None:
    """Not even the page in which one ends, though no page of a new log is in the cache."""

    def body(number: int) -> int:
        data = make(bytes(70_000))
        with pmwal.open(tmp_path / f"{number}", size="8MiB", commit=commit) as wal:
            if not wal._engine.mapping.on_disk:
                pytest.skip("temporary files are in memory")
            for _ in range(70):
                wal.append(b"alone", commit=True)
            before = read_bytes()
            for _ in range(64):
                wal.append(data)
            return read_bytes() - before

    assert min(map(body, range(3))) <= 16 * PAGE


@pytest.mark.native_engine
@pytest.mark.parametrize("commit", ["each", "manual"])
def test_every_large_record_finds_the_single_pages_gone(tmp_path: Path, commit: str) -> None:
    """Not only the first one that begins in a MiB of the file, or the others would fill single pages, which takes longer."""
    with pmwal.open(tmp_path / "log", size="8MiB", commit=commit) as wal:
        engine = wal._engine
        if not engine.mapping.on_disk:
            pytest.skip("temporary files are in memory")
        found = []
        for _ in range(26):
            head = engine.block.ring_offset + engine.state.head.position
            first, end = -(-head // PAGE) * PAGE, -(-head // FOLIO_MAX) * FOLIO_MAX
            if end - FOLIO_MAX + 160_000 < head and first < end:  # another one began in this MiB
                found.append(resident_pages(engine.mapping.fd, first, end - first))
            wal.append(bytes(150_000))
    assert len(found) > 10
    assert max(found) <= 4, found  # a busy kernel keeps a page to which another processor holds a reference
