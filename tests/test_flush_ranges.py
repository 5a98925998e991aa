"""Flushed ranges (scenario 19): every stored byte is flushed before its acknowledgement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmwal.format.layout import (
    CONTROL_OFFSET,
    LINE,
    LIVE_OFFSET,
    PAGE,
)
from pmwal.storage.mapping import Mapping
from pmwal.storage.medium import Medium
from support import (
    SMALL_RING,
    BarrierRecorder,
    Step,
    open_small,
    superblock,
)
from surgery import STRICT, fill_to

pytestmark = pytest.mark.both_engines


def test_barrier_covers_every_byte_for_every_start_and_length(shm_dir: Path) -> None:
    """Scenario 19: ranges begin anywhere in a line, near and across page ends, with every length up to three lines."""
    path = shm_dir / "plain"
    path.write_bytes(bytes(6 * PAGE))
    seam = BarrierRecorder()
    fd = os.open(path, os.O_RDWR)
    mapping = Mapping(fd, 6 * PAGE, Medium("file", "tmpfs"), seam, writable=True)
    try:
        for base in (2 * PAGE, 3 * PAGE - 2 * LINE, 3 * PAGE - LINE, 3 * PAGE, 5 * PAGE - LINE):  # past the live page
            for start in range(base, base + LINE):
                for length in (*range(1, 70), 127, 128, 129, 191, 192, 193, PAGE - 1, PAGE, PAGE + 1):
                    stop = min(start + length, 6 * PAGE)
                    seam.events.clear()
                    mapping.barrier((start, stop))
                    (flush,) = seam.events
                    assert flush.offset <= start, (start, length)
                    assert flush.offset + flush.length >= stop, (start, length)
                    assert (flush.offset % PAGE, flush.length % PAGE) == (0, 0)
                    assert flush.length < stop - start + 2 * PAGE, "not more pages than were touched"
    finally:
        mapping.close()


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_flushes_cover_every_stored_byte_before_the_acknowledgement(shm_dir: Path, ordering: str) -> None:
    """Scenario 19 through append: every possible start mod 64, every length up to two lines, twice past the ring's end."""
    seam = BarrierRecorder()
    path = shm_dir / "test.wal"
    wal = open_small(path, seam=seam, medium="file", ordering=ordering, on_full="overwrite", align=8)
    starts = set()
    stored = 0
    for length in [*range(130), *range(130, 0, -1), *range(0, 130, 3), *range(1, 130, 7), 1000, 2000, *range(1000, 1060)]:
        seam.events.clear()
        wal.append(b"\x5a" * length)
        pending: list[Step] = []
        for event in seam.events:
            if event.name == "store" and not LIVE_OFFSET <= event.offset < LIVE_OFFSET + PAGE:
                pending.append(event)
                starts.add(event.offset % LINE)
                stored += event.length
            elif event.name == "flush":
                stop = event.offset + event.length
                pending = [one for one in pending if not (event.offset <= one.offset and one.offset + one.length <= stop)]
        assert pending == [], f"acknowledged a record of {length} bytes of which not all were flushed"
    assert {0, 8, 16, 24, 32, 40, 48, 56} == starts
    assert stored > 2 * SMALL_RING
    wal.close()


def test_one_commit_flushes_all_that_was_stored_since_the_last_over_the_rings_end(shm_dir: Path) -> None:
    """Scenario 19 for many appends under one commit: pages before the ring's end and at its start."""
    for fill in (SMALL_RING - 5 * PAGE // 2, SMALL_RING - 3000, SMALL_RING - 104, SMALL_RING - 8):
        seam = BarrierRecorder()
        path = shm_dir / f"{fill}.wal"
        wal = open_small(path, seam=seam, commit="manual", **STRICT)
        fill_to(wal, fill)
        seam.events.clear()
        for _ in range(60):
            wal.append(b"x" * 100)
        assert "flush" not in [event.name for event in seam.events]
        ring = superblock(path).ring_offset
        wal.commit()
        touched = {
            page
            for event in seam.events
            if event.name == "store" and event.offset >= ring
            for page in range(event.offset // PAGE, (event.offset + event.length - 1) // PAGE + 1)
        }
        flushed = {
            page
            for event in seam.events
            if event.name == "flush"
            for page in range(event.offset // PAGE, (event.offset + event.length) // PAGE)
        }
        assert touched <= flushed
        assert len(flushed - touched - {CONTROL_OFFSET // PAGE, CONTROL_OFFSET // PAGE + 1}) <= 1, "only the gap may add a page"
        wal.close()
