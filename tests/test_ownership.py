"""One writer per log: across handles, paths, links and processes (scenario 32)."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import gc
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import open_and_close
from pmwal.format.layout import LIVE_WRITER, LIVE_WRITER_OFFSET
from processes import child, elsewhere, run_script
from support import open_small, overwrite, payloads

pytestmark = pytest.mark.both_engines


def hold(pipe: Connection, path: Path) -> None:
    """Own the log until told to close it."""
    wal = open_small(path)
    wal.append(b"held")
    pipe.send("open")
    pipe.recv()
    wal.close()
    pipe.send("closed")
    pipe.recv()


# -- the lock (scenario 32)


def test_lock_that_is_released_twice_leaves_the_next_writers_alone(path: Path) -> None:
    """By then its descriptor's number may belong to the next lock, even on the same file."""
    first = open_small(path)
    lock = first._writer_lock
    first.close()
    with contextlib.ExitStack() as stack:
        while (taken := os.open(os.devnull, os.O_RDONLY)) < lock.fd:  # so that the next lock gets this number
            stack.callback(os.close, taken)
        os.close(taken)
        second = stack.enter_context(open_small(path))
        assert second._writer_lock.fd == lock.fd
        lock.release()
        with pytest.raises(pmwal.WalLocked):
            open_small(path)


NAMES: dict[str, Callable[[Path], Path]] = {
    "same-path": lambda path: path,
    "symlink": lambda path: _linked(path, os.symlink),
    "hard-link": lambda path: _linked(path, os.link),
    "symlink-to-directory": lambda path: _linked(path.parent, os.symlink) / path.name,
    "dots": lambda path: path.parent / ".." / path.parent.name / path.name,
}


def _linked(path: Path, link: Callable[[Path, Path], None]) -> Path:
    other = path.with_name(path.name + "-link")
    link(path, other)
    return other


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["same-process", "other-process"])
def test_second_writer_is_refused_by_any_name(path: Path, where: str, name: str) -> None:
    """WalLocked has the owner's pid, for every name of the file; the owner continues, and once it closes the other opens."""
    with open_small(path) as wal:
        wal.append(b"1")
        other = NAMES[name](path)
        try:
            with pytest.raises(pmwal.WalLocked) as caught:
                open_and_close(other) if where == "same-process" else elsewhere(open_and_close, other)
            assert caught.value.pid == os.getpid()
            assert wal.append(b"2") == 2
        finally:
            wal.close()
        found = open_and_close(other) if where == "same-process" else elsewhere(open_and_close, other)
        assert found == [b"1", b"2"]
        if other.is_symlink() or other.parent.is_symlink():
            (other if other.is_symlink() else other.parent).unlink()


def test_refusal_names_the_owner_and_the_way_out(path: Path) -> None:
    """The message says which process has the log, and that it can still be read."""
    with child(hold, path) as owner:
        owner.hear()
        with pytest.raises(pmwal.WalLocked, match=rf'process {owner.pid} has it open for writing; .*mode="r"') as caught:
            open_small(path)
        assert caught.value.pid == owner.pid
        with pmwal.open(path, "r") as reader:
            assert payloads(reader) == [b"held"]
        owner.say("close")
        owner.hear()
        assert open_and_close(path) == [b"held"]


def test_killed_owner_leaves_the_log_open(path: Path) -> None:
    """The lock dies with its process, and recovery finds what was acknowledged."""
    with child(hold, path) as owner:
        owner.hear()
        owner.kill()
        with open_small(path) as wal:
            assert payloads(wal) == [b"held"]
            assert wal.recovery.outcome == "recovered"


def test_stopped_owner_keeps_the_log(path: Path) -> None:
    """No time-out takes the lock from a slow process."""
    with child(hold, path) as owner:
        owner.hear()
        os.kill(owner.pid, signal.SIGSTOP)
        with pytest.raises(pmwal.WalLocked) as caught:
            open_small(path)
        assert caught.value.pid == owner.pid


def test_closing_other_descriptors_of_the_file_keeps_the_lock(path: Path) -> None:
    """Readers, copies and editors close the file at any time; POSIX record locks would vanish each time."""
    with open_small(path) as wal:
        wal.append(b"1")
        os.close(os.open(path, os.O_RDWR))
        pmwal.open(path, "r").close()
        pmwal.verify(path)
        path.read_bytes()
        with pytest.raises(pmwal.WalLocked):
            open_small(path)
        with pytest.raises(pmwal.WalLocked):
            elsewhere(open_and_close, path)


@pytest.mark.parametrize("page", ["nobody", "dead", "reused-pid", "other-boot", "garbage"])
def test_lock_of_a_stranger_has_no_pid(path: Path, page: str) -> None:
    """When the live page names no living writer, pid is None; a process that has reused the pid is not blamed."""
    with open_small(path):
        line = bytearray(path.read_bytes()[LIVE_WRITER_OFFSET:][: LIVE_WRITER.size])
    fields = {"dead": ("pid", 1 << 22), "reused-pid": ("start_time", 17), "other-boot": ("boot_id", 3)}
    if page in fields:
        name, value = fields[page]
        place = slice(LIVE_WRITER.offsets[name], LIVE_WRITER.offsets[name] + LIVE_WRITER.field_size(name))
        line[place] = value.to_bytes(LIVE_WRITER.field_size(name), "little")
        overwrite(path, LIVE_WRITER_OFFSET, bytes(line))
    elif page == "garbage":
        overwrite(path, LIVE_WRITER_OFFSET, b"\xff" * LIVE_WRITER.size)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(pmwal.WalLocked, match="another process has it open for writing") as caught:
            open_small(path)
        assert caught.value.pid is None
    open_small(path).close()


def test_readers_take_no_lock(path: Path) -> None:
    """A reader neither keeps a writer out nor is kept out by one."""
    open_small(path).close()
    with pmwal.open(path, "r"), open_small(path) as wal:
        wal.append(b"1")
        with pmwal.open(path, "r") as reader:
            assert payloads(reader) == [b"1"]
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pmwal.open(path, "r") as reader:
            assert payloads(reader) == [b"1"]
        assert pmwal.verify(path).outcome == "clean"


def test_lock_belongs_to_the_file_and_not_to_its_name(path: Path) -> None:
    """A renamed log stays locked under its new name; its old name is free for another log, and a copy is not locked."""
    moved, copied = path.with_name("moved.wal"), path.with_name("copied.wal")

    def use() -> None:
        with open_small(path) as wal:
            wal.append(b"1")
            shutil.copyfile(path, copied)
            path.rename(moved)
            with pytest.raises(pmwal.WalLocked):
                open_small(moved)
            with open_small(path) as other, open_small(copied) as third:
                assert (payloads(other), payloads(third)) == ([], [b"1"])
            assert wal.append(b"2") == 2

    with pytest.warns(pmwal.UnlinkedWarning, match="another file has its name"):
        use()
    assert open_and_close(moved) == [b"1", b"2"]


def test_threads_that_open_at_once_make_one_owner(path: Path) -> None:
    """Of eight threads exactly one gets the log."""
    open_small(path).close()
    start = threading.Barrier(8)
    owners: list[pmwal.Wal] = []
    refused: list[int | None] = []

    def race() -> None:
        start.wait()
        try:
            owners.append(open_small(path))
        except pmwal.WalLocked as error:
            refused.append(error.pid)

    for _ in range(5):
        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(owners), refused) == (1, [os.getpid()] * 7)
        owners.pop().close()
        refused.clear()


# -- sending handles to other processes


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("handle", ["wal", "reader"])
def test_handle_cannot_be_pickled_or_copied(path: Path, handle: str, copied: Callable[[Any], Any]) -> None:
    """The error says to send the path, and the handle still works."""
    with open_small(path) as wal, pmwal.open(path, "r") as reader:
        wal.append(b"1")
        with pytest.raises(TypeError, match="the path"):
            copied(wal if handle == "wal" else reader)
        gc.collect()
        assert payloads(reader) == [b"1"]
        assert wal.append(b"2") == 2


def test_other_start_methods_say_what_to_do_with_a_handle(path: Path) -> None:
    """Passing a Wal or Reader to a spawned process raises before it starts; passing the path works."""
    result = run_script(
        """
        import multiprocessing, sys
        import pmwal

        if __name__ == "__main__":
            with pmwal.open(sys.argv[1], size="64KiB") as wal, pmwal.open(sys.argv[1], "r") as reader:
                for method in ("spawn", "forkserver"):
                    for handle in (wal, reader):
                        try:
                            multiprocessing.get_context(method).Process(target=print, args=(handle,)).start()
                            print("started")
                        except TypeError as error:
                            print(method, "Wal" if isinstance(handle, pmwal.Wal) else "Reader", "the path" in str(error))
                wal.append(b"1")
        """,
        path,
    )
    assert result.stdout.splitlines() == [
        "spawn Wal True",
        "spawn Reader True",
        "forkserver Wal True",
        "forkserver Reader True",
    ], result.stderr
    assert open_and_close(path) == [b"1"]


def test_dead_handle_of_this_process_does_not_pass_for_a_writer(path: Path) -> None:
    """Once a handle is dropped, readers no longer believe its live page although its process is alive."""
    wal = open_small(path)
    wal.append(b"1")
    wal.append(b"2", commit=False)
    with pmwal.open(path, "r") as reader:
        assert payloads(reader) == [b"1"]
        with pytest.warns(ResourceWarning):
            del wal
        assert payloads(reader) == [b"1", b"2"]
    with open_small(path) as wal:
        assert payloads(wal) == [b"1", b"2"]
