"""The order of a log's archives, whatever the clock said, and whatever was brought back: what is removed, and what continues."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pmwal
from archived import archive, kept, names, rules
from commands import Cli
from pmwal.cli.archiving import archiver as module
from pmwal.cli.archiving.archiver import Archiver, Kept, Rules, Written
from pmwal.storage.seam import SYSTEM, Seam
from support import open_small

DAY = 86400.0


def dated(path: str, days: float) -> None:
    """Let it look as if it had been written so many days from now."""
    os.utime(path, (time.time() + days * DAY,) * 2)


def removed(path: Path, to: Path, how: Rules) -> list[int]:
    """The first numbers of the files that a run removes, and nothing is archived."""
    with contextlib.closing(Archiver([str(path)], str(to), how, SYSTEM)) as archiver:
        done = list(archiver.look(flush=True))
        assert archiver.problems == {}
    assert all(isinstance(each, Kept) for each in done), done
    return [each.name.first for each in done]  # type: ignore[union-attr]


def three_files(path: Path, to: Path, days: tuple[float, float, float]) -> int:
    """Archives of two records each, of these ages; what a file takes."""
    with open_small(path) as wal:
        for age in days:
            wal.extend([b"a", b"b"])
            (written,) = archive(path, to=to)
            dated(written.path, age)
    return written.size


@pytest.mark.parametrize("days", [(1, 0, 0), (0, 1, 0), (1, 0, -1), (0, -1, -2)])
def test_newest_records_stay_although_their_file_looks_older(path: Path, tmp_path: Path, days: tuple[float, float, float]) -> None:
    """As after a clock was set back, or a file was restored without its times; a second run does nothing."""
    size = three_files(path, tmp_path, days)
    how = rules(total=size + size // 2)
    assert removed(path, tmp_path, how) == [1, 3]
    assert removed(path, tmp_path, how) == []
    assert [row[0] for row in kept(tmp_path)] == [5, 6]


def test_age_leaves_no_gap_between_archives(path: Path, tmp_path: Path) -> None:
    """An old file after one that looks new stays as long as that."""
    three_files(path, tmp_path, (-9, 0, -9))
    assert removed(path, tmp_path, rules(keep=DAY)) == [1]
    assert [row[0] for row in kept(tmp_path)] == [3, 4, 5, 6]


def test_logs_take_turns_by_time(shm_dir: Path, tmp_path: Path) -> None:
    """One whose clock was ahead does not keep its archives at the cost of another's."""
    written = []
    for name in ("a", "b"):
        with pmwal.open(shm_dir / f"{name}.wal", size="64KiB") as wal:
            for _ in range(2):
                wal.append(b"a")
                written += archive(shm_dir / f"{name}.wal", to=tmp_path)
    for each, days in zip(written, (9, -3, -2, -1), strict=True):
        dated(each.path, days)
    limit = written[0].size * 5 // 2
    assert removed(shm_dir / "a.wal", tmp_path, rules(total=limit)) == [1, 2]
    assert [name[0] for name in names(tmp_path)] == ["b", "b"]


def test_archives_of_a_branch_go_after_those_that_it_replaced(path: Path, tmp_path: Path) -> None:
    """What was rolled back does not come back because its file looks newer."""
    with open_small(path) as wal:
        wal.extend([b"old"] * 10)
        (old,) = archive(path, to=tmp_path)
        dated(old.path, 1)
        wal.rollback(after=5)
        wal.extend([b"new"] * 9)
        (new,) = archive(path, to=tmp_path)
        archive(path, to=tmp_path, how=rules(total=new.size))
        assert {row[3] for row in kept(tmp_path)} == {b"new"}
        wal.truncate(before=15)
        assert archive(path, to=tmp_path) == []


@pytest.mark.parametrize("back", ["shorter", "inner"])
def test_files_that_are_brought_back_beside_longer_ones(path: Path, tmp_path: Path, cli: Cli, back: str) -> None:
    """Nothing is archived twice, nothing is missed, and nothing is said to be lost."""
    to = tmp_path / "to"
    with open_small(path) as wal:
        for data in (b"a", b"b"):
            wal.extend([data] * 3)
            archive(path, to=to)
        files = [to / name for name in names(to)]
        for file in files:
            shutil.move(file, tmp_path / file.name)
        wal.extend([b"c"] * 2)
        archive(path, to=to)
        brought = files[{"shorter": 0, "inner": 1}[back]].name
        shutil.copy(tmp_path / brought, to / brought)
        assert archive(path, to=to) == []
        wal.truncate(before=9)
        wal.append(b"d")
        ran = cli("archive", path, to, "--once")
        assert (ran.status, ran.err, len(ran.lines)) == (0, "", 1)
    assert [row[0] for row in kept(to)] == list(range(1, 10))
    assert [row[0] for row in kept(to, path)] == list(range(1, 10))


class SetBack(Seam):
    """A system whose clock is behind the times of all records."""

    def now_ns(self) -> int:
        return 1_600_000_000 * 10**9


def test_age_counts_also_after_the_clock_was_set_back(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that nobody sets, from the first look that finds the record."""
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    with (
        open_small(path) as wal,
        contextlib.closing(Archiver([str(path)], str(tmp_path), rules(seconds=60.0), SetBack())) as archiver,
    ):
        for first in (1, 2):
            wal.append(b"of tomorrow")
            assert list(archiver.look()) == []
            now += 59
            assert list(archiver.look()) == []
            now += 2
            (written,) = archiver.look()
            assert isinstance(written, Written)
            assert written.summary.first == first
            now += 1000
            assert list(archiver.look()) == []
