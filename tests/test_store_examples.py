"""The example stores: their state after every possible crash of a run, with checkpoints in the log and in a file."""

from __future__ import annotations

import copy
import doctest
import importlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from counters import Counters
from jobtable import Jobs
from kvstore import Table

import pmwal
from marks import first_fast
from pmwal.storage.seam import SYSTEM
from pmwal.store.snapshot import Snapshot, SnapshotFile
from pmwal.testing import CrashImage, crash_images

SEED = 5
SIZE = "8KiB"
CHANGES = {"page": 40, "pmem": 12}
"""Per medium: on persistent memory one change leaves hundreds of images."""

Play = Callable[[Any, Random, int], None]


def play_table(table: Table, random: Random, turn: int) -> None:
    """Set and delete some keys at once."""
    keys = random.sample("abcd", random.randrange(1, 4))
    table.change([(key, None if random.random() < 0.2 else str(turn) * random.randrange(1, 200)) for key in keys])


def play_counters(counters: Counters, random: Random, turn: int) -> None:
    """Add to a counter with a long name."""
    counters.add(random.choice("abcd") * 150, turn)


def play_jobs(jobs: Jobs, random: Random, turn: int) -> None:
    """Add a job, or finish one."""
    if random.random() < 0.6 or (taken := jobs.take()) is None:
        jobs.add(f"job {turn} " * 20)
    else:
        jobs.finish(taken[0])


STORES: dict[type[pmwal.Store], Play] = {Table: play_table, Counters: play_counters, Jobs: play_jobs}


class TruncatesFirst(Table):
    """A bug that a crash reveals: the old records go before the state is saved."""

    def checkpoint(self) -> None:
        """Free everything, then save."""
        self.wal.truncate(before=self.wal.next_seq)
        super().checkpoint()


class TruncatesAllAfterSaving(Table):
    """No bug: a snapshot whose record is no longer in the log continues with the next one."""

    def checkpoint(self) -> None:
        """Save, then free everything."""
        super().checkpoint()
        self.wal.truncate(before=self.wal.next_seq)


class LogsLate(Table):
    """A bug that only a checkpoint reveals: a change is in the state, and so in the checkpoint, before it is in the log."""

    def log(self, *changes: Any) -> None:
        """Apply, then log."""
        for change in changes:
            self.apply(change)
        super().log(*changes)


class SavedAt(NamedTuple):
    """A snapshot, and after how many steps of the log it was written."""

    step: int
    snapshot: Snapshot


class Run:
    """One run of a store, every image that a crash in it leaves, and the states that were right."""

    def __init__(self, kind: type[pmwal.Store], directory: Path, *, in_file: bool) -> None:
        self.kind = kind
        self.file = SnapshotFile(directory / "snapshot", SYSTEM) if in_file else None
        self.states: dict[int, Any] = {}
        self.saved: list[SavedAt] = []
        self.images = 0

    def play(self, wal: pmwal.Wal, count: int) -> None:
        """Make ``count`` random changes, and note the state after each number at which a replay may end."""
        store = self.made(wal, noting=True)
        how = next(play for base, play in STORES.items() if isinstance(store, base))
        random = Random(SEED)
        self.states[wal.next_seq - 1] = copy.deepcopy(store.save())
        for turn in range(count):
            before = copy.deepcopy(store.save())
            how(store, random, turn)
            for seq in range(max(self.states) + 1, wal.next_seq - 1):
                self.states.setdefault(seq, before)  # a checkpoint, or part of a batch: not an end that is met
            self.states[wal.next_seq - 1] = copy.deepcopy(store.save())

    def made(self, wal: pmwal.Wal, *, noting: bool = False) -> pmwal.Store:
        """The store on this log."""
        if self.file is None:
            return self.kind(wal)
        if noting:
            write = self.file.write

            def write_and_note(snapshot: Snapshot) -> None:
                write(snapshot)
                self.saved.append(SavedAt(len(getattr(wal._engine.seam, "events", ())), snapshot))

            # One file object for the run: the store makes its own, so note what that one writes.
            store = self.kind(wal, snapshot=self.file.path)
            assert store._snapshot is not None
            store._snapshot.write = write_and_note  # type: ignore[method-assign]
            return store
        return self.kind(wal, snapshot=self.file.path)

    def snapshots_at(self, image: CrashImage) -> list[Snapshot | None]:
        """What is in the snapshot file after this crash; one of them."""
        before = [saved for saved in self.saved if saved.step <= image.step]
        found: list[Snapshot | None] = [before[-1].snapshot if before else None]
        if before and before[-1].step == image.step and image.kind == "cut":  # maybe before that one was written
            found.append(before[-2].snapshot if len(before) > 1 else None)
        return found

    def wrong(self, medium: str, ordering: str) -> int:
        """How many images give a state that never was, or that lacks what was acknowledged."""
        wrong = 0

        def run(wal: pmwal.Wal) -> None:
            self.play(wal, CHANGES[medium])

        for image in crash_images(run, size=SIZE, medium=medium, ordering=ordering, samples=0):
            acknowledged = max((record.seq for record in image.acknowledged), default=0)
            for snapshot in self.snapshots_at(image):
                self.put(snapshot)
                with image.open() as wal:
                    last = wal.next_seq - 1
                    try:
                        state = self.made(wal).save()
                    except pmwal.CorruptWal:
                        state = None
                self.images += 1
                wrong += last < acknowledged or state != self.states.get(last)
        return wrong

    def put(self, snapshot: Snapshot | None) -> None:
        """Let the snapshot file contain this."""
        if self.file is not None:
            Path(self.file.path).unlink(missing_ok=True)
            if snapshot is not None:
                self.file.write(snapshot)


@pytest.mark.parametrize("in_file", [False, True], ids=["in the log", "in a file"])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("ordering", first_fast(["strict", "pipelined"]))
@pytest.mark.parametrize("medium", first_fast(["page", "pmem"]))
def test_every_crash_leaves_a_state_that_once_was(
    medium: str, ordering: str, kind: type[pmwal.Store], in_file: bool, shm_dir: Path
) -> None:
    """A replay of any image gives the state after some change, not before the last acknowledged one, and no half of a change."""
    run = Run(kind, shm_dir, in_file=in_file)
    assert (run.wrong(medium, ordering), run.images > 150) == (0, True), f"{run.images} images, seed {SEED}"


@pytest.mark.parametrize("in_file", [False, True], ids=["in the log", "in a file"])
@pytest.mark.parametrize("kind", [TruncatesFirst, LogsLate])
def test_mistake_in_a_store_is_noticed(kind: type[pmwal.Store], in_file: bool, shm_dir: Path) -> None:
    """Negative control of the check above."""
    assert Run(kind, shm_dir, in_file=in_file).wrong("page", "strict") > 0


def test_snapshot_of_a_record_that_was_truncated_continues_with_the_next(shm_dir: Path) -> None:
    """What the snapshot includes need not be in the log."""
    run = Run(TruncatesAllAfterSaving, shm_dir, in_file=True)
    assert (run.wrong("page", "strict"), len(run.saved) > 0) == (0, True)


@pytest.mark.parametrize("in_file", [False, True], ids=["in the log", "in a file"])
def test_run_makes_checkpoints_and_wraps(in_file: bool, shm_dir: Path) -> None:
    """The run above exercises checkpoints and the wrap."""
    with pmwal.open(shm_dir / "store.wal", size=SIZE) as wal:
        Run(Table, shm_dir, in_file=in_file).play(wal, CHANGES["page"])
        assert wal.first_seq > 10
        assert wal.stats().bytes > wal.capacity


@pytest.mark.parametrize("name", ["counters", "jobtable", "kvstore"])
def test_docstring_of_the_example_runs(name: str, shm_dir: Path) -> None:
    """The example gives the output that its docstring shows, and is short enough to read in one go."""
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"path": shm_dir / "store.wal"}).failed == 0
    assert module.__file__ is not None
    assert len(Path(module.__file__).read_text().splitlines()) <= 80
