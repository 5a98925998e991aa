"""A forked child cannot use its parent's handle, keeps no lock, and leaves the log unchanged (scenario 33)."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from callers import open_and_close
from pmwal.format.layout import PAGE
from processes import PATIENCE, child, elsewhere, run_script
from support import BarrierRecorder, Step, open_small, payloads

pytestmark = pytest.mark.both_engines

LIVE_PAGE = slice(PAGE, 2 * PAGE)

USES: dict[str, Callable[[Any], Any]] = {
    "append": lambda wal: wal.append(b"child"),
    "extend": lambda wal: wal.extend([b"child"]),
    "batch": lambda wal: wal.batch(),
    "reserve": lambda wal: wal.reserve(5),
    "commit": lambda wal: wal.commit(),
    "wait_durable": lambda wal: wal.wait_durable(1),
    "truncate": lambda wal: wal.truncate(before=2),
    "rollback": lambda wal: wal.rollback(after=0),
    "read": lambda wal: wal.read(),
    "iterate": list,
    "index": lambda wal: wal[1],
    "len": len,
    "first_seq": lambda wal: wal.first_seq,
    "next_seq": lambda wal: wal.next_seq,
    "committed_seq": lambda wal: wal.committed_seq,
    "enter": lambda wal: wal.__enter__(),
}


def lasting(path: Path) -> bytes:
    """The file's bytes without the live page."""
    raw = bytearray(path.read_bytes())
    raw[LIVE_PAGE] = bytes(PAGE)
    return bytes(raw)


def open_when_forgotten(path: Path) -> list[bytes]:
    """Open and close the log as soon as a freshly forked child has closed its copy of the lock."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return open_and_close(path)
        except pmwal.WalLocked:
            assert time.monotonic() < deadline, "the child keeps the lock"
            time.sleep(0.001)


def sleep_until_forgotten(pipe: Connection) -> None:
    """In a forked child: wait until the test closes the pipe, then exit without cleaning up."""
    try:
        pipe.recv()
    finally:
        os._exit(0)


@pytest.mark.parametrize("name", USES)
def test_use_in_a_forked_child_is_refused(path: Path, name: str) -> None:
    """ForkedWal says what to do, nothing is stored, and the parent's handle still works."""
    with open_small(path) as wal:
        wal.append(b"1")
        wal.append(b"2", commit=False)
        before = path.read_bytes()
        with pytest.raises(pmwal.ForkedWal, match=r'belongs to the parent process; open a log of your own, or .*"r"\)'):
            elsewhere(USES[name], wal)
        assert path.read_bytes() == before
        assert wal.append(b"3") == 3
        assert payloads(wal) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("moment", ["entered", "ended"])
@pytest.mark.parametrize("kind", ["batch", "reserve"])
def test_block_that_was_begun_before_the_fork_stores_nothing_in_the_child(path: Path, kind: str, moment: str) -> None:
    """A batch or reservation cannot be entered or ended in the child; the parent finishes it."""
    with open_small(path) as wal:
        wal.append(b"1")
        before = lasting(path)
        block: Any = wal.batch() if kind == "batch" else wal.reserve(1)

        def end_block() -> None:
            block.__exit__(None, None, None)

        if moment == "entered":
            with pytest.raises(pmwal.ForkedWal):
                elsewhere(block.__enter__)
        with block as inside:
            if kind == "batch":
                inside.append(b"2")
            else:
                inside[0] = ord("2")
            if moment == "ended":
                with pytest.raises(pmwal.ForkedWal):
                    elsewhere(end_block)
            assert lasting(path) == before
        assert payloads(wal) == [b"1", b"2"]


def test_append_to_a_batch_in_the_child_is_refused_at_once(path: Path) -> None:
    """The child learns it from its first append, not at the end of the block; the parent's records stay staged."""
    with open_small(path) as wal:
        with wal.batch() as batch:
            batch.append(b"1")
            with pytest.raises(pmwal.ForkedWal, match="belongs to the parent process"):
                elsewhere(batch.append, b"2")
            assert len(batch) == 1
        assert payloads(wal) == [b"1"]


def test_iteration_that_was_begun_before_the_fork_is_refused_in_the_child(path: Path) -> None:
    """An iterator of the parent's handle gives the child no records, not even those already loaded."""
    with open_small(path) as wal:
        wal.extend([b"1", b"2"])
        running = wal.read()
        assert next(running).seq == 1
        with pytest.raises(pmwal.ForkedWal):
            elsewhere(next, running)
        assert next(running).seq == 2


def test_child_of_a_thread_that_is_storing_does_not_hang(path: Path) -> None:
    """The child never waits for a lock that was held at the fork."""
    inside, go_on = threading.Event(), threading.Event()

    def hook(event: Step) -> None:
        if event.name == "store":
            inside.set()
            go_on.wait(PATIENCE)

    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        seam.before = hook
        storing = threading.Thread(target=lambda: wal.append(b"1"))
        storing.start()
        assert inside.wait(PATIENCE)
        try:
            for use in (USES["append"], USES["commit"], USES["read"]):
                with pytest.raises(pmwal.ForkedWal):
                    elsewhere(use, wal)
            elsewhere(wal.close)
            assert elsewhere(open_and_close, _other_log(path)) == []
        finally:
            seam.before = None
            go_on.set()
            storing.join()
        assert payloads(wal) == [b"1"]


def _other_log(path: Path) -> Path:
    other = path.with_name("other.wal")
    open_small(other).close()
    return other


def test_close_in_a_forked_child_only_lets_go(path: Path) -> None:
    """In the child close, a with block and a dropped handle change nothing and print nothing."""

    def let_go() -> list[bool]:
        with wal_of_parent[0]:
            pass
        return [wal_of_parent[0].closed]

    def closes() -> list[bool]:
        wal_of_parent[0].close()
        wal_of_parent[0].close()
        return [wal_of_parent[0].closed]

    def drops() -> list[bool]:
        wal_of_parent.clear()
        gc.collect()
        return [True]

    wal_of_parent = [open_small(path)]
    wal_of_parent[0].append(b"1", commit=False)
    before = path.read_bytes()
    assert elsewhere(closes) == [True]
    assert elsewhere(drops) == [True]
    with pytest.raises(pmwal.ForkedWal):
        elsewhere(let_go)
    assert path.read_bytes() == before
    assert wal_of_parent[0].append(b"2") == 2
    wal_of_parent[0].close()
    assert open_and_close(path) == [b"1", b"2"]


def test_ends_of_forked_children_write_nothing(path: Path) -> None:
    """A normal exit inside or outside the with block, os._exit, an exception and SIGKILL leave the parent's log untouched."""
    result = run_script(
        """
        import os, signal, sys
        import pmwal

        path = sys.argv[1]

        def lasting():
            with open(path, "rb") as file:
                raw = bytearray(file.read())
            raw[4096:8192] = bytes(4096)
            return raw

        def locked():
            child = os.fork()
            if not child:
                try:
                    pmwal.open(path)
                except pmwal.WalLocked as error:
                    os._exit(0 if error.pid == os.getppid() else 2)
                os._exit(1)
            return os.waitpid(child, 0)[1]

        kinds = ["exit", "_exit", "raise", "kill", "close", "fall"]
        with pmwal.open(path, size="64KiB") as wal:
            wal.append(b"1")
            wal.append(b"2", commit=False)
            before = lasting()
            for kind in kinds:
                child = os.fork()
                if not child:
                    if kind == "exit":
                        sys.exit(0)
                    if kind == "_exit":
                        os._exit(0)
                    if kind == "raise":
                        sys.stderr = None
                        raise KeyError
                    if kind == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    if kind == "close":
                        wal.close()
                        sys.exit(0)
                    break
                _, status = os.waitpid(child, 0)
                print(kind, status, lasting() == before, locked())
        if child:
            print("parent", wal.closed)
        """,
        path,
    )
    assert result.stdout.splitlines() == [
        "exit 0 True 0",
        "_exit 0 True 0",
        "raise 256 True 0",
        "kill 9 True 0",
        "close 0 True 0",
        "fall 0 True 0",
        "parent True",
    ], result.stderr
    assert open_and_close(path) == [b"1", b"2"]


def fork_and_wait(pipe: Connection, path: Path, how: str) -> None:
    """Own the log, start a child that outlives this process, and say so."""

    def fork() -> None:
        if os.fork() == 0:
            sleep_until_forgotten(pipe)

    def fork_in_a_thread() -> None:
        thread = threading.Thread(target=fork, daemon=True)
        thread.start()
        thread.join(0.3)  # a fork that has to wait until the lock is registered is correct, too

    if how == "fork-at-link":

        def hook(event: Step) -> None:
            if event.name == "link":
                fork_in_a_thread()

        wal = open_small(path, seam=BarrierRecorder(hook))
    elif how == "fork-at-lock":
        open_small(path).close()
        real = fcntl.flock

        def flock(fd: int, operation: int) -> None:
            real(fd, operation)
            fork_in_a_thread()

        fcntl.flock = flock  # type: ignore[assignment]
        wal = open_small(path)
        fcntl.flock = real
    elif how == "fork-at-open":
        open_small(path).close()
        real_open = os.open

        def opens(name: Any, flags: int, *args: Any, **options: Any) -> int:
            fd = real_open(name, flags, *args, **options)
            if name == str(path):
                fork_in_a_thread()
            return fd

        os.open = opens  # type: ignore[assignment]
        wal = open_small(path)
        os.open = real_open
    else:
        wal = open_small(path)
    wal.append(b"1")
    if how == "fork":
        fork()
    elif how == "fork-twice":
        if os.fork() == 0:
            fork()
            sleep_until_forgotten(pipe)
    elif how == "exec":
        os.set_inheritable(pipe.fileno(), True)
        subprocess.Popen([sys.executable, "-c", f"import os; os.read({pipe.fileno()}, 1)"], close_fds=False)
    pipe.send("open")
    pipe.recv()
    wal.close()
    pipe.send("closed")
    time.sleep(PATIENCE)


@pytest.mark.parametrize("how", ["fork", "fork-twice", "exec", "fork-at-link", "fork-at-open", "fork-at-lock"])
def test_owner_killed_while_its_child_lives_leaves_the_log_open(path: Path, how: str) -> None:
    """The lock dies with the owner, however its child was started: the next open works and finds the records."""
    with child(fork_and_wait, path, how) as owner:
        assert owner.hear() == "open"
        with pytest.raises(pmwal.WalLocked) as caught:
            open_small(path)
        assert caught.value.pid == owner.pid
        owner.kill()
        assert open_when_forgotten(path) == [b"1"]


@pytest.mark.parametrize("where", ["in a child", "at close"])
def test_file_that_has_the_number_of_a_closed_lock_is_left_alone(path: Path, where: str) -> None:
    """A program that closes all descriptors, as daemons do, closes the log's too; their numbers are then its own files'."""
    with open_small(path) as wal, path.with_name("own").open("w+b") as own:
        number = os.dup2(own.fileno(), wal._writer_lock.fd)
        if where == "in a child":
            assert elsewhere(os.fstat, number).st_ino == os.fstat(own.fileno()).st_ino
        wal.close()
        assert os.fstat(number).st_ino == os.fstat(own.fileno()).st_ino
        os.close(number)
    with open_small(path):
        pass


def test_log_closed_while_a_child_lives_is_free(path: Path) -> None:
    """close releases the lock at once, whether or not children are alive."""
    with child(fork_and_wait, path, "exec") as owner:
        owner.hear()
        owner.say("close")
        assert owner.hear() == "closed"
        assert open_and_close(path) == [b"1"]


def test_forked_child_may_open_its_own_reader_and_its_own_log(path: Path) -> None:
    """The advice in the error works: the child opens a reader of the parent's log, and a log of its own."""

    def in_child() -> tuple[list[bytes], list[bytes]]:
        with pmwal.open(path, "r") as reader, open_small(path.with_name("own.wal")) as own:
            own.append(b"mine")
            return payloads(reader), payloads(own)

    with open_small(path) as wal:
        wal.append(b"1")
        assert elsewhere(in_child) == ([b"1"], [b"mine"])
        assert wal.append(b"2") == 2


def test_reader_works_on_in_a_forked_child(path: Path) -> None:
    """A reader has no lock to lose: parent and child both read with it, and close it independently."""
    with open_small(path) as wal:
        wal.append(b"1")
        with pmwal.open(path, "r") as reader:

            def read_and_close() -> list[bytes]:
                with reader:
                    return payloads(reader)

            assert elsewhere(read_and_close) == [b"1"]
            wal.append(b"2")
            assert payloads(reader) == [b"1", b"2"]
