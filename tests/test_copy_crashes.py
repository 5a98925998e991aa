"""Copies of logs and logs that get a ring of another size: full disks, crashes and power cuts at every step."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from commands import make_log
from copies import filled, names, read
from pmwal.format.layout import HEADER, PAGE, Header, Superblock, decode_header, record_size
from pmwal.format.relocation import Relocation
from pmwal.format.ring import LARGE_RECORD
from pmwal.repair import repair
from pmwal.storage.medium import Medium
from pmwal.testing import PowerCutModel
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Crash, Step, flip, kill, look, open_small, superblock

pytestmark = pytest.mark.both_engines


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The path of a log with every kind of record."""
    return filled(shm_dir / "test.wal")


@pytest.mark.parametrize("resizes", [False, True], ids=["copy", "resize"])
@pytest.mark.parametrize("name", ["allocate", "write", "sync", "link"])
def test_full_or_failing_disk_changes_nothing(path: Path, resizes: bool, name: str) -> None:
    """The error is that of the system call, and says that nothing was changed where there was no room."""
    before, kind = path.read_bytes(), errno.ENOSPC if name in ("allocate", "write") else errno.EIO

    def fail(step: Step) -> None:
        if step.name == name:
            raise OSError(kind, os.strerror(kind))

    seam = BarrierRecorder(fail)
    with pytest.raises(OSError, match="nothing was changed" if kind == errno.ENOSPC else "output error") as caught:
        pmwal.resize(path, "64KiB", seam=seam) if resizes else pmwal.copy(path, path.with_name("copy.wal"), seam=seam)
    assert caught.value.errno == kind
    assert (path.read_bytes(), names(path.parent)) == (before, [path.name])


def crash_at_each_step(
    action: Callable[[BarrierRecorder], object], reset: Callable[[], None], check: Callable[[bool], None]
) -> int:
    """Run an action that ends before its first step, its second, and so on, until it ends by itself; how many steps it has."""
    count = 0
    while True:
        left = count

        def hook(event: Step) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1

        reset()
        try:
            action(BarrierRecorder(hook))
        except Crash:
            check(False)
            count += 1
            continue
        check(True)
        return count


@pytest.mark.parametrize("ends", ["closed", "killed"])
@pytest.mark.parametrize("backup", [False, True], ids=["removed", "kept"])
def test_crash_at_any_step_of_a_resize_leaves_the_old_log_or_the_new_one(shm_dir: Path, ends: str, backup: bool) -> None:
    """Both have all records, and a resize after it works, also with the backup that the crash left."""
    path, old = shm_dir / "test.wal", shm_dir / "old.wal"
    wal = open_small(path, size=8192, medium="file")
    wal.extend([b"record %d" % number for number in range(9)])
    expected = list(wal)
    (Wal.close if ends == "closed" else kill)(wal)
    before, sizes = path.read_bytes(), set[int]()
    kept_as = {"backup": old} if backup else {}

    def reset() -> None:
        for name in shm_dir.iterdir():
            name.unlink()
        path.write_bytes(before)

    def check(finished: bool) -> None:
        size = superblock(path).capacity
        sizes.add(size)
        assert not finished or size == 16384
        assert read(path) == expected
        if backup and (finished or old.exists()):
            assert read(old) == expected
        if size == 8192:
            pmwal.resize(path, 16384, **kept_as)
        with open_small(path, medium="file") as wal:
            assert (list(wal), wal.append(b"next")) == (expected, 10)
        left = set(names(shm_dir)) - {path.name, old.name}
        assert all(name.startswith(".pmwal-new-") for name in left)
        pmwal.resize(path, 32768)
        assert set(names(shm_dir)) <= {path.name, old.name}

    steps = crash_at_each_step(lambda seam: pmwal.resize(path, 16384, seam=seam, **kept_as), reset, check)
    assert sizes == {8192, 16384}
    assert steps > 8


def test_crash_at_any_step_of_a_copy_leaves_nothing_or_all_of_it(shm_dir: Path) -> None:
    """And nothing of the source is changed."""
    path, target = make_log(shm_dir / "test.wal"), shm_dir / "copy.wal"
    before, expected, found = path.read_bytes(), read(path), set[bool]()

    def check(finished: bool) -> None:
        found.add(target.exists())
        assert target.exists() or not finished
        assert path.read_bytes() == before
        if target.exists():
            assert (read(target), pmwal.verify(target).case) == (expected, "R1")

    crash_at_each_step(lambda seam: pmwal.copy(path, target, seam=seam), lambda: target.unlink(missing_ok=True), check)
    assert found == {False, True}


@pytest.mark.parametrize("resizes", [False, True], ids=["copy", "resize"])
@pytest.mark.parametrize("allocated", [False, True], ids=["written", "allocated"])
def test_new_file_is_durable_before_it_has_a_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, resizes: bool, allocated: bool
) -> None:
    """A power cut at the moment of the link, or later, leaves every byte of it."""
    monkeypatch.setattr(Medium, "allocates_zeros", allocated)
    target, seam = path.with_name("copy.wal"), BarrierRecorder(uuid=b"c" * 16)
    pmwal.resize(path, "64KiB", seam=seam) if resizes else pmwal.copy(path, target, seam=seam)
    written = (path if resizes else target).read_bytes()
    medium = PowerCutModel("page", bytes(len(written)))
    for step in seam.events:
        if step.name == "link":
            break
        medium.take(step)
    assert medium.open == {}
    assert bytes(medium.held) == written
    assert [step.name for step in seam.events].count("allocate") == 1


@pytest.mark.parametrize("kind", ["copy", "resize", "repair"])
def test_new_file_is_locked_until_its_name_is_durable(path: Path, kind: str) -> None:
    """A record that a writer stored into it before could be lost with the name."""
    named, refused = path if kind != "copy" else path.with_name("copy.wal"), 0
    if kind == "repair":
        flip(path, 0)  # one copy of the superblock

    def try_to_write(step: Step) -> None:
        nonlocal refused
        if step.name == "sync" and named.exists() and (kind == "copy" or "replace" in [event.name for event in seam.events]):
            with pytest.raises(pmwal.WalLocked):
                pmwal.open(named, "r+")
            refused += 1

    seam = BarrierRecorder(try_to_write, uuid=b"c" * 16)
    if kind == "copy":
        pmwal.copy(path, named, seam=seam)
    elif kind == "resize":
        pmwal.resize(path, "64KiB", seam=seam)
    else:
        repair(path, seam=seam)
    assert refused == 1
    with open_small(named, medium="file") as wal:
        wal.append(b"next")


def test_old_file_is_ended_when_the_new_one_has_the_name(shm_dir: Path) -> None:
    """A reader that finds the end then finds the new file, and one of an older version ends. A closed log was ended before."""
    for end in ("killed", "closed"):
        path = make_log(shm_dir / f"{end}.wal", close=end == "closed")
        seam = BarrierRecorder()
        pmwal.resize(path, "64KiB", backup=shm_dir / f"{end}.old", seam=seam)
        steps = [step.name for step in seam.events]
        assert ("store" in steps) == (end == "killed")
        assert "store" not in steps[: steps.index("replace")]
        assert pmwal.verify(shm_dir / f"{end}.old").case == "R1"
        assert look(path).report.epoch == look(shm_dir / f"{end}.old").report.epoch + 1


@pytest.mark.parametrize("allocated", [False, True], ids=["written", "allocated"])
def test_disk_is_written_once_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch, allocated: bool) -> None:
    """In large pieces, which are dropped from the cache: a folio of them would cost its whole size at every commit."""
    monkeypatch.setattr(Medium, "allocates_zeros", allocated)
    dropped: list[int] = []
    monkeypatch.setattr("pmwal.storage.create.drop_cache", dropped.append)
    target, seam = path.with_name("copy.wal"), BarrierRecorder()
    seen: list[tuple[int, int]] = []
    pmwal.copy(path, target, size="3MiB", seam=seam, progress=lambda done, total: seen.append((done, total)))
    size, block = target.stat().st_size, superblock(target)
    writes = [step for step in seam.events if step.name == "write"]
    pieces = [step for step in writes if step.length > PAGE or step.offset >= block.ring_offset]
    starts = [step.offset for step in pieces]
    ends = [step.offset + step.length for step in pieces]
    assert starts == [block.ring_offset if allocated else 0, *ends[:-1]]
    assert len(pieces) == (1 if allocated else 5)
    assert ends[-1] == size if not allocated else ends[-1] < size
    assert seen == [(end, size) for end in ends] + ([(size, size)] if allocated else [])
    assert len(dropped) == 1


def test_record_that_begins_the_log_in_the_middle_of_its_batch() -> None:
    """Where those before it were left out, it says that the log was durable up to its own start, and not to another batch's."""
    block = Superblock(uuid=bytes(16), control_size=2 * PAGE, capacity=16384, alignment=64, created_ns=0)
    to = Relocation(block, None)
    for seq, place in ((5, 0), (6, 1), (9, 1), (10, 2)):
        if seq == 9:
            to.begin_again()
        to.add(Header(0, 3, seq, 0, 0, 1, 0, 0, place, 3), b"abc")
    data, size = to.take(rest=True), record_size(3, 64)
    assert [decode_header(data[at : at + HEADER]).durable for at in range(0, 4 * size, size)] == [0, 0, 2 * size, 2 * size]


@pytest.mark.slow
def test_record_that_no_scan_in_c_takes_is_kept(shm_dir: Path) -> None:
    """One of more than 64 MiB is checked piece by piece."""
    path, target = shm_dir / "test.wal", shm_dir / "copy.wal"
    with pmwal.open(path, size=3 * LARGE_RECORD) as wal:
        wal.extend([b"before", bytes(LARGE_RECORD + 1), b"after"])
    pmwal.copy(path, target)
    with pmwal.open(path, "r") as one, pmwal.open(target, "r") as other:
        assert all(record == other[record.seq] for record in one)
        assert len(one) == len(other)


def test_reference_lays_one_record_after_another() -> None:
    """A record's size in the new ring is that of the new alignment."""
    block = Superblock(uuid=bytes(16), control_size=2 * PAGE, capacity=16384, alignment=64, created_ns=0)
    to = Relocation(block, None)
    for seq in (5, 6):
        to.add(Header(0, 3, seq, 0, 0, 1, 0, 0, 0, 1), b"abc")
    assert (to.end, to.longest, len(to.take(rest=True))) == (2 * record_size(3, 64), 3, PAGE)
