"""Users' programs under every crash of their logs: bugs are found and reduced, right programs pass, others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.testing import CrashFailure, acknowledged, check_crashes
from pmwal.testing.images import build
from pmwal.testing.programs.campaign import Outcome, explore
from pmwal.testing.programs.judging import Judge, choice_of, medium_at
from pmwal.testing.programs.recording import Settings

SIZE = "8KiB"
MEDIA = ["page", "pmem"]


class Store:
    """A table whose changes are records of JSON; a checkpoint is a record with the whole table."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.wal = pmwal.open(path, size=SIZE, **options)
        self.table: dict[str, int] = {}
        for record in self.wal:
            self.apply(record.kind, json.loads(record.data))

    def apply(self, kind: int, change: dict[str, int]) -> None:
        self.table = change if kind == 1 else self.table | change

    def put(self, **change: int) -> None:
        self.wal.append(json.dumps(change).encode())
        self.table |= change

    def checkpoint(self) -> None:
        seq = self.wal.append(json.dumps(self.table).encode(), kind=1)
        self.wal.truncate(before=seq)


class TruncatesFirst(Store):
    def checkpoint(self) -> None:
        self.wal.truncate(before=self.wal.next_seq)  # the mistake
        self.wal.append(json.dumps(self.table).encode(), kind=1)


class NeverCommits(Store):
    def put(self, **change: int) -> None:
        self.wal.append(json.dumps(change).encode(), commit=False)  # the mistake
        self.table |= change


class SplitsTransfers(Store):
    def transfer(self) -> None:
        self.put(a=9)  # the mistake: one record for each half
        self.put(b=1)


class RepliesTwice(Store):
    """Its changes are amounts, and its checkpoint does not say which of them it has."""

    def apply(self, kind: int, change: dict[str, int]) -> None:
        for key, amount in change.items():
            self.table[key] = self.table.get(key, 0) + amount  # the mistake: for a checkpoint, too

    def put(self, **change: int) -> None:
        self.wal.append(json.dumps(change).encode())
        self.apply(0, change)


KINDS: dict[str, type[Store]] = {
    "right": Store,
    "truncates-first": TruncatesFirst,
    "never-commits": NeverCommits,
    "replays-twice": RepliesTwice,
}


def program(kind: type[Store], *, early: bool = False) -> tuple[Callable[[Path], None], Callable[[Path, list[Any]], None]]:
    """A run that puts, makes a checkpoint and puts again, and its check."""

    def run(path: Path) -> None:
        store = kind(path)
        for number in (1, 2, 3):
            if early:
                acknowledged({f"k{number}": number})  # the mistake
            store.put(**{f"k{number}": number})
            if not early:
                acknowledged({f"k{number}": number})
            if number == 2:
                store.checkpoint()

    def check(path: Path, done: list[dict[str, int]]) -> None:
        table = kind(path).table
        for change in done:
            assert table | change == table, f"{change} is lost"
        assert table == {f"k{number}": number for number in range(1, len(table) + 1)}, "a table that never was"

    return run, check


def outcome_of(run: Any, check: Any, directory: Path, medium: str = "page", **options: Any) -> Outcome:
    """All that is known of a run's crashes."""
    return explore(run, check, Settings(directory / "program.wal", medium), **options)


# -- what is found


@pytest.mark.both_engines
@pytest.mark.parametrize("medium", MEDIA)
def test_right_program_passes(medium: str) -> None:
    """Every state that a crash may leave of it, and there are many."""
    assert check_crashes(*program(Store), medium=medium) > 30


@pytest.mark.both_engines
@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize(
    ("kind", "early", "line"),
    [
        ("truncates-first", False, "self.wal.truncate(before=self.wal.next_seq)  # the mistake"),
        ("never-commits", False, "self.wal.append(json.dumps(change).encode(), commit=False)  # the mistake"),
        ("right", True, 'store.put(**{f"k{number}": number})'),
    ],
)
def test_mistake_is_found_and_its_line_is_shown(kind: str, early: bool, line: str, medium: str) -> None:
    """Truncating before the checkpoint is there, no commit, an early acknowledgement."""
    with pytest.raises(CrashFailure, match="is lost") as raised:
        check_crashes(*program(KINDS[kind], early=early), medium=medium)
    assert line in str(raised.value)
    assert Path(__file__).name in str(raised.value)


@pytest.mark.parametrize("medium", MEDIA)
def test_wrong_replay_is_found(medium: str) -> None:
    """A crash between checkpoint and truncate counts amounts twice."""
    with pytest.raises(CrashFailure, match="is lost") as raised:
        check_crashes(*program(RepliesTwice), medium=medium)
    assert "in checkpoint: seq = self.wal.append(json.dumps(self.table).encode(), kind=1)" in str(raised.value)


@pytest.mark.parametrize("medium", MEDIA)
def test_half_of_a_change_is_found(medium: str) -> None:
    """Two records where one batch was needed; nothing needs to be acknowledged for that."""

    def run(path: Path) -> None:
        store = SplitsTransfers(path)
        store.put(a=10, b=0)
        store.transfer()

    def check(path: Path, done: list[Any]) -> None:
        table = Store(path).table
        assert not table or sum(table.values()) == 10

    with pytest.raises(CrashFailure) as raised:
        check_crashes(run, check, medium=medium)
    assert "in transfer: self.put(b=1)" in str(raised.value) or "in transfer: self.put(a=9)" in str(raised.value)


def test_crash_before_the_log_is_there_is_checked() -> None:
    """A check that takes the log for granted fails there first."""

    def check(path: Path, done: list[Any]) -> None:
        pmwal.open(path, "r").close()

    with pytest.raises(CrashFailure, match="a crash before the log was there"):
        check_crashes(program(Store)[0], check)


def test_log_that_is_closed_and_opened_again_is_followed() -> None:
    """Across opens, each with its own recovery."""

    def run(path: Path) -> None:
        for number in (1, 2):
            with Store(path).wal as wal:
                wal.append(json.dumps({f"k{number}": number}).encode())
                acknowledged({f"k{number}": number})

    assert check_crashes(run, program(Store)[1]) > 20


# -- the reduction


def several(path: Path) -> None:
    """Six records of a page each, uncommitted."""
    wal = pmwal.open(path, size="64KiB", align=4096, commit="manual")
    for number in range(6):
        wal.append(bytes([number]) * 10)
        acknowledged(number)
    wal.commit()


def not_two_of_five(path: Path, done: list[Any]) -> None:
    """Fails where two records survived of at least five: after no kill, and only if the pages of both are there."""
    with pmwal.open(path, size="64KiB") as wal:
        assert len(wal) != 2 or len(done) < 5


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("samples", [0, 8])
def test_reduction_is_minimal_and_the_same_each_time(medium: str, samples: int, shm_dir: Path) -> None:
    """The check passes without any one surviving unit, and at the step before."""
    first, second = (outcome_of(several, not_two_of_five, shm_dir, medium, samples=samples) for _ in range(2))
    assert first.least is not None
    assert second.least is not None
    assert first.least.crash == second.least.crash
    crash, recording = first.least.crash, first.recording
    medium_then = medium_at(recording, crash.step)
    assert crash.data is not None
    choice = choice_of(medium_then, crash.data)
    assert choice is not None
    assert len(choice) == 2
    judge = Judge(not_two_of_five, Settings(shm_dir / "program.wal", medium))
    assert judge(crash.data, recording.done(crash.step)) is not None
    for unit in choice:
        less = {kept: version for kept, version in choice.items() if kept != unit}
        assert judge(build(medium_then, less).data, recording.done(crash.step)) is None
    assert recording.steps[crash.step - 1].name == "acknowledged"
    assert len(recording.done(crash.step)) == 5
