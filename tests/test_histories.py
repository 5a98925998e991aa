"""Kills, power cuts, failed msyncs and reopens in any order and number: the model holds. And the rig can fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from history import History
from pagecache import PageCache
from pmwal.format.layout import PAGE
from pmwal.opening import takeover
from pmwal.records import Bound
from pmwal.writing.checks import unchecked
from pmwal.writing.engine import Engine, State
from support import kill, open_small, payloads

SEEDS = 10
ROUNDS = 25
SEEDS_TO_CATCH = 200


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("on_full", ["raise", "overwrite", "wait"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_kills_reopens_and_power_cuts_in_any_order_keep_the_model(seed: int, on_full: str, ordering: str, shm_dir: Path) -> None:
    """After every crash the log opens and holds what was acknowledged, then whole groups that were issued."""
    history = History(shm_dir / "test.wal", seed, ordering=ordering, on_full=on_full)
    history.run(ROUNDS)
    assert history.crashes >= ROUNDS


def _acknowledge_without_a_barrier(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "_flush_records", lambda self: None)


def _store_the_slot_before_the_data(patch: pytest.MonkeyPatch) -> None:
    original = Engine._flush_records

    def slot_first(self: Engine) -> None:
        self._write_slot(self.state._replace(durable=self.state.head))
        original(self)

    patch.setattr(Engine, "_flush_records", slot_first)


def _recover_without_storing_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "_store_again", lambda mapping, judgement, slot, copies: None)


def _keep_the_epoch(patch: pytest.MonkeyPatch) -> None:
    def same_epoch(self: Engine, end: Bound) -> None:
        self._flush_records()
        epoch = max(self.state.epoch, 1)
        first = self.state.epoch_first_seq if self.state.epoch else end.next_seq
        first = min(first, end.next_seq)
        self._change(self.state._replace(head=end, durable=end, epoch=epoch, epoch_first_seq=first))
        self._stray_records = False

    patch.setattr(Engine, "start_epoch", same_epoch)


def _forget_stray_records(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Engine) -> None:
        self._stray_records = False

    patch.setattr(Engine, "_settle", forget)


def _free_space_before_the_tail_is_durable(patch: pytest.MonkeyPatch) -> None:
    def early(self: Engine, tail: Bound) -> None:
        self.commit()
        self._become(self.state._replace(tail=tail))

    patch.setattr(Engine, "move_tail", early)


def _mark_what_is_published(patch: pytest.MonkeyPatch) -> None:
    original = Engine.store

    def marked(self: Engine, payloads: Any, kinds: Any) -> tuple[int, int]:
        state = self.state
        self.state = state._replace(durable=state.head)
        try:
            return original(self, payloads, kinds)
        finally:
            self.state = self.state._replace(durable=state.durable)

    patch.setattr(Engine, "store", marked)


def _overwrite_the_newest_slot(patch: pytest.MonkeyPatch) -> None:
    original = Engine._write_slot

    def same_place(self: Engine, state: State, flags: int = 0) -> None:
        self.generation = max(self.generation - 1, 0)
        original(self, state, flags)

    patch.setattr(Engine, "_write_slot", same_place)


def _go_on_after_a_failed_barrier(patch: pytest.MonkeyPatch) -> None:
    original = pmwal.storage.mapping.Mapping._flush

    def swallow(self: Any, offset: int, length: int) -> None:
        try:
            original(self, offset, length)
        except OSError:
            return

    patch.setattr(pmwal.storage.mapping.Mapping, "_flush", swallow)


@pytest.mark.python_engine
@pytest.mark.parametrize(
    ("mutant", "ordering"),
    [
        (_acknowledge_without_a_barrier, "strict"),
        (_acknowledge_without_a_barrier, "pipelined"),
        (_store_the_slot_before_the_data, "strict"),
        (_recover_without_storing_again, "pipelined"),
        (_keep_the_epoch, "strict"),
        (_forget_stray_records, "pipelined"),
        (_free_space_before_the_tail_is_durable, "pipelined"),
        (_mark_what_is_published, "pipelined"),
        (_overwrite_the_newest_slot, "strict"),
        (_go_on_after_a_failed_barrier, "strict"),
    ],
)
def test_the_rig_catches_a_deliberate_bug(
    mutant: Callable[[pytest.MonkeyPatch], None], ordering: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mutant of the ordering or of recovery is killed within a few histories."""
    mutant(monkeypatch)
    for seed in range(SEEDS_TO_CATCH):
        try:
            with unchecked():  # the model must notice it
                History(shm_dir / f"{seed}.wal", seed, ordering=ordering, on_full="raise").run(ROUNDS)
        except (AssertionError, pmwal.CorruptWal):
            return
    pytest.fail(f"{mutant.__name__} survived {SEEDS_TO_CATCH} histories")


class _Forgetful(PageCache):
    """A page cache that drops every clean page it may, and a disk that holds the oldest version it may."""

    def _held(self, versions: list[bytes]) -> bytes:
        return versions[0]

    def evict(self) -> None:
        with self.path.open("r+b") as file:
            for page, versions in self.versions.items():
                if page not in self.dirty:
                    file.seek(page * PAGE)
                    file.write(versions[0])
                    versions[1:] = []


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_page_that_is_evicted_while_recovery_stores_again_brings_nothing_back(ordering: str, shm_dir: Path) -> None:
    """Scenario 28d, found by a sweep: after a failed msync the disk holds older records of the same
    numbers and places; recovery keeps what it judged, from its own copy, and no eviction slips them in.
    """
    path = shm_dir / "test.wal"
    options = {"medium": "file", "ordering": ordering}
    open_small(path, **options).close()
    cache = _Forgetful(path, random.Random(0))
    wal = open_small(path, "r+", seam=cache, **options)
    wal.extend([b"old 1" * 10, b"old 2" * 10])
    wal.rollback(after=0)
    wal.append(b"new 1" * 10, commit=False)
    cache.fail_in = 0
    with pytest.raises(pmwal.PersistError):
        wal.commit()
    kill(wal)
    cache.before_step = lambda step: cache.evict()
    wal = open_small(path, "r+", seam=cache, **options)
    assert payloads(wal) == [b"new 1" * 10]
    cache.before_step = None
    kill(wal)
    cache.power_cut()
    with open_small(path, "r+", **options) as wal:
        assert payloads(wal) == [b"new 1" * 10]
