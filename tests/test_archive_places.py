"""``pmwal archive`` and ``pmwal cat`` where something else than a file has the name of an archive."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from archived import archive, as_rows, names, rules
from commands import Cli
from pmwal.cli.archiving import archiver as module
from pmwal.logs.archives.file import ArchiveFile
from pmwal.logs.paths import ArchiveName
from pmwal.storage.seam import SYSTEM
from support import open_small

UUID = bytes(range(16)).hex()


def _socket(place: Path) -> None:
    descriptor = os.open(place.parent, os.O_PATH)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{descriptor}/s")
            os.rename(place.parent / "s", place)
    finally:
        os.close(descriptor)


def _directory(place: Path) -> None:
    place.mkdir()
    (place / "mine").write_bytes(b"mine")


OTHERS: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a directory": _directory,
    "a device": lambda place: place.symlink_to("/dev/null"),
}


def put(directory: Path, what: str, first: int, last: int) -> Path:
    """Something that is no file, with the name of an archive of these records, and old."""
    directory.mkdir(exist_ok=True)
    place = directory / str(ArchiveName("test", UUID, first, last, 0, ".jsonl.zst"))
    OTHERS[what](place)
    os.utime(place, (0, 0), follow_symlinks=False)
    return place


@pytest.mark.parametrize("first", [1, 2, 9])
@pytest.mark.parametrize("what", OTHERS)
def test_archive_leaves_alone_what_is_no_file_and_says_so(path: Path, tmp_path: Path, cli: Cli, what: str, first: int) -> None:
    """Whichever records its name claims, all are archived; it is named once, and stays where the oldest are removed."""
    other = put(tmp_path, what, first, first + 100)
    with open_small(path) as wal:
        wal.extend([b"a", b"b", b"c"])
        expected = as_rows(wal)
    ran = cli("archive", path, tmp_path, "--once", "--keep", "1h", "--max-total", "1GiB", "--format", "jsonl.zst")
    assert (ran.status, len(ran.lines)) == (0, 1)
    advice = "it is neither read nor removed, and nothing in it counts; move it away"
    assert ran.err == f"pmwal: {other}: {what} with the name of an archive; {advice}\n"
    assert os.path.lexists(other)
    assert len(names(tmp_path)) == 2
    with pmwal.LogSet(tmp_path) as logs:
        with pytest.warns(RuntimeWarning, match=f"{what} with the name of an archive"):
            assert as_rows(logs) == expected
        assert list(logs.problems) == [str(other)]


def test_running_archiver_names_it_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first look, and one that appears later when it looks for old archives."""
    monkeypatch.setattr(module, "_PRUNE_PAUSE", 0.0)
    open_small(path).close()
    first = put(tmp_path, "a FIFO", 1, 2)
    with contextlib.closing(module.Archiver([str(path)], str(tmp_path), rules(), SYSTEM)) as archiver:
        assert [each.path for each in archiver.look()] == [str(first)]  # type: ignore[union-attr]
        second = put(tmp_path, "a directory", 3, 4)
        assert [each.path for each in archiver.look()] == [str(second)]  # type: ignore[union-attr]
        assert list(archiver.look()) == []


def test_file_that_would_get_the_same_name_is_not_acknowledged(path: Path, tmp_path: Path, cli: Cli) -> None:
    """The error names what is in the way and says what to do; when that is done, nothing is missing."""
    other = put(tmp_path, "a directory", 1, 1)
    with open_small(path) as wal:
        wal.append(b"a")
        ran = cli("archive", path, tmp_path, "--once", "--format", "jsonl.zst")
        assert (ran.status, ran.out) == (3, b"")
        assert f"{other}: another program made this file while its archive was written; move it away" in ran.err
        with pmwal.open(path, "r") as reader, reader.consumer("archive") as consumer:
            assert consumer.position == 0
        other.rename(tmp_path / "away")
        assert len(archive(path, to=tmp_path, how=rules("jsonl.zst"))) == 1


@pytest.mark.parametrize("what", OTHERS)
def test_named_place_that_is_no_file_is_refused(tmp_path: Path, cli: Cli, what: str) -> None:
    """It is not waited for; a directory is one of logs and archives."""
    other = put(tmp_path, what, 1, 9)
    ran = cli("cat", other)
    assert (ran.status, ran.out) == (3, b"")
    assert ("no log" if what == "a directory" else what) in ran.err


@pytest.mark.parametrize("command", ["cat", "logs", "tail", "export", "verify"])
def test_no_reader_waits_for_a_fifo(tmp_path: Path, cli: Cli, command: str) -> None:
    """In a directory or named itself."""
    other = put(tmp_path / "to", "a FIFO", 1, 9)
    for place in (other, tmp_path / "to"):
        ran = cli(command, place)
        assert ran.status == 3
        assert "a FIFO with the name of an archive" in ran.text + ran.err


def test_fifo_that_takes_a_name_meanwhile_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at what it is and the open."""
    other = put(tmp_path, "a FIFO", 1, 9)
    monkeypatch.setattr("pmwal.logs.archives.file.other_than_file", lambda path: None)
    with pytest.raises(OSError, match="a FIFO with the name of an archive"):
        _ = ArchiveFile(str(other)).summary


def test_directory_with_the_name_of_an_unfinished_file_is_left_alone(path: Path, tmp_path: Path) -> None:
    """An archiver never makes one."""
    hidden = tmp_path / ".pmwal-archive-0123456789abcdef.part"
    hidden.mkdir()
    with open_small(path) as wal:
        wal.append(b"a")
    assert len(archive(path, to=tmp_path)) == 1
    assert hidden.is_dir()


def test_directory_without_a_parent_is_refused_with_advice(path: Path, tmp_path: Path, cli: Cli) -> None:
    """It may be that a disk is not mounted."""
    with open_small(path) as wal:
        wal.append(b"a")
    ran = cli("archive", path, tmp_path / "disk" / "archives", "--once")
    assert ran.status == 3
    assert f"the directory it would be in, {tmp_path / 'disk'}, does not exist; make that first" in ran.err
    assert not (tmp_path / "disk").exists()


def test_json_has_the_logs_that_were_not_archived(shm_dir: Path, tmp_path: Path, cli: Cli) -> None:
    """With the reason, which is on standard error, too."""
    with open_small(shm_dir / "a.wal") as wal:
        wal.append(b"a")
    (shm_dir / "b.wal").write_bytes(b"no log")
    ran = cli("archive", shm_dir, tmp_path, "--once", "--json")
    written, left_out = map(json.loads, ran.out.splitlines())
    assert written["log"] == str(shm_dir / "a.wal")
    assert left_out == {"log": str(shm_dir / "b.wal"), "error": ran.err.removeprefix("pmwal: ").rstrip()}
    assert ran.status == 3
