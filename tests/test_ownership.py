"""One writer: across handles, paths, links, processes and forks (scenarios 32 and 33)."""

from __future__ import annotations

import copy
import fcntl
import gc
import os
import pickle
import shutil
import signal
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
from pmwal.format.layout import LIVE_WRITER, LIVE_WRITER_OFFSET, PAGE
from processes import child, elsewhere, run_script
from support import BarrierRecorder, Step, open_small, overwrite, payloads

OLD_LIVE_PAGE = slice(PAGE, 2 * PAGE)


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """Where the log is."""
    return shm_dir / "test.wal"


def lasting(path: Path) -> bytes:
    """The file without its live page."""
    raw = bytearray(path.read_bytes())
    raw[OLD_LIVE_PAGE] = bytes(PAGE)
    return bytes(raw)


def open_and_close(path: Path) -> list[bytes]:
    """Open the log for writing, look, and close it."""
    with open_small(path, "r+") as wal:
        return payloads(wal)


def open_when_forgotten(path: Path) -> list[bytes]:
    """The same, as soon as a child that was just forked has run so far that it let go of its copy of the lock."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return open_and_close(path)
        except pmwal.WalLocked:
            assert time.monotonic() < deadline, "the child keeps the lock"
            time.sleep(0.001)


def hold(pipe: Connection, path: Path) -> None:
    """Own the log until told to close it."""
    wal = open_small(path)
    wal.append(b"held")
    pipe.send("open")
    pipe.recv()
    wal.close()
    pipe.send("closed")
    pipe.recv()


def sleep_until_forgotten(pipe: Connection) -> None:
    """In a forked child: live until the test lets go of the pipe, and then end without any cleaning up."""
    try:
        pipe.recv()
    finally:
        os._exit(0)


# -- the lock (scenario 32)


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
def test_second_writer_is_refused_by_whatever_name(path: Path, where: str, name: str) -> None:
    """WalLocked with the owner's pid, for every name of the same file; the owner goes on, and after its close it works."""
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
    """The message says which process has the log, and that it can be read beside it."""
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
    """No lock outlives its process, and recovery finds what was acknowledged."""
    with child(hold, path) as owner:
        owner.hear()
        owner.kill()
        with open_small(path) as wal:
            assert payloads(wal) == [b"held"]
            assert wal.recovery.outcome == "recovered"


def test_stopped_owner_keeps_the_log(path: Path) -> None:
    """No time-out steals the lock of a process that is slow."""
    with child(hold, path) as owner:
        owner.hear()
        os.kill(owner.pid, signal.SIGSTOP)
        with pytest.raises(pmwal.WalLocked) as caught:
            open_small(path)
        assert caught.value.pid == owner.pid


def test_closing_other_descriptors_of_the_file_keeps_the_lock(path: Path) -> None:
    """Readers, copies and editors come and go; POSIX record locks would vanish with each of them."""
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
    """When the live page names no living writer, pid is None; a pid that another process got since is not blamed."""
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
    """A log that was renamed stays locked under its new name; its old name is free for another log; so is a copy."""
    with open_small(path) as wal:
        wal.append(b"1")
        moved, copied = path.with_name("moved.wal"), path.with_name("copied.wal")
        shutil.copyfile(path, copied)
        path.rename(moved)
        with pytest.raises(pmwal.WalLocked):
            open_small(moved)
        with open_small(path) as other, open_small(copied) as third:
            assert (payloads(other), payloads(third)) == ([], [b"1"])
        assert wal.append(b"2") == 2
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


# -- fork (scenario 33)

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


@pytest.mark.parametrize("name", USES)
def test_use_in_a_forked_child_is_refused(path: Path, name: str) -> None:
    """ForkedWal says what to do, nothing is stored, and the parent's handle works on."""
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
    """A batch or reservation that the child enters or ends is refused there, and is the parent's to finish."""
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


def test_iteration_that_was_begun_before_the_fork_is_refused_in_the_child(path: Path) -> None:
    """An iterator of the parent's handle gives the child no records, not even those that it had already loaded."""
    with open_small(path) as wal:
        wal.extend([b"1", b"2"])
        running = wal.read()
        assert next(running).seq == 1
        with pytest.raises(pmwal.ForkedWal):
            elsewhere(next, running)
        assert next(running).seq == 2


def test_child_of_a_thread_that_is_storing_does_not_hang(path: Path) -> None:
    """A lock that was held at the fork is never waited for in the child."""
    inside, go_on = threading.Event(), threading.Event()

    def hook(event: Step) -> None:
        if event.name == "store":
            inside.set()
            go_on.wait(20)

    seam = BarrierRecorder()
    with open_small(path, seam=seam) as wal:
        seam.before = hook
        storing = threading.Thread(target=lambda: wal.append(b"1"))
        storing.start()
        assert inside.wait(20)
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
    """close, a with block and a dropped handle change nothing in the child, and say nothing."""

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
    """Normal exit inside and outside the with block, os._exit, an exception and SIGKILL: the parent's log is untouched."""
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
    """Own the log, start a child in some way that outlives this process, and say so."""

    def fork() -> None:
        if os.fork() == 0:
            sleep_until_forgotten(pipe)

    def fork_in_a_thread() -> None:
        thread = threading.Thread(target=fork, daemon=True)
        thread.start()
        thread.join(0.3)  # a fork that is made to wait until the lock is registered is a good answer

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
    time.sleep(30)


@pytest.mark.parametrize("how", ["fork", "fork-twice", "exec", "fork-at-link", "fork-at-open", "fork-at-lock"])
def test_owner_killed_while_its_child_lives_leaves_the_log_open(path: Path, how: str) -> None:
    """The lock dies with the owner, however its child came to be: the next open works and finds the records."""
    with child(fork_and_wait, path, how) as owner:
        assert owner.hear() == "open"
        with pytest.raises(pmwal.WalLocked) as caught:
            open_small(path)
        assert caught.value.pid == owner.pid
        owner.kill()
        assert open_when_forgotten(path) == [b"1"]


def test_log_closed_while_a_child_lives_is_free(path: Path) -> None:
    """close gives the log away at once, whatever children there are."""
    with child(fork_and_wait, path, "exec") as owner:
        owner.hear()
        owner.say("close")
        assert owner.hear() == "closed"
        assert open_and_close(path) == [b"1"]


def test_forked_child_may_open_its_own_reader_and_its_own_log(path: Path) -> None:
    """What the error advises works: a reader of the parent's log, and a log of the child's."""

    def in_child() -> tuple[list[bytes], list[bytes]]:
        with pmwal.open(path, "r") as reader, open_small(path.with_name("own.wal")) as own:
            own.append(b"mine")
            return payloads(reader), payloads(own)

    with open_small(path) as wal:
        wal.append(b"1")
        assert elsewhere(in_child) == ([b"1"], [b"mine"])
        assert wal.append(b"2") == 2


def test_reader_works_on_in_a_forked_child(path: Path) -> None:
    """A reader has no lock to lose: parent and child both read with it, and close it apart."""
    with open_small(path) as wal:
        wal.append(b"1")
        with pmwal.open(path, "r") as reader:

            def read_and_close() -> list[bytes]:
                with reader:
                    return payloads(reader)

            assert elsewhere(read_and_close) == [b"1"]
            wal.append(b"2")
            assert payloads(reader) == [b"1", b"2"]


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
    """Passing a Wal or Reader to a spawned process raises before it starts, and passing the path works."""
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
    """Once a handle is dropped, readers no longer believe its live page although its process lives."""
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
