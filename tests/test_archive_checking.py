"""``pmwal verify`` of archives: damage, missing files, files that are there twice, and nothing that is no fault."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import pmwal
from archived import FORMATS, archive, kept, names, rules
from commands import Cli, damage_record
from pmwal.cli.archiving import verdicts
from pmwal.logs.archives.file import ArchiveFile
from support import open_small


@pytest.fixture(params=FORMATS)
def archives(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> list[Path]:
    """Four files of ten records each, of several kinds, in a directory of their own."""
    to = tmp_path / "to"
    with open_small(path) as wal:
        for first in (1, 11, 21, 31):
            for number in range(first, first + 10):
                wal.append(b'{"message":"paid","order":%d,"user":"ada"}' % number, kind=number % 3)
            archive(path, to=to, how=rules(request.param))
    return [to / name for name in names(to)]


def test_sound_archives_have_status_0(path: Path, archives: list[Path], cli: Cli) -> None:
    """As a directory, a pattern and a file, with the log beside them and without; nothing is written to."""
    to = archives[0].parent
    before = {each: (each.read_bytes(), os.stat(each).st_mtime_ns) for each in archives}
    ran = cli("verify", to)
    assert (ran.status, ran.err, len(ran.lines)) == (0, "", 6)
    assert ran.lines[0].startswith(f"{archives[0]}: sound: 10 records, 1 to 10 of test [")
    assert ran.lines[4].endswith(": 4 archives of a log, 40 records, 1 to 40")
    assert ran.lines[5] == "4 archives: 4 sound"
    both = cli("verify", path, to)
    assert (both.status, both.lines[-2:]) == (0, ["1 log: 1 sound", "4 archives: 4 sound"])
    assert cli("verify", archives[2]).lines[0].startswith(f"{archives[2]}: sound: ")
    assert len(cli("verify", archives[2]).lines) == 1
    assert cli("verify", "-q", to) == (0, b"", "")
    assert {each: (each.read_bytes(), os.stat(each).st_mtime_ns) for each in archives} == before


def test_json_has_an_object_for_each_file_and_each_log(archives: list[Path], cli: Cli) -> None:
    """With the numbers, and what is missing."""
    archives[1].unlink()
    ran = cli("verify", "--json", archives[0].parent)
    *files, chain = map(json.loads, ran.lines)
    assert [(each["first"], each["last"], each["status"], each["log"]) for each in files] == [
        (first, first + 9, 0, "test") for first in (1, 21, 31)
    ]
    assert (ran.status, chain["status"], chain["missing"], chain["gone"], chain["archives"]) == (2, 2, [[11, 20]], [], 3)


def test_file_between_others_is_missed_and_old_ones_are_not(archives: list[Path], cli: Cli) -> None:
    """Retention removes the oldest; nothing removes one between others."""
    archives[0].unlink()
    assert cli("verify", archives[0].parent).status == 0
    archives[2].unlink()
    ran = cli("verify", archives[0].parent)
    assert ran.status == 2
    assert "INCOMPLETE: 2 archives of a log, 30 records, 11 to 40; records 21 to 30 in no archive" in ran.text


@pytest.mark.parametrize("which", [0, 3])
def test_every_damaged_byte_is_noticed_or_of_no_meaning(archives: list[Path], cli: Cli, which: int) -> None:
    """Where verify says that a file is sound, all its records are as they were."""
    whole, expected = archives[which].read_bytes(), kept(archives[which])
    noticed = 0
    for at in range(0, len(whole), 29):
        archives[which].write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        ran = cli("verify", archives[which])
        assert ran.status in (0, 2), ran.err
        noticed += ran.status == 2
        assert ran.status == 2 or kept(archives[which]) == expected
    assert noticed > len(whole) // 29 // 2


@pytest.mark.parametrize("length", [0, 10, 300, -1])
def test_file_that_was_cut_off_is_damaged_and_not_missing(archives: list[Path], cli: Cli, length: int) -> None:
    """Its numbers are those of its name; the others are still checked."""
    os.truncate(archives[1], length if length >= 0 else archives[1].stat().st_size + length)
    ran = cli("verify", archives[0].parent)
    assert (ran.status, ran.lines[-1]) == (2, "4 archives: 3 sound, 1 corrupt")
    assert ran.lines[1].startswith(f"{archives[1]}: CORRUPT: this archive is damaged")
    assert "in no archive" not in ran.text


def test_damage_that_only_other_programs_would_meet_is_noticed(archives: list[Path], cli: Cli) -> None:
    """A column of a field in Parquet; what stands between the lines and the summary in a file of JSON lines."""
    file = archives[0]
    whole = file.read_bytes()
    if file.suffix == ".parquet":
        from pyarrow import parquet  # noqa: PLC0415

        group = parquet.ParquetFile(file).metadata.row_group(0)
        (column,) = [group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "user"]
        at = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1  # the last of its pages
    else:
        at = whole.index((0x184D2A5C).to_bytes(4, "little"))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    kept(file)  # pmwal reads its records all the same
    assert cli("verify", file).status == 2


def test_same_records_in_two_files_are_named(archives: list[Path], cli: Cli, path: Path) -> None:
    """As where a file that was moved away is brought back: readers take one, and status 1 says that one can go."""
    to = archives[0].parent
    for each in archives[2:]:
        each.rename(to.parent / each.name)
    with open_small(path) as wal:
        wal.append(b"one more")
    form = next(form for form in FORMATS if archives[0].name.endswith(form))
    (again,) = archive(path, to=to, how=rules(form))
    shutil.copy(to.parent / archives[2].name, archives[2])
    ran = cli("verify", to)
    assert ran.status == 1
    assert f"twice: 4 archives of a log, 41 records, 1 to 41; records 21 to 30 in both {archives[2]} and {again.path}" in ran.text


def test_gap_and_rollback_that_the_files_tell_of_are_no_fault(archives: list[Path], cli: Cli, path: Path) -> None:
    """They are named, and the status is 0: nothing that was archived is missing."""
    with open_small(path) as wal:
        wal.extend([b"lost"] * 5)
        wal.append(b"kept")
        wal.truncate(before=46)
        archive(path, to=archives[0].parent)
        wal.append(b"more")
        archive(path, to=archives[0].parent)
        wal.rollback(after=46)
        wal.append(b"instead")
        archive(path, to=archives[0].parent)
    ran = cli("verify", archives[0].parent)
    assert ran.status == 0, ran.text
    assert "records 41 to 45 gone from the log before they were archived; 1 record rolled back since, and replaced" in ran.text


def test_status_is_the_worst_of_logs_and_archives(archives: list[Path], cli: Cli, path: Path, tmp_path: Path) -> None:
    """A corrupt log beside sound archives, and what is no file among them."""
    damage_record(path, 33)
    assert cli("verify", archives[0].parent, path).status == 2
    shutil.move(archives[3], tmp_path / "away")
    os.mkfifo(archives[3])
    ran = cli("verify", archives[0].parent)
    assert ran.status == 3
    assert f"{archives[3]}: cannot be opened: a FIFO with the name of an archive" in ran.text
    assert cli("verify", tmp_path / "none.parquet").status == 3


def test_file_with_another_name_is_checked_if_it_is_named(archives: list[Path], cli: Cli, tmp_path: Path) -> None:
    """By what its summary says; of a file that has none nothing is known."""
    renamed = tmp_path / f"january{''.join(archives[0].suffixes[-2:])}"
    archives[0].rename(renamed)
    ran = cli("verify", renamed, archives[1])
    assert (ran.status, len(ran.lines)) == (0, 3)
    assert ran.lines[0].startswith(f"{renamed}: sound: 10 records, 1 to 10 of test")
    renamed.write_bytes(b"")
    assert cli("verify", renamed).status == 2


def test_file_that_is_removed_meanwhile_is_no_fault(archives: list[Path], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention runs beside it."""
    check = verdicts.check_file

    def check_later(path: str) -> object:
        archives[0].unlink(missing_ok=True)
        return check(path)

    monkeypatch.setattr(verdicts, "check_file", check_later)
    ran = cli("verify", archives[0].parent)
    assert (ran.status, ran.lines[-1]) == (0, "3 archives: 3 sound")


def test_verify_of_archives_needs_pyarrow_and_of_logs_does_not(
    archives: list[Path], cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli("verify", path).status == 0
    assert "pip install 'pmwal[archive]'" in cli("verify", archives[0]).err


def test_library_reads_what_verify_calls_sound(archives: list[Path]) -> None:
    """The control: all of it."""
    with pmwal.LogSet(archives[0].parent) as logs:
        assert [record.seq for record in logs] == list(range(1, 41))


# -- what the archiver checks when it starts


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the archives that are opened."""
    found: list[str] = []
    content = ArchiveFile._content

    def noted(self: ArchiveFile) -> object:
        found.append(os.path.basename(self.path))
        return content(self)

    monkeypatch.setattr(ArchiveFile, "_content", noted)
    return found


def test_archiver_names_what_is_missing_and_continues(archives: list[Path], cli: Cli, path: Path) -> None:
    """With the numbers and what to do, once for each hole; the status is that of what it archives."""
    to = archives[0].parent
    for each in (archives[0], archives[2]):
        each.unlink()
    with open_small(path) as wal:
        wal.append(b"new")
    ran = cli("archive", path, to, "--once")
    assert (ran.status, len(ran.lines)) == (0, 1)
    advice = f"bring the file back from a copy; pmwal verify {to} checks all files"
    assert ran.err == f"pmwal: {path}: records 21 to 30 in no archive of {to}, though later ones are; {advice}\n"


def test_archiver_opens_no_file_but_the_last(archives: list[Path], cli: Cli, path: Path, opened: list[str]) -> None:
    """Where none is missing, the start costs a look at the names, however many files there are."""
    assert cli("archive", path, archives[0].parent, "--once").status == 0
    assert set(opened) == {archives[-1].name}


def test_archiver_reports_no_hole_that_is_none(archives: list[Path], cli: Cli, path: Path) -> None:
    """Records that were gone before they were archived, rolled back ones, and a branch whose files are gone."""
    to = archives[0].parent
    with open_small(path) as wal:
        wal.extend([b"lost"] * 5)
        wal.append(b"kept")
        wal.truncate(before=46)
        assert "records 41 to 45 gone" in cli("archive", path, to, "--once").err
        wal.append(b"more")
        for _ in range(2):
            wal.rollback(after=46)
            wal.append(b"instead")
            assert "in no archive" not in cli("archive", path, to, "--once").err
    assert cli("archive", path, to, "--once").err == ""


def test_hole_before_a_damaged_file_is_named(archives: list[Path], cli: Cli, path: Path) -> None:
    """That file cannot say that the numbers were never archived; it is refused only where it is the last."""
    archives[1].unlink()
    archives[2].write_bytes(b"")
    ran = cli("archive", path, archives[0].parent, "--once")
    assert (ran.status, "records 11 to 20 in no archive" in ran.err) == (0, True)
