"""Creating, opening and closing a log when any step fails, or when another process does the same."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import multiprocessing
import os
import resource
import stat
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import pmwal
from dying import create, dies, steps_of
from marks import first_fast
from pmwal.format.layout import PAGE
from pmwal.storage.medium import Medium
from pmwal.storage.seam import Seam
from processes import PATIENCE, child, elsewhere, on_tmpfs
from support import SMALL_RING, BarrierRecorder, Step, open_small, payloads

pytestmark = pytest.mark.both_engines


def without_tmpfile(monkeypatch: pytest.MonkeyPatch, number: int = errno.EOPNOTSUPP) -> None:
    """Emulate a file system without O_TMPFILE."""
    real = os.open

    def fake(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", fake)


def without_link(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    """Emulate a file system without link(2)."""

    def fake(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fake)


@pytest.fixture(params=["tmpfile", "no-tmpfile", "no-link", "neither"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system with and without unnamed files and link(2)."""
    if request.param in ("no-tmpfile", "neither"):
        without_tmpfile(monkeypatch)
    if request.param in ("no-link", "neither"):
        without_link(monkeypatch)
    return str(request.param)


@pytest.fixture
def path(kind: str, shm_dir: Path) -> Path:
    """The log's path, on each kind of file system."""
    return shm_dir / "test.wal"


@pytest.fixture
def disk_path(kind: str, tmp_path: Path) -> Path:
    """The same on a disk."""
    return tmp_path / "test.wal"


@pytest.fixture
def shm_path(shm_dir: Path) -> Path:
    """The log's path, for tests to which the way of creation does not matter."""
    return shm_dir / "test.wal"


def names(path: Path) -> list[str]:
    """The names in the log's directory."""
    return sorted(os.listdir(path.parent))


# -- creation (scenario 25)


@pytest.fixture(params=["written", "allocated"])
def before_link(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A file system where zeros are written, and one whose blocks are zeros: more steps than these lie before the name."""
    monkeypatch.setattr(Medium, "allocates_zeros", request.param == "allocated")
    return 6 if request.param == "allocated" else 10


class NotingSeam(BarrierRecorder):
    """A seam that records the sync of a directory apart from that of a file."""

    def sync_file(self, fd: int) -> None:
        super().sync_file(fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.events[-1] = Step("sync directory")


def test_log_gets_its_name_last(kind: str, path: Path) -> None:
    """The log is allocated, written in single pages, synced, and only then named; the directory is synced next."""
    seam = NotingSeam()
    create(path, seam=seam)
    order = [event.name for at, event in enumerate(seam.events) if not at or seam.events[at - 1].name != event.name]
    tried = {"tmpfile": ["link"], "no-tmpfile": ["link"], "neither": ["link", "rename"]}
    if kind == "no-link":  # the unnamed file cannot get its name, so another one with a hidden name is written
        assert order[:4] == ["allocate", "write", "sync", "link"]
        order = order[4:]
    named = tried.get(kind, ["link", "rename"])
    assert order[: 4 + len(named)] == ["allocate", "write", "sync", *named, "sync directory"]
    assert max(event.length for event in seam.events if event.name == "write") <= PAGE


def test_large_log_is_written_in_large_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, once for each file that is tried."""
    monkeypatch.setattr("pmwal.storage.create._SINGLE_MAX", 0)
    monkeypatch.setattr(Medium, "allocates_zeros", False)
    seam = NotingSeam()
    create(path, seam=seam)
    zeros = sorted({(event.offset, event.length) for event in seam.events if event.name == "write" and not any(event.data)})
    size = path.stat().st_size
    assert sum(length for _, length in zeros) == size
    assert [offset for offset, _ in zeros] == list(range(0, size, 1 << 20))
    assert pmwal.verify(path).case == "R1"


@pytest.mark.parametrize("torn", first_fast([False, True]), ids=["before", "within"])
def test_crash_at_any_step_of_creation_leaves_no_log_or_an_empty_one(path: Path, torn: bool, before_link: int) -> None:
    """Wherever the process dies, there is no file, or one that opens as an empty log; nothing else stays for good."""
    steps = len(steps_of(create, path))
    path.unlink()
    assert names(path) == []
    unnamed = 0
    for last in range(steps):
        dies(create, path, last, torn)
        if path.exists():
            assert pmwal.verify(path).records == 0, last
            with pmwal.open(path, "r") as reader:
                assert len(reader) == 0
        else:
            unnamed += 1
        with open_small(path) as wal:
            assert (wal.first_seq, wal.next_seq, wal.committed_seq) == (1, 1, 0)
            assert wal.recovery.outcome == ("created" if last < unnamed else wal.recovery.outcome)
            assert wal.append(b"x") == 1
        path.unlink()
        create(path)
        assert names(path) == [path.name], last
        path.unlink()
    assert before_link < unnamed < steps


def test_crash_of_a_creation_leaves_no_orphan_where_files_can_be_unnamed(shm_path: Path) -> None:
    """With O_TMPFILE no name but the log's own ever exists."""
    for last in range(len(steps_of(create, shm_path))):
        shm_path.unlink(missing_ok=True)
        dies(create, shm_path, last, torn=False)
        assert names(shm_path) in ([], [shm_path.name])


def test_crash_of_a_creation_on_a_disk(disk_path: Path) -> None:
    """The same for the steps that matter on a disk: the syncs and the link."""
    steps = steps_of(create, disk_path)
    for last, event in enumerate(steps):
        if event.name in ("sync", "link", "rename", "allocate", "flush"):
            disk_path.unlink(missing_ok=True)
            dies(create, disk_path, last, torn=False)
            with open_small(disk_path) as wal:
                assert len(wal) == 0
    disk_path.unlink()
    create(disk_path)
    assert names(disk_path) == [disk_path.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_failure_at_any_step_of_creation_leaves_nothing_behind(path: Path, error: BaseException) -> None:
    """An error or interrupt propagates; no orphan, lock or descriptor stays, and the next open works."""
    steps = steps_of(create, path)
    path.unlink()
    gc.collect()  # descriptors that earlier tests left to the collector would be closed below
    failures = 0
    for last, step in enumerate(steps):
        left = last

        def hook(event: Step) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise error

        before = sorted(os.listdir("/proc/self/fd"))
        try:
            create(path, seam=BarrierRecorder(hook))
        except (OSError, KeyboardInterrupt):
            failures += 1
        assert sorted(os.listdir("/proc/self/fd")) == before, last
        if step.name != "unlink":  # a hidden name that cannot be removed stays until the next creation
            assert names(path) in ([], [path.name]), last
        with open_small(path) as wal:
            assert len(wal) == 0
        path.unlink()
        create(path)
        assert names(path) == [path.name], last
        path.unlink()
    assert failures >= len(steps) - 4  # the sync of an open, the live page at close and an unlink may fail


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_every_way_to_refuse_unnamed_files_is_understood(shm_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Old kernels and foreign file systems report it differently; each time the log is created, and no other file."""
    without_tmpfile(monkeypatch, number)
    create(shm_path)
    assert names(shm_path) == [shm_path.name]
    assert shm_path.stat().st_nlink == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
@pytest.mark.parametrize("unnamed", [True, False])
def test_every_way_to_refuse_links_is_understood(
    shm_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, unnamed: bool
) -> None:
    """A rename that overwrites nothing takes the place of the link, and the log is like any other."""
    without_link(monkeypatch, number)
    if not unnamed:
        without_tmpfile(monkeypatch)
    with open_small(shm_path, "x") as wal:
        wal.append(b"a")
    assert names(shm_path) == [shm_path.name]
    with pytest.raises(FileExistsError):
        create(shm_path, mode="x")
    with open_small(shm_path) as wal:
        assert payloads(wal) == [b"a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_a_safe_way_to_name_a_log_is_one_clear_error(
    shm_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Without link(2) and RENAME_NOREPLACE nothing is created; a log that was copied there works."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    other = shm_path.with_name("other.wal")
    create(other)
    without_link(monkeypatch)
    monkeypatch.setattr(Seam, "rename_new", refuse)
    with pytest.raises(pmwal.UnsupportedMedium, match=rf"{shm_path}: .*link\(2\).*RENAME_NOREPLACE.*copy it here"):
        create(shm_path)
    assert names(shm_path) == ["other.wal"]
    other.rename(shm_path)
    with open_small(shm_path) as wal:
        assert wal.append(b"a") == 1


def test_rename_of_a_creation_that_was_overtaken_overwrites_nothing(shm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that appears between the refused link and the rename stays as it is."""
    without_tmpfile(monkeypatch)
    real = os.link

    def overtaken(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(os, "link", real)
        with open_small(shm_path) as wal:
            wal.append(b"other")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(FileExistsError):
        create(shm_path, mode="x")
    with open_small(shm_path) as wal:
        assert payloads(wal) == [b"other"]
    assert names(shm_path) == [shm_path.name]


def test_other_errors_of_the_directory_are_reported(shm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that does not mean "no unnamed files here" is not retried another way."""
    without_tmpfile(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError):
        create(shm_path)
    assert names(shm_path) == []


def test_orphans_of_other_logs_and_of_running_creations_are_left_alone(shm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a dead creation of the same name has its leftovers removed."""
    without_tmpfile(monkeypatch)
    other = shm_path.with_name("other.wal")

    def create_slowly(pipe: Connection) -> None:
        def hook(event: Step) -> None:
            if event.name == "write" and not said:
                said.append(True)
                pipe.send("running")
                pipe.recv()

        said: list[bool] = []
        with contextlib.suppress(pmwal.WalLocked):
            create(shm_path, seam=BarrierRecorder(hook))
        pipe.send("done")

    dies(create, other, 5, torn=False)
    of_other = set(names(shm_path))
    dies(create, shm_path, 5, torn=False)
    left = set(names(shm_path)) - of_other
    with child(create_slowly) as running:
        assert running.hear() == "running"
        of_running = set(names(shm_path)) - of_other - left
        assert (len(of_other), len(left), len(of_running)) == (1, 1, 1)
        assert not left & set(names(shm_path))
        create(shm_path)
        assert of_other | of_running <= set(names(shm_path))
        running.say("go on")
        assert running.hear() == "done"
    assert set(names(shm_path)) == {shm_path.name} | of_other
    create(other)
    assert names(shm_path) == [other.name, shm_path.name]


def test_longest_name_works_without_unnamed_files(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any name that the file system accepts can be created, with and without unnamed files."""
    without_tmpfile(monkeypatch)
    path = shm_dir / ("x" * 255)
    create(path)
    assert names(path) == [path.name]


# -- concurrent creation (scenario 26)


@pytest.mark.parametrize("mode", ["a", "x"])
def test_two_processes_that_create_at_once_make_one_log(path: Path, mode: str) -> None:
    """One process owns the log; the other is told that it is locked, or that it exists; both see the same log."""
    rounds = 8
    barrier = multiprocessing.get_context("fork").Barrier(2)

    def race(pipe: Connection, name: bytes) -> None:
        for number in range(rounds):
            log = path.with_name(f"{number}.wal")
            barrier.wait(PATIENCE)
            wal: pmwal.Wal | None = None
            try:
                wal = open_small(log, mode, size=SMALL_RING, seam=Seam(), medium="file")
                wal.append(name)
                pipe.send("owner")
            except (pmwal.WalLocked, FileExistsError) as error:
                pipe.send(type(error).__name__)
            except Exception as error:
                pipe.send(repr(error))
            barrier.wait(PATIENCE)
            if wal is not None:
                wal.close()
            barrier.wait(PATIENCE)
            if wal is None:
                with pmwal.open(log, "r") as reader:
                    pipe.send(payloads(reader))

    loser = {"a": {"WalLocked"}, "x": {"FileExistsError"}}[mode]
    with child(race, b"one") as one, child(race, b"two") as two:
        for number in range(rounds):
            said = {"one": one.hear(), "two": two.hear()}
            assert sorted(said.values()) in [sorted(["owner", other]) for other in loser], (number, said)
            winner = next(name for name, what in said.items() if what == "owner")
            assert (two if winner == "one" else one).hear() == [winner.encode()]
    assert names(path) == sorted(f"{number}.wal" for number in range(rounds))


@pytest.mark.parametrize("way", first_fast(["a-stays-open", "a-closes", "x"]))
def test_creation_that_another_one_overtakes_at_any_step(path: Path, way: str, before_link: int) -> None:
    """Wherever it is overtaken, the slower process fails cleanly or opens the other's log."""
    mode, closes = way[0], way != "a-stays-open"
    steps = len(steps_of(create, path))
    path.unlink()
    linked = 0
    for last in range(steps):
        left = last

        def hook(event: Step) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                others.enter_context(child(overtake)).hear()

        def overtake(pipe: Connection) -> None:
            try:
                wal = open_small(path, "x")
                wal.append(b"other")
                if closes:
                    wal.close()
                pipe.send("done")
                pipe.recv()
            except Exception as error:
                pipe.send(error)

        with contextlib.ExitStack() as others:
            seam = BarrierRecorder(hook)
            try:
                wal = open_small(path, mode, seam=seam, medium="file")
            except FileExistsError:
                assert mode == "x"
            except pmwal.WalLocked:
                assert (mode, closes) == ("a", False)
            else:
                if wal.recovery.outcome == "created":
                    linked = linked or last
                    assert payloads(wal) == []
                else:
                    assert (mode, closes, payloads(wal)) == ("a", True, [b"other"])
                wal.close()
            assert names(path) == [path.name], last
        path.unlink()
        if linked:
            break
    assert linked > before_link


def test_hidden_file_that_another_creation_takes_for_an_orphan(shm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unnamed files, a creation that starts right after this one's hidden file was made does not make it fail."""
    without_tmpfile(monkeypatch)
    real = fcntl.flock

    def slow(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH:
            monkeypatch.setattr(fcntl, "flock", real)
            elsewhere(create, shm_path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with open_small(shm_path) as wal:
        assert wal.append(b"x") == 1
    assert names(shm_path) == [shm_path.name]


def test_lock_is_held_before_the_name_appears(path: Path) -> None:
    """Another process that sees the new name finds the log locked, and whole for reading."""
    seen: list[int] = []

    def hook(event: Step) -> None:
        if event.name == "sync" and path.exists():
            seam.before = None
            with pytest.raises(pmwal.WalLocked):
                elsewhere(create, path)
            seen.append(elsewhere(lambda: len(pmwal.open(path, "r"))))

    seam = BarrierRecorder(hook)
    create(path, seam=seam)
    assert seen == [0]


def test_log_replaced_while_it_is_opened_is_looked_for_again(shm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handle writes the file that has the name now, never one that lost it meanwhile."""
    other = shm_path.with_name("other.wal")
    with open_small(shm_path) as wal:
        wal.append(b"old")
    with open_small(other) as wal:
        wal.append(b"new")
    real = fcntl.flock

    def slow(fd: int, operation: int) -> None:
        if other.exists():
            other.rename(shm_path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with open_small(shm_path) as wal:
        assert payloads(wal) == [b"new"]


# -- no room (scenario 30)


def test_full_tmpfs_is_an_error_at_creation(shm_path: Path) -> None:
    """A lack of space is an OSError at open that leaves nothing; a log that fits works, and a full file system does not stop it."""

    def body() -> list[str]:
        with pytest.raises(OSError) as caught:
            pmwal.open(shm_path, size="2MiB")
        assert (caught.value.errno, isinstance(caught.value, pmwal.PmwalError)) == (errno.ENOSPC, False)
        assert names(shm_path) == []
        with pmwal.open(shm_path, size="256KiB", on_full="overwrite") as wal:
            with contextlib.suppress(OSError), shm_path.with_name("filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
            with pytest.raises(OSError) as caught:
                pmwal.open(shm_path.with_name("second.wal"), size="64KiB")
            assert caught.value.errno == errno.ENOSPC
            for _ in range(600):
                wal.append(bytes(1000))
        assert pmwal.verify(shm_path).outcome == "clean"
        return names(shm_path)

    assert on_tmpfs(shm_path.parent, "size=1m", body) == ["filler", "test.wal"]


@pytest.mark.parametrize("mode", ["a", "r+", "r", "verify"])
def test_sparse_copy_on_a_full_tmpfs_does_not_end_the_interpreter(shm_path: Path, mode: str) -> None:
    """A page that the file system cannot provide is an error or reads as zeros, but never a SIGBUS."""

    def body() -> int | None:
        with open_small(shm_path, size="256KiB") as wal:
            wal.append(b"x")
        whole = shm_path.read_bytes()
        shm_path.unlink()
        with shm_path.open("wb") as file:
            file.truncate(len(whole))
            for offset in range(0, len(whole), PAGE):
                if any(whole[offset : offset + PAGE]):
                    file.seek(offset)
                    file.write(whole[offset : offset + PAGE])
        with contextlib.suppress(OSError), shm_path.with_name("filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        try:
            if mode == "verify":
                return pmwal.verify(shm_path).records
            with pmwal.open(shm_path, mode) as log:
                return len(log)
        except OSError as error:
            return -(error.errno or 0)

    assert on_tmpfs(shm_path.parent, "size=1m", body) == (1 if mode in ("r", "verify") else -errno.ENOSPC)


def test_limit_on_file_sizes_is_an_error_at_creation(path: Path) -> None:
    """RLIMIT_FSIZE gives EFBIG and no file; a log within the limit works, and so does an existing one."""

    def body() -> list[str]:
        create(path.with_name("large.wal"), size="1MiB")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        with pytest.raises(OSError) as caught:
            pmwal.open(path, size="1MiB")
        assert caught.value.errno == errno.EFBIG
        with pmwal.open(path, size="16KiB") as wal:
            wal.append(b"x")
        with open_small(path.with_name("large.wal")) as wal:
            wal.extend([bytes(100_000)] * 8)
        return names(path)

    assert elsewhere(body) == ["large.wal", "test.wal"]


def test_no_permission_is_an_error_at_creation(path: Path) -> None:
    """A directory that is not writable or does not exist gives the system's own OSError."""
    with pytest.raises(FileNotFoundError):
        create(path.parent / "missing" / "test.wal")
    path.write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        create(path / "test.wal")
    path.unlink()
    path.parent.chmod(0o555)

    def body() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        create(path)

    with pytest.raises(PermissionError):
        elsewhere(body)
    assert names(path) == []


@pytest.fixture(autouse=True)
def _no_children_left() -> Iterator[None]:
    """A process left running by a test would hold a lock into the next one."""
    yield
    assert multiprocessing.active_children() == []
