"""Recovery with several threads gives the same result as with one thread and as the reference engine, for any ring.

Parts of a run begin at guessed positions, so the tests cover where a guess can land: damage before and after it, batches across it,
a record inside a record, and the end of the log. tools/fuzz/ring_fuzz.c checks how two parts are joined.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.layout import HEADER, Header, Superblock, encode_header, header_problem
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import identify
from support import file_offset, kill, superblock, whole_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native is None or len(os.sched_getaffinity(0)) < 2, reason="needs the native engine and two processors"),
]

SIZE = 4 * 1024 * 1024


@pytest.fixture(scope="module", params=["records", "large", "batches", "one batch", "wrapped"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Superblock, list[int]]:
    """The bytes of a log whose writer was killed, and where its records start."""
    path = tmp_path_factory.mktemp("parallel") / "log"
    rng = random.Random(request.param)
    wal = pmwal.open(path, "x", size=SIZE, commit="manual")
    if request.param == "wrapped":
        wal.extend([bytes(2000)] * 1200)
        wal.commit()
        wal.truncate(before=1100)
    for _ in range({"records": 700, "large": 13, "batches": 25, "one batch": 1, "wrapped": 500}[request.param]):
        if request.param == "large":
            wal.append(rng.randbytes(rng.randrange(200_000, 300_000)))
        elif request.param == "batches":
            wal.extend([rng.randbytes(rng.randrange(100, 9000)) for _ in range(rng.randrange(1, 60))])
        elif request.param == "one batch":
            wal.extend([rng.randbytes(rng.randrange(100, 9000)) for _ in range(600)])
        else:
            wal.append(rng.randbytes(rng.randrange(1, 8000)))
    wal.commit()
    kill(wal)
    starts = [file_offset(superblock(path), found.position) for found in whole_records(path).values()]
    return path.read_bytes(), superblock(path), starts


@pytest.fixture
def processors() -> Iterator[Any]:
    """A function that restricts this process to one processor, or gives it back all of its own."""
    own = os.sched_getaffinity(0)
    yield lambda count: os.sched_setaffinity(0, own if count > 1 else {min(own)})
    os.sched_setaffinity(0, own)


def verdict(raw: bytes, block: Superblock, *, native_scan: bool) -> Judgement:
    """The verdict on these bytes, without what may differ between engines and threads: seconds, and the density of the index."""
    identity = identify(lambda offset, length: raw[offset : offset + length], len(raw), "log")
    scan = scan_for(block, memoryview(raw)) if native_scan else None
    judgement = judge(lambda offset, length: raw[offset : offset + length], identity, None, scan)
    return replace(judgement, report=replace(judgement.report, seconds=0), index=[])


def same_verdict(raw: bytes, block: Superblock, processors: Any) -> Judgement:
    """The verdict on which all engines and thread counts agree."""
    found = verdict(raw, block, native_scan=True)
    processors(1)
    alone = verdict(raw, block, native_scan=True)
    processors(2)
    assert found == alone == verdict(raw, block, native_scan=False)
    return found


def test_whole_log(log: tuple[bytes, Superblock, list[int]], processors: Any) -> None:
    """Every record is found, and the index of their starts is in order."""
    raw, block, starts = log
    judgement = same_verdict(raw, block, processors)
    assert judgement.end.next_seq - judgement.tail.next_seq == len(starts)
    identity = identify(lambda offset, length: raw[offset : offset + length], len(raw), "log")
    index = judge(lambda offset, length: raw[offset : offset + length], identity, None, scan_for(block, memoryview(raw))).index
    assert index == sorted(set(index))
    assert {file_offset(block, at.position) for at in index} <= set(starts)


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere(log: tuple[bytes, Superblock, list[int]], processors: Any, seed: int) -> None:
    """A flipped bit, a lost page or a lost end gets the same verdict, also near the middle and the quarters, where parts begin."""
    raw, block, starts = log
    rng = random.Random(seed)
    ring = len(raw) - SIZE
    parts = [ring + quarter * SIZE // 4 for quarter in range(4)]
    near = [start for start in starts if any(0 <= start - part < 64 * 1024 for part in parts)]
    at = rng.choice([*near, *rng.sample(starts, 3 if len(starts) > 3 else 1)]) + rng.choice([0, 4, 8, 30, 40, HEADER])
    damaged = bytearray(raw)
    kind = seed % 3
    if kind == 0:
        damaged[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        damaged[at : at + 4096] = bytes(len(damaged[at : at + 4096]))
    else:
        damaged[at:] = bytes(len(damaged) - at)
    same_verdict(bytes(damaged), block, processors)


@pytest.mark.parametrize("seq", [3, 400, 100_000])
def test_record_inside_of_a_record(tmp_path: Path, processors: Any, seq: int) -> None:
    """A payload may contain a whole record of this log for exactly this position; it is read as payload, not as a record."""
    path = tmp_path / "log"
    wal = pmwal.open(path, "x", size=SIZE, commit="manual")
    block = superblock(path)
    while wal.stats().used < SIZE - 64 * 1024:
        position = wal.stats().used
        payload = bytearray(4096)
        for near in range(16, 4000, 1024):
            at = near + -(position + HEADER + near) % block.alignment
            inner = Header(0, 64, seq, 0, 0, 1, 0, 0, 0, 1)
            assert header_problem(inner, position + HEADER + at, SIZE, block.alignment, block.payload_max) is None
            body = bytes(64)
            payload[at : at + HEADER + 64] = encode_header(inner, body, block.uuid, position + HEADER + at) + body
        wal.append(payload)
    wal.commit()
    written = wal.next_seq
    kill(wal)
    judgement = same_verdict(path.read_bytes(), block, processors)
    assert judgement.end.next_seq == written
