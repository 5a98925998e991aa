"""The example store: its table after every possible crash of a run."""

from __future__ import annotations

import doctest
from pathlib import Path
from random import Random

import kvstore
import pytest
from kvstore import Store

import pmwal
from marks import first_fast
from pmwal.testing import crash_images

SEED = 5
SIZE = "8KiB"
CHANGES = {"page": 40, "pmem": 12}
"""Per medium: on persistent memory one change leaves hundreds of images."""


class TruncatesFirst(Store):
    """A bug that a crash reveals: the old records go before the new ones are there."""

    def checkpoint(self) -> None:
        """Truncate first, then log the table."""
        self._wal.truncate(before=self._wal.next_seq)
        super().checkpoint()


def play(store: Store, tables: dict[int, dict[str, str]], wal: pmwal.Wal, count: int) -> None:
    """Make ``count`` random changes to the store, and note the table after each number at which replay may end."""
    random = Random(SEED)
    tables[wal.next_seq - 1] = dict(store)
    for turn in range(count):
        keys = random.sample("abcd", random.randrange(1, 4))
        changes = [(key, None if random.random() < 0.2 else str(turn) * random.randrange(1, 200)) for key in keys]
        before = dict(store)
        store.change(changes)
        after = dict(store)
        for seq in range(max(tables) + 1, wal.next_seq - len(changes)):
            tables[seq] = before  # a checkpoint came first
        tables[wal.next_seq - 1] = after


def fill(store: Store) -> None:
    """Put more into the store than its log can hold."""
    for number in range(1000):
        store.put(f"key {number}", "x" * 50)


def wrong_images(kind: type[Store], medium: str, ordering: str) -> tuple[int, int]:
    """The number of images that a run with a crash may leave, and how many of them give a wrong table."""
    tables: dict[int, dict[str, str]] = {}
    images = wrong = 0

    def run(wal: pmwal.Wal) -> None:
        play(kind(wal), tables, wal, CHANGES[medium])

    for image in crash_images(run, size=SIZE, medium=medium, ordering=ordering, samples=0):
        with image.open() as wal:
            found, last = dict(Store(wal)), wal.next_seq - 1
        acknowledged = max((record.seq for record in image.acknowledged), default=0)
        images += 1
        wrong += last < acknowledged or found != tables.get(last)
    return images, wrong


@pytest.mark.parametrize("ordering", first_fast(["strict", "pipelined"]))
@pytest.mark.parametrize("medium", first_fast(["page", "pmem"]))
def test_every_crash_leaves_a_table_that_once_was(medium: str, ordering: str) -> None:
    """Replaying any image gives the table after some change, not before the last acknowledged one, and no half transaction."""
    images, wrong = wrong_images(Store, medium, ordering)
    assert (wrong, images > 300) == (0, True), f"{wrong} of {images}, seed {SEED}"


def test_truncating_before_the_checkpoint_is_noticed() -> None:
    """Negative control of the check above."""
    _, wrong = wrong_images(TruncatesFirst, "page", "strict")
    assert wrong > 0


def test_run_makes_checkpoints_and_wraps(shm_dir: Path) -> None:
    """The run above exercises checkpoints and the wrap."""
    with pmwal.open(shm_dir / "store.wal", size=SIZE) as wal:
        play(Store(wal), {}, wal, CHANGES["page"])
        assert wal.first_seq > 10
        assert wal.stats().bytes > wal.capacity


def test_store_survives_and_says_no_in_time(shm_dir: Path) -> None:
    """A table that outgrows the log is refused, and stays as it was, in memory and in the log."""
    with pmwal.open(shm_dir / "store.wal", size=SIZE) as wal:
        store = Store(wal)
        with pytest.raises((pmwal.WalFull, pmwal.RecordTooLarge)):
            fill(store)
        kept = dict(store)
    with pmwal.open(shm_dir / "store.wal") as wal:
        assert dict(Store(wal)) == kept
        wal.append(b"[]", kind=9)
        with pytest.raises(ValueError, match="kind 9"):
            Store(wal)


def test_docstring_of_the_example_runs(tmp_path: Path) -> None:
    """The example gives the output that the guide shows."""
    assert doctest.testmod(kvstore, extraglobs={"path": tmp_path / "store.wal"}) == (0, 2)


def test_example_is_short() -> None:
    """The example must be short enough to read in one go."""
    assert len(Path(kvstore.__file__).read_text().splitlines()) <= 120
