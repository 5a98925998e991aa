"""Copies of logs, and logs that get a ring of another size: what they keep, and what they refuse."""

from __future__ import annotations

import errno
import os
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import damage_record, make_log, make_torn
from conftest import Place
from copies import fill, filled, kept, names, read
from pmwal.format.layout import CAPACITY_MIN, HEADER, PAGE, Superblock, encode_superblock
from pmwal.format.relocation import Relocation
from pmwal.format.scan import scan_for
from pmwal.reading.walk import View, Walker, damaged
from pmwal.recovery.judge import Judgement
from pmwal.storage.medium import Medium
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Step, contents, image, kill, look, open_small, superblock, whole_records

pytestmark = pytest.mark.both_engines


@pytest.fixture
def path(shm_dir: Path) -> Path:
    """The path of a log with every kind of record."""
    return filled(shm_dir / "test.wal")


# -- what stays


@pytest.mark.parametrize("size", [None, 65536, 1 << 20])
def test_copy_has_the_same_records_and_another_uuid(path: Path, size: int | None) -> None:
    """Numbers, kinds, times, epochs and batches stay, and the source is only read."""
    before, bytes_before = kept(path), path.read_bytes()
    target = path.with_name("copy.wal")
    report = pmwal.copy(path, target, size=size)
    assert (kept(target), read(target)) == (before, read(path))
    assert path.read_bytes() == bytes_before
    assert superblock(target).uuid != superblock(path).uuid
    assert superblock(target).capacity == report.capacity == (16384 if size is None else size)
    found = look(target)
    assert (found.report.case, found.report.slots_lost) == ("R1", 0)
    assert (report.first_seq, report.last_seq, report.records) == (before[0][0], before[-1][0], len(before))
    assert report.used == found.end.position - found.tail.position
    assert report.as_dict()["path"] == str(target)


@pytest.mark.parametrize("size", [12288, 32768, 16 << 20], ids=["smaller", "larger", "large"])
def test_resized_log_is_the_same_log(path: Path, size: int) -> None:
    """It has its uuid, label, time of creation and mode, and continues with the next number."""
    with open_small(path, medium="file") as wal:
        wal.truncate(before=wal.next_seq - 12)
    path.chmod(0o640)
    before, block = kept(path), superblock(path)
    report = pmwal.resize(path, size)
    assert kept(path) == before
    assert superblock(path) == replace(block, capacity=size)
    assert path.stat().st_mode & 0o777 == 0o640
    assert (report.capacity, report.records, report.backup) == (size, len(before), "")
    assert names(path.parent) == [path.name]
    with open_small(path, medium="file", on_full="overwrite") as wal:
        assert wal.append(b"next") == before[-1][0] + 1
        fill(wal, random.Random(2))
    assert pmwal.verify(path).case == "R1"


def test_cursor_names_the_same_record_in_every_file(path: Path) -> None:
    """It rests on a record's number, kind, time and bytes."""
    records = read(path)
    target = path.with_name("copy.wal")
    pmwal.copy(path, target)
    pmwal.resize(path, "64KiB")
    for each in (path, target):
        with pmwal.open(each, "r") as reader:
            assert list(reader.read(start=records[4].cursor)) == records[5:]


def test_records_name_as_durable_what_lies_before_their_batch(path: Path) -> None:
    """``durable`` names no position inside a batch, and none before the end of the epoch before."""
    pmwal.resize(path, "64KiB")
    start = 0
    for found in whole_records(path).values():
        if found.header.batch_index == 0:
            start = found.position
        assert found.header.durable == start


@pytest.mark.parametrize("records", ["none", "truncated", "rolled back"])
def test_empty_log_keeps_its_next_number(shm_dir: Path, records: str) -> None:
    """A copy of a log without records continues where the log would."""
    path, target = shm_dir / "test.wal", shm_dir / "copy.wal"
    with open_small(path) as wal:
        if records != "none":
            wal.extend([b"gone"] * 5)
            wal.truncate(before=6) if records == "truncated" else wal.rollback(after=0)
        expected = wal.next_seq
    pmwal.copy(path, target)
    pmwal.resize(path, 8192)
    for each in (path, target):
        with open_small(each) as wal:
            assert (wal.first_seq, wal.append(b"next")) == (expected, expected)


@pytest.mark.parametrize("length", [(1 << 18) - 1, 1 << 19, (1 << 20) + 1, 3 << 20], ids=str)
def test_record_longer_than_a_piece_is_kept(shm_dir: Path, length: int) -> None:
    """It is gathered whole, among short ones."""
    path, target = shm_dir / "test.wal", shm_dir / "copy.wal"
    payload = random.Random(length).randbytes(length)
    with open_small(path, size=8 << 20) as wal:
        wal.extend([b"before", payload, b"after"])
        wal.append(payload[: length // 2])
    pmwal.copy(path, target, size=32 << 20)
    assert read(target) == read(path)


@pytest.mark.parametrize("align", [None, 8, 64, 256, 4096])
def test_copy_can_have_another_alignment(path: Path, align: int | None) -> None:
    """Each record then starts at a multiple of it."""
    target = path.with_name("copy.wal")
    pmwal.copy(path, target, size="1MiB", align=align)
    assert superblock(target).alignment == (8 if align is None else align)
    assert (kept(target), read(target)) == (kept(path), read(path))
    again = path.with_name("again.wal")
    pmwal.copy(target, again)
    assert superblock(again).alignment == superblock(target).alignment


def test_copy_takes_the_alignment_of_its_medium_if_that_is_larger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a log that is created there, so that no two commits flush the same line. It may need a larger ring."""
    monkeypatch.setattr(Medium, "alignment", 512)
    with pytest.raises(ValueError, match="do not fit into a ring of 16384; use a size of at least"):
        pmwal.copy(path, path.with_name("copy.wal"))
    assert names(path.parent) == [path.name]
    pmwal.copy(path, path.with_name("copy.wal"), size="1MiB")
    assert superblock(path.with_name("copy.wal")).alignment == 512
    pmwal.resize(path, "1MiB")
    assert superblock(path).alignment == 8


def test_copy_on_every_medium(path: Path, place: Place) -> None:
    """It can be opened as the medium that its file system is."""
    target = place.path.with_name("copy.wal")
    pmwal.copy(path, target, size="256KiB")
    pmwal.resize(target, "64KiB")
    with pmwal.open(target, **place.options) as wal:
        assert list(wal) == read(path)
        wal.append(b"next")


# -- both engines, byte for byte


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.native_engine
def test_native_engine_lays_records_as_the_reference_does(shm_dir: Path, seed: int) -> None:
    """Any history, into a ring of any alignment, in pieces of any size."""
    rng = random.Random(seed)
    path = shm_dir / "test.wal"
    with open_small(path, align=rng.choice([8, 64]), on_full="overwrite", medium="file") as wal:
        fill(wal, rng, rng.randrange(80))
    other = replace(superblock(path), uuid=rng.randbytes(16), alignment=rng.choice([8, 64, 512]), capacity=1 << 20)
    piece = rng.choice([PAGE, 3 * PAGE, 1 << 20])
    rings = [relocated(look(path), path, other, native_to=way, piece=piece) for way in (True, False)]
    assert rings[0] == rings[1]


def relocated(judgement: Judgement, path: Path, other: Superblock, *, native_to: bool, piece: int) -> tuple[bytes, int, int]:
    """The ring that the records of a log are laid in, its end, and the longest payload."""
    raw, block = path.read_bytes(), judgement.identity.block
    slot = judgement.control.newest
    assert slot is not None
    view = View(judgement.tail, judgement.end, slot.epoch, slot.epoch_first_seq, starts=judgement.control.starts)
    walker = Walker(block, lambda at, size: raw[at : at + size], lambda at, _: damaged(block, at), scan=scan_for(block))
    to = Relocation(other, scan_for(other) if native_to else None, piece)
    return b"".join(walker.relocated(view, to)), to.end, to.longest


@pytest.mark.native_engine
@pytest.mark.parametrize("resizes", [False, True], ids=["copy", "resize"])
@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_both_engines_write_the_same_bytes(shm_dir: Path, monkeypatch: pytest.MonkeyPatch, resizes: bool, ends: str) -> None:
    """Given the same log and the same seam."""
    written = []
    for engine in ("native", "python"):
        monkeypatch.setenv("PMWAL_ENGINE", engine)
        directory = shm_dir / engine
        directory.mkdir()
        log = directory / "log.wal"
        wal = open_small(log, medium="file", on_full="overwrite")
        fill(wal, random.Random(3))
        (Wal.close if ends == "closed" else kill)(wal)
        if resizes:
            pmwal.resize(log, "64KiB", backup=directory / "old.wal", seam=BarrierRecorder())
            written.append(image(log) + image(directory / "old.wal"))
        else:
            pmwal.copy(log, directory / "copy.wal", seam=BarrierRecorder(uuid=b"c" * 16))
            written.append(image(directory / "copy.wal"))
    assert written[0] == written[1]


@pytest.mark.native_engine
def test_relocate_checks_its_arguments() -> None:
    """Bytes that are not there are neither read nor written."""
    block = Superblock(uuid=bytes(16), control_size=2 * PAGE, capacity=16384, alignment=8, created_ns=0)
    scan = scan_for(block)
    assert scan is not None
    rules = (2, 16384, 1, 1, False, b"")
    with pytest.raises(ValueError, match="more bytes are used"):
        scan.scanner.relocate((bytes(100), 0, 0), (0, 1), rules, scan.scanner, bytearray(8), 9, 0, 0, 0)
    with pytest.raises(TypeError):
        scan.scanner.relocate((bytes(100), 0, 0), (0, 1), rules, object(), bytearray(8), 0, 0, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        scan.scanner.relocate((bytes(100), 0, 0), (0, 1), rules, scan.scanner, bytes(8), 0, 0, 0, 0)
    assert scan.scanner.relocate((bytes(100), 0, 0), (0, 1), rules, scan.scanner, bytearray(8), 8, 5, 4, 3) == (
        0,
        1,
        5,
        4,
        3,
        False,
    )


# -- what fits


def test_least_size_is_named_and_fits(path: Path) -> None:
    """Where the records take more than the ring, or the longest more than half of it."""
    with pytest.raises(ValueError, match="do not fit into a ring of 4096") as caught:
        pmwal.resize(path, 4096)
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    assert look(path).identity.block.capacity == 16384
    with pytest.raises(ValueError, match=f"at least {least}"):
        pmwal.copy(path, path.with_name("copy.wal"), size=least - PAGE)
    before = kept(path)
    pmwal.resize(path, least)
    assert (kept(path), superblock(path).capacity) == (before, least)


@pytest.mark.parametrize("length", [1999, 2000, 2001])
def test_longest_record_must_take_half_of_the_ring_at_most(shm_dir: Path, length: int) -> None:
    """Otherwise it could not be stored there: 2000 bytes are the most in the smallest ring."""
    path = shm_dir / "test.wal"
    with open_small(path) as wal:
        wal.append(bytes(length))
    if length <= 2000:
        assert pmwal.resize(path, CAPACITY_MIN).capacity == CAPACITY_MIN
        return
    with pytest.raises(ValueError, match=f"the longest one {length + HEADER}, .* at least 8192"):
        pmwal.resize(path, CAPACITY_MIN)


def test_full_ring_can_be_kept_full(shm_dir: Path) -> None:
    """A ring that is as large as the records is a log without free space."""
    path = shm_dir / "test.wal"
    with open_small(path) as wal:
        wal.extend([bytes(1024 - HEADER)] * 8)
    pmwal.resize(path, 8192)
    with open_small(path) as wal:
        assert (len(wal), wal.free) == (8, 0)
        with pytest.raises(pmwal.WalFull):
            wal.append(b"")
        wal.truncate(before=2)
        wal.append(b"")


@pytest.mark.parametrize("size", [0, "many", 1 << 50, None])
def test_impossible_size_is_refused(path: Path, size: Any) -> None:
    """As by ``open``; and nothing is written."""
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError), match=r"size"):
        pmwal.resize(path, size)
    assert (names(path.parent), path.read_bytes()) == ([path.name], before)


def test_size_that_the_log_has_changes_nothing(path: Path) -> None:
    """The file stays the same one."""
    before, inode = path.read_bytes(), path.stat().st_ino
    report = pmwal.resize(path, "16KiB", backup=path.with_name("old.wal"))
    assert (path.read_bytes(), path.stat().st_ino, names(path.parent)) == (before, inode, [path.name])
    assert (report.capacity, report.records, report.backup) == (16384, len(kept(path)), "")


# -- sources in every state


@pytest.mark.parametrize("resizes", [False, True], ids=["copy", "resize"])
def test_torn_tail_is_left_out_as_by_an_open(shm_dir: Path, resizes: bool) -> None:
    """What recovery keeps is kept."""
    path, target = make_torn(shm_dir / "test.wal"), shm_dir / "copy.wal"
    expected = read(path)
    assert len(expected) == 9
    if resizes:
        pmwal.resize(path, "64KiB", backup=target)
        assert pmwal.verify(target).case == "R1"  # the old file was ended, too
        assert read(target) == expected
    else:
        before = path.read_bytes()
        pmwal.copy(path, target)
        assert path.read_bytes() == before
        path = target
    assert (read(path), pmwal.verify(path).case) == (expected, "R1")


@pytest.mark.parametrize("resizes", [False, True], ids=["copy", "resize"])
def test_corrupt_log_is_refused(shm_dir: Path, resizes: bool) -> None:
    """It names the repair, and nothing is changed."""
    path = damage_record(make_log(shm_dir / "test.wal"), 4)
    before = path.read_bytes()
    with pytest.raises(pmwal.CorruptWal, match="pmwal repair"):
        pmwal.resize(path, "64KiB") if resizes else pmwal.copy(path, shm_dir / "copy.wal")
    assert (path.read_bytes(), names(shm_dir)) == (before, [path.name])


@pytest.mark.parametrize("kind", ["missing", "directory", "foreign", "empty"])
def test_source_that_is_no_log_is_refused(shm_dir: Path, kind: str) -> None:
    """As by ``open``, and nothing is left."""
    path = shm_dir / "test.wal"
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"hello, world" * 1000 if kind == "foreign" else b"")
    before = names(shm_dir)
    for action in (lambda: pmwal.copy(path, shm_dir / "copy.wal"), lambda: pmwal.resize(path, "64KiB")):
        with pytest.raises((OSError, pmwal.FormatError)):
            action()
    assert names(shm_dir) == before


def test_log_of_a_newer_version_is_refused(path: Path) -> None:
    """Something in it may depend on where its records are."""
    block = replace(superblock(path), compatible=1)
    raw = bytearray(path.read_bytes())
    raw[:PAGE], raw[block.copy_offset : block.copy_offset + PAGE] = encode_superblock(block, 0), encode_superblock(block, 1)
    path.write_bytes(raw)
    for action in (lambda: pmwal.copy(path, path.with_name("copy.wal")), lambda: pmwal.resize(path, "64KiB")):
        with pytest.raises(pmwal.FormatError, match="newer pmwal"):
            action()
    assert names(path.parent) == [path.name]


# -- names


@pytest.mark.parametrize("taken", ["log", "source", "file", "directory", "dangling link"])
def test_copy_never_replaces_anything(path: Path, taken: str) -> None:
    """What has the name stays as it was."""
    target = path if taken == "source" else path.with_name("taken")
    if taken == "log":
        make_log(target)
    elif taken == "file":
        target.write_bytes(b"precious")
    elif taken == "directory":
        target.mkdir()
    elif taken == "dangling link":
        target.symlink_to("nowhere")
    before = names(path.parent), path.read_bytes()
    with pytest.raises(FileExistsError):
        pmwal.copy(path, target)
    assert (names(path.parent), path.read_bytes()) == before


def test_copy_that_finds_the_name_taken_at_the_end_leaves_it(path: Path) -> None:
    """The name is given by link(2), which replaces nothing."""
    target = path.with_name("copy.wal")

    def take(step: Step) -> None:
        if step.name == "link":
            target.write_bytes(b"precious")

    with pytest.raises(FileExistsError):
        pmwal.copy(path, target, seam=BarrierRecorder(take))
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize(("file_mode", "expected"), [(None, 0o600), (0o640, 0o640), ("664", 0o664)])
def test_mode_of_a_copy(path: Path, file_mode: Any, expected: int) -> None:
    """Private, whatever the mode of the source, unless another one is asked for."""
    path.chmod(0o666)
    target = path.with_name("copy.wal")
    pmwal.copy(path, target, **({} if file_mode is None else {"file_mode": file_mode}))
    assert target.stat().st_mode & 0o777 == expected


def test_link_to_a_log_stays_a_link(path: Path) -> None:
    """The file that it leads to is resized."""
    link = path.with_name("link.wal")
    link.symlink_to(path.name)
    pmwal.resize(link, "64KiB")
    assert link.is_symlink()
    assert not path.is_symlink()
    assert superblock(path).capacity == 65536


def test_log_with_several_names_is_not_resized(path: Path) -> None:
    """Each other name would lead to the old file, which has the same uuid."""
    os.link(path, path.with_name("second.wal"))
    before = path.read_bytes()
    with pytest.raises(OSError, match="2 hard links") as caught:
        pmwal.resize(path, "64KiB")
    assert caught.value.errno == errno.EMLINK
    assert (path.read_bytes(), path.samefile(path.with_name("second.wal"))) == (before, True)


def test_backup_keeps_the_old_file(path: Path) -> None:
    """Under a free name in the same directory."""
    old, before = path.with_name("old.wal"), path.read_bytes()
    with pytest.raises(ValueError, match="backup must lie in"):
        pmwal.resize(path, "64KiB", backup="/tmp/elsewhere.wal")
    report = pmwal.resize(path, "64KiB", backup=old)
    assert (report.backup, old.read_bytes()) == (str(old), before)
    with pytest.raises(FileExistsError, match="name another backup"):
        pmwal.resize(path, "128KiB", backup=old)
    assert superblock(path).capacity == 65536


@pytest.mark.parametrize("directory", ["", "sub"])
def test_relative_path_stays_one(path: Path, monkeypatch: pytest.MonkeyPatch, directory: str) -> None:
    """In the report and in errors, as it was given."""
    monkeypatch.chdir(path.parent if not directory else path.parent.parent)
    place = Path(path.parent.name if directory else "", path.name)
    old = place.with_name("old.wal")
    with pytest.raises(ValueError, match=rf"^{place}: the records take"):
        pmwal.resize(place, 4096)
    report = pmwal.resize(place, "64KiB", backup=old)
    assert (report.path, report.backup, superblock(path).capacity) == (str(place), str(old), 65536)
    assert names(path.parent) == ["old.wal", path.name]


def test_file_that_is_removed_meanwhile_does_not_come_back(path: Path) -> None:
    """What is found at the name when the new file is complete is not the log that was read."""

    def remove(step: Step) -> None:
        if step.name == "allocate":
            path.unlink()

    with pytest.raises(FileNotFoundError):
        pmwal.resize(path, "64KiB", seam=BarrierRecorder(remove))
    assert names(path.parent) == []


@pytest.mark.parametrize("kind", ["no-tmpfile", "no-link", "neither"])
def test_file_systems_without_unnamed_files_or_links(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A hidden file takes the name; nothing else is left. Without links there can be no backup, and nothing is changed."""
    target, before = path.with_name("copy.wal"), kept(path)
    if kind != "no-link":
        monkeypatch.setattr("pmwal.storage.create._tmpfile", lambda directory: None)
    if kind != "no-tmpfile":
        monkeypatch.setattr(os, "link", refuse_to_link)
    pmwal.copy(path, target)
    pmwal.resize(path, "64KiB")
    assert (kept(target), kept(path), superblock(path).capacity) == (before, before, 65536)
    assert names(path.parent) == [target.name, path.name]
    if kind != "no-tmpfile":
        with pytest.raises(OSError, match="no hard links here") as caught:
            pmwal.resize(path, "128KiB", backup=path.with_name("old.wal"))
        assert (caught.value.errno, superblock(path).capacity) == (errno.EPERM, 65536)
        assert names(path.parent) == [target.name, path.name]


def refuse_to_link(*args: Any, **options: Any) -> None:
    """What link(2) does on vfat."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("fails", [errno.EIO, errno.ENOSPC])
def test_old_file_that_cannot_be_ended_does_not_matter(shm_dir: Path, fails: int) -> None:
    """The log is in the new file by then. As a backup the old one is as its writer left it."""
    path, old = make_log(shm_dir / "test.wal", close=False, medium="file"), shm_dir / "old.wal"
    expected = read(path)

    def fail(step: Step) -> None:
        if step.name == "flush":
            raise OSError(fails, os.strerror(fails))

    pmwal.resize(path, "64KiB", backup=old, seam=BarrierRecorder(fail))
    assert (read(path), superblock(path).capacity) == (expected, 65536)


# -- beside writers


def test_log_that_is_open_for_writing_is_not_resized(path: Path) -> None:
    """The writer has its lock."""
    with open_small(path), pytest.raises(pmwal.WalLocked, match=r"can resize it with wal\.resize\(size\)"):
        pmwal.resize(path, "64KiB")


def test_copy_beside_a_writer_has_what_was_durable(path: Path) -> None:
    """What is only published is not in it."""
    target = path.with_name("copy.wal")
    with open_small(path, commit="manual", on_full="overwrite", medium="file") as wal:
        wal.append(b"durable")
        wal.commit()
        expected = contents(wal)
        wal.append(b"published")
        pmwal.copy(path, target)
        wal.append(b"later")
        with pmwal.open(target, "r") as reader:
            assert contents(reader) == expected


@pytest.mark.parametrize("times", [1, 3])
def test_copy_that_is_overtaken_begins_again(path: Path, times: int) -> None:
    """It is the log as it was at one moment: a writer that overwrites what was not read yet moves that moment."""
    target, left = path.with_name("copy.wal"), times
    with open_small(path, on_full="overwrite", medium="file") as wal:
        expected: list[tuple[int, bytes]] = []

        def overtake(step: Step) -> None:
            nonlocal left, expected
            if step.name == "allocate" and left:
                left -= 1
                for number in range(100):
                    wal.append(b"%d" % number * 100)
                expected = contents(wal)

        pmwal.copy(path, target, seam=BarrierRecorder(overtake))
        with pmwal.open(target, "r") as reader:
            assert contents(reader) == expected
    assert names(path.parent) == ["copy.wal", "test.wal"]


def test_copy_that_is_overtaken_again_and_again_is_given_up(path: Path) -> None:
    """It says so, and leaves nothing."""
    with open_small(path, on_full="overwrite", medium="file") as wal:

        def overtake(step: Step) -> None:
            if step.name == "allocate":
                for number in range(100):
                    wal.append(b"%d" % number * 100)

        with pytest.raises(pmwal.Overrun, match="8 times its writer used the space of records"):
            pmwal.copy(path, path.with_name("copy.wal"), seam=BarrierRecorder(overtake))
    assert names(path.parent) == [path.name]


# -- large logs


@pytest.fixture
def large(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same log, copied as a large one is: a thread makes the next pages, and few of them at a time."""
    monkeypatch.setattr("pmwal.opening.copying.LARGE_RING", 0)
    monkeypatch.setattr("pmwal.reading.walk.PIECE", 2 * PAGE)
    return path


def test_large_log_is_copied_with_a_thread(large: Path) -> None:
    """It has ended when the copy is complete."""
    before = threading.active_count()
    pmwal.copy(large, large.with_name("copy.wal"))
    pmwal.resize(large, "64KiB")
    assert kept(large.with_name("copy.wal")) == kept(large)
    assert threading.active_count() == before


@pytest.mark.parametrize("fault", ["write", "damage", "no thread"])
def test_thread_ends_with_the_copy_whatever_fails(large: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """An error of either side is raised, after the thread has read its last; without a thread there is no fault at all."""
    before, target = threading.active_count(), large.with_name("copy.wal")
    if fault == "no thread":
        monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
        pmwal.copy(large, target)
        assert kept(target) == kept(large)
        return
    middle = [seq for seq, found in whole_records(large).items() if found.header.length > 50][3]

    def hook(step: Step) -> None:
        if step.name == "allocate" and fault == "damage":
            damage_record(large, middle)
        elif step.name == "write" and fault == "write" and step.offset > superblock(large).ring_offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(pmwal.CorruptWal if fault == "damage" else OSError) as caught:
        pmwal.copy(large, target, seam=BarrierRecorder(hook))
    assert (threading.active_count(), target.exists()) == (before, False)
    assert caught.tb is not None  # until here: what a frame holds would end with it


def refuse_to_start(thread: threading.Thread) -> None:
    """What starting a thread does at a limit."""
    raise RuntimeError("can't start new thread")
