"""Verdicts while writers open, overwrite, close and die: a change during a verdict is never called damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.layout import Superblock
from pmwal.format.ring import Load, overlay
from pmwal.recovery import snapshot
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity
from pmwal.storage.mapping import Mapping
from processes import PATIENCE
from support import file_offset, flip, kill, payloads, whole_records
from support import superblock as superblock_of

pytestmark = pytest.mark.both_engines


def beside(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call ``act`` once, after the first verdict has read the commit slots and before it reads records."""
    done: list[bool] = []

    def racing(load: Load, identity: Identity, *rest: Any, **options: Any) -> Judgement:
        def slow(offset: int, length: int) -> bytes:
            data = load(offset, length)
            if not done and identity.block.control_offset <= offset < identity.block.ring_offset:
                done.append(True)
                act()
            return data

        return judge(slow, identity, *rest, **options)

    monkeypatch.setattr(snapshot, "judge", racing)


def test_writer_that_starts_during_a_readers_verdict_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a stress run: slots from before the writer's epoch and records from after it looked like an older log's."""
    pmwal.open(path, size="64KiB").close()
    writers: list[pmwal.Wal] = []

    def start() -> None:
        writers.append(pmwal.open(path))
        writers[0].append(b"first of a new epoch")

    beside(monkeypatch, start)
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == [b"first of a new epoch"]
    writers[0].close()


def test_writer_that_ends_during_a_verdict_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a stress run: the writer wrapped the ring and closed between the reads of slots and records."""
    wal = pmwal.open(path, size="64KiB", on_full="overwrite")
    wal.extend([bytes(1000)] * 40)

    def end() -> None:
        for _ in range(200):
            wal.append(bytes(1000))
        wal.close()

    beside(monkeypatch, end)
    assert pmwal.verify(path).case == "R1"


def test_copy_that_a_writer_tore_before_it_died_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by a stress run: the verdict was repeated on a copy, but changes while the copy was made were not noticed."""
    wal = pmwal.open(path, size="64KiB", on_full="overwrite")
    wal.extend([bytes(1000)] * 40)

    def lap() -> None:
        for _ in range(200):
            wal.append(bytes(1000))

    beside(monkeypatch, lap)  # the first verdict sees a living writer
    copy, living = snapshot.snapshot, snapshot.living_writer
    copies: list[Load] = []

    def torn(load: Load, block: Superblock) -> Load:
        """A copy whose slots are older than its records; then the writer dies."""
        if copies:
            return copy(load, block)
        slots = load(block.control_offset, block.control_size)
        lap()
        copies.append(copy(overlay(load, [(block.control_offset, slots)]), block))
        return copies[0]

    monkeypatch.setattr(snapshot, "snapshot", torn)
    monkeypatch.setattr(snapshot, "living_writer", lambda *page: None if copies else living(*page))
    assert pmwal.verify(path).outcome == "recovered"
    assert copies
    kill(wal)


def test_writer_that_comes_round_during_each_copy_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the stress runs: in a small ring the writer laps each copy, more often than the verdict is repeated.

    The time limit of a copy is out of reach here, so that the number of laps decides and not the speed of the machine.
    """
    monkeypatch.setattr(snapshot, "_STEADY_SECONDS", PATIENCE)
    wal = pmwal.open(path, size="64KiB", on_full="overwrite")
    wal.extend([bytes(1000)] * 40)
    laps, load = iter(range(6 * snapshot._TRIES)), Mapping.load

    def overtaken(self: Mapping, offset: int, length: int) -> bytes:
        loaded = load(self, offset, length)
        if self is not wal._engine.mapping and length == wal._engine.block.control_size and next(laps, None) is not None:
            for _ in range(100):
                wal.append(bytes(1000))
        return loaded

    monkeypatch.setattr(Mapping, "load", overtaken)
    assert pmwal.verify(path).outcome == "recovered"
    assert next(laps, None) is None
    kill(wal)


def test_damage_beside_no_writer_stays_damage(path: Path) -> None:
    """Negative control of the two tests above: a verdict is repeated only if a writer may have caused it."""
    with pmwal.open(path, size="64KiB") as wal:
        wal.extend([b"%d" % number * 100 for number in range(9)])
    flip(path, file_offset(superblock_of(path), whole_records(path)[5].position) + 60)
    assert pmwal.verify(path).outcome == "corrupt"
    with pytest.raises(pmwal.CorruptWal):
        pmwal.open(path, "r")
