"""Repair keeps the damaged file as a backup, and as much of the log as possible."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from commands import Cli
from conftest import Place
from pmwal.format.layout import (
    CONTROL_OFFSET,
    EPOCH_MAX,
    GENERATION_MAX,
    HEADER,
    LINE,
    PAGE,
    SECTOR,
    encode_slot,
    slot_index,
    slot_offset,
)
from pmwal.repair import repair
from pmwal.writing.wal import Wal
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
    write_slot,
)
from surgery import newest_slot

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


def test_records_of_a_batch_before_the_damage_are_kept_and_named(shm_dir: Path) -> None:
    """Before the pointer batch fields do not count, because a rollback may have cut the batch: every live record before the damage
    is kept. The report says that the rest of the batch is gone."""
    path = shm_dir / "test.wal"
    with open_small(path) as wal:
        wal.append(b"alone")
        wal.extend([b"one", b"two", b"three", b"four"])
    damage(path, 4)
    report = repair(path)
    assert "leave the last 2 in, though the rest of their batch is not there" in report.actions
    assert (report.kept_records, report.lost_records, report.doubtful_records) == (3, 1, 0)
    with open_small(path) as wal:
        assert payloads(wal) == [b"alone", b"one", b"two"]


def test_half_a_batch_past_the_pointer_is_not_kept(shm_dir: Path) -> None:
    """R5: past the pointer a batch counts from its first record to its last or not at all."""
    path = shm_dir / "test.wal"
    wal = open_small(path, medium="file", ordering="pipelined")
    wal.append(b"alone")
    wal.extend([b"one", b"two", b"three"])
    wal.append(b"next")
    wal.append(b"last")
    kill(wal)
    damage(path, 3)
    report = repair(path)
    assert (report.before.case, report.kept_records, report.lost_records) == ("R5", 1, 4)
    with open_small(path) as wal:
        assert payloads(wal) == [b"alone"]
    with pmwal.open(report.backup, "r", recover="salvage") as reader:
        assert [seq for seq, _ in contents(reader)] == [1, 2, 4, 5, 6]


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


# -- which records are the log's own


def lose_slots(path: Path, *generations: int) -> None:
    """The slots of these generations are gone."""
    for generation in generations:
        overwrite(path, place_of(path, generation), b"\xa5" * LINE)


def lose_old_slots(path: Path) -> None:
    """A sector of the control region that contains no new slot is gone: R9b."""
    newest = newest_slot(path)
    generation = newest.generation + 40  # due much later, so its place has an old slot
    sector = place_of(path, generation) // SECTOR * SECTOR
    overwrite(path, sector, bytes(SECTOR))
    assert not sector <= place_of(path, newest.generation) < sector + SECTOR
    assert pmwal.verify(path).case == "R9b"


def read(path: Path) -> list[tuple[int, bytes]]:
    """What the log shows."""
    with pmwal.open(path, "r") as reader:
        return contents(reader)


def rolled_back(wal: Wal) -> None:
    """Far more discarded records than live ones."""
    wal.extend([b"discarded %d" % number for number in range(1, 101)])
    wal.rollback(after=5)
    for number in range(3):
        wal.append(b"live %d" % number)


def truncated(wal: Wal) -> None:
    """Far more truncated records than live ones."""
    for number in range(100):
        wal.append(b"record %d" % number)
    wal.truncate(before=95)


def cut_batch(wal: Wal) -> None:
    """The last records are a part of a batch, which a rollback cut."""
    wal.append(b"first")
    wal.extend([b"batch %d" % number for number in range(10)])
    wal.rollback(after=6)


def emptied(wal: Wal) -> None:
    """All records were truncated."""
    wal.extend([b"gone"] * 10)
    wal.truncate(before=wal.next_seq)


def rolled_back_to_nothing(wal: Wal) -> None:
    """All records were rolled back."""
    wal.extend([b"gone"] * 10)
    wal.rollback(after=0)


def wrapped(wal: Wal) -> None:
    """The log has a gap at its lap's end, in which records of an older lap are whole."""
    for number in range(100):
        wal.truncate(before=max(wal.first_seq, wal.next_seq - 3))
        wal.append(b"%d" % number * (10 if number % 7 else 1500))


HISTORIES = {history.__name__: history for history in (rolled_back, truncated, cut_batch, emptied, rolled_back_to_nothing, wrapped)}


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_lost_old_slots_cost_no_record_and_bring_none_back(history: Callable[[Wal], None], end: str, shm_place: Place) -> None:
    """R9b, and the newest slot is whole: exactly the live records are kept, and none is in doubt."""
    path = shm_place.path
    wal = open_small(path, **shm_place.options)
    history(wal)
    (Wal.close if end == "closed" else kill)(wal)
    live, first_seq = read(path), pmwal.verify(path).first_seq
    lose_old_slots(path)
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert contents(reader) == live
    report = repair(path)
    assert (report.kept_records, report.lost_records, report.lost_first_seq, report.doubtful_records) == (len(live), 0, None, 0)
    assert (read(path), pmwal.verify(path).first_seq, pmwal.verify(path).case) == (live, first_seq, "R1")
    assert repair(path).actions == ("nothing: the log needs no repair",)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_without_any_slot_nothing_that_was_discarded_comes_back(history: Callable[[Wal], None], shm_place: Place) -> None:
    """R9: the newest epoch has a record, so the run that ends in it is kept. All of it is in doubt: it may have been truncated."""
    path = shm_place.path
    wal = open_small(path, **shm_place.options)
    history(wal)
    wal.append(b"the last one")
    kill(wal)
    live = read(path)
    overwrite(path, CONTROL_OFFSET, bytes(superblock(path).control_size))
    assert pmwal.verify(path).case == "R9"
    report = repair(path)
    assert (report.doubtful_records, report.lost_first_seq) == (report.kept_records, None)
    kept = read(path)
    assert kept[len(kept) - len(live) :] == live
    assert [seq for seq, _ in kept] == list(range(kept[0][0], live[-1][0] + 1))
    assert not [data for _, data in kept if data.startswith(b"discarded") and data not in dict(live).values()]


def test_damaged_record_after_a_batch_that_a_rollback_cut_leaves_the_part_that_was_live(shm_dir: Path) -> None:
    """R4 right after the cut: the kept part of the batch is no unfinished batch."""
    path = shm_dir / "test.wal"
    with open_small(path) as wal:
        cut_batch(wal)
        wal.append(b"after it")
    damage(path, 7)
    assert repair(path).kept_records == 6
    assert [seq for seq, _ in read(path)] == [1, 2, 3, 4, 5, 6]


def test_records_of_a_newer_epoch_are_kept_where_its_slots_are_lost(shm_place: Place) -> None:
    """The slots are as they were before a rollback and what followed: the greatest epoch says what was live since."""
    path = shm_place.path
    wal = open_small(path, **shm_place.options)
    wal.extend([b"record %d" % number for number in range(1, 9)])
    control = path.read_bytes()[CONTROL_OFFSET : CONTROL_OFFSET + superblock(path).control_size]
    wal.rollback(after=4)
    wal.append(b"live 5")
    wal.append(b"live 6")
    kill(wal)
    live = read(path)
    overwrite(path, CONTROL_OFFSET, control)
    assert pmwal.verify(path).outcome == "corrupt"
    report = repair(path)
    assert read(path) == live
    assert (report.doubtful_records, report.lost_records) == (6, 0)


def test_with_both_newest_slots_lost_the_run_that_ends_in_the_greatest_epoch_is_kept(shm_place: Place) -> None:
    """A whole lap was written since the newest slot that is left, so its records are overwritten."""
    path = shm_place.path
    wal = open_small(path, size=4096, **shm_place.options)
    wal.extend([b"old %d" % number for number in range(10)])
    wal.commit()
    control = path.read_bytes()[CONTROL_OFFSET : CONTROL_OFFSET + superblock(path).control_size]
    kill(wal)
    wal = open_small(path, on_full="overwrite", **shm_place.options)
    for number in range(100):
        wal.append(b"new %d" % number)
    kill(wal)
    live = read(path)
    overwrite(path, CONTROL_OFFSET, control)
    report = repair(path)
    assert report.doubtful_records == report.kept_records
    kept = read(path)
    assert kept[len(kept) - len(live) :] == live


def test_slot_of_another_origin_is_not_believed_against_all_others(path: Path) -> None:
    """A valid slot with a far generation names an empty log: every other slot contradicts it."""
    live = read(path)
    slot = newest_slot(path)
    write_slot(
        path, slot._replace(generation=1 << 40, commit_position=0, commit_seq=0, tail_position=0, tail_seq=1, epoch_first_seq=1)
    )
    assert pmwal.verify(path).case == "R9b"
    report = repair(path)
    assert (read(path), report.doubtful_records) == (live, 0)


def test_slot_with_impossible_content_does_not_hide_the_newest_one(path: Path) -> None:
    """R8: the newest slot without a contradiction is whole, and so are its records."""
    live = read(path)
    slot = newest_slot(path)
    write_slot(path, slot._replace(generation=slot.generation + 1, tail_seq=slot.commit_seq + 5))
    assert pmwal.verify(path).case == "R8"
    report = repair(path)
    assert (read(path), report.doubtful_records, report.lost_first_seq) == (live, 0, None)


@pytest.mark.parametrize("left", [0, 1, 128, 300])
def test_repair_begins_anew_with_generations_that_are_used_up(path: Path, left: int) -> None:
    """A turn of slots near the last generation, and one lost: the slots are all written again, with small generations."""
    live, slot, block = read(path), newest_slot(path), superblock(path)
    newest = GENERATION_MAX - left
    for age in range(block.turn):
        index = slot_index(newest - age, block.control_pages)
        overwrite(path, slot_offset(index), encode_slot(slot._replace(generation=newest - age), block.uuid, index))
    overwrite(path, slot_offset(slot_index(newest - 5, block.control_pages)), bytes(LINE))
    repair(path)
    assert newest_slot(path).generation < 1 << 20
    with open_small(path) as wal:
        assert contents(wal) == live
        wal.append(b"next")


def test_epochs_that_are_used_up_are_an_error(path: Path) -> None:
    """A repair begins a new epoch, and there is none left."""
    slot = newest_slot(path)
    write_slot(path, slot._replace(generation=slot.generation + 1, epoch=EPOCH_MAX, epoch_first_seq=slot.commit_seq + 1))
    overwrite(path, place_of(path, slot.generation - 3), bytes(LINE))
    before = path.read_bytes()
    with pytest.raises(pmwal.FormatError, match="used up its epochs"):
        repair(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [4096, 65536])
def test_new_log_without_control_region_is_empty_again(size: int, shm_dir: Path) -> None:
    """No record was ever stored, and the slots were never written: an empty log, which takes records."""
    path = shm_dir / "test.wal"
    open_small(path, size=size).close()
    overwrite(path, CONTROL_OFFSET, bytes(superblock(path).control_size))
    report = repair(path)
    assert (report.kept_records, report.before.case, report.after.case) == (0, "R9", "R1")
    with open_small(path) as wal:
        assert wal.append(b"first") == 1


def test_torn_record_before_whole_ones_ends_the_log_without_slots_too(shm_dir: Path) -> None:
    """A power cut left record 4 torn and 5 whole. Neither was acknowledged, as the marks say, so neither comes back."""
    path = shm_dir / "test.wal"
    wal = open_small(path, medium="file", ordering="strict")
    wal.extend([b"one", b"two", b"three"])
    wal.append(b"four", commit=False)
    wal.append(b"five", commit=False)
    kill(wal)
    damage(path, 4)
    assert pmwal.verify(path).case == "R3"
    overwrite(path, CONTROL_OFFSET, bytes(superblock(path).control_size))
    repair(path)
    assert payloads_of(path) == [b"one", b"two", b"three"]


def test_salvage_leaves_out_what_a_crash_left_unfinished(shm_place: Place) -> None:
    """Record 7 is torn and 8 whole; then acknowledged record 2 is damaged. Salvage finds all others, but not record 8."""
    path = shm_place.path
    wal = open_small(path, **shm_place.options)
    for number in range(1, 7):
        wal.append(b"%d" % number)
    wal.append(b"seven", commit=False)
    wal.append(b"eight", commit=False)
    kill(wal)
    places = {seq: file_offset(superblock(path), found.position) + HEADER for seq, found in whole_records(path).items()}
    for seq in (7, 2):
        overwrite(path, places[seq], b"DAMAGED")
    assert pmwal.verify(path).outcome == "corrupt"
    with pmwal.open(path, "r", recover="salvage") as reader:
        assert payloads(reader) == [b"1", b"3", b"4", b"5", b"6"]
    assert repair(path).lost_records == 4


def payloads_of(path: Path) -> list[bytes]:
    """All payloads."""
    return [data for _, data in read(path)]


class _Full(BarrierRecorder):
    """A disk with no space left, from the allocation or from a write on."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self._step = step

    def allocate(self, fd: int, size: int) -> None:
        if self._step == "allocate":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(fd, size)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        if self._step == "write" and offset >= PAGE * 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(fd, data, offset)


@pytest.mark.parametrize("step", ["allocate", "write"])
def test_full_disk_leaves_the_damaged_log_alone(path: Path, step: str) -> None:
    """There is no room for the copy: one error with the log's name, no backup, no hidden file."""
    damage(path, 12)
    before = path.read_bytes()
    with pytest.raises(OSError, match="no room") as caught:
        repair(path, seam=_Full(step))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("directory", ["", "logs/", "./"])
@pytest.mark.parametrize("backup", [None, "app.old"])
def test_repair_names_files_as_they_were_given(
    cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, backup: str | None
) -> None:
    """A relative path stays one in the report, so that what it advises can be typed; nothing but the names differs."""
    monkeypatch.chdir(path.parent)
    Path("logs").mkdir()
    name = f"{directory}app.wal"
    damage(path, 12)
    path.rename(name)
    kept = f"{directory}{backup or 'app.wal.damaged'}"
    ran = cli("repair", name, *(["--backup", kept] if backup else []))
    assert ran.lines[0].startswith(f"{name}: corrupt (R4)")
    assert ran.lines[1] == f"  kept the damaged file as {kept}"
    assert str(path.parent) not in ran.text
    assert Path(kept).exists()
    assert len(read(Path(name))) == 11


def test_repair_through_a_link_is_beside_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link stays, and the names are those of the log."""
    monkeypatch.chdir(path.parent)
    Path("logs").mkdir()
    damage(path, 12)
    path.rename("logs/app.wal")
    Path("link.wal").symlink_to("logs/app.wal")
    report = repair("link.wal")
    real = os.path.realpath("logs/app.wal")
    assert (report.path, report.backup) == (real, f"{real}.damaged")
    assert Path("link.wal").is_symlink()


@pytest.mark.parametrize("explicit", [False, True])
def test_repair_that_was_killed_after_the_backup_is_run_again(path: Path, explicit: bool) -> None:
    """The backup is another name of the damaged file, so it is used again."""
    damage(path, 12)
    backup = str(path) + (".aside" if explicit else ".damaged")
    os.link(path, backup)
    report = repair(path, backup=backup if explicit else None)
    assert report.backup == backup
    assert sorted(os.listdir(path.parent)) == sorted([path.name, os.path.basename(backup)])
    assert len(read(path)) == 11


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_repair_without_hard_links_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The damaged file could not be kept, so it is left as it is, alone in its directory."""
    open_small(path).close()
    overwrite(path, 0, bytes(PAGE))
    before, names = path.read_bytes(), os.listdir(path.parent)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="no hard links here") as caught:
        repair(path)
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert (path.read_bytes(), os.listdir(path.parent)) == (before, names)
