"""Reads that select by kind or stamp scan in C where the engine does, and pass no record over unseen."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest

import pmwal
from loggers import SIZE
from pmwal.format.layout import HEADER, TIME_MAX, TIME_MIN
from pmwal.format.ring import Clock, Filter, RingReader
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.reading.walk import Walker
from support import BarrierRecorder, file_offset, flip, open_small, superblock, whole_records

pytestmark = pytest.mark.both_engines

KINDS = (0, 1, 7, 8, 20, 40, 32767)


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The log's path."""
    return shm_dir / "a.wal"


def fill(path: Path, seed: int, *, opens: int = 4, size: str = SIZE) -> None:
    """Several opens, of clocks that jump, which overwrite what was first: records of many kinds and lengths, one of them long."""
    rng, clock = random.Random(seed), 0
    for _ in range(opens):
        seam = BarrierRecorder()
        seam.new_uuid = lambda: os.urandom(16)  # type: ignore[method-assign]
        with open_small(path, seam=seam, size=None if path.exists() else size, on_full="overwrite", commit="manual") as wal:
            clock = rng.randrange(1000)
            for number in range(rng.choice([0, 1, 300])):
                clock += rng.choice([0, 1, 3, -2])
                seam.now_ns = lambda clock=clock: clock  # type: ignore[method-assign, misc]
                length = wal.capacity // 8 if number == 20 else rng.randrange(90)
                wal.append(rng.randbytes(length), kind=rng.choice(KINDS))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("who", ["reader", "wal", "set"])
def test_selected_are_those_records_that_a_loop_would_keep(path: Path, seed: int, who: str) -> None:
    """Over gaps, laps, epochs and records of any length."""
    fill(path, seed, size="1MiB" if seed == 5 else SIZE)
    everything: Any = {"reader": lambda: pmwal.open(path, "r"), "wal": lambda: pmwal.open(path), "set": lambda: pmwal.LogSet(path)}
    with everything[who]() as log:
        records = list(log)
        for kinds in (20, range(5, 30), {0, 32767}, (), KINDS):
            chosen = kinds if not isinstance(kinds, int) else (kinds,)
            kept = [record for record in records if record.kind in chosen]
            assert list(log.read(kind=kinds)) == kept
            exact = [record for record in kept if 200 <= record.time_ns <= 700]
            assert list(log.read(kind=kinds, since=200, until=700, exact=True)) == exact


def test_damaged_record_is_not_passed_over(path: Path) -> None:
    """Though it is none of those that are asked for: its kind is damaged, too, for all that is known."""
    with pmwal.open(path, size=SIZE) as wal:
        for kind in (20, 20, 40, 20):
            wal.append(b"x" * 100, kind=kind)
    with pmwal.open(path, "r") as reader:
        flip(path, file_offset(superblock(path), whole_records(path)[3].position) + HEADER)
        records = reader.read(kind=20)
        assert [next(records).seq, next(records).seq] == [1, 2]
        with pytest.raises(pmwal.CorruptWal, match="record 3"):
            next(records)


def test_rollback_of_records_that_were_passed_is_noticed(path: Path) -> None:
    """Those that take their place are read: a follower that selects has handed out none of them, but has passed them."""
    with pmwal.open(path, size=SIZE) as wal, pmwal.LogSet(path) as logs:
        wal.extend([b"a", b"b"], kind=20)
        wal.append(b"c", kind=40)
        merge = logs._begin(None, None, None, 40, False)
        assert [record.data for _ in range(3) for record in merge.poll(None).records] == [b"c"]
        wal.extend([b"d", b"e", b"f"], kind=20)
        assert [record.data for _ in range(3) for record in merge.poll(None).records] == []
        wal.rollback(after=3)
        wal.append(b"new", kind=40)
        assert [record.data for _ in range(3) for record in merge.poll(None).records] == [b"new"]


@pytest.mark.parametrize("passed", [20, 40], ids=["before others", "the last"])
def test_writer_notices_a_rollback_while_it_selects(path: Path, passed: int) -> None:
    """What was kept is handed out first; also if those that were rolled back were none of the selected."""
    with pmwal.open(path, size=SIZE) as wal:
        for kind in (40, 20, 40, 20, passed):
            wal.append(b"x" * 100, kind=kind)
        records = wal.read(kind=40)
        assert next(records).seq == 1
        wal.rollback(after=3)
        wal.append(b"new", kind=40)
        assert next(records).seq == 3
        with pytest.raises(pmwal.Overrun, match="rolled back"):
            next(records)
        assert [record.data[:3] for record in wal.read(kind=40)] == [b"xxx", b"xxx", b"new"]


def test_writer_that_is_closed_ends_its_selection_with_an_error(path: Path) -> None:
    """As any other read."""
    with pmwal.open(path, size=SIZE) as wal:
        wal.extend([b"a", b"b"], kind=40)
        records = wal.read(kind=40)
        assert next(records).data == b"a"
    with pytest.raises(pmwal.WalClosed):
        next(records)


@pytest.mark.parametrize("chosen", [Filter(None, TIME_MIN, TIME_MAX), Filter(bytes([2] * 8192), 100, 600)], ids=["all", "some"])
@pytest.mark.parametrize("seed", range(3))
def test_scan_in_c_selects_what_python_does(path: Path, seed: int, chosen: Filter) -> None:
    """With the same effective times; runs may be cut elsewhere, but never in the middle of an epoch's time."""
    fill(path, seed)
    with pmwal.open(path, "r") as reader:
        view, block = reader._view(), superblock(path)
        found = []
        for scan in (scan_for(block), None):
            walker = Walker(block, reader._mapping.load, lambda at, view: AssertionError(at), None, scan)
            runs = list(walker.selected(view, view.tail, view.end.next_seq, chosen, Clock(650)))
            items = [(*item, time) for run in runs for item, time in zip(run.records, run.times, strict=True)]
            found.append((items, [run.clock for run in runs if run is runs[-1]], [run.seq for run in runs][-1:]))
            for run, following in itertools.pairwise(runs):
                assert following.clock.epoch > run.clock.epoch or following.clock.latest >= run.clock.latest
    assert found[0] == found[1]


@pytest.mark.skipif(native is None, reason="it is what the C engine does")
@pytest.mark.native_engine
def test_records_that_are_not_selected_are_not_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of C passes hundreds of them."""
    with pmwal.open(path, size="1MiB") as wal:
        wal.extend([b"x"] * 5000, kind=20)
        wal.append(b"y", kind=40)
    calls = []
    selected = RingReader.selected
    monkeypatch.setattr(RingReader, "selected", lambda *arguments: calls.append(selected(*arguments)) or calls[-1])
    with pmwal.open(path, "r") as reader:
        assert [record.seq for record in reader.read(kind=40)] == [5001]
    assert sum(len(call.records) for call in calls) == 1
    assert len(calls) < 20


@pytest.mark.skipif(native is None, reason="it is what the C engine does")
@pytest.mark.native_engine
def test_kinds_of_another_size_are_refused(path: Path) -> None:
    """C would read past them."""
    pmwal.open(path, size=SIZE).close()
    scan = scan_for(superblock(path))
    assert scan is not None
    for kinds in (b"", bytes(8191), bytes(8193)):
        with pytest.raises(ValueError, match="a bit for each kind"):
            scan.scanner.selected(pmwal.Record, (bytes(4096), 0, 0), (0, 1), (2, 4096, 1, 1, False, b""), 16, kinds, 0, 1, 1, 0, 0)
