"""Archivers that are killed, and power cuts: each record is archived exactly once, and none is acknowledged before."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import stat
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import pmwal
from archived import FORMATS, archive, as_rows, kept, rules
from marks import first_fast
from pmwal.cli.archiving import archiver
from pmwal.cli.archiving.directory import ArchiveDirectory
from pmwal.errors import PmwalError
from pmwal.format.position import newest_position
from pmwal.logs.paths import archives_in
from processes import PATIENCE, child
from support import BarrierRecorder, Crash, Step, open_small

# -- killed at every step


def crash_after(steps: int) -> Callable[[Step], None]:
    """A hook that lets this many steps pass; then the process ends, and nothing that it still tries is done."""
    passed, dead = iter(range(steps)), False

    def hook(step: Step) -> None:
        nonlocal dead
        if dead:
            raise OSError(errno.EIO, "the process is no more")
        if next(passed, None) is None:
            dead = True
            raise Crash

    return hook


def kill_at_each_step(shm_dir: Path, form: str) -> int:
    """Archive a log, killed at each step in turn, and then to the end; how many steps there are."""
    path, to = shm_dir / "log" / "test.wal", shm_dir / "log" / "to"
    path.parent.mkdir()
    with open_small(path) as wal:
        wal.extend([b"first"] * 5)
        archive(path, to=to, how=rules(form))
        wal.extend([b"%d" % number for number in range(40)])
    shutil.copytree(path.parent, shm_dir / "saved")
    killed, step = True, 0
    while killed:
        shutil.rmtree(path.parent)
        shutil.copytree(shm_dir / "saved", path.parent)
        killed = False
        try:
            archive(path, to=to, how=rules(form, size=1000), seam=BarrierRecorder(crash_after(step)))
        except Crash:
            killed, step = True, step + 1
        with open_small(path, on_full="consumed") as wal:
            expected = as_rows(wal)
            assert kept(to, path) == expected
            wal.truncate(consumed=True)
            assert kept(to, path) == expected
            wal.extend([b"later"] * 3)
            expected += as_rows(wal)[-3:]
            archive(path, to=to, how=rules(form, size=1000))
            assert kept(to) == expected
            assert not [name for name in os.listdir(to) if name.endswith(".part")]
    return step


@pytest.mark.parametrize("form", first_fast(FORMATS[::-1]))
def test_kill_at_any_step_archives_each_record_once(shm_dir: Path, form: str) -> None:
    """Between rename and acknowledgement, too: the next run finds the file and continues after it."""
    assert kill_at_each_step(shm_dir, form) > 15


def test_archiver_that_trusts_its_position_alone_is_noticed(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: after a kill between rename and acknowledgement it archives the same records again."""

    def trusting(self: archiver._Log) -> int:
        self._next = self._consumer.position + 1
        return self._next

    monkeypatch.setattr(archiver._Log, "_resume", trusting)
    with pytest.raises((FileExistsError, AssertionError)):
        kill_at_each_step(shm_dir, "jsonl.zst")


# -- power cuts


class Disk(BarrierRecorder):
    """What may be on the medium at each moment: of each file what was synced or what was written, of the directory the same."""

    def __init__(self, path: Path, to: Path) -> None:
        super().__init__()
        self.to = to
        self.position = Path(f"{path}.consumers", "archive")
        self.positions = [self.position.read_bytes()]
        self.files = {self._inode(name): name.read_bytes() for name in to.iterdir()}
        self.durable_names = self._names()
        self.worlds: set[tuple[tuple[tuple[str, bytes], ...], bytes]] = set()

    def _inode(self, path: Path) -> int:
        return path.stat().st_ino

    def _names(self) -> dict[str, int]:
        return {each.name: self._inode(each) for each in self.to.iterdir()}

    def write(self, fd: int, data: bytes, offset: int) -> None:
        super().write(fd, data, offset)
        inode = os.fstat(fd).st_ino
        if inode == self._inode(self.position):
            self.positions.append(self.position.read_bytes())
        elif offset == 0:
            self.files.pop(inode, None)  # a new file
        self._look()

    def sync_file(self, fd: int) -> None:
        super().sync_file(fd)
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            self.files[status.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
        elif status.st_ino == self._inode(self.to):
            self.durable_names = self._names()
        self._look()

    def sync_data(self, fd: int) -> None:
        super().sync_data(fd)
        self.positions = self.positions[-1:]
        self._look()

    def rename_new(self, source: str, target: str, directory_fd: int) -> None:
        super().rename_new(source, target, directory_fd)
        self._look()

    def unlink(self, name: str, directory_fd: int) -> None:
        super().unlink(name, directory_fd)
        self._look()

    def _look(self) -> None:
        there = self._names()
        written = {inode: (self.to / name).read_bytes() for name, inode in there.items()}
        for named, data, at in itertools.product((self.durable_names, there), (self.files, written), (0, -1)):
            files = tuple((name, data.get(inode, b"")) for name, inode in sorted(named.items()) if not name.startswith("."))
            self.worlds.add((files, self.positions[at]))


def cut(shm_dir: Path, form: str, disk_type: type[Disk] = Disk) -> list[str]:
    """Archive a log while the power may be cut at any moment; what is wrong with what may be left."""
    path, to, found = shm_dir / "test.wal", shm_dir / "to", []
    with open_small(path) as wal:
        wal.extend([b"first"] * 5)
        archive(path, to=to, how=rules(form))
        disk = disk_type(path, to)
        wal.extend([b"%d" % number for number in range(40)])
        expected = as_rows(wal)
        archive(path, to=to, how=rules(form, size=500), seam=disk)
    assert len(disk.worlds) > 8
    for number, (files, raw) in enumerate(sorted(disk.worlds)):
        place = shm_dir / f"world{number}"
        place.mkdir()
        for name, data in files:
            (place / name).write_bytes(data)
        stored = newest_position(raw)
        assert stored is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with pmwal.LogSet(place) as logs:
                rows = as_rows(logs)
                found += [f"torn: {error}" for error in logs.problems.values()]
        if rows != expected[: len(rows)] or len(rows) < stored.position.seq:
            found.append(f"{len(rows)} records are archived, {stored.position.seq} acknowledged")
    return found


@pytest.mark.parametrize("form", first_fast(FORMATS[::-1]))
def test_power_cut_loses_no_acknowledged_record(shm_dir: Path, form: str) -> None:
    """Whatever was written and not synced is there or not: what is acknowledged is in whole files."""
    assert cut(shm_dir, form) == []


class NoFileSync(Disk):
    """An archiver that does not sync what it has written."""

    def sync_file(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            super().sync_file(fd)


class NoDirectorySync(Disk):
    """An archiver that does not sync the name."""

    def sync_file(self, fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            super().sync_file(fd)


def cut_after_a_kill(shm_dir: Path, disk_type: type[Disk]) -> list[int]:
    """Kill an archiver that has renamed its second file and not synced the directory, and run another one.

    Of each image that a power cut may leave: how many acknowledged records are not in it.
    """
    path, to = shm_dir / "test.wal", shm_dir / "to"
    with open_small(path) as wal:
        wal.extend([b"first"] * 5)
        archive(path, to=to)
        before = Disk(path, to)
        wal.extend([b"%d" % number for number in range(9)])

    def killed(step: Step) -> None:
        if step.name == "sync" and len(archives_in(str(to))) == 2:
            raise Crash

    with pytest.raises(Crash):
        archive(path, to=to, seam=BarrierRecorder(killed))
    disk = disk_type(path, to)
    disk.durable_names = before.durable_names
    assert archive(path, to=to, seam=disk) == []
    found = []
    for files, raw in disk.worlds:
        stored = newest_position(raw)
        assert stored is not None
        found.append(stored.position.seq - (14 if len(files) == 2 else 5))
    return found


def test_power_cut_after_a_kill_loses_no_acknowledged_record(shm_dir: Path) -> None:
    """The name that the killed process gave may not be durable: the next one makes sure before it acknowledges."""
    assert max(cut_after_a_kill(shm_dir, Disk)) == 0


def test_missing_sync_after_a_kill_is_noticed(shm_dir: Path) -> None:
    """Negative control."""
    assert max(cut_after_a_kill(shm_dir, NoDirectorySync)) == 9


@pytest.mark.parametrize("disk_type", [NoFileSync, NoDirectorySync])
def test_missing_sync_is_noticed(shm_dir: Path, disk_type: type[Disk]) -> None:
    """Negative controls: a torn file has a name, or an acknowledged one has none."""
    found = cut(shm_dir, "jsonl.zst", disk_type)
    assert any(("torn" if disk_type is NoFileSync else "acknowledged") in each for each in found)


def test_acknowledgement_before_the_file_is_noticed(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the records could be freed before they are archived."""
    write = archiver._Log._write

    def early(self: archiver._Log, end: int) -> archiver.Written:
        self._consumer.ack(self._next, durable=True)
        return write(self, end)

    monkeypatch.setattr(archiver._Log, "_write", early)
    assert any("acknowledged" in each for each in cut(shm_dir, "jsonl.zst"))


def test_file_that_is_written_under_its_name_is_noticed(shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: half of it could be read."""
    give = ArchiveDirectory._give_name

    def early(self: ArchiveDirectory, hidden: str, name: str) -> None:
        give(self, hidden, name)
        if not isinstance(self._seam, Disk):  # the first run, whose file the second one looks at
            return
        self._seam.unlink(name, self._fd)
        with open(os.path.join(self.path, name), "wb") as file:
            self._seam.write(file.fileno(), b"half", 0)

    monkeypatch.setattr(ArchiveDirectory, "_give_name", early)
    assert any("torn" in each for each in cut(shm_dir, "jsonl.zst"))


# -- kills


def archive_for_ever(pipe: Connection, path: Path, to: Path, form: str) -> None:
    """Archive again and again. Says when it begins."""
    pipe.send("begun")
    while True:
        archive(path, to=to, how=rules(form, size=3000))


def check_kills(path: Path, to: Path, form: str, kills: int) -> None:
    """Kill an archiver again and again beside a writer that waits for it."""
    rng, expected = random.Random(kills), list[tuple[int, int, int, bytes]]()
    archive(open_small_closed(path), to=to)  # so that the library is loaded before the forks
    with open_small(path, size=None, on_full="consumed", timeout=PATIENCE, consumers=["archive"]) as wal:
        for _ in range(kills):
            with child(archive_for_ever, path, to, form) as process:
                assert process.hear() == "begun"
                for _ in range(rng.randrange(40)):
                    seq = wal.append(rng.randbytes(rng.randrange(1500)), kind=7)
                    expected += as_rows([wal[seq]])
                time.sleep(rng.expovariate(1) * 0.02)
            with contextlib.suppress(PmwalError):
                wal.truncate(consumed=True)
        assert kept(to, path) == expected
        archive(path, to=to, how=rules(form))
        assert kept(to) == expected


def open_small_closed(path: Path) -> Path:
    """A new log that nobody has open."""
    open_small(path).close()
    return path


@pytest.mark.parametrize("form", first_fast(FORMATS[::-1]))
def test_killed_archivers_archive_each_record_once(shm_dir: Path, form: str) -> None:
    """Four of them; the nightly runs kill more."""
    check_kills(shm_dir / "test.wal", shm_dir / "to", form, 4)


@pytest.mark.nightly
@pytest.mark.parametrize("form", FORMATS)
def test_fifty_killed_archivers_archive_each_record_once(shm_dir: Path, tmp_path: Path, form: str) -> None:
    """On a disk as well."""
    check_kills(shm_dir / "test.wal", tmp_path / "to", form, 50)
