"""Users' programs under every crash of their logs: bugs are found and reduced, right programs pass, others are refused."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.testing import CrashFailure, acknowledged, check_crashes
from pmwal.testing.images import build
from pmwal.testing.programs.campaign import Outcome, explore
from pmwal.testing.programs.files import CALLS
from pmwal.testing.programs.judging import Failure, Judge, choice_of, medium_at, reduced
from pmwal.testing.programs.recording import FILE_SIZE_MAX, NotSimulated, Settings
from pmwal.testing.programs.recording import record as record_run
from pmwal.testing.programs.report import account
from pmwal.testing.programs.states import Crash

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


# -- a state in a file of its own


class Saved(Store):
    """A store that saves its table to a file beside the log, then truncates."""

    steps = ("write", "sync", "rename", "sync directory", "truncate")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file = path.with_name("table.json")
        last, changes = 0, self.table
        if self.file.exists():
            saved = json.loads(self.file.read_text())
            last, self.table = saved["last"], saved["table"]
            for record in self.wal:
                self.table |= json.loads(record.data) if record.seq > last else {}
        else:
            self.table = changes

    def checkpoint(self) -> None:
        last = self.wal.next_seq - 1
        new = self.file if "rename" not in self.steps else self.file.with_name("table.new")
        for step in self.steps:
            if step == "write":
                new.write_text(json.dumps({"last": last, "table": self.table}))
            elif step == "rename":
                new.replace(self.file)
            elif step == "truncate":
                self.wal.truncate(before=last + 1)
            else:
                fd = os.open(new if step == "sync" else self.file.parent, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)


def saving(*steps: str) -> type[Saved]:
    """A store that saves by these steps."""
    return type("Saving", (Saved,), {"steps": steps})


def saving_twice(kind: type[Saved]) -> Callable[[Path], None]:
    """The second checkpoint takes the place of the first."""

    def run(path: Path) -> None:
        store = kind(path)
        for number in (1, 2):
            store.put(**{f"k{number}": number})
            acknowledged({f"k{number}": number})
            store.checkpoint()

    return run


@pytest.mark.parametrize("medium", MEDIA)
def test_state_in_a_file_of_its_own_is_followed(medium: str) -> None:
    """Written, synced, renamed, its directory synced, and only then truncated: no crash loses anything."""
    assert check_crashes(saving_twice(Saved), program(Saved)[1], medium=medium) > 30


@pytest.mark.parametrize(
    ("steps", "fate"),
    [
        (("write", "rename", "sync directory", "truncate"), "in part   table.json: 0 bytes"),
        (("write", "sync", "rename", "truncate"), "lost      table.json: not there"),
        (("truncate", "write", "sync", "rename", "sync directory"), None),
        (("write", "sync", "sync directory", "truncate"), "in part   table.json"),
        (("write", "truncate", "sync", "rename", "sync directory"), None),
    ],
)
def test_state_that_is_not_durable_when_the_log_is_truncated_is_found(steps: tuple[str, ...], fate: str | None) -> None:
    """No fsync, no fsync of the directory, too early, in place, too early again."""
    kind = saving(*steps)
    with pytest.raises(CrashFailure) as raised:
        check_crashes(saving_twice(kind), program(kind)[1])
    assert fate is None or fate in str(raised.value), str(raised.value)


class Kept(pmwal.Store):
    """A list, as the base of stores keeps it."""

    rows: list[Any]

    def __init__(self, path: Path) -> None:
        self.rows = []
        super().__init__(path, size=SIZE, snapshot=path.with_name("rows.state"))

    def apply(self, change: Any) -> None:
        self.rows.append(change)

    def save(self) -> list[Any]:
        return self.rows

    def load(self, state: list[Any]) -> None:
        self.rows = state


class FreesFirst(Kept):
    """The log is freed before the snapshot is there."""

    def checkpoint(self) -> None:
        self.wal.truncate(before=self.wal.next_seq)
        super().checkpoint()


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("kind", [Kept, FreesFirst])
def test_snapshot_of_a_store_is_followed(kind: type[Kept], medium: str) -> None:
    """It is pmwal that syncs and renames that file, and not a call on the log."""

    def run(path: Path) -> None:
        with kind(path) as store:
            for number in range(3):
                store.log(number)
                acknowledged(number)
                store.checkpoint()

    def check(path: Path, done: list[Any]) -> None:
        with kind(path) as store:
            assert store.rows[: len(done)] == done

    if kind is Kept:
        assert check_crashes(run, check, medium=medium) > 30
    else:
        with pytest.raises(CrashFailure, match=r"self\.wal\.truncate\(before=self\.wal\.next_seq\)"):
            check_crashes(run, check, medium=medium)


def test_calls_for_files_are_as_they_were_after_a_run() -> None:
    """Also after one that failed."""
    before = [getattr(os, name) for name in CALLS]
    with pytest.raises(NotSimulated):
        check_crashes(lambda path: None, lambda path, done: None)
    assert [getattr(os, name) for name in CALLS] == before


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
    assert judge(crash, recording.done(crash.step)) is not None
    for unit in choice:
        less = {kept: version for kept, version in choice.items() if kept != unit}
        assert judge(replace(crash, data=build(medium_then, less).data), recording.done(crash.step)) is None
    assert recording.steps[crash.step - 1].name == "acknowledged"
    assert len(recording.done(crash.step)) == 5


@pytest.mark.parametrize("medium", MEDIA)
def test_reduction_drops_what_the_failure_does_not_need(medium: str, shm_dir: Path) -> None:
    """From the end of the run, with every record there but the third; and it tells what became of each."""
    settings = Settings(shm_dir / "program.wal", medium)
    recording = record_run(several, settings)
    judge, step = Judge(not_two_of_five, settings), recording.counts.index(6)
    then = medium_at(recording, step)
    stored = [unit for unit, versions in then.open.items() if len(versions) > 1]
    kept = {unit: version for unit, version in then.newest().items() if unit != stored[2]}
    crash = Crash("cut", step, build(then, kept).data, {})
    raised = judge(crash, recording.done(step))
    assert raised is not None
    found = Failure(crash, *raised)
    least = reduced(judge, recording, found)
    assert len(recording.done(least.crash.step)) == 5
    told = account(recording, found, least)
    assert [store.fate for store in told.stores] == 2 * ["survived"] + 3 * ["lost"]
    assert "2 of 5 unflushed" in list(told.lines())[-1]


def test_limit_takes_a_share_by_seed_and_the_earliest_kill(shm_dir: Path) -> None:
    """The same share each time; a kill that only a full look would find first is what is told."""
    run, check = program(TruncatesFirst)
    full = outcome_of(run, check, shm_dir)
    few = [outcome_of(run, check, shm_dir, limit=25, seed=3) for _ in range(2)]
    assert few[0].looked_at == few[1].looked_at <= 25 < full.total == few[0].total
    assert full.least is not None
    assert [outcome.least.crash for outcome in few if outcome.least] == [full.least.crash] * 2


# -- the account


def test_account_names_each_store_its_fate_and_its_call(shm_dir: Path) -> None:
    """The first record is flushed, the second lost, the third not yet stored."""

    def run(path: Path) -> None:
        wal = pmwal.open(path, size="64KiB", align=4096)
        wal.append(b"one")
        wal.append(b"two", commit=False)
        acknowledged("two")
        wal.append(b"three")

    def check(path: Path, done: list[str]) -> None:
        with pmwal.open(path, size="64KiB") as wal:
            assert b"two" in [record.data for record in wal] or not done, "two is lost"

    found = outcome_of(run, check, shm_dir).account
    assert found is not None
    told = found.as_dict()
    lines = Path(__file__).read_text().splitlines()
    stores = [(store["what"], store["fate"], lines[store["frames"][0]["line"] - 1].strip()) for store in told["stores"]]
    assert stores == [
        ("record 1", "flushed", 'wal.append(b"one")'),
        ("record 2", "lost", 'wal.append(b"two", commit=False)'),
    ]
    assert (told["kind"], told["acknowledged"]) == ("cut", ["'two'"])
    assert lines[told["during"][0]["line"] - 1].strip() == 'wal.append(b"three")'
    assert {frame["function"] for store in told["stores"] for frame in store["frames"]} == {"run"}
    assert "VIOLATION" not in "".join(found.lines())


# -- programs that are refused, or fail


def two_logs(path: Path) -> None:
    pmwal.open(path, size=SIZE)
    pmwal.open(path.with_name("second.wal"), size=SIZE)


def second_thread(path: Path) -> None:
    with pmwal.open(path, size=SIZE) as wal:
        thread = threading.Thread(target=wal.append, args=(b"x",))
        thread.start()
        thread.join()


def background_commits(path: Path) -> None:
    with pmwal.open(path, size=SIZE, commit=0.001) as wal:
        wal.wait_durable(wal.append(b"x"))


def directory_beside(path: Path) -> None:
    path.with_name("states").mkdir()
    Store(path).put(a=1)


def created_twice(path: Path) -> None:
    for _ in range(2):
        with Store(path).wal as wal:
            wal.append(b"{}")
        path.unlink()


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (two_logs, "only one log"),
        (second_thread, "only one thread"),
        (background_commits, "only one thread"),
        (directory_beside, "states beside its log"),
        (created_twice, "a second time"),
        (lambda path: None, "opened no log"),
        (lambda path: pmwal.open(path, size=SIZE), "stored nothing"),
        (lambda path: pmwal.open(path, size=FILE_SIZE_MAX).append(b"x"), "at most 4 MiB"),
    ],
)
def test_program_that_cannot_be_followed_is_refused(run: Callable[[Path], object], reason: str) -> None:
    """Never a verdict on what was not seen. The message says what to change."""
    with pytest.raises(NotSimulated, match=reason):
        check_crashes(run, lambda path, done: None)


def generator(path: Path) -> Any:
    Store(path).put(a=1)
    yield


def leaves(path: Path) -> None:
    Store(path).put(a=1)
    raise SystemExit(0)


@pytest.mark.parametrize("run", [generator, leaves])
def test_run_that_does_not_end_as_a_function_is_refused(run: Callable[[Path], object]) -> None:
    """A generator has not run; the status of sys.exit(0) would be that of a sound program."""
    with pytest.raises(NotSimulated, match=r"plain function|called sys\.exit"):
        check_crashes(run, lambda path, done: None)


@pytest.mark.parametrize("returned", [False, True, 0, (each for each in ())])
def test_check_that_returns_something_is_refused(returned: object) -> None:
    """Only an exception is a verdict, and a generator has not run."""
    with pytest.raises(NotSimulated, match="let it return nothing"):
        check_crashes(several, lambda path, done: returned)


@pytest.mark.parametrize("status", [0, 1, None])
def test_check_that_leaves_the_interpreter_fails(status: int | None) -> None:
    """The command would end with that status, and no verdict."""
    with pytest.raises(CrashFailure, match="SystemExit"):
        check_crashes(several, lambda path, done: sys.exit(status))


def test_exception_of_a_run_is_raised_as_it_is() -> None:
    """It is no crash."""

    def run(path: Path) -> None:
        Store(path).put(a=1)
        raise LookupError("of the user")

    with pytest.raises(LookupError, match="of the user"):
        check_crashes(run, lambda path, done: None)
    with pytest.raises(ValueError, match="medium must be one of"):
        check_crashes(run, lambda path, done: None, medium="tape")


def test_nothing_is_left_behind_and_every_log_is_let_go(shm_dir: Path) -> None:
    """Logs that run and check leave open are closed, files of the check removed, and pmwal.open is as it was."""
    settings = Settings(shm_dir / "program.wal", "page")
    opened: list[pmwal.Wal] = []

    def check(path: Path, done: list[Any]) -> None:
        assert [each.name for each in path.parent.iterdir()] in ([], [path.name])
        opened.append(Store(path).wal)
        path.with_name("beside").mkdir()

    explore(program(Store)[0], check, settings)
    assert list(shm_dir.iterdir()) == []
    assert all(wal.closed for wal in opened)
    with pmwal.open(settings.path, size=SIZE) as wal:
        assert wal.stats().medium == "memory"


def test_what_is_acknowledged_is_copied_and_nothing_happens_outside(shm_dir: Path) -> None:
    """A table that changes later stays in done as it was."""
    acknowledged("outside")
    table = {"a": 1}

    def run(path: Path) -> None:
        wal = pmwal.open(path, size=SIZE)
        wal.append(b"x")
        acknowledged(table)
        table["a"] = 2

    assert record_run(run, Settings(shm_dir / "program.wal", "page")).values == ({"a": 1},)


def test_program_without_a_size_gets_a_small_log() -> None:
    """64 MiB would be copied for each state."""

    def run(path: Path) -> None:
        pmwal.open(path).append(b"x")

    sizes: set[int] = set()

    def check(path: Path, done: list[Any]) -> None:
        with pmwal.open(path) as wal:
            sizes.add(wal.capacity)

    check_crashes(run, check)
    check_crashes(run, check, size="16KiB")
    assert sizes == {16384, 65536}


def test_failure_of_pytest_in_a_check_is_a_failure() -> None:
    """pytest.fail raises no Exception."""
    with pytest.raises(CrashFailure, match="Failed: no"):
        check_crashes(program(Store)[0], lambda path, done: pytest.fail("no"))
