"""Limits by age and by size: a process truncates its own log, slots that no process has are removed, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli
from loggers import SIZE, logger_of, stored
from pmwal.format.layout import HEADER
from pmwal.logs import retention
from pmwal.logs.options import Limits
from pmwal.opening.units import parse_duration
from processes import PATIENCE, child
from support import file_offset, flip, superblock, whole_records
from test_selection import store
from test_set_slots import log_and_hold

pytestmark = pytest.mark.both_engines

SECOND = 10**9
DAY = 86400 * SECOND
NOW = time.time_ns()


@pytest.fixture
def directory(shm_dir: Path) -> Path:
    """The slots' directory."""
    directory = shm_dir / "logs"
    directory.mkdir()
    return directory


def aged(directory: Path, *days: float) -> None:
    """Slots whose newest record is so many days old."""
    for number, age in enumerate(days):
        stamps = [NOW - int((age + 1) * DAY), NOW - int(age * DAY)]
        store(directory / f"{number:02d}.wal", [stamps], size=SIZE)


def names(directory: Path) -> list[str]:
    """What is in the directory."""
    return sorted(name.removesuffix(".wal") for name in os.listdir(directory))


def removed(slots: list[retention.Slot]) -> list[str]:
    """The names of what was removed, in that order."""
    return [Path(slot.path).stem for slot in slots]


# -- pruning


def test_slots_without_a_newer_record_are_removed(directory: Path) -> None:
    """The newest record counts."""
    aged(directory, 9, 5, 8.1, 0)
    assert removed(retention.prune(str(directory), Limits(8 * DAY, None))) == ["00", "02"]
    assert names(directory) == ["01", "03"]


def test_oldest_slots_are_removed_until_all_are_small_enough(directory: Path) -> None:
    """By the time of the newest record, not by name."""
    aged(directory, 1, 4, 2, 3)
    size = (directory / "00.wal").stat().st_size
    assert removed(retention.prune(str(directory), Limits(None, 2 * size))) == ["01", "03"]
    assert retention.prune(str(directory), Limits(None, 2 * size)) == []
    assert removed(retention.prune(str(directory), Limits(None, 1))) == ["02", "00"]
    assert names(directory) == []


def test_dry_run_removes_nothing(directory: Path) -> None:
    """It names what would go."""
    aged(directory, 9, 1)
    assert removed(retention.prune(str(directory), Limits(8 * DAY, None), dry=True)) == ["00"]
    assert names(directory) == ["00", "01"]


def test_slot_that_a_process_has_stays(directory: Path) -> None:
    """It counts in the total, whoever prunes."""
    aged(directory, 9, 8)
    with child(log_and_hold, directory, "line") as one, pmwal.open(directory / "01.wal"):
        one.hear()
        assert retention.prune(str(directory), Limits(DAY, 1)) == []
    assert names(directory) == ["00", "01"]


def test_what_is_no_slot_or_cannot_be_read_stays(directory: Path) -> None:
    """A corrupt slot may be repaired; logs of other names are somebody else's."""
    aged(directory, 9, 9)
    block = superblock(directory / "01.wal")
    flip(directory / "01.wal", file_offset(block, whole_records(directory / "01.wal")[1].position) + HEADER)
    store(directory / "app-7.wal", [[NOW - 9 * DAY]], size=SIZE)
    (directory / "02.wal").write_bytes(b"no log")
    (directory / "03.wal").mkdir()
    with pmwal.open(directory / "04.wal", size=SIZE) as wal:
        wal.append(b"x")
    os.truncate(directory / "04.wal", (directory / "04.wal").stat().st_size - 4096)
    before = names(directory)
    gone = removed(retention.prune(str(directory), Limits(DAY, 1)))
    assert gone == ["00"]
    assert names(directory) == before[1:]


def test_slot_that_was_used_in_between_stays(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at again under its lock, and is not taken from a process that has it by then."""
    aged(directory, 9, 9)
    newest: Callable[..., Any] = retention._newest
    held = ExitStack()

    def late(path: str, now: int) -> Any:
        found = newest(path, now)
        if path.endswith("01.wal") and not held._exit_callbacks:  # type: ignore[attr-defined]
            with pmwal.open(directory / "00.wal") as wal:
                wal.append(b"new")
            held.enter_context(pmwal.open(directory / "01.wal"))
        return found

    monkeypatch.setattr(retention, "_newest", late)
    with held:
        assert retention.prune(str(directory), Limits(DAY, None)) == []
    assert names(directory) == ["00", "01"]


def test_stamp_of_the_future_counts_as_now(directory: Path) -> None:
    """A slot with one is kept as new, and goes in time."""
    store(directory / "00.wal", [[NOW + 10 * DAY]], size=SIZE)
    assert retention.prune(str(directory), Limits(DAY, None)) == []


def test_empty_slot_is_as_old_as_its_file(directory: Path) -> None:
    """It has no record that would say."""
    pmwal.open(directory / "00.wal", size=SIZE).close()
    assert retention.prune(str(directory), Limits(DAY, None)) == []
    assert removed(retention.prune(str(directory), Limits(None, 1))) == ["00"]


# -- in a process that logs


def test_process_frees_its_own_old_records(shm_dir: Path) -> None:
    """By number, from the oldest on; all if none is new."""
    path = shm_dir / "a.wal"
    store(path, [[NOW - 9 * DAY, NOW - 3 * DAY, NOW - DAY]], size=SIZE)
    with pmwal.open(path) as wal:
        retention.truncate_old(wal, 20 * DAY)
        assert wal.first_seq == 1
        retention.truncate_old(wal, 4 * DAY)
        assert [record.seq for record in wal] == [2, 3]
        retention.truncate_old(wal, DAY // 2)
        assert (wal.first_seq, wal.next_seq) == (4, 4)
        retention.truncate_old(wal, DAY // 2)


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_handler_of_a_directory_applies_both_limits(directory: Path) -> None:
    """To its own slot and to those that no process has; a forked child to its own."""
    aged(directory, 9, 9, 1, 1)
    size = (directory / "00.wal").stat().st_size
    handler = pmwal.LogHandler(directory=directory, size=SIZE, commit="manual", keep="7 days", max_total=2 * size)
    logger_of(handler).info("new")
    wait_until(lambda: names(directory) in (["00", "02"], ["00", "03"]))
    wait_until(lambda: handler.wal.first_seq == 3)
    handler.close()
    assert stored(directory / "00.wal") == ["new"]


def test_handler_of_a_path_keeps_for_a_time(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background, again and again, also in a child that has a log of its own."""
    monkeypatch.setattr(retention, "_PAUSE_MIN", 0.01)
    handler = pmwal.LogHandler(shm_dir / "app-{pid}.wal", size=SIZE, commit="manual", keep=0.1)
    logger = logger_of(handler)

    def until_freed() -> None:
        for _ in range(2):
            logger.info("line")
            last = handler.wal.next_seq
            wait_until(lambda last=last: handler.wal.first_seq == last)  # type: ignore[misc]

    until_freed()
    pid = os.fork()
    if not pid:
        until_freed()
        os._exit(17)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
    until_freed()
    handler.close()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": "soon"}, "a duration is"),
        ({"keep": 0}, "must be positive"),
        ({"keep": "1000 years"}, "a duration is"),
        ({"max_total": "big"}, "cannot read the size"),
        ({"max_total": "1GiB"}, "max_total limits the slots"),
    ],
)
def test_limits_that_mean_nothing_are_refused(shm_dir: Path, options: dict[str, Any], match: str) -> None:
    """Before anything is made."""
    with pytest.raises(ValueError, match=match):
        pmwal.LogHandler(shm_dir / "a.wal", size=SIZE, **options)
    assert os.listdir(shm_dir) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7 days", 604800),
        ("1 day", 86400),
        ("12h", 43200),
        ("90", 90),
        ("1.5 min", 90),
        ("2 weeks", 1209600),
        (0.5, 0.5),
        ("3s", 3),
        ("10ms", 0.01),
        ("250 milliseconds", 0.25),
        ("10 mins", 600),
        ("2 HRS", 7200),
    ],
)
def test_duration_is_a_number_with_a_unit(text: str | float, seconds: float) -> None:
    """As people write it."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10us", "3ss", "5mss", "2 month", "s", "", "1h30", "-3s"])
def test_duration_with_an_unknown_unit_is_refused(text: str) -> None:
    """A plural is that of a unit: no other letter is passed over."""
    with pytest.raises(ValueError, match="a duration is a number of seconds or text like"):
        parse_duration(text)


@pytest.mark.parametrize("value", [True, None, [7]])
def test_duration_of_another_type_is_refused(value: Any) -> None:
    """A bool is no number."""
    with pytest.raises(TypeError, match="a duration is"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("option", "text", "advice"),
    [("keep", "7", "'7s' or '7 days'"), ("keep", " 1.5 ", "'1.5s' or '1.5 days'"), ("max_total", "10", "'10MiB' or '10B'")],
)
def test_limit_without_a_unit_is_refused(directory: Path, cli: Cli, option: str, text: str, advice: str) -> None:
    """Seven what? It decides what is removed for good. By the handler, and by both commands, which remove nothing."""
    aged(directory, 9, 8)
    with pytest.raises(ValueError, match=f"{text!r} has no unit; write {advice}$"):
        pmwal.LogHandler(directory=directory, size=SIZE, **{option: text})  # type: ignore[arg-type]
    flag = f"--{option.replace('_', '-')}"
    for command in (["prune", directory], ["archive", directory, directory.parent / "archive", "--once"]):
        ran = cli(*command, flag, text)
        assert (ran.status, ran.out) == (64, b"")
        assert f"argument {flag}: {text!r} has no unit; write {advice}\n" in ran.err
    assert names(directory) == ["00", "01"]
    pmwal.LogHandler(directory=directory, size=SIZE, keep=1e9, max_total=1 << 40).close()


# -- the command


def test_command_removes_and_reports(directory: Path, cli: Cli) -> None:
    """As text and as JSON; a dry run first."""
    aged(directory, 9, 8, 1)
    dry = cli("prune", "--keep", "7 days", "-n", directory)
    assert (dry.status, len(dry.lines)) == (0, 2)
    assert dry.lines[0].startswith(f"{directory}/00.wal: would be removed, ")
    ran = cli("prune", "--keep", "7d", "--json", directory)
    assert [Path(slot["path"]).stem for slot in json.loads(ran.text)["removed"]] == ["00", "01"]
    assert names(directory) == ["02"]
    assert cli("prune", "--max-total", "1GiB", directory).text == f"{directory}: nothing to remove\n"
    assert cli("prune", "--max-total", "1k", directory).lines[0].startswith(f"{directory}/02.wal: removed, ")


@pytest.mark.parametrize("step", ["lock_existing", "unlink"])
def test_command_reports_what_it_may_not_remove(directory: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A file system or a directory that is read-only: why, by path, and status 1; the other slots go."""
    aged(directory, 9, 8)
    real: Callable[..., Any] = getattr(retention.SYSTEM if step == "unlink" else retention, step)

    def refuse(path: str, *rest: Any, **options: Any) -> Any:
        if path.endswith("00.wal"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, *rest, **options)

    monkeypatch.setattr(retention.SYSTEM if step == "unlink" else retention, step, refuse)
    ran = cli("prune", "--max-total", "1B", directory)
    said = f"pmwal: {directory}/00.wal: cannot be removed: {os.strerror(errno.EROFS)}\n"
    assert (ran.status, ran.err, len(ran.lines)) == (1, said, 1)
    assert ran.lines[0].startswith(f"{directory}/01.wal: removed, ")
    assert names(directory) == ["00"]
    ran = cli("prune", "--max-total", "1B", directory)
    assert (ran.status, ran.out, ran.err) == (1, b"", said)
    ran = cli("prune", "--max-total", "1B", "--json", directory)
    assert (ran.status, ran.err) == (1, said)
    assert json.loads(ran.text)["refused"] == [{"path": f"{directory}/00.wal", "error": os.strerror(errno.EROFS)}]
    assert retention.prune(str(directory), Limits(None, 1)) == []


def test_command_says_what_to_give_instead_of_a_slot(directory: Path, cli: Cli) -> None:
    """Its directory; the slot stays."""
    aged(directory, 9)
    ran = cli("prune", "--max-total", "1B", directory / "00.wal")
    assert (ran.status, ran.out) == (3, b"")
    assert ran.err == (
        f"pmwal: {directory}/00.wal: not a directory; give the one that the processes log into, such as {directory}\n"
    )
    assert names(directory) == ["00"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 64), (["--keep", "never"], 64), (["--keep", "0"], 64), (["--max-total", "much"], 64), (["--keep=1d", "none"], 3)],
    ids=str,
)
def test_command_refuses_what_it_cannot_do(directory: Path, cli: Cli, arguments: list[str], status: int) -> None:
    """It says what to give instead."""
    target = [] if "none" in arguments else [directory]
    arguments = [str(directory / "none") if argument == "none" else argument for argument in arguments]
    ran = cli("prune", *arguments, *target)
    assert (ran.status, ran.out) == (status, b"")
    assert ran.err
