"""Repair keeps the damaged file as a backup, and as much of the log as possible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pmwal
from pmwal.format.layout import CONTROL_OFFSET, HEADER, LINE, PAGE
from pmwal.repair import repair
from support import (
    BarrierRecorder,
    Crash,
    Step,
    contents,
    file_offset,
    kill,
    look,
    open_small,
    overwrite,
    payloads,
    place_of,
    superblock,
    whole_records,
)

pytestmark = pytest.mark.both_engines


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The path of a log of twenty records, cleanly closed."""
    path = shm_dir / "test.wal"
    with open_small(path, medium="file") as wal:
        for number in range(1, 21):
            wal.append(b"record %d" % number)
    return path


def damage(path: Path, seq: int) -> None:
    """Change the payload of a record."""
    overwrite(path, file_offset(superblock(path), whole_records(path)[seq].position) + HEADER, b"DAMAGED")


def test_records_before_the_damage_are_kept_and_the_rest_is_in_the_backup(path: Path) -> None:
    """R4: the log continues after the last record before the damage; the backup holds every byte of the damaged file."""
    damage(path, 12)
    before = path.read_bytes()
    report = repair(path)
    assert (report.kept_records, report.lost_records) == (11, 8)
    assert (report.lost_first_seq, report.lost_last_seq) == (12, 20)
    assert Path(report.backup).read_bytes() == before
    assert report.backup == f"{path}.damaged"
    assert (report.before.case, report.after.outcome) == ("R4", "clean")
    with open_small(path) as wal:
        assert payloads(wal) == [b"record %d" % number for number in range(1, 12)]
        assert wal.append(b"next") == 12
    with pmwal.open(report.backup, "r", recover="salvage") as reader:
        assert [seq for seq, _ in contents(reader)] == [seq for seq in range(1, 21) if seq != 12]


def test_what_repair_left_out_never_comes_back(path: Path) -> None:
    """New records of the same sizes overwrite the old; after a kill the old ones that follow them do not come back."""
    damage(path, 12)
    repair(path)
    wal = open_small(path, medium="file")
    wal.append(b"record 1x")
    kill(wal)
    with open_small(path) as wal:
        assert payloads(wal)[11:] == [b"record 1x"]


@pytest.mark.parametrize("lost", ["all", "two"])
def test_log_without_a_usable_slot_is_rebuilt_from_its_records(path: Path, lost: str) -> None:
    """R9 and R9b: all records are present, so the log is complete."""
    newest = look(path).control.newest
    assert newest is not None
    for generation in range(newest.generation, newest.generation - (128 if lost == "all" else 2), -1):
        overwrite(path, place_of(path, generation), b"\xa5" * LINE)
    assert pmwal.verify(path).case == ("R9" if lost == "all" else "R9b")
    report = repair(path)
    assert (report.kept_records, report.lost_records) == (20, 0)
    with open_small(path) as wal:
        assert payloads(wal) == [b"record %d" % number for number in range(1, 21)]
        assert wal.append(b"next") == 21


def test_half_a_batch_is_not_kept(shm_dir: Path) -> None:
    """A batch with a damaged record is dropped as a whole."""
    path = shm_dir / "test.wal"
    with open_small(path) as wal:
        wal.append(b"alone")
        wal.extend([b"one", b"two", b"three"])
    damage(path, 3)
    repair(path)
    with open_small(path) as wal:
        assert payloads(wal) == [b"alone"]


@pytest.mark.parametrize("copy", [0, 1])
def test_damaged_superblock_copy_is_written_again(path: Path, copy: int) -> None:
    """R10: no record is lost, and both copies are whole afterwards."""
    overwrite(path, superblock(path).copy_offset if copy else 0, bytes(PAGE))
    assert pmwal.verify(path).superblocks_lost == 1
    assert repair(path).kept_records == 20
    report = pmwal.verify(path)
    assert (report.case, report.superblocks_lost) == ("R1", 0)


def test_lost_slot_is_written_again(path: Path) -> None:
    """R7: afterwards every slot index holds the right slot."""
    overwrite(path, CONTROL_OFFSET + 40 * LINE, bytes(LINE))
    assert pmwal.verify(path).slots_lost == 1
    repair(path)
    assert pmwal.verify(path).slots_lost == 0


def test_dry_run_says_the_same_and_changes_nothing(path: Path) -> None:
    """A dry run reports what the repair would do, and leaves the directory as it was."""
    damage(path, 12)
    before = path.read_bytes()
    planned = repair(path, dry_run=True)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    done = repair(path)
    assert (planned.actions, planned.kept_records, planned.backup) == (done.actions, done.kept_records, done.backup)


def test_log_that_needs_no_repair_is_left_alone(path: Path) -> None:
    """This includes a log whose writer was killed: opening it recovers it."""
    kill(open_small(path, medium="file"))
    before = path.read_bytes()
    assert repair(path).actions == ("nothing: the log needs no repair",)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_log_that_is_open_for_writing_is_not_repaired(path: Path) -> None:
    """Repair respects the writer's lock."""
    with open_small(path), pytest.raises(pmwal.WalLocked):
        repair(path)


def test_backup_never_replaces_a_file(path: Path) -> None:
    """A second repair takes another name; an explicit name must be free and in the same directory."""
    damage(path, 12)
    first = repair(path)
    damage(path, 3)
    assert repair(path).backup == f"{path}.damaged-2"
    damage(path, 2)
    with pytest.raises(FileExistsError, match="name another backup"):
        repair(path, backup=first.backup)
    with pytest.raises(ValueError, match="backup must lie in"):
        repair(path, backup="/tmp/elsewhere.wal")
    assert repair(path, backup=f"{path}.third").backup == f"{path}.third"


def test_owner_and_mode_stay(path: Path) -> None:
    """Users who could read the log still can."""
    path.chmod(0o640)
    damage(path, 12)
    repair(path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_crash_at_any_step_of_a_repair_leaves_the_damaged_or_the_repaired_log(path: Path) -> None:
    """Scenario 27: the name always refers to one of the two, and the damaged bytes are never lost."""
    damage(path, 12)
    before = path.read_bytes()
    count = 0
    while True:
        left = count

        def hook(event: Step) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1

        finished = True
        try:
            report = repair(path, seam=BarrierRecorder(hook))
        except Crash:
            finished = False
        repaired = path.read_bytes() != before
        kept = [name.read_bytes() for name in path.parent.iterdir() if ".damaged" in name.name]
        assert repaired in (False, finished) or kept == [before]
        if repaired:
            with open_small(path) as wal:
                assert payloads(wal) == [b"record %d" % number for number in range(1, 12)]
        if finished:
            break
        for name in path.parent.iterdir():
            name.unlink()
        path.write_bytes(before)
        count += 1
    assert report.kept_records == 11
    assert count > 10
