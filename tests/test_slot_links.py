"""Symbolic links and other things in the place of a slot: no process logs through them, and none is counted or removed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from commands import Cli
from loggers import SIZE, logger_of, stored
from pmwal.logs import retention, slots
from pmwal.logs.options import Limits
from processes import child, elsewhere
from slotted import Watched, log_and_hold, names, texts, wait_for_spares

pytestmark = pytest.mark.both_engines


def a_log(path: Path) -> None:
    """A log that no process has."""
    with pmwal.open(path, size=SIZE) as wal:
        wal.append(b"precious")


def a_short_log(path: Path) -> None:
    """A log that would be set aside."""
    a_log(path)
    os.truncate(path, path.stat().st_size - 4096)


def a_socket(path: Path) -> None:
    """A socket, which cannot be opened at all."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


TARGETS: dict[str, Callable[[Path], object]] = {
    "a log": a_log,
    "a short log": a_short_log,
    "an empty file": Path.touch,
    "a directory": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": a_socket,
    "nothing": lambda path: None,
    "itself": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(name="precious")
def precious_path(directory: Path) -> Path:
    """Where a link leads: out of the directory of the slots, which is made as well."""
    directory.mkdir(parents=True)
    return directory.parent / "precious.wal"


@pytest.fixture(params=[False, True], ids=["seen", "put there in between"])
def raced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what is at 00.wal and 01.wal was a free slot, or nothing, when a process looked at the directory."""
    if request.param:
        lexists = os.path.lexists
        monkeypatch.setattr(slots, "slot_numbers", lambda directory: [0])
        monkeypatch.setattr(retention, "slot_numbers", lambda directory: [0, 1])
        monkeypatch.setattr(os.path, "lexists", lambda path: Path(path).name not in {"00.wal", "01.wal"} and lexists(path))
    return bool(request.param)


def content(path: Path) -> tuple[int, bytes] | None:
    """The inode of a file and what is in it; None if there is no regular file."""
    return (path.stat().st_ino, path.read_bytes()) if path.is_file() else None


@pytest.mark.parametrize("target", TARGETS)
def test_slot_that_is_a_link_is_passed_over(target: str, directory: Path, precious: Path, *, raced: bool) -> None:
    """Nothing is written, made, renamed or replaced through it, and it stays."""
    TARGETS[target](precious)
    (directory / "00.wal").symlink_to("../precious.wal")
    before, beside = content(precious), names(precious.parent)
    handler = Watched(directory=directory)
    logger_of(handler).info("mine")
    handler.close()
    assert Path(handler.wal.path).name == "01.wal"
    assert stored(directory / "01.wal") == ["mine"]
    assert (content(precious), names(precious.parent)) == (before, beside)
    assert names(directory) == ["00.wal", "01.wal"]
    assert (directory / "00.wal").is_symlink()


@pytest.mark.parametrize("target", ["a directory", "a pipe", "a socket"])
def test_slot_that_is_no_regular_file_is_passed_over(
    target: str, directory: Path, precious: Path, monkeypatch: pytest.MonkeyPatch, *, raced: bool
) -> None:
    """It stays, and the process takes the next one."""
    monkeypatch.chdir(directory)
    TARGETS[target](directory / "00.wal")
    handler = Watched(directory=directory)
    handler.close()
    assert Path(handler.wal.path).name == "01.wal"
    assert retention.prune(str(directory), Limits(None, (directory / "01.wal").stat().st_size)) == []
    assert names(directory) == ["00.wal", "01.wal"]


def test_slots_are_regular_files(directory: Path, precious: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk even a directory has a size, which would count."""
    monkeypatch.chdir(directory)
    a_log(precious)
    (directory / "00.wal").symlink_to("../precious.wal")
    for number, target in enumerate(["a directory", "a pipe", "a socket", "itself", "a log"], 1):
        TARGETS[target](directory / slots.slot_name(number))
    assert slots.slot_numbers(str(directory)) == [5]


def test_link_to_the_log_of_a_running_process_is_passed_over(directory: Path, precious: Path) -> None:
    """And to another slot: each process takes one that is a file."""
    (directory / "00.wal").symlink_to("01.wal")
    with child(log_and_hold, directory, "first") as one:
        assert Path(one.hear()).name == "01.wal"
        with child(log_and_hold, directory, "second") as another:
            assert Path(another.hear()).name == "02.wal"
    assert texts(directory) == {"00.wal": ["first"], "01.wal": ["first"], "02.wal": ["second"]}


@pytest.mark.parametrize("target", ["a log", "nothing"])
def test_spare_takes_no_name_that_is_a_link(target: str, directory: Path, precious: Path, *, raced: bool) -> None:
    """The child gives it the next name."""
    handler = Watched(directory=directory)  # 00.wal
    inode = os.fstat(wait_for_spares(handler)[0]).st_ino
    TARGETS[target](precious)
    (directory / "01.wal").symlink_to("../precious.wal")
    before = content(precious)
    elsewhere(logger_of(handler).info, "child")
    handler.close()
    assert (directory / "02.wal").stat().st_ino == inode
    assert stored(directory / "02.wal") == ["child"]
    assert content(precious) == before


@pytest.mark.parametrize("limits", [Limits(0, None), Limits(None, 1)], ids=["by age", "by size"])
def test_link_is_neither_removed_nor_followed(limits: Limits, directory: Path, precious: Path, *, raced: bool) -> None:
    """Nor what it leads to."""
    a_log(precious)
    (directory / "00.wal").symlink_to("../precious.wal")
    a_log(directory / "01.wal")
    assert [Path(slot.path).name for slot in retention.prune(str(directory), limits, dry=True)] == ["01.wal"]
    assert [Path(slot.path).name for slot in retention.prune(str(directory), limits)] == ["01.wal"]
    assert names(directory) == ["00.wal"]
    assert stored(precious) == ["precious"]


def test_link_that_takes_the_place_of_an_old_slot_stays(directory: Path, precious: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a slot when it was looked at."""
    a_log(precious)
    (directory / "00.wal").hardlink_to(precious)
    taken = retention.is_taken

    def replaced(path: str) -> bool:
        found = taken(path)
        os.unlink(path)
        os.symlink("../precious.wal", path)
        return found

    monkeypatch.setattr(retention, "is_taken", replaced)
    assert retention.prune(str(directory), Limits(None, 0)) == []
    assert (directory / "00.wal").is_symlink()


def test_what_links_lead_to_does_not_count_in_the_total(directory: Path, precious: Path, cli: Cli) -> None:
    """A directory that is small enough without it keeps its slots."""
    a_log(precious)
    a_log(directory / "00.wal")
    (directory / "01.wal").symlink_to("../precious.wal")
    size = (directory / "00.wal").stat().st_size
    assert cli("prune", "--max-total", f"{size}B", directory).text == f"{directory}: nothing to remove\n"
    assert names(directory) == ["00.wal", "01.wal"]


def test_readers_follow_links(directory: Path, precious: Path) -> None:
    """A set may be put together from links, as before."""
    a_log(precious)
    (directory / "00.wal").symlink_to("../precious.wal")
    with pmwal.LogSet(directory) as logs:
        assert [record.data for record in logs] == [b"precious"]
