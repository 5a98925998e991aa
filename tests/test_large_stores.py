"""Records and batches of many pages on a disk: whole wherever they begin, and built in little memory."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Any

import pytest

import pmwal
from processes import elsewhere
from support import payloads

pytestmark = pytest.mark.both_engines

PAGE = 4096
HEADER = 48
PIECE = 256 * 1024  # pmwal/native/disk.h
SYNCED_MAX = 1024 * 1024
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


@pytest.mark.parametrize("commit", ["each", "manual"])
def test_long_batches_are_whole_over_the_rings_end(tmp_path: Path, commit: str) -> None:
    """In pieces, some of them records that are longer than a piece."""
    rng = random.Random(commit)
    with pmwal.open(tmp_path / "log", size="4MiB", align=8, commit=commit) as wal:
        for _ in range(70):
            wal.append(b"alone")
        for _ in range(8):
            items = [rng.randbytes(rng.choice((0, 100, 5000, 70_000, PIECE, 400_000))) for _ in range(6)]
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
