"""``pmwal copy`` and ``pmwal resize``: what they print, and how they refuse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pmwal
from commands import MAKERS, Cli, make_log
from support import open_small, superblock

STATUS = {"corrupt": 2, "slotless": 2, "no-superblock": 3, "foreign": 3, "short": 3, "missing": 3}
"""What the commands end with for logs that cannot be read; all others are copied."""


@pytest.fixture
def log(shm_dir: Path) -> Path:
    """A closed log of ten lines."""
    return make_log(shm_dir / "a.wal")


def test_copy_says_what_it_copied(cli: Cli, log: Path) -> None:
    """In a line, or as JSON."""
    target = log.with_name("b.wal")
    ran = cli("copy", log, target, "--size", "64KiB")
    assert (ran.status, ran.lines, ran.err) == (
        0,
        [f"copied {log} to {target}: 10 records, 1 to 10, in a ring of 64 KiB"],
        "",
    )
    other = cli("copy", log, log.with_name("c.wal"), "--json").json
    assert (other["path"], other["capacity"], other["records"]) == (str(log.with_name("c.wal")), 16384, 10)


def test_resize_says_what_the_log_has_now(cli: Cli, log: Path) -> None:
    """And where the old file is, if it was kept."""
    old = log.with_name("old.wal")
    ran = cli("resize", log, "64KiB", "--backup", old)
    (line,) = ran.lines
    assert ran.status == 0
    assert line.startswith(f"{log}: a ring of 64 KiB, ")
    assert line.endswith(f" used: 10 records, 1 to 10; the old file is {old}")
    assert superblock(old).capacity == 16384
    shrunk = cli("resize", log, "8KiB", "--json").json
    assert (shrunk["capacity"], shrunk["backup"]) == (8192, "")
    assert cli("cat", "-o", "raw", log).lines == [f"line {number}" for number in range(1, 11)]


@pytest.mark.parametrize("state", MAKERS)
def test_logs_in_every_state(cli: Cli, shm_dir: Path, state: str) -> None:
    """A log that recovery would refuse is refused, with what to do, and nothing is written."""
    path, target = MAKERS[state](shm_dir / "a.wal"), shm_dir / "b.wal"
    before = sorted(os.listdir(shm_dir))
    copied, resized = cli("copy", path, target), cli("resize", path, "32KiB")
    assert copied.status == resized.status == STATUS.get(state, 0)
    if copied.status:
        assert sorted(os.listdir(shm_dir)) == before
        assert str(path) in copied.err
        if copied.status == 2:
            assert f"pmwal repair {path}" in copied.err
            assert f"pmwal repair {path}" in resized.err
        return
    assert cli("cat", path).lines == cli("cat", target).lines
    assert cli("verify", path, target).status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("copy", "a.wal", "a.wal"), 3, "it exists; choose another name, or remove it first"),
        (("copy", "a.wal", "."), 3, "it exists; choose another name, or remove it first"),
        (("copy", "a.wal", "nowhere/b.wal"), 3, "No such file or directory"),
        (("resize", "a.wal", "4KiB"), 1, "or free the space of old records first with pmwal truncate"),
        (("resize", "a.wal", "huge"), 64, "cannot read the size"),
        (("resize", "a.wal", "64KiB", "--backup", "/tmp/b.wal"), 1, "backup must lie in"),
    ],
)
def test_refusals_say_what_to_do(
    cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, message: str
) -> None:
    """In terms of the command line; the log is as it was."""
    path = shm_dir / "a.wal"
    with open_small(path) as wal:
        wal.extend([bytes(1000)] * 8)
    monkeypatch.chdir(shm_dir)
    before = path.read_bytes()
    ran = cli(*arguments)
    assert (ran.status, path.read_bytes(), os.listdir(shm_dir)) == (status, before, ["a.wal"])
    assert message in ran.err


def test_locked_log_is_copied_and_not_resized(cli: Cli, log: Path) -> None:
    """Status 4 names the writer."""
    with pmwal.open(log):
        assert cli("copy", log, log.with_name("b.wal")).status == 0
        ran = cli("resize", log, "64KiB")
        assert (ran.status, str(os.getpid()) in ran.err or "this process" in ran.err) == (4, True)
