"""Spare slots: logs that a process keeps ready for its next children, so that their first records wait for none to be made."""

from __future__ import annotations

import os
import stat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from loggers import logger_of
from processes import child, elsewhere
from slotted import Watched, log_and_hold, names, spare_of, texts, wait_for_spare

pytestmark = pytest.mark.both_engines


def test_child_uses_the_spare_and_the_parent_makes_another(directory: Path, opened: Watched) -> None:
    """It has no name until then, so nobody sees it, and a crash leaves nothing of it."""
    inode = os.fstat(wait_for_spare(opened)).st_ino
    assert names(directory) == ["00.wal"]

    def run() -> None:
        logger_of(opened).info("child")
        opened.close()

    elsewhere(run)
    assert (directory / "01.wal").stat().st_ino == inode
    assert os.fstat(wait_for_spare(opened)).st_ino != inode
    assert names(directory) == ["00.wal", "01.wal"]
    opened.close()
    assert spare_of(opened)._fd is None


def test_of_two_children_one_uses_the_spare(directory: Path, opened: Watched) -> None:
    """The other makes a log."""
    inode = os.fstat(wait_for_spare(opened)).st_ino

    def run(pipe: Connection) -> None:
        pipe.recv()
        logger_of(opened).info("child")
        pipe.send((os.stat(opened.wal.path).st_ino, opened.reported))
        pipe.recv()

    with child(run) as one, child(run) as another:
        one.say("log")
        another.say("log")
        answers = [one.hear(), another.hear()]
    assert [reported for _, reported in answers] == [[], []]
    inodes = {number for number, _ in answers}
    assert len(inodes) == 2
    assert inode in inodes
    assert texts(directory) == {"00.wal": [], "01.wal": ["child"], "02.wal": ["child"]}


def test_child_takes_a_free_slot_before_the_spare(directory: Path) -> None:
    """So there are never more files than processes."""
    with child(log_and_hold, directory, "first") as one:
        one.hear()
        handler = Watched(directory=directory)
        wait_for_spare(handler)
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


def test_spare_has_the_mode_and_the_size_that_were_asked_for(directory: Path) -> None:
    """It is as any other log of the set."""
    handler = Watched(directory=directory, file_mode="640", size="128KiB")
    inode = os.fstat(wait_for_spare(handler)).st_ino

    def run() -> int:
        logger_of(handler).info("child")
        capacity = handler.wal.capacity
        handler.close()
        return capacity

    assert elsewhere(run) == 128 * 1024
    handler.close()
    status = (directory / "01.wal").stat()
    assert (status.st_ino, stat.S_IMODE(status.st_mode)) == (inode, 0o640)
