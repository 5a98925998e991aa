"""on_full="overwrite": what a batch overwrites is freed in one step, whose cost does not grow with the number of records."""

from __future__ import annotations

from pathlib import Path

import pytest

import pmwal
from pmwal.format.ring import RingReader
from pmwal.native import native
from pmwal.writing.native_engine import NativeEngine
from pmwal.writing.space import Space
from support import open_small

COUNT = 1000


@pytest.mark.native_engine
@pytest.mark.skipif(native is None, reason="needs the native engine")
@pytest.mark.parametrize("length", [0, 100, 128])
def test_batch_frees_what_it_overwrites_in_few_steps(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """One call of C passes whole runs of records; Python looks only at the record that ends past what is wanted, and at gaps."""
    looked, tails, makes = list[int](), list[int](), list[int]()
    numbered, move_tail, make = RingReader.numbered, NativeEngine.move_tail, Space.make
    monkeypatch.setattr(RingReader, "numbered", lambda ring, *at: looked.append(at[0]) or numbered(ring, *at))
    monkeypatch.setattr(NativeEngine, "move_tail", lambda engine, tail: tails.append(tail.next_seq) or move_tail(engine, tail))
    monkeypatch.setattr(Space, "make", lambda *args, **options: makes.append(1) or make(*args, **options))
    with pmwal.open(shm_dir / "log", size="1MiB", on_full="overwrite") as wal:
        batch = [bytes(length)] * COUNT
        for _ in range(40):
            wal.extend(batch)
        assert wal.stats().overwritten > 10 * COUNT
        assert len(tails) <= len(makes) <= 40
        assert len(looked) <= 3 * len(tails)
        assert [record.seq for record in wal] == list(range(wal.first_seq, wal.next_seq))


@pytest.mark.both_engines
@pytest.mark.parametrize("length", [0, 1, 700, 3000])
def test_overwriting_frees_whole_records_and_no_more_than_an_eighth_too_many(shm_dir: Path, length: int) -> None:
    """The log stays at least seven eighths full, but for a record and the gap at the ring's end, and its records stay in order."""
    with open_small(shm_dir / "log", on_full="overwrite") as wal:
        seqs = [wal.append(bytes(length)) for _ in range(1000)]
        stats = wal.stats()
        assert stats.overwritten > 0
        assert wal.first_seq == stats.overwritten + 1
        assert [record.seq for record in wal] == seqs[stats.overwritten :]
        assert stats.used >= stats.capacity * 7 // 8 - 2 * (length + 64 + 48)
