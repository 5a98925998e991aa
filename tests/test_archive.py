"""``pmwal archive``: what is written and when, that each record is archived once, and what happens when something is in the way."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from archived import AWKWARD, FORMATS, archive, as_rows, kept, names, rules
from commands import Cli
from pmwal import events
from pmwal.cli.archiving.archiver import Archiver
from pmwal.cli.archiving.directory import ArchiveDirectory
from pmwal.errors import ConsumerHeld, WalLocked
from pmwal.logs.archives.names import pieces_of
from pmwal.logs.archives.summary import Summary, decode_summary
from pmwal.logs.paths import ArchiveName, parse_name
from pmwal.storage.seam import SYSTEM
from processes import PATIENCE
from support import BarrierRecorder, Step, kill, open_small

OTHER = bytes(range(16, 32))
"""The uuid of a second log."""


def position(path: Path) -> int:
    with pmwal.open(path, "r") as reader, reader.consumer("archive") as consumer:
        return consumer.position


# -- what is kept


@pytest.mark.both_engines
@pytest.mark.parametrize("form", FORMATS)
def test_archive_keeps_every_record_exactly(path: Path, tmp_path: Path, form: str) -> None:
    """Number, kind, time and payload are equal when they are read back, and all is acknowledged."""
    with open_small(path) as wal:
        for number, data in enumerate(AWKWARD * 3):
            wal.append(data, kind=number * 7)
        expected = as_rows(wal)
    (written,) = archive(path, to=tmp_path / "to", how=rules(form))
    assert (written.summary.first, written.summary.last) == (1, len(expected))
    assert kept(tmp_path / "to") == expected == kept(path)
    assert position(path) == len(expected)


@pytest.mark.parametrize("form", FORMATS)
def test_archives_and_ring_are_one_log(path: Path, tmp_path: Path, form: str) -> None:
    """What is in both comes once; what is only in one of them comes, too, whichever is named first."""
    with open_small(path) as wal:
        wal.extend([b"%d" % number for number in range(1, 61)])
        assert len(archive(path, to=tmp_path, how=rules(form, size=1000))) == 3
        wal.extend([b"later"] * 5)
        expected = as_rows(wal)
        assert kept(tmp_path, path) == kept(path, tmp_path) == expected
        wal.truncate(before=41)
        assert kept(tmp_path, path) == expected
        wal.truncate(before=61)
        assert kept(tmp_path, path.parent) == expected
        assert kept(tmp_path) == expected[:60]


def test_both_formats_are_one_log(path: Path, tmp_path: Path) -> None:
    """The format may change from one run to the next."""
    with open_small(path) as wal:
        for form in (*FORMATS, *FORMATS):
            wal.extend([b"a", b"b"])
            archive(path, to=tmp_path, how=rules(form))
        assert kept(tmp_path) == as_rows(wal)
    assert len(names(tmp_path)) == 4


def test_second_run_continues_after_the_first(path: Path, tmp_path: Path) -> None:
    """Nothing is written when there is nothing new, and no file overlaps another."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        archive(path, to=tmp_path)
        assert archive(path, to=tmp_path) == []
        wal.append(b"c")
        (written,) = archive(path, to=tmp_path)
        assert (written.summary.first, written.summary.last) == (3, 3)
        assert kept(tmp_path) == as_rows(wal)


def test_records_of_several_epochs_are_kept_in_order(path: Path, tmp_path: Path) -> None:
    """A clock that was set back between two opens changes no order, as with the ring."""
    seam = BarrierRecorder()
    for time_ns in (3 * 10**18, 2 * 10**18 - 10**17, 2 * 10**18):
        seam.time_ns = time_ns
        with open_small(path, seam=seam) as wal:
            wal.extend([b"a", b"b"])
    with pmwal.LogSet(path) as ring:
        expected = as_rows(ring.read(since=2 * 10**18 - 10**16))
    archive(path, to=tmp_path)
    assert kept(tmp_path) == kept(path)
    with pmwal.LogSet(tmp_path) as logs:
        assert as_rows(logs.read(since=2 * 10**18 - 10**16)) == expected


def test_lost_position_makes_no_record_come_twice(path: Path, tmp_path: Path) -> None:
    """The archives say where to continue: after the consumer was forgotten, and after it was moved back."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
        archive(path, to=tmp_path)
        Path(f"{path}.consumers", "archive").unlink()
        assert archive(path, to=tmp_path) == []
        with pmwal.open(path, "r") as reader, reader.consumer("archive") as consumer:
            assert consumer.position == 3
            consumer.seek(2)
        wal.append(b"d")
        archive(path, to=tmp_path)
        assert kept(tmp_path) == as_rows(wal)


# -- when


def test_file_is_written_when_it_is_due(path: Path, tmp_path: Path) -> None:
    """By size, by half of a ring, and by age; before that nothing is."""
    with open_small(path) as wal:
        wal.extend([bytes(100)] * 5)
        assert archive(path, to=tmp_path, how=rules(size=4000), flush=False) == []
        assert len(archive(path, to=tmp_path, how=rules(size=700), flush=False)) == 1
        wal.append(b"young")
        assert len(archive(path, to=tmp_path, how=rules(seconds=1e-9), flush=False)) == 1
        wal.extend([bytes(2000)] * 5)
        assert len(archive(path, to=tmp_path, flush=False)) == 1
        assert archive(path, to=tmp_path, flush=False) == []


def test_writer_that_waits_for_room_gets_it(path: Path, tmp_path: Path) -> None:
    """on_full="consumed" keeps what is not archived, and frees what is."""
    with open_small(path, on_full="consumed", timeout=0, consumers=["archive"]) as wal:
        with contextlib.suppress(pmwal.WalFull):
            for _ in range(wal.capacity):
                wal.append(bytes(1000))
        expected = as_rows(wal)
        archive(path, to=tmp_path, flush=False)
        wal.append(bytes(1000))
        assert wal.first_seq > 1
        assert kept(tmp_path, path)[: len(expected)] == expected


def test_old_archives_are_removed_by_age_and_size(path: Path, tmp_path: Path) -> None:
    """The oldest first, of any log, and nothing else that is there."""
    with open_small(path) as wal:
        for _ in range(4):
            wal.extend([b"a", b"b"])
            archive(path, to=tmp_path)
        paths = [tmp_path / name for name in names(tmp_path)]
        for age, each in enumerate(reversed(paths)):
            os.utime(each, (os.stat(each).st_mtime - 1000 * (age + 1),) * 2)
        foreign = tmp_path / "sales.parquet"
        foreign.write_bytes(b"mine")
        os.utime(foreign, (0, 0))
        wal.append(b"c")
        archive(path, to=tmp_path, how=rules(keep=3500.0))
        assert [each.exists() for each in paths] == [False, True, True, True]
        wal.append(b"d")
        archive(path, to=tmp_path, how=rules(total=2 * os.stat(paths[1]).st_size + 1))
        assert len(names(tmp_path)) == 3
        assert foreign.read_bytes() == b"mine"
        assert [row[0] for row in kept(tmp_path)] == [9, 10]


# -- logs that come, go and change


def test_logs_of_a_directory_come_and_go(shm_dir: Path, tmp_path: Path) -> None:
    """A new log is archived, one that was removed is archived to its end, and both have positions of their own."""
    first, second = shm_dir / "00.wal", shm_dir / "01.wal"
    with contextlib.closing(Archiver([str(shm_dir)], str(tmp_path), rules(), SYSTEM)) as archiver:
        wal = open_small(first)
        wal.extend([b"a", b"b"])
        assert len(list(archiver.look(flush=True))) == 1
        wal.append(b"unarchived")
        expected = as_rows(wal)
        wal.close()
        with open_small(second, seam=BarrierRecorder(uuid=OTHER)) as other:
            other.extend([b"x", b"y"])
            other_rows = as_rows(other)
            for name in (first, Path(f"{first}.consumers", "archive")):
                name.unlink()
            list(archiver.look())
            list(archiver.look(flush=True))
        assert archiver.problems == {}
    by_log: dict[str, list[tuple[int, int, int, bytes]]] = {}
    with pmwal.LogSet(tmp_path) as logs:
        for record in logs:
            by_log.setdefault(Path(record.log).name, []).extend(as_rows([record]))
    assert by_log == {f"00-{bytes(range(16)).hex()[:8]}": expected, f"01-{OTHER.hex()[:8]}": other_rows}


def test_resized_log_is_the_same_one(path: Path, tmp_path: Path) -> None:
    """The archiver continues in the new file."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
    with contextlib.closing(Archiver([str(path)], str(tmp_path), rules(), SYSTEM)) as archiver:
        list(archiver.look(flush=True))
        pmwal.resize(path, "64KiB")
        with pmwal.open(path) as wal:
            wal.append(b"c")
            (written,) = archiver.look(flush=True)
            assert written.summary.first == 3  # type: ignore[union-attr]
            assert kept(tmp_path) == as_rows(wal)


@pytest.mark.both_engines
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("keep", [0, 3, 7, 10])
def test_rolled_back_records_are_replaced(path: Path, tmp_path: Path, form: str, keep: int) -> None:
    """The files of the new branch say from where on they count, and the archives are the log as it is."""
    with open_small(path) as wal:
        wal.extend([b"old %d" % number for number in range(1, 11)])
        archive(path, to=tmp_path, how=rules(form, size=250))
        wal.rollback(after=keep)
        wal.extend([b"new"] * 2)
        expected = as_rows(wal)
        written = archive(path, to=tmp_path, how=rules(form))
        if keep < 10:
            assert [(each.summary.rollback, each.summary.branch, each.summary.first) for each in written] == [(keep, 1, keep + 1)]
        else:
            assert [(each.summary.rollback, each.summary.branch) for each in written] == [(None, 0)]
        assert kept(tmp_path) == kept(tmp_path, path) == expected
        wal.rollback(after=keep + 1)
        wal.extend([b"newer"] * 20)
        archive(path, to=tmp_path, how=rules(form))
        assert kept(tmp_path) == as_rows(wal)


def test_rollback_of_which_nothing_is_archived_anew_hides_nothing_of_the_ring(path: Path, tmp_path: Path) -> None:
    """The ring says what the log is, before the archiver has seen the rollback."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
        archive(path, to=tmp_path)
        wal.rollback(after=1)
        assert kept(tmp_path, path) == as_rows(wal)


@pytest.mark.parametrize("form", FORMATS)
def test_overwritten_records_are_a_gap(path: Path, tmp_path: Path, form: str) -> None:
    """The file after it says which numbers were gone, and a reader counts them."""
    with open_small(path) as wal:
        wal.extend([b"%d" % number for number in range(1, 11)])
        archive(path, to=tmp_path, how=rules(form))
        wal.extend([b"gone"] * 5)
        wal.truncate(before=16)
        wal.extend([b"x", b"y"])
        expected = as_rows(wal)
        (written,) = archive(path, to=tmp_path, how=rules(form))
        assert (written.summary.gap, written.summary.first) == ((11, 15), 16)
    with pmwal.LogSet(tmp_path) as logs:
        rows = as_rows(logs)
        assert (len(rows), rows[10:], logs.missed) == (12, expected, 5)


def test_command_reports_gap_and_rollback(path: Path, tmp_path: Path, cli: Cli) -> None:
    """On standard error, and in the object of the file."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
        assert cli("archive", path, tmp_path, "--once").status == 0
        wal.extend([b"d", b"e"])
        wal.truncate(before=5)
        ran = cli("archive", path, tmp_path, "--once", "--json")
        assert (ran.status, ran.json["gap"], ran.json["first"]) == (1, [4, 4], 5)
        assert "record 4 gone from the log before" in ran.err
        assert "4 records" not in ran.err
        wal.rollback(after=4)
        wal.append(b"E")
        ran = cli("archive", path, tmp_path, "--once", "--json")
        assert (ran.status, ran.json["rollback"]) == (0, 4)
        assert "rolled back, or restored, to record 4" in ran.err


# -- what is in the way


def test_second_archiver_is_refused(path: Path, tmp_path: Path) -> None:
    """By the directory, and by the consumer if that is of another directory."""
    with open_small(path) as wal:
        wal.append(b"a")
    held = ArchiveDirectory(str(tmp_path), SYSTEM)
    with pytest.raises(WalLocked, match="another pmwal archive writes into this directory"):
        archive(path, to=tmp_path)
    held.close()
    with pmwal.open(path, "r") as reader, reader.consumer("archive"), pytest.raises(ConsumerHeld):
        archive(path, to=tmp_path)
    assert len(archive(path, to=tmp_path)) == 1


@pytest.mark.parametrize("name", ["write", "sync", "rename"])
@pytest.mark.parametrize("form", FORMATS)
def test_failing_disk_acknowledges_nothing(path: Path, tmp_path: Path, form: str, name: str) -> None:
    """The error names the file and says what to do; nothing is left, and the next run archives all."""
    kind = errno.ENOSPC if name == "write" else errno.EIO
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        archive(path, to=tmp_path, how=rules(form))
        wal.append(b"c")
    before = names(tmp_path)

    def fail(step: Step) -> None:
        if step.name == name and (name != "write" or step.length > 300):  # less is written to the position
            raise OSError(kind, os.strerror(kind))

    with pytest.raises(OSError, match="no room for the next archive" if name == "write" else "error") as caught:
        archive(path, to=tmp_path, how=rules(form), seam=BarrierRecorder(fail))
    assert caught.value.errno == kind
    assert str(caught.value.filename).startswith(str(tmp_path))
    assert (names(tmp_path), position(path)) == (before, 2)
    archive(path, to=tmp_path, how=rules(form))
    assert [row[0] for row in kept(tmp_path)] == [1, 2, 3]


def test_directory_that_cannot_be_written_to_is_refused(path: Path, tmp_path: Path, cli: Cli) -> None:
    """By its name, with status 3, and nothing is acknowledged."""
    with open_small(path) as wal:
        wal.append(b"a")
    (tmp_path / ".pmwal-archive.lock").mkdir()
    ran = cli("archive", path, tmp_path, "--once")
    assert (ran.status, ran.out) == (3, b"")
    assert ran.err.startswith(f"pmwal: {tmp_path}: ")
    assert not Path(f"{path}.consumers").exists()


def test_file_system_without_renameat2_is_good_enough(path: Path, tmp_path: Path) -> None:
    """A link takes its place."""

    def fail(step: Step) -> None:
        if step.name == "rename":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with open_small(path) as wal:
        wal.append(b"a")
        archive(path, to=tmp_path, seam=BarrierRecorder(fail))
        assert kept(tmp_path) == as_rows(wal)
    assert len(names(tmp_path)) == 1


def test_file_of_the_same_name_is_not_overwritten(path: Path, tmp_path: Path, cli: Cli) -> None:
    """One that was there before is damaged, for this log; one that appears meanwhile is somebody's."""
    with open_small(path) as wal:
        wal.append(b"a")
    name = tmp_path / str(ArchiveName("test", bytes(range(16)).hex(), 1, 1, 0, ".parquet"))
    name.write_bytes(b"mine")
    with pytest.raises(OSError, match="this archive is damaged"):
        archive(path, to=tmp_path)
    ran = cli("archive", path, tmp_path, "--once")
    assert (ran.status, "salvage" in ran.err, f"{name}: this archive is damaged" in ran.err) == (3, False, True)
    assert name.read_bytes() == b"mine"
    name.unlink()

    def appear(step: Step) -> None:
        if step.name == "rename":
            name.write_bytes(b"mine")

    with pytest.raises(FileExistsError, match="another program made this file"):
        archive(path, to=tmp_path, seam=BarrierRecorder(appear))
    assert (name.read_bytes(), position(path)) == (b"mine", 0)


def test_unfinished_files_of_a_killed_archiver_are_removed(path: Path, tmp_path: Path) -> None:
    """And nothing else that is hidden."""
    (tmp_path / ".pmwal-archive-0123456789abcdef.part").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"")
    with open_small(path) as wal:
        wal.append(b"a")
    archive(path, to=tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == [".hidden", ".pmwal-archive.lock"]


def test_wrong_places_are_refused(path: Path, tmp_path: Path, cli: Cli) -> None:
    """With the status and a message, before anything is written."""
    with open_small(path) as wal:
        wal.append(b"a")
    (tmp_path / "file").write_bytes(b"")
    for arguments, status, message in (
        ((path, tmp_path / "file", "--once"), 3, "archives are several files, so name a directory"),
        ((tmp_path / "none.wal", tmp_path, "--once"), 3, "No such file or directory"),
        ((path, tmp_path / "no" / "where", "--once"), 3, "does not exist; make that first"),
        ((path, tmp_path, "--every", "5"), 64, "'5' has no unit: give an age, such as 5s or 5min, or a size, 5MiB"),
        ((path, tmp_path, "--every", ""), 64, "neither a size such as 64MiB nor an age"),
        ((path, tmp_path, "--every", "often"), 64, "neither a size such as 64MiB nor an age"),
        ((path, tmp_path, "--consumer", "a/b"), 64, ""),
        ((path, tmp_path, "--format", "csv"), 64, "invalid choice"),
    ):
        ran = cli("archive", *arguments)
        assert (ran.status, ran.out) == (status, b""), ran.err
        assert message in ran.err


def test_log_that_cannot_be_archived_leaves_the_others(shm_dir: Path, tmp_path: Path, cli: Cli) -> None:
    """It is reported once, and in the status."""
    with open_small(shm_dir / "a.wal") as wal:
        wal.append(b"a")
    (shm_dir / "b.wal").write_bytes(b"no log" * 1000)
    ran = cli("archive", shm_dir, tmp_path, "--once")
    assert (ran.status, len(names(tmp_path)), ran.err.count("b.wal")) == (3, 1, 1)


def test_missing_pyarrow_is_said(path: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """When archives are written: nothing is."""
    with open_small(path) as wal:
        wal.append(b"a")
    archive(path, to=tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ran = cli("archive", path, tmp_path, "--once")
    said = "pmwal: archives require pyarrow, which is not installed: pip install 'pmwal[archive]'\n"
    assert (ran.status, ran.err) == (1, said)


# -- the command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_archives_what_is_there(shm_dir: Path, tmp_path: Path, started: Callable[..., object], number: int) -> None:
    """The command runs until then, writes a last file, and ends with status 0."""
    path = shm_dir / "a.wal"
    with open_small(path) as wal:
        wal.append(b"a")
        process = started("archive", path, tmp_path / "to", "--every=1s")
        line = process.stdout.readline().decode()  # type: ignore[attr-defined]
        assert "1 record, 1 of" in line
        wal.append(b"b")
        process.send_signal(number)  # type: ignore[attr-defined]
        out, err = process.communicate(timeout=PATIENCE)  # type: ignore[attr-defined]
        assert (process.returncode, err) == (0, b"")  # type: ignore[attr-defined]
        assert b"1 record, 2 of" in out
        assert kept(tmp_path / "to") == as_rows(wal)


def test_structured_records_have_columns(path: Path, tmp_path: Path) -> None:
    """Fields of events and of JSON objects, as pmwal export makes them, with all payloads beside them."""
    from pyarrow import parquet  # noqa: PLC0415

    with pmwal.open(path, size="64KiB") as wal:
        left = events.Logger(wal).event("{user} left after {seconds}", level=30)
        left("ada", 7)
        wal.append(b'{"level":"ERROR","message":"lost","user":"bob"}')
        wal.append(b"plain")
        expected = as_rows(wal)
    (written,) = archive(path, to=tmp_path)
    table = parquet.read_table(written.path).to_pydict()
    assert table["message"][1:] == ["ada left after 7", "lost", "plain"]
    assert (table["user"][1:], table["seconds"][1]) == (["ada", "bob", None], 7)
    assert kept(tmp_path) == expected


def test_json_lines_are_those_of_export(path: Path, tmp_path: Path, cli: Cli) -> None:
    """Any program that reads zstd gets them, and nothing else."""
    import pyarrow  # noqa: PLC0415

    with open_small(path) as wal:
        wal.extend(AWKWARD)
    (written,) = archive(path, to=tmp_path, how=rules("jsonl.zst"))
    (group,) = written.summary.groups
    frame = Path(written.path).read_bytes()[group.offset : group.offset + group.size]
    lines = pyarrow.decompress(frame, group.raw, codec="zstd", asbytes=True)
    assert lines == cli("cat", "--json", path).out == cli("export", path).out
    assert [json.loads(line)["seq"] for line in lines.splitlines()] == list(range(1, len(AWKWARD) + 1))


# -- names and summaries


def test_names_are_read_back() -> None:
    """With a branch and without, and other names are none of ours."""
    for name in (ArchiveName("a-b", 32 * "0", 1, 9, 0, ".parquet"), ArchiveName("x", 32 * "f", 7, (1 << 64) - 2, 12, ".jsonl.zst")):
        assert parse_name(str(name)) == name
        for other in (f".{name}", f"{name}.bak", str(name).replace("-0000", "-000", 1), str(name).replace(".", "-")):
            assert parse_name(other) is None
    assert parse_name(str(ArchiveName("x", 32 * "f", 9, 1, 0, ".parquet"))) is None


def test_branches_replace_what_is_after_their_beginning() -> None:
    """Of three branches the newest that has a number has it."""
    names = [(0, 1, 10), (0, 11, 20), (0, 21, 30), (1, 16, 18), (2, 13, 14)]
    found = {seq: piece.file for piece in pieces_of(names) for seq in range(piece.first, piece.stop)}
    assert found == {**dict.fromkeys(range(1, 11), 0), 11: 1, 12: 1, 13: 4, 14: 4}


def test_damaged_or_newer_summary_is_refused() -> None:
    """By its checksum, and by its version in words."""
    text = Summary("ab", "a.wal", 0, (), "cursor", (1, 2), 3).encode()
    assert decode_summary(text) == Summary("ab", "a.wal", 0, (), "cursor", (1, 2), 3)
    for at in range(len(text)):
        with pytest.raises(ValueError, match="checksum"):
            decode_summary(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    from pmwal.native.checksum import crc32c  # noqa: PLC0415

    newer = text[8:].replace(b'"version":1', b'"version":2')
    with pytest.raises(ValueError, match="use a newer one"):
        decode_summary(f"{int(crc32c(newer)):08x}".encode() + newer)


def test_killed_writer_leaves_what_can_be_archived(path: Path, tmp_path: Path) -> None:
    """The archiver needs no writer."""
    wal = open_small(path)
    wal.extend([b"a", b"b"])
    expected = as_rows(wal)
    kill(wal)
    archive(path, to=tmp_path)
    assert kept(tmp_path) == expected


def test_handler_that_keeps_what_is_not_archived(shm_dir: Path, tmp_path: Path) -> None:
    """Logs of a set, each with a slot, in one archive."""
    handler = pmwal.LogHandler(directory=shm_dir, size="64KiB")
    for number in range(3):
        handler.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": f"entry {number}"}))
    handler.flush()
    archive(shm_dir, to=tmp_path)
    handler.close()
    assert [row[3] for row in kept(tmp_path)] == [b"entry 0", b"entry 1", b"entry 2"]
