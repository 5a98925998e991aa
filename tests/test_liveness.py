"""Whether a log has a writer: known in other namespaces, to other users, under other names, and never by a number used again."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.cli import main
from pmwal.format.layout import LIVE_OFFSET, LIVE_OPEN, LIVE_OPEN_OFFSET, LIVE_WRITER, LIVE_WRITER_OFFSET, PAGE
from pmwal.storage import liveness, lock
from pmwal.storage.live_page import LivePage, process_start_time, read_writer
from pmwal.storage.liveness import WRITER_BYTE, announce, is_announced
from pmwal.storage.mapping import Mapping
from processes import child, elsewhere
from support import kill, open_small, overwrite

pytestmark = pytest.mark.both_engines

CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
MS_REC, MS_PRIVATE = 16384, 1 << 18
NOBODY = 65534


class NotPermitted(Exception):
    """This machine does not let a test make namespaces."""


def _call(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args):
        raise NotPermitted(f"{name}: {os.strerror(ctypes.get_errno())}")


def look(path: Path) -> dict[str, Any]:
    """What each kind of reader makes of a log."""
    with pmwal.open(path, "r") as reader:
        report = pmwal.verify(path)
        return {
            "records": [record.data for record in reader],
            "followed": [record.data for record in reader.follow(timeout=0)],
            "live": report.live,
            "outcome": report.outcome,
        }


def _own_proc(options: str) -> None:
    """Mount /proc anew in a mount namespace of this process."""
    _call("unshare", CLONE_NEWNS)
    _call("mount", b"none", b"/", b"none", ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    _call("mount", b"proc", b"/proc", b"proc", ctypes.c_ulong(0), options.encode())


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _here(path: Path, _: Callable[[Path], Any]) -> Any:
    return elsewhere(_, path)


def _in_pid_namespace(path: Path, body: Callable[[Path], Any]) -> Any:
    def first() -> Any:
        def second() -> Any:
            _own_proc("")
            return os.getpid(), body(path)

        multiprocessing.current_process().daemon = False  # or it may have no children
        _call("unshare", CLONE_NEWPID)
        pid, seen = elsewhere(second)
        assert pid == 1
        return seen

    return elsewhere(first)


def _under_hidepid(path: Path, body: Callable[[Path], Any]) -> Any:
    writer = os.getpid()

    def hidden() -> Any:
        _own_proc("hidepid=2")
        _become_nobody()
        assert process_start_time(writer) is None
        return body(path)

    return elsewhere(hidden)


def _as_other_user(path: Path, body: Callable[[Path], Any]) -> Any:
    def other() -> Any:
        _become_nobody()
        with pytest.raises(PermissionError):
            path.open("r+b")
        return body(path)

    return elsewhere(other)


def _as_other_user_in_pid_namespace(path: Path, body: Callable[[Path], Any]) -> Any:
    def other(path: Path) -> Any:
        _become_nobody()
        return body(path)

    return _in_pid_namespace(path, other)


VANTAGES = {
    "another process": _here,
    "another pid namespace": _in_pid_namespace,
    "hidepid": _under_hidepid,
    "another user": _as_other_user,
    "another user in another pid namespace": _as_other_user_in_pid_namespace,
}


def seen_from(vantage: str, path: Path, body: Callable[[Path], Any] = look) -> Any:
    """What a process elsewhere sees; the test is skipped where root or namespaces are needed and there are none."""
    if os.getuid() and vantage != "another process":
        pytest.skip(f"{vantage}: run as root (sudo)")
    try:
        return VANTAGES[vantage](path, body)
    except NotPermitted as error:
        pytest.skip(f"{vantage}: {error}")


@pytest.fixture
def log(path: Path) -> Path:
    """A log in a directory that every user may read."""
    path.parent.chmod(0o755)
    return path


def _writer(path: Path, **options: Any) -> pmwal.Wal:
    wal = open_small(path, **options)
    path.chmod(0o444)
    wal.append(b"durable")
    wal.append(b"not yet", commit=False)
    return wal


# -- a living writer


@pytest.mark.parametrize("vantage", VANTAGES)
def test_living_writer_is_noticed(log: Path, vantage: str) -> None:
    """Readers show what is durable only, and verify judges no more than that."""
    wal = _writer(log)
    seen = seen_from(vantage, log)
    assert seen == {"records": [b"durable"], "followed": [b"durable"], "live": True, "outcome": "recovered"}
    wal.close()


@pytest.mark.parametrize("vantage", VANTAGES)
def test_writer_that_is_gone_is_noticed(log: Path, vantage: str) -> None:
    """Its process is alive and is the one that the page names, with its start time: as if the number had been used again."""
    wal = _writer(log)
    kill(wal)
    seen = seen_from(vantage, log)
    assert seen["records"] == [b"durable", b"not yet"]
    assert not seen["live"]
    assert (
        process_start_time(os.getpid()) == read_writer(lambda offset, length: log.read_bytes()[offset : offset + length]).start_time
    )


@pytest.mark.parametrize("vantage", VANTAGES)
def test_busy_flight_recorder_is_never_damaged(log: Path, vantage: str) -> None:
    """A small ring that is overwritten while it is read from elsewhere, with commits far apart."""

    def write(pipe: Any) -> None:
        with open_small(log, on_full="overwrite", commit=0.01) as wal:
            log.chmod(0o444)
            for _ in range(200):
                wal.append(bytes(200))
            pipe.send("full")
            while not pipe.poll():
                wal.append(bytes(200))

    def stare(path: Path) -> tuple[int, set[str]]:
        outcomes, read = set(), 0
        for _ in range(30):
            outcomes.add(pmwal.verify(path).outcome)
            try:
                with pmwal.open(path, "r") as reader:
                    read += sum(1 for _ in reader)
            except pmwal.Overrun:
                read += 1
        return read, outcomes

    with child(write) as process:
        process.hear()
        read, outcomes = seen_from(vantage, log, stare)
        process.say("stop")
        assert process.wait() == 0
    assert outcomes == {"recovered"}
    assert read > 0


@pytest.mark.parametrize("name", ["renamed", "hard link", "symlink", "bind"])
def test_living_writer_is_noticed_under_every_name(log: Path, name: str) -> None:
    """The lock is on the file, not on its name."""
    wal = _writer(log)
    other = log.with_name("other.wal")
    if name == "renamed":
        log.rename(other)
    elif name == "hard link":
        os.link(log, other)
    elif name == "symlink":
        other.symlink_to(log)
    else:
        other = Path(f"/proc/self/fd/{wal._engine.mapping.fd}")
    assert look(other)["live"]
    assert look(other)["records"] == [b"durable"]
    if name == "renamed":
        other.rename(log)
    wal.close()


def test_copy_has_no_writer(log: Path) -> None:
    """Its bytes name the writer of the original."""
    wal = _writer(log)
    copied = log.with_name("copy.wal")
    copied.write_bytes(log.read_bytes())
    assert not look(copied)["live"]
    wal.close()


@pytest.mark.parametrize("owner", ["lives", "killed"])
def test_child_of_a_writer_does_not_keep_it_alive(log: Path, owner: str) -> None:
    """A forked child closes its copies: as long as its parent lives the writer is alive, and no longer."""

    def own(pipe: Any) -> None:
        wal = open_small(log)
        wal.append(b"durable")
        wal.append(b"not yet", commit=False)
        pid = os.fork()
        if not pid:
            pipe.send(os.getpid())
            time.sleep(1000)
        pipe.recv()

    with child(own) as process:
        pid = process.hear()
        try:
            if owner == "killed":
                process.kill()
            os.kill(pid, 0)
            assert look(log)["live"] == (owner == "lives")
            assert len(look(log)["records"]) == (1 if owner == "lives" else 2)
        finally:
            os.kill(pid, 9)


def test_restarted_container_is_another_writer(log: Path) -> None:
    """Its process has the same id, 1, in the same boot, and another start time; the lock is what counts."""
    wal = _writer(log)
    for offset in (LIVE_WRITER_OFFSET + LIVE_WRITER.offsets["pid"], LIVE_OPEN_OFFSET + LIVE_OPEN.offsets["pid"]):
        overwrite(log, offset, struct.pack("<Q", 1))
    assert look(log)["live"]
    kill(wal)
    assert not look(log)["live"]
    with open_small(log) as wal:
        assert [record.data for record in wal.read()] == [b"durable", b"not yet"]


# -- the moments of opening and closing


def test_page_of_a_dead_writer_is_not_believed_while_another_opens(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the byte is locked, the page names nobody yet; before that, nobody is alive."""
    kill(_writer(log))
    seen: list[tuple[int, bool | None, bool]] = []
    begin = LivePage.begin

    def watched(self: LivePage, timing_step: int, announce: Callable[[], bool]) -> None:
        def note() -> None:
            with log.open("rb") as file:
                pid = read_writer(lambda offset, length: os.pread(file.fileno(), length, offset)).pid
                seen.append((pid, is_announced(file.fileno()), look(log)["live"]))

        def announced() -> bool:
            note()
            done = announce()
            note()
            return done

        note()
        begin(self, timing_step, announced)
        note()

    monkeypatch.setattr(LivePage, "begin", watched)
    wal = open_small(log)
    assert seen == [(os.getpid(), False, False), (0, False, False), (0, True, False), (0, True, False)]
    assert look(log)["live"]
    wal.close()
    assert not look(log)["live"]


def test_refused_open_locks_no_byte(log: Path) -> None:
    """Neither one that meets a lock nor one that meets damage."""
    with open_small(log) as wal:
        wal.append(b"x")
        with pytest.raises(pmwal.WalLocked):
            open_small(log)
        assert look(log)["live"]
    raw = log.read_bytes()
    overwrite(log, LIVE_OFFSET + PAGE, bytes(8192))
    with pytest.raises(pmwal.CorruptWal):
        open_small(log)
    with log.open("rb") as file:
        assert is_announced(file.fileno()) is False
    log.write_bytes(raw)


def test_readers_lock_nothing(log: Path) -> None:
    """They test the byte of a living writer, and a writer may start beside them at any time."""
    open_small(log).close()
    with pmwal.open(log, "r") as reader:
        reader.read()
        with log.open("r+b") as file:
            assert announce(file.fileno())
            assert is_announced(file.fileno()) is False  # a lock of one's own does not count
            assert is_announced(reader._mapping.fd) is True
        with open_small(log) as wal:
            wal.append(b"x")
            assert [record.data for record in reader] == [b"x"]


# -- without such a lock


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses these locks (EINVAL, ENOLCK)."""

    real = fcntl.fcntl

    def refuse(fd: int, command: int, *argument: Any) -> Any:
        if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK):
            raise OSError(22, "Invalid argument")
        return real(fd, command, *argument)

    monkeypatch.setattr(liveness.fcntl, "fcntl", refuse)


@pytest.fixture
def version_0_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers lock no byte and name no open; the page keeps what an earlier writer of 0.2 left there."""
    begin = LivePage.begin

    def old(self: LivePage, timing_step: int, announce: Callable[[], bool]) -> None:
        kept = self._mapping.load(LIVE_OPEN_OFFSET, LIVE_OPEN.size)
        begin(self, timing_step, lambda: False)
        self._mapping.store(LIVE_OPEN_OFFSET, kept)

    monkeypatch.setattr(LivePage, "begin", old)


@pytest.mark.parametrize("kind", ["no_locks", "version_0_1"])
def test_process_id_and_start_time_decide_without_a_lock(log: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """As in version 0.1."""
    request.getfixturevalue(kind)
    wal = _writer(log)
    assert look(log) == {"records": [b"durable"], "followed": [b"durable"], "live": True, "outcome": "recovered"}
    overwrite(log, LIVE_WRITER_OFFSET + LIVE_WRITER.offsets["start_time"], struct.pack("<Q", 17))
    assert not look(log)["live"]
    kill(wal)


@pytest.mark.parametrize("kind", ["no_locks", "version_0_1"])
def test_stale_open_of_version_0_2_is_not_taken_for_that_of_0_1(log: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """It says that its byte is locked; but it is of another process."""
    with open_small(log) as wal:
        wal.append(b"by 0.2")
    overwrite(log, LIVE_OPEN_OFFSET + LIVE_OPEN.offsets["start_time"], struct.pack("<Q", 17))
    request.getfixturevalue(kind)
    wal = open_small(log)
    wal.append(b"later", commit=False)
    seen = look(log)
    assert (seen["records"], seen["live"]) == ([b"by 0.2"], True)
    kill(wal)


@pytest.mark.parametrize("vantage", ["another pid namespace", "hidepid"])
@pytest.mark.parametrize("kind", ["no_locks", "version_0_1"])
def test_page_that_moves_shows_a_writer_that_cannot_be_seen(
    log: Path, kind: str, vantage: str, request: pytest.FixtureRequest
) -> None:
    """A busy ring is never called damaged, and a reader that has seen the page move shows what is durable."""
    request.getfixturevalue(kind)

    def write(pipe: Any) -> None:
        wal = open_small(log, on_full="overwrite")
        log.chmod(0o444)
        for _ in range(200):
            wal.append(bytes(200))
        pipe.send("full")
        while not pipe.poll():
            wal.append(bytes(200))
        wal.close()

    def stare(path: Path) -> tuple[set[str], bool]:
        outcomes, moved = set(), False
        for _ in range(30):
            outcomes.add(pmwal.verify(path).outcome)
            with pmwal.open(path, "r") as reader:
                for _ in range(5):
                    try:
                        moved = moved or reader._view().writer is not None
                        assert all(record.data == bytes(200) for record in reader)
                    except pmwal.Overrun:
                        moved = True
        return outcomes, moved

    with child(write) as process:
        process.hear()
        outcomes, moved = seen_from(vantage, log, stare)
        process.say("stop")
        process.wait()
    assert "corrupt" not in outcomes
    assert moved


def test_lock_of_another_program_on_the_whole_file_is_no_writer(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing: the process of the page decides."""
    import fcntl  # noqa: PLC0415

    def lock_all(pipe: Any) -> None:
        with log.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            pipe.send("locked")
            pipe.recv()

    open_small(log).close()
    with child(lock_all) as process:
        process.hear()
        with log.open("rb") as file:
            assert is_announced(file.fileno()) is None
        assert not look(log)["live"]
        wal = _writer(log)
        assert not read_writer(wal._engine.mapping.load).locked
        assert look(log)["live"]
        kill(wal)
        process.say("stop")


def test_byte_is_where_no_file_reaches() -> None:
    """Other programs lock ranges of bytes that exist."""
    assert WRITER_BYTE == 1 << 62
    assert lock.announce is announce


def test_hidden_or_odd_process_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under hidepid /proc/PID raises; and a process may end while it is read."""
    assert process_start_time(1 << 22) is None
    assert process_start_time(2**64 - 1) is None
    assert process_start_time(os.getpid()) is not None


# -- the command line


@pytest.mark.parametrize("vantage", ["another process", "another pid namespace", "hidepid", "another user"])
def test_commands_notice_a_living_writer(log: Path, vantage: str, capfd: pytest.CaptureFixture[str]) -> None:
    """verify, info and stat call it running, from anywhere."""
    wal = _writer(log)

    def commands(path: Path) -> list[int]:
        return [main([name, str(path)]) for name in ("verify", "info", "stat")]

    assert seen_from(vantage, log, commands) == [0, 0, 0]
    text = capfd.readouterr().out
    assert f"in use by process {os.getpid()}, sound so far: 1 record, 1 durable" in text
    assert text.count(f"process {os.getpid()}, running") == 2
    assert "gone" not in text
    wal.close()


def test_stat_sees_that_a_writer_of_0_1_in_another_namespace_moves(
    log: Path, version_0_1: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its process cannot be seen, so two samples are compared."""
    wal = _writer(log)
    monkeypatch.setattr("pmwal.storage.liveness.process_start_time", lambda pid: None)
    monkeypatch.setattr("pmwal.cli.commands.stat.time.sleep", lambda seconds: wal.append(b"more"))
    assert main(["stat", str(log)]) == 0
    assert f"process {os.getpid()}, running" in capfd.readouterr().out
    monkeypatch.setattr("pmwal.cli.commands.stat.time.sleep", lambda seconds: None)
    assert main(["stat", str(log)]) == 0
    assert "gone without closing the log" in capfd.readouterr().out
    kill(wal)


def test_mapping_of_a_reader_tests_the_lock_read_only(log: Path) -> None:
    """F_OFD_GETLK needs no permission to write."""
    wal = _writer(log)
    with pmwal.open(log, "r") as reader:
        assert isinstance(reader._mapping, Mapping)
        assert os.get_blocking(reader._mapping.fd) in (True, False)
        assert is_announced(reader._mapping.fd) is True
    wal.close()
