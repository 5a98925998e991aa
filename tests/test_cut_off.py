"""A log whose end was cut off: refused whole, and salvaged and repaired in what is left."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pmwal
from commands import Cli
from pmwal.format.layout import CONTROL_OFFSET, HEADER, PAGE
from pmwal.repair import repair
from support import contents, file_offset, kill, open_small, superblock, whole_records
from surgery import damage_superblock, rewrite_superblocks

pytestmark = pytest.mark.both_engines

RING = 1 << 18

HISTORIES: dict[str, dict[str, Any]] = {
    "closed": {"records": 150},
    "wrapped": {"records": 700},
    "killed": {"records": 150, "close": False},
    "killed after a lap": {"records": 700, "close": False, "ordering": "pipelined"},
}
PARTS = {"last byte": 1.0, "free space": 0.9, "middle of the ring": 0.5, "odd byte": 0.3001, "start of the ring": 0.02}


class Cut(NamedTuple):
    """A log without its end, the bytes that it had, and its records that are whole in what is left."""

    path: Path
    size: int
    left: list[tuple[int, bytes]]


def make(path: Path, records: int, *, close: bool = True, ordering: str = "strict") -> None:
    """A log of records of 1 KiB in a ring that has room for some 240."""
    wal = open_small(path, size=RING, medium="file", ordering=ordering, on_full="overwrite")
    for number in range(1, records + 1):
        wal.append(b"%4d" % number * 256, commit=not number % 25)
    wal.close() if close else kill(wal)


def cut(path: Path, part: float) -> Cut:
    """Cut off the end, so that this part of the ring is left."""
    block, records, size = superblock(path), whole_records(path), path.stat().st_size
    with pmwal.open(path, "r") as reader:
        live = contents(reader)
    length = min(size - 1, block.ring_offset + int(block.capacity * part))
    ends = {seq: file_offset(block, found.position) + HEADER + found.header.length for seq, found in records.items()}
    os.truncate(path, length)
    return Cut(path, size, [(seq, data) for seq, data in live if ends[seq] <= length])


@pytest.fixture(params=[(history, part) for history in HISTORIES for part in PARTS], ids=", ".join)
def shortened(request: pytest.FixtureRequest, shm_dir: Path) -> Cut:
    """A log of each history, cut at each place of the ring."""
    history, part = request.param
    make(shm_dir / "app.wal", **HISTORIES[history])
    return cut(shm_dir / "app.wal", PARTS[part])


def test_salvage_reads_every_whole_record_that_is_left(shortened: Cut) -> None:
    """And names what is missing; nothing is changed."""
    before = shortened.path.read_bytes()
    with pmwal.open(shortened.path, "r", recover="salvage") as reader:
        assert contents(reader) == shortened.left
        assert reader.recovery.unreadable == ((len(before), shortened.size),)
    assert shortened.path.read_bytes() == before


def test_repair_makes_a_log_of_full_size(shortened: Cut) -> None:
    """What was kept and what was lost add up, the damaged file is kept as it was, and the log accepts records."""
    before = shortened.path.read_bytes()
    dry = repair(shortened.path, dry_run=True)
    assert shortened.path.read_bytes() == before
    report = repair(shortened.path)
    assert (dry.kept_records, dry.lost_records) == (report.kept_records, report.lost_records)
    assert report.kept_records + report.lost_records == len(shortened.left)
    assert f"write {shortened.size - len(before)} zeros in place of what was cut off" in report.actions
    assert report.unreadable == ((len(before), shortened.size),)
    assert shortened.path.stat().st_size == shortened.size
    assert Path(report.backup).read_bytes() == before
    with open_small(shortened.path, "r+", medium="file") as wal:
        kept = contents(wal)
        assert set(kept) <= set(shortened.left)
        assert len(kept) == report.kept_records
        wal.append(b"next")
    assert pmwal.verify(shortened.path).outcome == "clean"


def test_copy_that_was_cut_is_salvaged_and_repaired_alike(shm_dir: Path) -> None:
    """The original stays as it is."""
    path, copy = shm_dir / "app.wal", shm_dir / "copy.wal"
    make(path, 150)
    with path.open("rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.truncate(superblock(path).ring_offset + 100_000)
    with pmwal.open(copy, "r", recover="salvage") as reader:
        assert len(list(reader)) == 100_000 // (1024 + HEADER)
    assert repair(copy).kept_records == 100_000 // (1024 + HEADER)
    assert pmwal.verify(path).records == 150


@pytest.mark.parametrize("length", [PAGE, PAGE + 1, 2 * PAGE, CONTROL_OFFSET + PAGE, CONTROL_OFFSET + PAGE + 100])
def test_log_that_is_cut_before_its_ring_is_empty_after_a_repair(length: int, shm_dir: Path) -> None:
    """With one superblock the size is known; no record is left, and that is said."""
    path = shm_dir / "app.wal"
    make(path, 150)
    size = path.stat().st_size
    os.truncate(path, length)
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == []
        assert reader.recovery.outcome == "corrupt"
    report = repair(path)
    assert (report.before.outcome, report.after.outcome, report.kept_records) == ("corrupt", "clean", 0)
    assert path.stat().st_size == size
    with pmwal.open(path, "r+") as wal:
        wal.append(b"next")


def test_log_that_lost_its_first_superblock_too_is_salvaged(shm_dir: Path) -> None:
    """The second one says how long it was."""
    path = shm_dir / "app.wal"
    make(path, 150)
    damage_superblock(path, 0)
    left = cut(path, 0.5).left
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == left
    assert repair(path).kept_records + repair(path, dry_run=True).lost_records == len(left)


@pytest.mark.parametrize("mode", ["a", "r+", "r"])
def test_error_is_of_both_kinds_and_says_what_to_do(mode: str, shm_dir: Path) -> None:
    """A FormatError as ever, because nothing can be mapped, and a CorruptWal, because it can be salvaged."""
    path = shm_dir / "app.wal"
    make(path, 150)
    length = len(cut(path, 0.5).path.read_bytes())
    with pytest.raises(pmwal.ShortenedWal, match=rf'shortened: {length} bytes, .*recover="salvage".*pmwal repair') as caught:
        pmwal.open(path, mode)
    assert isinstance(caught.value, pmwal.FormatError)
    assert isinstance(caught.value, pmwal.CorruptWal)
    assert (caught.value.start, caught.value.first_seq) == (length, None)
    assert path.stat().st_size == length


def test_small_file_that_claims_a_ring_of_terabytes_is_answered_at_once(shm_dir: Path) -> None:
    """What is missing is not read: it would take hours."""
    path = shm_dir / "app.wal"
    make(path, 150)
    rewrite_superblocks(path, replace(superblock(path), capacity=1 << 41))
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == []  # so large a ring would begin past the end
        assert reader.recovery.outcome == "corrupt"


def test_file_that_is_cut_while_it_is_salvaged_is_an_error(shm_dir: Path) -> None:
    """Zeros are only what was missing when it was opened."""
    path = shm_dir / "app.wal"
    make(path, 150)
    cut(path, 0.5)
    with pmwal.open(path, "r", recover="salvage") as reader:
        os.truncate(path, CONTROL_OFFSET)
        with pytest.raises(pmwal.PersistError, match="shortened"):
            list(reader)


def test_command_line_salvages_and_repairs_it(shm_dir: Path, cli: Cli) -> None:
    """The advice of the message that refuses it works."""
    path = shm_dir / "app.wal"
    make(path, 150)
    left = cut(path, 0.5).left
    refused = cli("cat", path)
    assert (refused.status, refused.out) == (3, b"")
    assert f"pmwal cat --salvage {path}; to repair it: pmwal repair {path}" in refused.err
    salvaged = cli("cat", "--salvage", path)
    assert (salvaged.status, len(salvaged.out.splitlines())) == (2, len(left))  # 2: damage was skipped
    repaired = cli("repair", path)
    assert b"zeros in place of what was cut off" in repaired.out
    assert cli("verify", path).status == 0
