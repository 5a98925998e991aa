"""``pmwal archive``: old files are removed in time, and what a user may not expect is said."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

import pmwal
from archived import FORMATS, archive, as_rows, kept, names, rules
from commands import Cli
from pmwal.cli.archiving import archiver as archiver_module
from pmwal.cli.archiving.archiver import Archiver
from pmwal.cli.archiving.directory import ArchiveDirectory
from pmwal.cli.commands import archive as archive_command
from pmwal.storage.seam import SYSTEM
from support import BarrierRecorder, open_small


def aged(directory: Path) -> list[Path]:
    """The archives, made to look a day old."""
    found = [directory / name for name in names(directory)]
    for each in found:
        os.utime(each, (os.stat(each).st_mtime - 86400,) * 2)
    return found


@pytest.mark.parametrize("how", [{"keep": 3600.0}, {"total": 1}])
def test_old_archives_are_removed_when_nothing_is_archived(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, float]
) -> None:
    """At the start, and again after a pause, as long as no record comes."""
    with open_small(path) as wal:
        wal.append(b"a")
        archive(path, to=tmp_path)
        with contextlib.closing(Archiver([str(path)], str(tmp_path), rules(), SYSTEM)) as archiver:
            (old,) = aged(tmp_path)
            assert list(archiver.look()) == []
            assert old.exists()
        with contextlib.closing(Archiver([str(path)], str(tmp_path), rules(**how), SYSTEM)) as archiver:
            assert [each.path for each in archiver.look()] == [str(old)]  # type: ignore[union-attr]
            old.write_bytes(b"again")
            aged(tmp_path)
            assert list(archiver.look()) == []
            monkeypatch.setattr(archiver_module, "_PRUNE_PAUSE", 0.0)
            archiver._prune_at = 0.0
            assert [each.path for each in archiver.look()] == [str(old)]  # type: ignore[union-attr]
            old.write_bytes(b"once more")
            aged(tmp_path)
            assert [each.path for each in archiver.look()] == [str(old)]  # type: ignore[union-attr]


def test_command_removes_old_archives_when_nothing_is_archived(path: Path, tmp_path: Path, cli: Cli) -> None:
    """And names each."""
    with open_small(path) as wal:
        wal.append(b"a")
    archive(path, to=tmp_path)
    (old,) = aged(tmp_path)
    ran = cli("archive", path, tmp_path, "--once", "--keep", "1h")
    assert (ran.status, ran.err, names(tmp_path)) == (0, "", [])
    assert ran.lines[0].startswith(f"{old}: removed, ")


def test_old_archives_make_room_for_new_ones(path: Path, tmp_path: Path) -> None:
    """They are removed before a file is written: a disk that is full is not in the way of the retention that would free it."""
    steps: list[str] = []
    with open_small(path) as wal:
        wal.append(b"a")
        archive(path, to=tmp_path)
        aged(tmp_path)
        wal.append(b"b")
        archive(path, to=tmp_path, how=rules(keep=3600.0), seam=BarrierRecorder(lambda step: steps.append(step.name)))
    assert steps.index("unlink") < steps.index("write")
    assert [row[0] for row in kept(tmp_path)] == [2]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_rollback_is_found_after_archives_were_removed(path: Path, tmp_path: Path, left: int) -> None:
    """Whoever removed them, or nobody, while the archiver runs: it compares the log with what is left."""
    with open_small(path) as wal, contextlib.closing(Archiver([str(path)], str(tmp_path), rules(), SYSTEM)) as archiver:
        for _ in range(3):
            wal.extend([b"a", b"b"])
            list(archiver.look(flush=True))
        for name in names(tmp_path)[: 3 - left]:
            (tmp_path / name).unlink()
        wal.rollback(after=5)
        wal.append(b"new")
        expected = as_rows(wal)
        (written,) = archiver.look(flush=True)
        assert archiver.problems == {}
        assert written.summary.rollback == (5 if left else 0)  # type: ignore[union-attr]
        assert kept(tmp_path) == expected[{0: 0, 1: 4, 3: 0}[left] :]


@pytest.mark.parametrize("form", FORMATS)
def test_archives_are_refused_as_logs(path: Path, tmp_path: Path, cli: Cli, form: str) -> None:
    """As a directory, a pattern and a file, before anything is made; logs beside archives are archived."""
    with open_small(path) as wal:
        wal.append(b"a")
    source = tmp_path / "from"
    (written,) = archive(path, to=source, how=rules(form))
    for place, words in (
        (source, "these are archives, and no log (*.wal) is among them"),
        (source / "*", "these are archives, and no log (*.wal) is among them"),
        (written.path, "this is an archive, and no log"),
    ):
        for arguments in (("archive", place, tmp_path / "to", "--once"), *((name, place) for name in ("info", "stat"))):
            ran = cli(*arguments)
            assert (ran.status, ran.out) == (3, b"")
            assert ran.err.startswith(f"pmwal: {place}: {words}; pmwal cat and logs read archives, and pmwal verify ")
    assert not (tmp_path / "to").exists()
    with pmwal.open(source / "other.wal", size="64KiB") as wal:
        wal.append(b"b")
    assert cli("archive", source, tmp_path / "to", "--once").status == 0
    assert len(names(tmp_path / "to")) == 1


def test_second_directory_of_a_consumer_is_said(path: Path, tmp_path: Path, cli: Cli) -> None:
    """Where old archives are removed it gets only later records; another consumer, and a directory that keeps all, get all."""
    first, second, rule = tmp_path / "first", tmp_path / "second", ("--once", "--keep", "30 days")
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
        assert cli("archive", path, first, "--once").err == ""
        ran = cli("archive", path, second, *rule)
        assert (ran.status, ran.text) == (0, f"{second}: nothing to archive\n")
        assert f"{path}: consumer archive is at record 2 already, and {second} has no archives" in ran.err
        wal.append(b"c")
        assert "at record 2 already" in cli("archive", path, second, *rule).err
        assert [row[0] for row in kept(second)] == [3]
        assert cli("archive", path, second, *rule).err == ""
        third = cli("archive", path, tmp_path / "third", "--once", "--consumer", "other")
        assert (third.status, third.err) == (0, "")
        whole = cli("archive", path, tmp_path / "whole", "--once")
        assert (whole.status, whole.err) == (0, "")
        assert [row[0] for row in kept(tmp_path / "whole")] == [1, 2, 3]


@pytest.mark.parametrize("limits", [(), ("--every=1GiB",), ("--every=1GiB", "--every=1h")])
def test_small_ring_is_said_once(
    path: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, limits: tuple[str, ...]
) -> None:
    """Half of it makes a file before --every asks for one; without that option nothing was asked."""
    with pmwal.open(path, size="16KiB", on_full="overwrite") as wal:

        def fill(pause: float) -> bool:
            if wal.committed_seq < 15:
                wal.extend([bytes(2000)] * 5)
            return pause < 0

        def ended() -> bool:
            return wal.committed_seq >= 15 and len(names(tmp_path)) >= 3

        event = type("Ended", (), {"is_set": staticmethod(ended), "wait": staticmethod(fill)})
        monkeypatch.setattr(archive_command, "_ended_by_signals", lambda: contextlib.nullcontext(event))
        monkeypatch.setattr(archive_command, "refuse_closed_output", lambda: None)
        ran = cli("archive", path, tmp_path, *limits)
        assert (ran.status, len(ran.lines)) == (0, 3), ran.err
        assert ran.err.count("files are smaller than --every asks") == bool(limits)
        wal.extend([bytes(2000)] * 5)
        assert cli("archive", path, tmp_path, "--once", *limits).err == ""


def test_export_of_archives_alone_names_no_path_that_is_not_there(path: Path, tmp_path: Path, cli: Cli) -> None:
    """With the log beside them it is named by its path."""
    with open_small(path) as wal:
        wal.extend([b"a", b"b"])
    archive(path, to=tmp_path / "to")
    short = f"test-{bytes(range(16)).hex()[:8]}"
    for places, name in (((tmp_path / "to",), f"archives of {short} in {tmp_path / 'to'}"), ((tmp_path / "to", path), str(path))):
        assert cli("export", *places, "-o", tmp_path / "all.jsonl").text == f"{name}: exported 2 records\n"


@pytest.mark.parametrize("command", [("cat", "-o", "raw"), ("logs",), ("tail",), ("export",), ("verify",)])
def test_directory_without_archives_yet_is_no_error(path: Path, tmp_path: Path, cli: Cli, command: tuple[str, ...]) -> None:
    """Before the first file is written and after all were removed; a directory that nobody archives to is."""
    to, other = tmp_path / "to", tmp_path / "other"
    ArchiveDirectory(str(to), SYSTEM).close()
    other.mkdir()
    with open_small(path) as wal:
        wal.append(b"a")
    alone = cli(*command, to)
    assert (alone.status, alone.out, alone.err) == (0, b"", "")
    both = cli(*command, to, path)
    assert (both.status, both.err) == (0, "")
    assert both.out
    wrong = cli(*command, other, path)
    assert (wrong.status, wrong.err) == (3, f"pmwal: {other}: no log (*.wal) is in this directory\n")


def test_log_under_two_names_is_archived_once(shm_dir: Path, tmp_path: Path, cli: Cli) -> None:
    """A symbolic link in the directory is no other process that has the consumer, and nothing is wrong with it."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        wal.append(b"a")
    (shm_dir / "g.wal").symlink_to("a.wal")
    ran = cli("archive", shm_dir, tmp_path, "--once")
    assert (ran.status, ran.err, len(ran.lines)) == (0, "", 1)


def test_names_of_logs_do_not_reach_the_terminal_raw(shm_dir: Path, tmp_path: Path, cli: Cli) -> None:
    """In lines and in messages; JSON has them as they are."""
    log = shm_dir / "x\ny\x1b[31m.wal"
    with pmwal.open(log, size="64KiB") as wal:
        wal.append(b"a")
        (line,) = cli("archive", log, tmp_path, "--once").lines
        assert f"1 of {shm_dir}/x\\x0ay\\x1b[31m.wal" in line
        wal.extend([b"b", b"c"])
        wal.truncate(before=3)
        ran = cli("archive", log, tmp_path, "--once", "--json")
        assert ran.err.startswith(f"pmwal: {shm_dir}/x\\x0ay\\x1b[31m.wal: record 2 gone")
        assert ran.json["log"] == str(log)
