"""Spare slots: logs that a process keeps ready for its next children, so that their first records wait for none to be made."""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from loggers import logger_of
from pmwal.logs import spares, targets
from pmwal.logs.slots import is_taken
from pmwal.opening.files import inspect
from pmwal.recovery.judge import Judgement
from pmwal.storage.create import create_spare, is_fresh, name_spare
from pmwal.storage.seam import SYSTEM
from pmwal.writing import background
from processes import PATIENCE, child, elsewhere
from slotted import Watched, log_and_hold, names, spares_of, texts, wait_for_spares

pytestmark = pytest.mark.both_engines

LONG = 1e9  # seconds


def test_child_uses_the_spare_and_the_parent_makes_another(directory: Path, opened: Watched) -> None:
    """It has no name until then, so nobody sees it, and a crash leaves nothing of it."""
    inode = os.fstat(wait_for_spares(opened)[0]).st_ino
    assert names(directory) == ["00.wal"]

    def run() -> None:
        logger_of(opened).info("child")
        opened.close()

    elsewhere(run)
    assert (directory / "01.wal").stat().st_ino == inode
    assert os.fstat(wait_for_spares(opened)[0]).st_ino != inode
    assert names(directory) == ["00.wal", "01.wal"]
    opened.close()
    assert spares_of(opened)._kept == []


def test_process_that_never_forks_keeps_no_spare(directory: Path, opened: Watched) -> None:
    """Neither one that was started anew nor a forked one: a spare takes as much of the medium as a slot."""

    def kept() -> tuple[list[Any], Any]:
        logger_of(opened).info("line")
        found = spares_of(opened)
        return found._kept, found._keeper._thread

    assert kept() == ([], None)
    assert elsewhere(kept) == ([], None)
    wait_for_spares(opened)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork waits for the spare that is being made however busy the machine is."""
    monkeypatch.setattr("pmwal.logs.keeper.PAUSE_MAX", PATIENCE)


def refuse(*_: Any, **__: Any) -> None:
    """In place of a creation."""
    raise OSError("nothing may be created here")


def log_together(handler: Watched, count: int) -> list[tuple[int, list[BaseException | None]]]:
    """Children that are forked one right after the other, and then log at once: the inodes of their slots, and their errors."""

    def run(pipe: Connection) -> None:
        pipe.recv()
        logger_of(handler).info("child")
        pipe.send((os.stat(handler.wal.path).st_ino, handler.reported))
        pipe.recv()

    with ExitStack() as stack:
        children = [stack.enter_context(child(run)) for _ in range(count)]
        for one in children:
            one.say("log")
        return [one.hear() for one in children]


def test_each_of_several_children_that_log_at_once_uses_a_spare(
    directory: Path, opened: Watched, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers of a server: a fork waits for the spare that is being made, so no child has to create its log."""
    wait_for_spares(opened)
    monkeypatch.setattr("pmwal.opening.files.create_file", refuse)
    answers = log_together(opened, 5)
    assert [reported for _, reported in answers] == [[]] * 5
    assert len({inode for inode, _ in answers}) == 5
    assert texts(directory) == {"00.wal": []} | {f"{number:02d}.wal": ["child"] for number in range(1, 6)}


def test_spare_that_was_used_long_after_the_fork_is_replaced_before_the_next(
    directory: Path, opened: Watched, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then nothing looks after spares any more in the background."""
    wait_for_spares(opened)
    monkeypatch.setattr(spares, "_PAUSE_MAX", 0.0)
    monkeypatch.setattr("pmwal.opening.files.create_file", refuse)

    def run(pipe: Connection) -> None:
        pipe.recv()
        logger_of(opened).info("child")
        pipe.send(opened.reported)
        pipe.recv()

    with child(run) as one:
        spares_of(opened)._keeper._thread.join(PATIENCE)
        one.say("log")
        assert one.hear() == []
        with child(run) as another:
            another.say("log")
            assert another.hear() == []
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"], "02.wal": ["child"]}


def test_child_for_which_no_spare_is_left_makes_its_log(
    directory: Path, opened: Watched, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are only so many."""
    monkeypatch.setattr(spares, "SPARES_MAX", 1)
    inode = os.fstat(wait_for_spares(opened)[0]).st_ino
    answers = log_together(opened, 2)
    assert [reported for _, reported in answers] == [[], []]
    inodes = {number for number, _ in answers}
    assert len(inodes) == 2
    assert inode in inodes
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"], "02.wal": ["child"]}


@pytest.mark.parametrize(("capacity_max", "expected"), [(1 << 30, 4), (3 * 65536, 3), (1, 1)])
def test_process_keeps_a_spare_for_each_child_that_may_need_one(
    directory: Path, patient: None, monkeypatch: pytest.MonkeyPatch, capacity_max: int, expected: int
) -> None:
    """And one more, for the next; fewer where they would take too much; one again after some time."""
    monkeypatch.setattr(spares, "_BYTES_MAX", capacity_max)
    monkeypatch.setattr(spares, "_PAUSE_MAX", LONG)
    handler = Watched(directory=directory, size="64KiB")
    for _ in range(3):
        elsewhere(os.getpid)  # it logs nothing
    wait_for_spares(handler, expected)
    assert len(spares_of(handler)._kept) == expected
    monkeypatch.setattr(spares, "_PAUSE_MAX", 0.0)
    background._pause_all()
    background._resume_all()
    deadline = time.monotonic() + PATIENCE
    while len(spares_of(handler)._kept) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    handler.close()
    assert names(directory) == ["00.wal"]


def test_spare_whose_slot_was_removed_is_not_used_again(directory: Path, opened: Watched, patient: None) -> None:
    """The kernel gives it no second name, and it may have records: by then it looks unused."""

    def run() -> tuple[int, list[BaseException | None]]:
        logger_of(opened).info("child")
        inode = os.stat(opened.wal.path).st_ino
        os.unlink(opened.wal.path)
        return inode, opened.reported

    first, second = elsewhere(run), elsewhere(run)
    assert [first[1], second[1]] == [[], []]
    assert first[0] != second[0]
    assert first[0] not in [os.fstat(fd).st_ino for fd in wait_for_spares(opened)]
    assert names(directory) == ["00.wal"]


def test_nameless_log_gets_one_name(shm_dir: Path) -> None:
    """Not a second one, neither beside the first nor after it."""
    fd = create_spare(str(shm_dir), capacity=65536, alignment=None, medium="auto", mode=0o600, seam=SYSTEM)
    assert fd is not None
    made = os.fstat(fd).st_ctime_ns
    assert is_fresh(fd, made)
    lock = name_spare(fd, str(shm_dir / "a.wal"), SYSTEM)
    assert lock is not None
    assert name_spare(fd, str(shm_dir / "b.wal"), SYSTEM) is None  # it is locked
    lock.release()
    assert name_spare(fd, str(shm_dir / "b.wal"), SYSTEM) is None
    (shm_dir / "a.wal").unlink()
    assert os.fstat(fd).st_nlink == 0
    assert not is_fresh(fd, made)
    assert name_spare(fd, str(shm_dir / "b.wal"), SYSTEM) is None
    assert os.listdir(shm_dir) == []
    os.close(fd)


def test_child_takes_a_free_slot_before_the_spare(directory: Path) -> None:
    """So there are never more files than processes."""
    with child(log_and_hold, directory, "first") as one:
        one.hear()
        handler = Watched(directory=directory)
        wait_for_spares(handler)
        one.kill()
    assert Path(handler.wal.path).name == "01.wal"

    def run() -> str:
        logger_of(handler).info("child")
        return handler.wal.path

    assert Path(elsewhere(run)).name == "00.wal"
    handler.close()


def test_without_nameless_files_a_child_makes_its_log(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has no O_TMPFILE."""
    monkeypatch.setattr("pmwal.storage.create._tmpfile", lambda directory: None)
    handler = Watched(directory=directory)

    def run() -> list[Any]:
        logger_of(handler).info("child")
        handler.close()
        return handler.reported

    assert elsewhere(run) == []
    handler.close()
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"]}


def test_child_does_not_judge_a_spare_again(directory: Path, opened: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict that its parent has made is the one that the child would come to; its report says that the log was created."""
    wait_for_spares(opened)

    def judged(path: str) -> Judgement:
        with inspect(path, SYSTEM) as (_, judgement):
            judgement.report = replace(judgement.report, seconds=0.0)
            return judgement

    (spare,) = spares_of(opened)._kept
    made = replace(spare.judgement, report=replace(spare.judgement.report, seconds=0.0))
    assert made == judged(f"/proc/self/fd/{spare.fd}")
    monkeypatch.setattr("pmwal.opening.takeover.judge", refuse)

    def run() -> tuple[str, list[BaseException | None]]:
        logger_of(opened).info("child")
        outcome = opened.wal.recovery.outcome
        opened.close()
        return outcome, opened.reported

    assert elsewhere(run) == ("created", [])
    assert texts(directory)["01.wal"] == ["child"]


@pytest.mark.parametrize("reused", [False, True], ids=["closed", "another file has the number"])
def test_child_that_has_closed_all_descriptors_makes_its_log(
    directory: Path, opened: Watched, tmp_path: Path, *, reused: bool
) -> None:
    """As a daemon does. A file of its own that got the number of the spare is not named, written to or closed."""
    (fd,) = wait_for_spares(opened)

    def run() -> tuple[list[BaseException | None], bytes, int]:
        own = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)  # without a name, as a spare is
        os.write(own, b"other")
        os.close(fd)
        if reused:
            os.dup2(own, fd)
        logger_of(opened).info("child")
        opened.close()
        kept = fd if reused else own
        return opened.reported, os.pread(kept, 100, 0), os.fstat(kept).st_nlink

    assert elsewhere(run) == ([], b"other", 0)
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"]}


def test_spare_is_known_as_taken_from_its_name_on(
    directory: Path, opened: Watched, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that look for a slot while it is opened do not try to lock it."""
    wait_for_spares(opened)
    open_for_lines = targets.open_for_lines

    def look(path: str, *arguments: Any) -> Any:
        taken.append(is_taken(path))
        return open_for_lines(path, *arguments)

    taken: list[bool] = []
    monkeypatch.setattr("pmwal.logs.slots.open_for_lines", look)

    def run() -> list[bool]:
        logger_of(opened).info("child")
        return taken

    assert elsewhere(run) == [True]


def test_spare_has_the_mode_and_the_size_that_were_asked_for(directory: Path) -> None:
    """It is as any other log of the set."""
    handler = Watched(directory=directory, file_mode="640", size="128KiB")
    inode = os.fstat(wait_for_spares(handler)[0]).st_ino

    def run() -> int:
        logger_of(handler).info("child")
        capacity = handler.wal.capacity
        handler.close()
        return capacity

    assert elsewhere(run) == 128 * 1024
    handler.close()
    status = (directory / "01.wal").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o640)
