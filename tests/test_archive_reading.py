"""Reading archives: damage, selection, order among other logs, following, and every command that reads logs."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmwal
from archived import AWKWARD, FORMATS, archive, as_rows, kept, names, rules
from commands import Cli
from pmwal import events
from pmwal.cli.archiving import archiver
from pmwal.cli.reading import spans as spans_module
from pmwal.errors import CorruptWal, Overrun
from pmwal.logs.archives import reader as archived_reader
from pmwal.logs.archives.file import ArchiveFile
from pmwal.logs.paths import archives_in
from support import BarrierRecorder, open_small

MINUTE = 60 * 10**9
START = 1_700_000_000 * 10**9


def minutes(path: Path, first: int, last: int, *, uuid: bytes = bytes(range(16)), step: int = MINUTE) -> None:
    """Records of consecutive minutes; those of full hours have a kind of their own."""
    seam = BarrierRecorder(uuid=uuid)
    with open_small(path, seam=seam) as wal:
        for number in range(first, last + 1):
            seam.time_ns = START + number * step
            wal.append(b"minute %d" % number, kind=30 if number % 60 == 0 else 20)


@pytest.fixture(params=FORMATS)
def archived(request: pytest.FixtureRequest, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archives of 200 minutes, in several files of several groups, whose first half is no longer in the log."""
    monkeypatch.setattr(archiver, "_GROUP_RECORDS", 8)
    minutes(path, 1, 200)
    archive(path, to=tmp_path / "to", how=rules(request.param, size=2500))
    assert len(names(tmp_path / "to")) > 3
    with pmwal.open(path) as wal:
        wal.truncate(before=101)
    return tmp_path / "to"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The groups that are decoded: names of files, and numbers of groups."""
    found: list[tuple[str, int]] = []
    rows = ArchiveFile.rows

    def noted(self: ArchiveFile, index: int) -> object:
        found.append((Path(self.path).name, index))
        return rows(self, index)

    monkeypatch.setattr(ArchiveFile, "rows", noted)
    return found


# -- selection


def test_time_is_found_without_reading_the_rest(path: Path, archived: Path, looked_at: list[tuple[str, int]]) -> None:
    """Since and until select the same run as in a log, and most groups are never decoded."""
    for since, until in ((50, 60), (95, 105), (0, 3), (198, 300), (150, 160)):
        with pmwal.LogSet([archived, path]) as logs:
            found = logs.read(since=START + since * MINUTE, until=START + until * MINUTE + 1000)
            expected = [b"minute %d" % number for number in range(max(since, 1), min(until, 200) + 1)]
            assert [record.data for record in found] == expected
    groups = 0
    for name in archives_in(str(archived)):
        with contextlib.closing(ArchiveFile(name)) as file:
            groups += len(file.summary.groups)
    looked_at.clear()
    with pmwal.LogSet(archived) as logs:
        assert len(list(logs.read(since=START + 50 * MINUTE, until=START + 52 * MINUTE + 1000))) == 3
    assert len(set(looked_at)) < groups / 2


def test_kinds_and_exact_times_skip_groups(archived: Path, looked_at: list[tuple[str, int]]) -> None:
    """By what the summary says of each group."""
    with pmwal.LogSet(archived) as logs:
        assert [record.data for record in logs.read(kind=30)] == [b"minute 60", b"minute 120", b"minute 180"]
        assert len(set(looked_at)) == 3
        looked_at.clear()
        found = logs.read(since=START + 60 * MINUTE, until=START + 61 * MINUTE + 1000, exact=True)
        assert [record.data for record in found] == [b"minute 60", b"minute 61"]
        assert len(set(looked_at)) <= 2


def test_one_group_at_a_time_is_in_memory(path: Path, archived: Path) -> None:
    """However much is read, few groups are kept, and one file is open."""
    with pmwal.LogSet([archived, path]) as logs:
        (reader,) = logs.logs.values()
        assert isinstance(reader, archived_reader.ArchivedReader)
        for record in logs:
            assert len(reader._groups) <= 4
            assert sum(file._opened is not None for file in reader._files) <= 1
            last = record.seq
    assert last == 200


# -- as a reader


def test_reader_of_archives_is_a_reader(path: Path, archived: Path) -> None:
    """Numbers, cursors and slices are those of the log."""
    with pmwal.LogSet([archived, path]) as logs:
        ((name, reader),) = logs.logs.items()
        assert (name, reader.path, len(reader)) == (str(path), str(path), 200)
        assert (reader.first_seq, reader.committed_seq, reader.uuid) == (1, 200, bytes(range(16)).hex())
        assert (reader[1].data, reader[100].data, reader[101].data) == (b"minute 1", b"minute 100", b"minute 101")
        assert [record.seq for record in reader.read(99, 103)] == [99, 100, 101, 102]
        assert [record.seq for record in reader.read(reader[150].cursor)][:2] == [151, 152]
        assert [record.seq for record in reader.read(kind=30)] == [60, 120, 180]
        for seq in (0, 201):
            with pytest.raises(IndexError):
                reader[seq]
        with pytest.raises(ValueError, match="this one is read from archives"):
            reader.read_array("u1")
        assert reader.stats().capacity == 16384
        frame = reader.frame(200, size_max=100)
        assert frame is not None
        assert (frame.first, frame.cursor) == (200, reader[200].cursor)
        with pytest.raises(ValueError, match="archives are among these"):
            logs.consumer("mail")
    with pmwal.LogSet(archived) as logs:
        (reader,) = logs.logs.values()
        for use in (reader.follow, reader.stats, lambda: reader.consumer("mail"), lambda: reader.frame(1, size_max=100)):
            with pytest.raises(ValueError, match="only archives of this log are there"):
                use()


def test_cursor_of_a_set_continues_in_archives(path: Path, archived: Path) -> None:
    """Where the ring alone would have lost the place."""
    with pmwal.LogSet([archived, path]) as logs:
        records = logs.read()
        assert [next(records).seq for _ in range(42)][-1] == 42
        cursor = logs.cursor
    with pmwal.LogSet([archived, path]) as logs:
        assert [record.seq for record in logs.read(cursor)] == list(range(43, 201))
    with pmwal.LogSet(path) as logs:
        logs.read(cursor)
        assert logs.missed == 58


def test_archives_are_merged_with_other_logs(path: Path, archived: Path) -> None:
    """By time; each log keeps its order."""
    other = path.with_name("other.wal")
    minutes(other, 1, 20, uuid=bytes(range(16, 32)), step=10 * MINUTE + 1)
    rows = kept(archived, path, other)
    assert len(rows) == 220
    assert [row[2] for row in rows] == sorted(row[2] for row in rows)


def test_follow_continues_from_archives_into_the_ring(path: Path, archived: Path) -> None:
    """Records that are new come after those of the archives, also after the log was removed."""
    with pmwal.LogSet([archived, path.parent]) as logs:
        records = logs.follow(timeout=0)
        assert [record.seq for record in records] == list(range(1, 201))
        cursor = logs.cursor
        with pmwal.open(path) as wal:
            wal.append(b"new")
            assert [record.data for record in logs.follow(cursor, timeout=0)] == [b"new"]
            cursor = logs.cursor
        path.unlink()
        assert list(logs.follow(cursor, timeout=0)) == []


def test_ring_that_is_overwritten_meanwhile_is_read_from_new_archives(path: Path, archived: Path, tmp_path: Path) -> None:
    """A read that began before looks for archives again."""
    with pmwal.open(path) as wal:
        wal.extend([b"later"] * 3)
        with pmwal.LogSet([archived, path]) as logs:
            records = logs.read()
            assert next(records).seq == 1
            archive(path, to=archived)
            wal.truncate(before=204)
            wal.append(b"newest")
            assert [record.seq for record in records] == list(range(2, 204))
            assert logs.missed == 0
    assert [row[0] for row in kept(archived, path)] == list(range(1, 205))


@pytest.mark.parametrize("piece", [1, 5, 64])
def test_gap_is_missed_in_both_directions(
    path: Path, archived: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """What is before and after it is read, and the gap is reported once, however it is read, with status 1."""
    monkeypatch.setattr(spans_module, "PIECE", piece)
    monkeypatch.setattr(spans_module, "_PIECE_MAX", piece)
    Path(sorted(archives_in(str(archived)))[1]).unlink()
    with pmwal.LogSet(archived) as logs:
        seqs = [record.seq for record in logs]
        assert logs.missed == 200 - len(seqs) > 0
        there = [record.seq for record in logs.read(since=START + 3 * MINUTE)]
        assert there == seqs[2:]
        (reader,) = logs.logs.values()
        with pytest.raises(Overrun):
            list(reader)
    forwards, backwards = cli("cat", "-o", "raw", archived), cli("cat", "-r", "-o", "raw", archived)
    assert forwards.lines == [f"minute {seq}" for seq in seqs] == backwards.lines[::-1]
    assert (forwards.status, backwards.status) == (1, 1)
    assert forwards.err == backwards.err
    assert forwards.err.count("overwritten or truncated before they were read") == 1


# -- damage


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_noticed_or_changes_nothing(path: Path, tmp_path: Path, form: str) -> None:
    """No flipped byte and no cut end gives other records; what is noticed names the file, and the others are read."""
    with open_small(path) as wal:
        wal.append(b"of another file")
        archive(path, to=tmp_path, how=rules(form))
        wal.extend(AWKWARD * 2)
        expected = as_rows(wal)
        (written,) = archive(path, to=tmp_path, how=rules(form))
    whole, noticed = Path(written.path).read_bytes(), 0
    step = len(whole) // 60
    spoilt = [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(1, len(whole), step)]
    for data in (*spoilt, *(whole[:length] for length in range(0, len(whole), 5 * step)), whole[:-1], whole + b"x"):
        Path(written.path).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            with pmwal.LogSet(tmp_path) as logs:
                rows = as_rows(logs)
                if logs.problems:
                    ((named, error),) = logs.problems.items()
                    assert (named, rows[0]) == (written.path, expected[0])
                    assert isinstance(error, CorruptWal)
                    assert str(error).startswith(f"{written.path}: this archive is damaged")
                    noticed += 1
                else:
                    assert rows == expected
    assert noticed > 20


def test_commands_report_a_damaged_archive(archived: Path, cli: Cli) -> None:
    """By name, once, with status 2; the other files are shown."""
    broken = Path(sorted(archives_in(str(archived)))[1])
    broken.write_bytes(broken.read_bytes()[:-3])
    for command in (("cat", "-o", "raw"), ("logs", "-o", "cat"), ("tail", "-n", "500", "-o", "raw")):
        ran = cli(*command, archived)
        assert ran.status == 2
        assert ran.err.count("this archive is damaged") == 1
        assert str(broken) in ran.err
        assert "its records are missing, and other archives are read; restore it from a copy" in ran.err
        assert 100 < len(ran.lines) < 200


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_time_is_searched_around_a_damaged_file(path: Path, tmp_path: Path, broken: int, cli: Cli) -> None:
    """Of the three, the newest too: it is a problem of the set, the others are selected from, and the status is 2."""
    for part in range(3):
        minutes(path, part * 10 + 1, part * 10 + 10)
        archive(path, to=tmp_path)
    file = Path(archives_in(str(tmp_path))[broken])
    file.write_bytes(file.read_bytes()[:300])
    there = [seq for seq in range(1, 31) if (seq - 1) // 10 != broken]
    for since, until in ((None, 7), (1, None), (5, 25), (15, None), (25, None), (None, 30), (29, 40), (100, None)):
        bounds = {"since": since, "until": until}
        chosen = {name: START + at * MINUTE + (name == "until") for name, at in bounds.items() if at is not None}
        expected = [seq for seq in there if (since or 1) <= seq <= (until or 30)]
        with warnings.catch_warnings(), pmwal.LogSet(tmp_path) as logs:
            warnings.simplefilter("ignore", RuntimeWarning)
            assert [record.seq for record in logs.read(**chosen)] == expected, bounds  # type: ignore[arg-type]
            assert set(logs.problems) <= {str(file)}
    ran = cli("export", "--since", f"@{START // 10**9}", tmp_path)
    assert (ran.status, len(ran.lines), ran.err.count(str(file))) == (2, 20, 1)


def test_archive_that_is_unlike_its_name_is_damaged(archived: Path) -> None:
    """A file that was renamed over another one is not taken for it."""
    first, second = sorted(archives_in(str(archived)))[:2]
    shutil.copy(first, second)
    with pmwal.LogSet(archived) as logs, pytest.warns(RuntimeWarning, match="unlike its name"):
        list(logs)


def test_file_with_another_name_is_read_if_it_is_named(archived: Path, tmp_path: Path) -> None:
    """In a directory it is none of ours."""
    first = Path(sorted(archives_in(str(archived)))[0])
    renamed = tmp_path / f"january{'.parquet' if first.suffix == '.parquet' else '.jsonl.zst'}"
    with contextlib.closing(ArchiveFile(str(first))) as file:
        last = file.summary.last
    first.rename(renamed)
    with pmwal.LogSet(renamed) as logs:
        assert [record.seq for record in logs] == list(range(1, last + 1))
    renamed.rename(archived / renamed.name)
    assert [row[0] for row in kept(archived)] == list(range(last + 1, 201))


def test_foreign_parquet_is_refused(tmp_path: Path, cli: Cli) -> None:
    """With what to know about it."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
    ran = cli("cat", tmp_path / "a.parquet")
    assert (ran.status, ran.out) == (2, b"")
    assert "it has no summary, so pmwal archive did not write it" in ran.err


# -- commands


def test_commands_read_archives_like_logs(path: Path, archived: Path, cli: Cli) -> None:
    """cat, logs, tail and export: the same records from archives and ring as from a ring that has them all."""
    expected = [f"minute {number}" for number in range(1, 201)]
    assert cli("cat", "-o", "raw", archived, path).lines == expected
    assert cli("cat", "-r", "-o", "raw", archived, path).lines == expected[::-1]
    assert cli("cat", "-n", "3", "-o", "raw", archived).lines == expected[-3:]
    assert cli("tail", "-n", "2", "-o", "raw", archived).lines == expected[-2:]
    assert cli("logs", "-o", "cat", archived, path).lines == expected
    assert cli("logs", "-o", "cat", "-p", "warning", archived, path.parent).lines == ["minute 60", "minute 120", "minute 180"]
    assert cli("cat", "-o", "raw", "--kind", "30", archived).lines == ["minute 60", "minute 120", "minute 180"]
    assert len(cli("export", archived, path).lines) == 200
    (line,) = cli("logs", "-n", "1", archived).lines
    assert re.search(r" test-00010203 (INFO +)?minute 200$", line)
    for arguments in (("cat", str(archived / "*")), ("cat", *archives_in(str(archived)))):
        assert cli(*arguments, "-o", "raw").lines == expected


def test_cursor_file_continues_over_archives(path: Path, archived: Path, tmp_path: Path, cli: Cli) -> None:
    """What the ring has lost meanwhile comes from the archives."""
    cursor = tmp_path / "cursor"
    assert len(cli("tail", "-n", "500", "--cursor-file", cursor, "-o", "raw", archived, path).lines) == 200
    with pmwal.open(path) as wal:
        wal.extend([b"x", b"y"])
        archive(path, to=archived)
        wal.truncate(before=203)
    assert cli("tail", "--cursor-file", cursor, "-o", "raw", archived, path).lines == ["x", "y"]


def test_events_in_archives_are_decoded(path: Path, tmp_path: Path, cli: Cli) -> None:
    """Also when their definitions are in another file than they."""
    with pmwal.open(path, size="64KiB") as wal:
        left = events.Logger(wal).event("{user} left", level=30)
        for user in ("ada", "bob", "eve"):
            left(user)
            archive(path, to=tmp_path)
    assert len(names(tmp_path)) == 3
    assert cli("logs", "-o", "cat", tmp_path).lines == ["ada left", "bob left", "eve left"]
    assert cli("logs", "-o", "cat", "--field", "user=eve", tmp_path).lines == ["eve left"]


def test_reading_logs_loads_no_pyarrow(path: Path) -> None:
    """A set of logs alone needs nothing of it."""
    from processes import run_script  # noqa: PLC0415

    open_small(path).close()
    ran = run_script("import sys, pmwal; list(pmwal.LogSet(sys.argv[1])); print('pyarrow' in sys.modules)", path)
    assert ran.stdout == "False\n", ran.stderr
    assert sys.version_info >= (3, 11)


@pytest.mark.parametrize("missing", ["pyarrow", "pyarrow.parquet"])
def test_without_pyarrow_logs_are_read_and_archives_left_out(
    path: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """With one warning that says what to install, and the status of a file that cannot be opened; the log is read."""
    with open_small(path) as wal:
        for data in (b"one", b"two"):
            wal.append(data)
            archive(path, to=path.parent)
    first, second = archives_in(str(path.parent))
    other = shutil.copy(second, tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    hint = "archives require pyarrow, which is not installed: pip install 'pmwal[archive]'"
    for command in (("cat", "-o", "raw"), ("logs", "-o", "cat"), ("tail", "-o", "raw"), ("export", "--format", "length-prefixed")):
        ran = cli(*command, path.parent)
        assert (ran.status, ran.err) == (
            3,
            f"pmwal: warning: 2 archives, {first} the first: left out, only the logs are read: {hint}\n",
        )
        assert b"one" in ran.out
        assert b"two" in ran.out
    ran = cli("cat", tmp_path)
    assert (ran.status, ran.out, ran.err) == (3, b"", f"pmwal: warning: {other}: left out, only the logs are read: {hint}\n")
    with pmwal.LogSet(path.parent) as logs:
        with pytest.warns(RuntimeWarning, match="left out"):
            assert [record.data for record in logs] == [b"one", b"two"]
        assert set(logs.problems) == {first, second}
        Path(second).unlink()
        logs._sources._looked_at = None  # another look at once, without another warning
        assert [record.data for record in logs.follow(timeout=0)] == [b"one", b"two"]
        assert set(logs.problems) == {first}


def test_closed_set_closes_its_archives(path: Path, archived: Path) -> None:
    """No descriptor stays."""

    def opened() -> Iterator[str]:
        return (str(each.resolve()) for each in Path("/proc/self/fd").iterdir())

    with pmwal.LogSet([archived, path]) as logs:
        next(logs.read())
    assert not [name for name in opened() if name.startswith(str(archived))]
