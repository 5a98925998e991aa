"""Kills, power cuts, failed msyncs and reopens in any order and number: the model holds. And the rig can fail."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

import pmwal
import run_histories
from history import History
from marks import first_fast
from pagecache import PageCache
from pmwal.native.choice import ENGINES
from pmwal.testing._mutants.table import MUTANTS, applied
from pmwal.testing.power_cut import Version
from support import kill, open_small, payloads

pytestmark = pytest.mark.both_engines

SEEDS = 10
ROUNDS = 25
SEEDS_TO_CATCH = 200
HISTORIES, SHARES = 1000, 10


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
@pytest.mark.parametrize("on_full", ["raise", "overwrite", "wait"])
@pytest.mark.parametrize("seed", first_fast(range(SEEDS)))
def test_kills_reopens_and_power_cuts_in_any_order_keep_the_model(seed: int, on_full: str, ordering: str, shm_dir: Path) -> None:
    """After every crash the log opens and holds what was acknowledged, then whole groups that were issued."""
    history = History(shm_dir / "test.wal", seed, ordering=ordering, on_full=on_full)
    history.run(ROUNDS)
    assert history.crashes >= ROUNDS


@pytest.mark.slow
@pytest.mark.python_engine
@pytest.mark.parametrize(
    ("name", "ordering"),
    [
        ("records_not_flushed", "strict"),
        ("records_not_flushed", "pipelined"),
        ("slot_first", "strict"),
        ("restore_skipped", "pipelined"),
        ("epoch_kept", "strict"),
        ("strays_forgotten", "pipelined"),
        ("tail_in_memory", "pipelined"),
        ("marks_of_published", "pipelined"),
        ("slots_in_one_place", "strict"),
        ("failed_flush_ignored", "strict"),
    ],
)
def test_the_rig_catches_a_deliberate_bug(name: str, ordering: str, shm_dir: Path) -> None:
    """Each of these mutants of the ordering or of recovery is caught within a few histories."""
    with applied(MUTANTS[name]):
        for seed in range(SEEDS_TO_CATCH):
            try:
                History(shm_dir / f"{seed}.wal", seed, ordering=ordering, on_full="raise").run(ROUNDS)
            except (AssertionError, pmwal.CorruptWal):
                return
    pytest.fail(f"{name} survived {SEEDS_TO_CATCH} histories")


def test_command_runs_histories_with_lookalikes_and_counts_their_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    """The seed and the number of histories are told, and a count for each verdict."""
    assert run_histories.main(["--histories", "2", "--seed", "1", "--engine", "python"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("seed 1, 2 histories with python\n2 histories, ")
    assert re.search(r"verdicts R1 \d+, R2 \d+, .*; 0 failed", said.out)
    assert said.err == ""


@pytest.mark.rigs
@pytest.mark.parametrize("share", range(SHARES))
def test_thousand_histories_with_lookalikes_never_end_in_a_corrupt_verdict(share: int, engine: str) -> None:
    """R1, R2, R3 or R7 after each kill and each power cut; the command prints how to run a failure again.

    Each engine has histories of its own; at night ten thousand run with both.
    """
    count = HISTORIES // (SHARES * len(ENGINES))
    first = 10_000 + (share * len(ENGINES) + ENGINES.index(engine)) * count
    assert run_histories.main(["--seed", str(first), "--histories", str(count), "--engine", engine]) == 0


@pytest.mark.python_engine
def test_command_says_how_to_run_a_failed_history_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: a bug is noticed, and the command that is printed shows it again."""
    with applied(MUTANTS["records_not_flushed"]):
        assert run_histories.main(["--histories", "5", "--seed", "0", "--engine", "python"]) == 1
        replay = re.findall(r"again with: python -m tools histories (--replay \S+)", capsys.readouterr().err)[0]
        assert run_histories.main(replay.split()) == 1
    assert run_histories.main(replay.split()) == 0


@pytest.mark.parametrize("arguments", [["--histories", "0"], ["--replay", "native"], ["--replay", "java:1"], ["--processes", "-1"]])
def test_command_refuses_what_it_cannot_do(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and the option is named."""
    with pytest.raises(SystemExit, match="2"):
        run_histories.main(arguments)
    assert arguments[0] in capsys.readouterr().err


class _Forgetful(PageCache):
    """A page cache that drops every clean page it may, and a disk that holds the oldest version it may."""

    eviction_share = 1.0

    def _held(self, unit: int) -> Version:
        return self.medium.open[unit][0]


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
    evicted: list[int] = []

    def evict() -> None:
        evicted.append(len(cache.medium.clean(0, len(cache.medium.held))))
        cache.evict()

    cache.before_store = evict
    wal = open_small(path, "r+", seam=cache, **options)
    assert payloads(wal) == [b"new 1" * 10]
    assert evicted[0] == 1
    cache.before_store = None
    kill(wal)
    cache.power_cut()
    with open_small(path, "r+", **options) as wal:
        assert payloads(wal) == [b"new 1" * 10]
