"""Archives that are not the history of their log: after rollbacks, with files gone or damaged, in other directories."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

import pmwal
from archived import FORMATS, archive, as_rows, kept, names, rules
from commands import Cli
from pmwal.logs.archives.names import pieces_of
from support import open_small


def numbered(letter: str, first: int, last: int) -> list[bytes]:
    return [b"%s%d" % (letter.encode(), number) for number in range(first, last + 1)]


def found(*places: Path, **selected: object) -> tuple[list[bytes], int, list[str]]:
    """The payloads that are read, how many records are missed, and the names of the files with problems."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pmwal.LogSet(places) as logs:
            data = [record.data for record in logs.read(**selected)]  # type: ignore[arg-type]
            return data, logs.missed, [Path(name).name for name in logs.problems]


def texts(*payloads: str) -> list[bytes]:
    return [each.encode() for payload in payloads for each in payload.split()]


def seek(path: Path, start: int | str) -> None:
    with pmwal.open(path, "r") as reader, reader.consumer("archive") as consumer:
        consumer.seek(start)


def spoil(file: Path, how: str) -> None:
    if how == "removed":
        file.unlink()
    else:
        os.truncate(file, 300)


# -- files of a branch that are gone or damaged


@pytest.mark.both_engines
@pytest.mark.parametrize("how", ["damaged", "removed"])
@pytest.mark.parametrize("form", FORMATS)
def test_first_file_of_a_branch_still_replaces_older_records(path: Path, tmp_path: Path, form: str, how: str) -> None:
    """Its records are missed, with the log and without; those that were rolled back do not come in their place."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=tmp_path, how=rules(form))
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, 4))
        (first,) = archive(path, to=tmp_path, how=rules(form))
        wal.append(b"b5")
        archive(path, to=tmp_path, how=rules(form))
        wal.truncate(before=6)
        spoil(Path(first.path), how)
        problems = [] if how == "removed" else [Path(first.path).name]
        assert found(tmp_path) == found(tmp_path, path) == (texts("a1 a2 b5"), 2, problems)


def test_damaged_last_branch_still_replaces_older_records(path: Path, tmp_path: Path) -> None:
    """By its name: no later file says where it began."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=tmp_path)
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, 4))
        (branch,) = archive(path, to=tmp_path)
    spoil(Path(branch.path), "damaged")
    data, _, problems = found(tmp_path)
    assert (data, problems) == (texts("a1 a2"), [Path(branch.path).name])


@pytest.mark.parametrize("how", ["damaged", "removed"])
def test_branch_whose_files_are_all_gone_still_replaces_older_records(path: Path, tmp_path: Path, how: str) -> None:
    """Files of later branches say where it began, also those that another run has written."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 9))
        archive(path, to=tmp_path)
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, 6))
        (branch,) = archive(path, to=tmp_path)
        wal.rollback(after=5)
        wal.extend(numbered("c", 6, 7))
        (last,) = archive(path, to=tmp_path)
        wal.append(b"c8")
        (newest,) = archive(path, to=tmp_path)
        assert newest.summary.branches == ((1, 3), (2, 6))
        spoil(Path(branch.path), how)
        data, missed, _ = found(tmp_path)
        assert (data, missed) == (texts("a1 a2 c6 c7 c8"), 3)
        spoil(Path(last.path), how)
        data, missed, _ = found(tmp_path)
        assert (data, missed) == (texts("a1 a2 c8"), 5)


def test_branch_without_records_replaces_older_ones() -> None:
    """Where only its beginning is known."""
    assert [tuple(piece) for piece in pieces_of([(0, 1, 9), (2, 8, 8), (1, 3, 2)])] == [(1, 3, 0), (8, 9, 1)]


# -- archives that end before the position


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_last_file_is_refused_and_archived_again_when_it_is_moved_away(
    path: Path, tmp_path: Path, form: str, cli: Cli
) -> None:
    """As the error says; nothing is freed that is in no archive."""
    to = tmp_path / "to"
    with open_small(path, on_full="consumed") as wal:
        wal.extend(numbered("a", 1, 3))
        archive(path, to=to, how=rules(form))
        wal.extend(numbered("a", 4, 5))
        (last,) = archive(path, to=to, how=rules(form))
        os.truncate(last.path, 300)
        ran = cli("archive", path, to, "--once")
        assert (ran.status, ran.out, "this archive is damaged" in ran.err) == (3, b"", True)
        os.rename(last.path, tmp_path / "away")
        (again,) = archive(path, to=to, how=rules(form))
        assert (again.summary.first, again.summary.last, again.summary.gap) == (4, 5, None)
        wal.truncate(consumed=True)
        assert [row[3] for row in kept(to, path)] == numbered("a", 1, 5)
        assert archive(path, to=to, how=rules(form)) == []


@pytest.mark.parametrize("size", [1 << 20, 100])
@pytest.mark.parametrize("before", [1, 3, 5, 8, 9])
def test_directory_from_an_older_backup_is_completed(path: Path, tmp_path: Path, before: int, size: int, cli: Cli) -> None:
    """With what the log still has; what it has no longer is reported once, by status 1, and missed."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 3))
        archive(path, to=tmp_path)
        wal.extend(numbered("a", 4, 8))
        (lost,) = archive(path, to=tmp_path)
        Path(lost.path).unlink()
        wal.truncate(before=before)
        gap = (4, before - 1) if before > 4 else None
        if before == 9:  # only a later file can say that they are gone
            assert archive(path, to=tmp_path) == []
            wal.append(b"a9")
        assert archive(path, to=tmp_path, flush=False) == []
        with pmwal.open(path, "r") as reader, reader.consumer("archive") as consumer:
            assert consumer.position == max(4, before) - 1  # so that the writer frees nothing before it is archived
        first, *rest = archive(path, to=tmp_path, how=rules(size=size))
        assert (first.summary.gap, first.summary.first) == (gap, max(4, before))
        assert [each.summary.gap for each in rest] == [None] * len(rest)
        data, missed, _ = found(tmp_path)
        assert (data, missed) == (numbered("a", 1, 3) + numbered("a", max(4, before), max(before, 8)), max(0, before - 4))
        assert cli("archive", path, tmp_path, "--once").lines == [f"{tmp_path}: nothing to archive"]


def test_gap_before_records_that_are_archived_again_is_the_commands_status(path: Path, tmp_path: Path, cli: Cli) -> None:
    """And it is said."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 3))
        archive(path, to=tmp_path)
        wal.extend(numbered("a", 4, 8))
        (lost,) = archive(path, to=tmp_path)
        Path(lost.path).unlink()
        wal.truncate(before=6)
        ran = cli("archive", path, tmp_path, "--once", "--json")
        assert (ran.status, ran.json["gap"], ran.json["first"]) == (1, [4, 5], 6)
        assert "records 4 to 5 gone from the log" in ran.err


@pytest.mark.parametrize("start", ["newest", 6, 4, 2, "oldest"])
def test_position_that_was_set_leaves_no_record_out(path: Path, tmp_path: Path, start: int | str) -> None:
    """Wherever it is, the archives say what is archived."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 3))
        archive(path, to=tmp_path)
        wal.extend(numbered("a", 4, 7))
        seek(path, start)
        archive(path, to=tmp_path)
        wal.append(b"a8")
        archive(path, to=tmp_path)
        assert kept(tmp_path) == as_rows(wal)


@pytest.mark.parametrize("first", [1, 3, 6])
def test_new_directory_gets_what_the_log_still_has(path: Path, tmp_path: Path, first: int) -> None:
    """Though the consumer has acknowledged it to another one; and each of the two continues at its own end."""
    one, other = tmp_path / "one", tmp_path / "other"
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=one)
        wal.truncate(before=first)
        written = archive(path, to=other)
        assert [(each.summary.first, each.summary.last) for each in written] == ([(first, 5)] if first < 6 else [])
        wal.append(b"a6")
        archive(path, to=other)
        wal.append(b"a7")
        archive(path, to=one)
        archive(path, to=other)
        assert [row[3] for row in kept(one)] == numbered("a", 1, 7)
        assert [row[3] for row in kept(other)] == numbered("a", first, 7)


@pytest.mark.parametrize("limits", [{"keep": 1e9}, {"total": 1 << 30}])
def test_archives_that_were_removed_for_their_age_are_not_written_again(
    path: Path, tmp_path: Path, limits: dict[str, float]
) -> None:
    """Then the position says where to continue."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        (first,) = archive(path, to=tmp_path)
        os.unlink(first.path)
        assert archive(path, to=tmp_path, how=rules(**limits)) == []
        wal.append(b"c")
        (written,) = archive(path, to=tmp_path, how=rules(**limits))
        assert (written.summary.first, written.summary.last) == (3, 3)


@pytest.mark.parametrize("start", [3, 5])
def test_last_file_that_was_rolled_back_is_no_end_to_continue_after(path: Path, tmp_path: Path, start: int) -> None:
    """With its branch moved away, the older files end with records that the log has discarded."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=tmp_path)
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, start))
        (branch,) = archive(path, to=tmp_path)
        os.unlink(branch.path)
        archive(path, to=tmp_path)
        wal.append(b"later")
        archive(path, to=tmp_path)
        assert kept(tmp_path) == as_rows(wal)


# -- rollbacks of which the log has freed the place


@pytest.mark.both_engines
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tail", [3, 5, 6, 8])
def test_rollback_is_recognised_after_its_place_was_freed(path: Path, tmp_path: Path, form: str, tail: int) -> None:
    """By the epochs of the log: before the next run by readers of both, and by the run, which says what is lost."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=tmp_path, how=rules(form))
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, 8))
        wal.truncate(before=tail)
        expected = numbered("a", 1, 2) + numbered("b", tail, 8), tail - 3, []
        assert found(tmp_path, path) == expected
        (written,) = archive(path, to=tmp_path, how=rules(form))
        assert (written.summary.rollback, written.summary.first) == (2, tail)
        assert written.summary.gap == ((3, tail - 1) if tail > 3 else None)
        assert found(tmp_path) == found(tmp_path, path) == expected
        assert archive(path, to=tmp_path, how=rules(form)) == []


def test_lost_records_of_a_rollback_are_the_commands_status(path: Path, tmp_path: Path, cli: Cli) -> None:
    """Of cat before the next run, and of the run."""
    with open_small(path) as wal:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=tmp_path)
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, 8))
        wal.truncate(before=6)
        for _ in range(2):
            ran = cli("cat", "-o", "raw", tmp_path, path)
            assert (ran.status, ran.lines) == (1, ["a1", "a2", "b6", "b7", "b8"])
            if len(names(tmp_path)) == 1:
                ran = cli("archive", path, tmp_path, "--once", "--json")
                assert (ran.status, ran.json["gap"], ran.json["rollback"]) == (1, [3, 5], 2)


def test_rollback_while_a_set_is_open_is_recognised(path: Path, tmp_path: Path) -> None:
    """By the next read, also if another rollback to the same place follows."""
    with open_small(path) as wal, pmwal.LogSet([tmp_path, path]) as logs:
        wal.extend(numbered("a", 1, 5))
        archive(path, to=tmp_path)
        assert len(list(logs)) == 5
        wal.rollback(after=2)
        wal.extend(numbered("b", 3, 8))
        archive(path, to=tmp_path)
        wal.rollback(after=5)
        assert [record.data for record in logs] == texts("a1 a2 b3 b4 b5")
        wal.rollback(after=2)
        wal.extend(numbered("c", 3, 8))
        wal.truncate(before=6)
        assert [record.data for record in logs] == texts("a1 a2 c6 c7 c8")
        assert logs.missed == 3


def test_epochs_that_discarded_nothing_replace_nothing(path: Path, tmp_path: Path) -> None:
    """A log that is opened again, and rolled back after what is archived, has the same records."""
    for number in range(4):
        with open_small(path) as wal:
            wal.append(b"%d" % number)
            if number % 2:
                archive(path, to=tmp_path)
                wal.append(b"not archived")
                wal.rollback(after=wal.committed_seq - 1)
            wal.truncate(before=wal.next_seq - 1)
            assert [row[0] for row in kept(tmp_path, path)] == list(range(1 if number else number + 1, number + 2))
