"""A medium that cannot give some pages of a log: salvage and repair go around them and say so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

import pmwal
from commands import Cli
from pmwal.format.layout import CONTROL_OFFSET, HEADER, PAGE, SUPERBLOCK_OFFSET
from pmwal.repair import repair
from support import contents, file_offset, open_small, superblock, whole_records

pytestmark = pytest.mark.both_engines

Numbered = list[tuple[int, bytes]]


class BadPages:
    """pread(2) of a file of which some pages cannot be read: it gives what lies before them, else fails."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inode = path.stat().st_ino
        self.pages: set[int] = set()
        self.number = errno.EIO
        self.failures = 0
        self._pread = os.pread
        monkeypatch.setattr(os, "pread", self.pread)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """As the kernel does it."""
        bad = [page for page in self.pages if offset < (page + 1) * PAGE and page * PAGE < offset + length]
        if not bad or os.fstat(fd).st_ino != self.inode:
            return self._pread(fd, length, offset)
        whole = min(bad) * PAGE - offset
        if whole > 0:
            return self._pread(fd, whole, offset)
        self.failures += 1
        raise OSError(self.number, os.strerror(self.number))

    def lose(self, offsets: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """These pages can no longer be read; their ranges, of neighbours as one."""
        self.pages = {offset // PAGE for offset in offsets}
        ranges: list[tuple[int, int]] = []
        for page in sorted(self.pages):
            start = ranges.pop()[0] if ranges and ranges[-1][1] == page * PAGE else page * PAGE
            ranges.append((start, (page + 1) * PAGE))
        return tuple(ranges)


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The path of a log of 200 records of 1 KiB in a ring of 256 KiB, cleanly closed."""
    path = shm_dir / "test.wal"
    with open_small(path, size=1 << 18, medium="file") as wal:
        for number in range(1, 201):
            wal.append(b"%4d" % number * 256)
    return path


@pytest.fixture
def bad(path: Path, monkeypatch: pytest.MonkeyPatch) -> BadPages:
    """Its pages that cannot be read; at first all can."""
    return BadPages(path, monkeypatch)


class Damaged:
    """What is to be found in the log of which the pages that contain these records' first bytes cannot be read."""

    def __init__(self, path: Path, bad: BadPages, numbers: Iterable[int]) -> None:
        block, records = superblock(path), whole_records(path)
        start = {seq: file_offset(block, found.position) for seq, found in records.items()}
        offsets = [start[number] for number in numbers]
        pages = {offset // PAGE for offset in offsets}
        self.left: Numbered = []
        for seq, found in records.items():
            end = start[seq] + HEADER + found.header.length
            if pages.isdisjoint(range(start[seq] // PAGE, (end - 1) // PAGE + 1)):
                self.left.append((seq, payload(seq)))
        self.ranges = bad.lose(offsets)


def payload(seq: int) -> bytes:
    """What record number ``seq`` contains."""
    return b"%4d" % seq * 256


@pytest.mark.parametrize("numbers", [(1,), (200,), (50, 100), (10, 14, 18, 90, 199)])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENODATA, errno.EUCLEAN])
def test_salvage_reads_around_every_bad_page_and_names_all(
    path: Path, bad: BadPages, numbers: tuple[int, ...], number: int
) -> None:
    """Every record outside of them is there, and the report lists all of them, not only the first."""
    damaged = Damaged(path, bad, numbers)
    bad.number = number
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == damaged.left
        assert reader.recovery.unreadable == damaged.ranges
        assert reader.recovery.outcome == "corrupt"


@pytest.mark.parametrize("numbers", [(1,), (200,), (50, 100), (10, 14, 18, 90, 199)])
def test_repair_keeps_what_lies_before_the_first_bad_page(path: Path, bad: BadPages, numbers: tuple[int, ...]) -> None:
    """The repaired log can be read everywhere; the report names the pages and counts what is whole after the first."""
    damaged = Damaged(path, bad, numbers)
    kept = [(seq, data) for seq, data in damaged.left if seq == dict(enumerate(damaged.left, 1)).get(seq, (0,))[0]]
    report = repair(path)
    assert report.unreadable == damaged.ranges
    assert (report.kept_records, report.lost_records) == (len(kept), len(damaged.left) - len(kept))
    assert "write zeros in place of what cannot be read" in report.actions
    assert (report.lost_last_seq, report.doubtful_records) == (200, 0)
    with open_small(path, "r+", medium="file") as wal:
        assert contents(wal) == kept
        wal.append(b"next")
    with pmwal.open(report.backup, "r", recover="salvage") as reader:
        assert contents(reader) == damaged.left


@pytest.mark.parametrize("where", ["superblock", "second superblock", "slots", "all slots", "all slots and one superblock"])
def test_bad_pages_outside_of_the_ring_cost_no_record(path: Path, bad: BadPages, where: str) -> None:
    """What the other copy, the other slots or the records say is enough."""
    block, live = superblock(path), [(seq, payload(seq)) for seq in range(1, 201)]
    ranges = bad.lose(
        {
            "superblock": [SUPERBLOCK_OFFSET],
            "second superblock": [block.copy_offset],
            "slots": [CONTROL_OFFSET],
            "all slots": range(CONTROL_OFFSET, CONTROL_OFFSET + block.control_size, PAGE),
            "all slots and one superblock": range(CONTROL_OFFSET, block.copy_offset + PAGE, PAGE),
        }[where]
    )
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == live
        assert reader.recovery.unreadable == ranges
    report = repair(path)
    assert (report.kept_records, report.lost_first_seq, report.unreadable) == (200, None, ranges)
    with pmwal.open(path, "r") as reader:
        assert contents(reader) == live


def test_bad_page_is_tried_once_by_each_handle(path: Path, bad: BadPages) -> None:
    """A failing disk takes seconds for each attempt: ten bad pages cost few, whoever asks for them again."""
    Damaged(path, bad, range(10, 60, 5))
    with pmwal.open(path, "r", recover="salvage") as reader:
        list(reader)
        before = bad.failures
        list(reader)
        assert bad.failures == before
    assert before <= 10 * 20


def test_superblock_copy_that_cannot_be_read_is_a_damaged_copy(path: Path, bad: BadPages) -> None:
    """R10: the other copy is used, also to open the log; with neither, the error is the system's and not "no log"."""
    bad.lose([SUPERBLOCK_OFFSET])
    assert pmwal.verify(path).case == "R10"
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert len(reader) == 200
    bad.lose([SUPERBLOCK_OFFSET, superblock(path).copy_offset])
    for use in (pmwal.verify, repair, lambda path: pmwal.open(path, "r")):
        with pytest.raises(OSError, match="no superblock can be read"):
            use(path)


def test_verify_and_open_report_a_bad_page_as_the_systems_error(path: Path, bad: BadPages) -> None:
    """They never take zeros for what they could not read."""
    Damaged(path, bad, [50])
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        pmwal.verify(path)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        pmwal.open(path, "r")


def test_other_errors_are_not_taken_for_bad_pages(path: Path, bad: BadPages) -> None:
    """Only what a medium answers for a lost sector is gone around."""
    Damaged(path, bad, [50])
    bad.number = errno.ENOMEM
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        repair(path)


def test_commands_name_the_bytes_that_cannot_be_read(path: Path, bad: BadPages, cli: Cli) -> None:
    """``cat --salvage`` and ``repair`` print every range, and end with a status other than 0."""
    damaged = Damaged(path, bad, [50, 100])
    ran = cli("cat", "--salvage", "-o", "raw", path)
    assert (ran.status, len(ran.lines)) == (2, len(damaged.left))
    repaired = cli("repair", path)
    assert repaired.status == 1
    for start, end in damaged.ranges:
        assert f"bytes {start} to {end} cannot be read" in ran.err
        assert f"bytes {start} to {end} of the damaged file cannot be read" in repaired.text
    assert cli("verify", path).status == 0


def test_info_shows_what_can_be_read(path: Path, bad: BadPages, cli: Cli) -> None:
    """The verdict on what is left, and every range that is not; with both superblocks gone, that there is none."""
    copy_offset = superblock(path).copy_offset
    damaged = Damaged(path, bad, [50, 100])
    ran = cli("info", path)
    assert ran.status == 2
    assert all(f"{start} to {end}" in ran.text for start, end in damaged.ranges)
    assert [tuple(item) for item in cli("info", "--json", path).json["verdict"]["unreadable"]] == list(damaged.ranges)
    bad.lose([SUPERBLOCK_OFFSET, CONTROL_OFFSET, copy_offset])
    assert "no superblock can be read" in cli("info", path).err
