"""A log whose file was removed, renamed or replaced under its writer is noticed; its modification time moves on every medium."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
import pmwal.aio
from pmwal.opening import writer
from pmwal.storage import name as name_module
from pmwal.storage.name import LogName
from pmwal.storage.seam import SYSTEM
from pmwal.writing import upkeep as upkeep_module
from pmwal.writing.committer import Committer
from processes import PATIENCE, elsewhere
from support import open_small, payloads

pytestmark = pytest.mark.both_engines

SECOND = 10**9


def let_time_pass(wal: pmwal.Wal, seconds: float = 1.0) -> None:
    """As if the last upkeep, and the last move of the modification time, had been so long ago."""
    wal._upkeep._ran_ns -= int(seconds * SECOND)
    wal._upkeep._touched_ns -= int(seconds * SECOND)
    core = getattr(wal._engine, "core", None)
    if core is not None:
        core.upkept_ns -= int(seconds * SECOND)


def opened(path: str | os.PathLike[str], *, seam: Any = SYSTEM, **options: Any) -> pmwal.Wal:
    """A small log, opened so that the native engine has its fast path."""
    return open_small(path, seam=seam, size=None if os.path.exists(path) else "64KiB", **options)


@pytest.fixture
def log(path: Path) -> Path:
    """A log with one record."""
    with opened(path) as wal:
        wal.append(b"first")
    return path


# -- what happens to the file


def unlink(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("other.wal"))


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"")
    path.with_name("new").replace(path)


def rename_and_make_anew(path: Path) -> None:
    rename(path)
    opened(path).close()


def remove_one_of_two_names(path: Path) -> None:
    path.with_name("second").hardlink_to(path)
    path.unlink()


def rename_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def put_a_file_in_place_of_the_directory(path: Path) -> None:
    rename_directory(path)
    path.parent.write_bytes(b"")


LOSSES: list[Callable[[Path], None]] = [
    unlink,
    rename,
    replace,
    rename_and_make_anew,
    remove_one_of_two_names,
    rename_directory,
    remove_directory,
    put_a_file_in_place_of_the_directory,
]


@pytest.fixture
def nested(shm_dir: Path) -> Path:
    """A path in a directory that may be moved."""
    (shm_dir / "directory").mkdir()
    return shm_dir / "directory" / "test.wal"


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("medium", ["memory", "file"])
def test_lost_name_is_told_once(nested: Path, lose: Callable[[Path], None], medium: str) -> None:
    """One warning with what to do; the handle works on, and its statistics say what is true now."""
    wal = opened(nested, medium=medium)
    wal.append(b"a")
    assert not wal.stats().unlinked
    lose(nested)
    assert wal.stats().unlinked
    let_time_pass(wal)
    with pytest.warns(pmwal.UnlinkedWarning, match=rf"{nested}: .*close the handle and open the log again") as caught:
        wal.append(b"b")
    assert [os.path.basename(warning.filename) for warning in caught] == ["test_unlinked.py"]
    for _ in range(3):
        let_time_pass(wal)
        wal.append(b"c")
    assert payloads(wal) == [b"a", b"b", b"c", b"c", b"c"]
    wal.close()


@pytest.mark.parametrize("lose", LOSSES)
def test_lost_name_is_an_error_on_request(nested: Path, lose: Callable[[Path], None]) -> None:
    """The call that notices it, and every later one, stores nothing; reading works, and closing raises no second time."""
    wal = opened(nested, on_unlinked="raise")
    wal.append(b"a")
    lose(nested)
    let_time_pass(wal)
    for _ in range(3):
        with pytest.raises(pmwal.WalUnlinked, match=f"{nested}: .*open the log again"):
            wal.append(b"b")
    assert payloads(wal) == [b"a"]
    assert wal.stats().unlinked
    wal.close()
    assert wal.closed


CALLS: dict[str, Callable[[pmwal.Wal], Any]] = {
    "append": lambda wal: wal.append(b"x"),
    "append, not durable": lambda wal: wal.append(b"x", commit=False),
    "append of a large record": lambda wal: wal.append(bytes(20_000)),
    "extend": lambda wal: wal.extend([b"x", b"y"]),
    "extend of a generator": lambda wal: wal.extend(item for item in (b"x", b"y")),
    "extend_array": lambda wal: wal.extend_array(np.zeros((2, 8))),
    "batch": lambda wal: wal.batch().__enter__().append(b"x"),
    "reserve": lambda wal: wal.reserve(8),
    "commit": lambda wal: wal.commit(),
    "wait_durable": lambda wal: wal.wait_durable(1),
    "truncate": lambda wal: wal.truncate(before=2),
    "rollback": lambda wal: wal.rollback(after=1),
    "event": lambda wal: pmwal.events.Logger(wal).event("{}")(1),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_every_call_that_stores_or_commits_notices(path: Path, name: str, ordering: str) -> None:
    """With something pending or not; nothing of the call is stored."""
    wal = opened(path, on_unlinked="raise", ordering=ordering, commit="manual")
    wal.extend([b"a", b"b"])
    path.unlink()
    let_time_pass(wal)
    with pytest.raises(pmwal.WalUnlinked):
        CALLS[name](wal)
    assert (wal.first_seq, wal.next_seq) == (1, 3)
    wal.close()


def test_calls_within_a_second_do_not_look(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look a second at most, and none by calls that only read."""
    looks = []
    real = LogName.lost
    monkeypatch.setattr(LogName, "lost", lambda name: looks.append(1) or real(name))
    monkeypatch.setattr(upkeep_module.time, "monotonic_ns", lambda: now)
    now = 10**15
    with opened(path, commit="manual") as wal:
        for _ in range(100):
            wal.append(b"x")
            wal.commit()
            wal._engine.note_upkeep()  # the native engine's clock does not stand still
        assert looks == []
        now += SECOND
        if wal.stats().engine == "native":
            wal._engine.core.upkept_ns -= SECOND
        looks.clear()
        list(wal.read())
        assert looks == []
        for _ in range(5):
            wal.append(b"x")
            wal.commit()
            wal._engine.note_upkeep()
        assert looks == [1]


def test_clock_that_was_set_back_does_not_stop_the_looks(path: Path) -> None:
    """The fast path compares times of the wall clock; one from the future is no reason to wait for it."""
    wal = opened(path, on_unlinked="raise")
    wal._upkeep._ran_ns -= SECOND
    core = getattr(wal._engine, "core", None)
    if core is not None:
        core.upkept_ns += 3600 * SECOND
    path.unlink()
    with pytest.raises(pmwal.WalUnlinked):
        wal.append(b"x")
    wal.close()


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_close_tells_what_no_call_did(log: Path, policy: str) -> None:
    """The last chance to say it, after the log was let go."""
    wal = opened(log, on_unlinked=policy)
    wal.append(b"second")
    log.rename(log.with_name("moved"))
    with pytest.warns(pmwal.UnlinkedWarning) if policy == "warn" else pytest.raises(pmwal.WalUnlinked):
        wal.close()
    assert wal.closed
    with opened(log.with_name("moved")) as wal:
        assert (payloads(wal), wal.recovery.outcome) == ([b"first", b"second"], "clean")


def test_warning_that_is_an_error_keeps_nothing_locked(log: Path) -> None:
    """With ``-W error`` the warning is raised once, by the call that notices or by close."""
    wal = opened(log)
    moved = log.rename(log.with_name("moved"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(pmwal.UnlinkedWarning):
            wal.close()
    opened(moved).close()


def test_committer_in_the_background_notices(path: Path) -> None:
    """A handle with commit=seconds: its thread meets the loss, or the next call does; both refuse from then on."""
    wal = opened(path, on_unlinked="raise", commit=0.01)
    wal.append(b"a")
    path.unlink()
    let_time_pass(wal)
    with pytest.raises(pmwal.WalUnlinked):
        wal.append(b"b")
    wal.close()


def test_warning_that_is_an_error_does_not_end_the_committer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``-W error`` its thread tells it as an uncaught exception, after the commit, and continues."""
    told: list[Any] = []
    noticed = threading.Event()

    def hook(arguments: Any) -> None:
        told.append((arguments.exc_type, wal.committed_seq))
        noticed.set()

    class Noticing:
        closed = False
        calls = 0

        def commit(self) -> int:
            self.calls += 1
            if self.calls == 1:
                raise pmwal.UnlinkedWarning("the file was removed")
            return wal.commit()

    monkeypatch.setattr(threading, "excepthook", hook)
    handle = Noticing()
    with opened(path, commit="manual") as wal:
        committer = Committer(wal._engine, 0.001, handle, "test")
        wal.append(b"a")
        assert noticed.wait(PATIENCE)
        assert told == [(pmwal.UnlinkedWarning, 1)]
        wal.append(b"b")
        with wal._engine.guard:
            while wal.committed_seq < 2:
                wal._engine.wait_for_change(PATIENCE)
        committer.stop()
    assert len(told) == 1


def test_event_loops_notice(path: Path) -> None:
    """pmwal.aio takes the option."""

    async def main() -> None:
        async with pmwal.aio.open(path, size="64KiB", on_unlinked="raise") as wal:
            await wal.append(b"a")
            path.unlink()
            let_time_pass(wal._wal)
            with pytest.raises(pmwal.WalUnlinked):
                await wal.append(b"b")

    asyncio.run(main())


def test_forked_child_says_nothing(log: Path) -> None:
    """The handle is its parent's."""
    wal = opened(log)
    log.unlink()

    def body() -> str:
        let_time_pass(wal)
        with pytest.raises(pmwal.ForkedWal):
            wal.append(b"x")
        wal.close()
        return "quiet"

    assert elsewhere(body) == "quiet"
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.close()


def test_policies_are_checked(path: Path) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match="on_unlinked must be one of 'warn', 'raise', not 'ignore'"):
        pmwal.open(path, on_unlinked="ignore")
    assert not path.exists()


# -- what is no loss


def keeps_its_name(wal: pmwal.Wal) -> bool:
    """Whether the handle finds its name when it looks."""
    let_time_pass(wal)
    wal.append(b"x")
    return not wal.stats().unlinked


def test_relative_path_is_looked_up_from_where_it_was_opened(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chdir means nothing."""
    monkeypatch.chdir(log.parent)
    with opened(log.name) as wal:
        monkeypatch.chdir("/")
        assert keeps_its_name(wal)


def test_symbolic_link_is_resolved_at_open(log: Path) -> None:
    """Another target of the link takes nothing from the log; its own removal does."""
    link = log.with_name("link")
    link.symlink_to(log)
    wal = opened(link)
    link.unlink()
    link.symlink_to("elsewhere")
    assert keeps_its_name(wal)
    log.unlink()
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.close()


def test_other_names_may_come_and_go(log: Path) -> None:
    """A hard link is made and removed, as backups do; the log is renamed over its own name."""
    with opened(log) as wal:
        second = log.with_name("second")
        second.hardlink_to(log)
        assert keeps_its_name(wal)
        second.unlink()
        assert keeps_its_name(wal)
        log.rename(second)
        second.rename(log)
        assert keeps_its_name(wal)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ELOOP, errno.ESTALE, errno.ENOMEM])
def test_path_that_cannot_be_looked_up_proves_nothing(log: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Only "no such file" and another file are proof."""
    with opened(log) as wal:
        real = name_module._identify

        def fails(fd: int, path: str) -> Any:
            if path:
                raise OSError(number, os.strerror(number))
            return real(fd, path)

        monkeypatch.setattr(name_module, "_identify", fails)
        assert keeps_its_name(wal)


def test_process_that_may_not_enter_the_directory_any_more_is_not_misled(nested: Path) -> None:
    """A daemon opens its log and becomes another user."""

    def body() -> bool:
        wal = opened(nested)
        nested.parent.chmod(0)
        if os.getuid() == 0:
            os.setuid(65534)
        return keeps_its_name(wal)

    assert elsewhere(body)
    nested.parent.chmod(0o700)


def test_process_that_changes_its_root_is_not_misled(nested: Path) -> None:
    """A daemon opens its log and calls chroot(2); what was removed is noticed all the same."""
    if os.getuid() != 0:
        pytest.skip("chroot needs root")

    def body() -> tuple[bool, bool]:
        wal, removed = opened(nested), opened(nested.with_name("removed"))
        nested.with_name("removed").unlink()
        os.chroot(nested.parent)
        return keeps_its_name(wal), removed.stats().unlinked

    assert elsewhere(body) == (True, True)


def test_log_without_a_name_has_none_to_lose(log: Path, log_bytes: bytes) -> None:
    """A memfd, an unnamed file, one that was removed before, and any descriptor under /proc."""
    memfd = os.memfd_create("pmwal-test")
    unnamed = os.open(log.parent, os.O_RDWR | os.O_TMPFILE, 0o600)
    removed = os.open(shutil.copyfile(log, log.with_name("removed")), os.O_RDWR)
    named = os.open(log, os.O_RDWR)
    for fd in (memfd, unnamed):
        os.write(fd, log_bytes)
    log.with_name("removed").unlink()
    for fd in (memfd, unnamed, removed, named):
        with opened(f"/proc/self/fd/{fd}") as wal:
            if fd == named:
                log.rename(log.with_name("moved"))
            assert keeps_its_name(wal)
        with opened(f"/dev/fd/{fd}") as wal:
            assert keeps_its_name(wal)
        os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_old_kernels_and_filters_have_another_call(log: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where statx(2) is refused, stat(2) answers the same."""

    expected = name_module._identify(-100, str(log))
    monkeypatch.setattr(name_module, "_statx", lambda: lambda *_: -1)
    monkeypatch.setattr(name_module.ctypes, "get_errno", lambda: number)
    assert name_module._identify(-100, str(log)) == expected
    status = log.stat()
    assert (expected.device, expected.inode, expected.links) == (status.st_dev, status.st_ino, 1)


# -- the modification time


def mtime(path: Path) -> int:
    """The modification time in ns, and set it back so that the next move is seen."""
    before = path.stat().st_mtime_ns
    os.utime(path, ns=(1, 1))
    return before


@pytest.mark.parametrize("medium", ["memory", "emulated-dax", "file"])
def test_open_and_close_move_the_modification_time(log: Path, medium: str) -> None:
    """On tmpfs the kernel does not: a store into a mapping leaves it alone, and rsync would skip the file."""
    mtime(log)
    wal = opened(log, medium=medium)
    assert mtime(log) > 1
    wal.append(b"x")
    assert mtime(log) == 1
    wal.close()
    assert mtime(log) > 1


@pytest.mark.parametrize("medium", ["memory", "emulated-dax", "file"])
@pytest.mark.parametrize("call", ["append", "extend", "commit"])
def test_modification_time_moves_once_a_minute_while_something_is_stored(path: Path, medium: str, call: str) -> None:
    """With the first call after the minute, and only if something was stored since the last move."""
    with opened(path, medium=medium, commit="manual") as wal:
        mtime(path)
        let_time_pass(wal, 61)
        CALLS[call](wal)  # nothing was stored before this call
        assert mtime(path) == 1
        for seconds, moves in ((1, True), (30, False), (31, True), (20, False)):
            wal.append(b"x")
            let_time_pass(wal, seconds)
            CALLS[call](wal)
            assert (mtime(path) > 1) == moves, seconds


def test_modification_time_of_a_log_that_lost_its_name_moves_too(path: Path) -> None:
    """It may have another one."""
    wal = opened(path)
    moved = path.rename(path.with_name("moved"))
    wal.append(b"x")
    mtime(moved)
    let_time_pass(wal, 61)
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.append(b"x")
    assert mtime(moved) > 1
    wal.close()


def test_readers_and_verify_leave_the_modification_time(log: Path) -> None:
    """They change nothing."""
    mtime(log)
    with pmwal.open(log, "r") as reader:
        assert payloads(reader) == [b"first"]
    pmwal.verify(log)
    assert mtime(log) == 1


def test_file_whose_time_cannot_be_set_is_used_all_the_same(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another owner, say; the log itself needs no time."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)
    with opened(log) as wal:
        assert keeps_its_name(wal)


def test_commit_on_a_disk_moves_the_modification_time(tmp_path: Path) -> None:
    """There the kernel does it, when a page is stored to for the first time since it was written."""
    path = tmp_path / "test.wal"
    with opened(path) as wal:
        if wal.stats().durability != "power":
            pytest.skip("the temporary directory is not on a disk")
        for record in (b"a", b"b" * 5000):
            mtime(path)
            wal.append(record)
            assert mtime(path) > 1
        mtime(path)
        with contextlib.suppress(pmwal.WalFull):
            for _ in range(100):
                wal.append(b"c")  # by pwritev2(2), in the native engine
        assert mtime(path) > 1


@pytest.mark.parametrize("way", ["renamed", "replaced", "removed", "kept"])
def test_reader_knows_whether_its_path_leads_to_its_file(way: str, shm_dir: Path) -> None:
    """So a program can follow a log over rotations."""
    path = shm_dir / "app.wal"
    pmwal.open(path, size="64KiB").close()
    with pmwal.open(path, "r") as reader:
        assert not reader.stats().unlinked
        if way == "removed":
            path.unlink()
        elif way != "kept":
            path.rename(path.with_name("app.wal.1"))
        if way == "replaced":
            pmwal.open(path, size="64KiB").close()
        assert reader.stats().unlinked == (way != "kept")


@pytest.mark.parametrize("way", ["renamed", "removed"])
def test_log_that_loses_its_name_while_it_is_opened_is_noticed(way: str, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the lock and the first record a recovery may take seconds."""
    path = shm_dir / "app.wal"
    pmwal.open(path, size="64KiB").close()
    opened = writer.take_over

    def rotated(*args: Any, **options: Any) -> Any:
        path.rename(path.with_name("app.wal.1")) if way == "renamed" else path.unlink()
        return opened(*args, **options)

    monkeypatch.setattr(writer, "take_over", rotated)
    wal = pmwal.open(path)
    assert wal.stats().unlinked
    with pytest.warns(pmwal.UnlinkedWarning):
        wal.close()
