"""The exit statuses of ``pmwal archive``: each that its help lists happens, and the guide lists the same."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from archived import archive, kept, names, rules
from commands import Cli
from documents import read_section, read_table
from pmwal.cli.archiving.archiver import Archiver
from pmwal.cli.archiving.directory import ArchiveDirectory
from pmwal.cli.commands import archive as command
from pmwal.format.layout import HEADER
from pmwal.storage.seam import SYSTEM
from support import file_offset, flip, open_small, superblock, whole_records


class Scene:
    """A log of three records, a directory for its archives, and what a scenario needs to change and to undo."""

    def __init__(self, log: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.to, self.monkeypatch = log, to, monkeypatch
        self.clean = contextlib.ExitStack()
        with open_small(log) as wal:
            wal.extend([b"a", b"b", b"c"])


def nothing(scene: Scene) -> None:
    pass


def all_archived(scene: Scene) -> None:
    archive(scene.log, to=scene.to)


def a_gap(scene: Scene) -> None:
    archive(scene.log, to=scene.to)
    with open_small(scene.log) as wal:
        wal.extend([b"d", b"e"])
        wal.truncate(before=5)


def a_held_consumer(scene: Scene) -> None:
    reader = scene.clean.enter_context(pmwal.open(scene.log, "r"))
    scene.clean.enter_context(reader.consumer("archive"))


def two_names(scene: Scene) -> None:
    os.link(scene.log, scene.log.with_name("other name"))


def no_pyarrow(scene: Scene) -> None:
    scene.monkeypatch.setitem(sys.modules, "pyarrow", None)


def a_corrupt_log(scene: Scene) -> None:
    flip(scene.log, file_offset(superblock(scene.log), whole_records(scene.log)[2].position) + HEADER)


def no_log(scene: Scene) -> None:
    scene.log.write_bytes(b"no log" * 1000)


def no_such_log(scene: Scene) -> None:
    scene.log.unlink()


def no_directory(scene: Scene) -> None:
    scene.to.write_bytes(b"")


def a_damaged_archive(scene: Scene) -> None:
    (written,) = archive(scene.log, to=scene.to)
    os.truncate(written.path, 100)


def another_archiver(scene: Scene) -> None:
    scene.clean.callback(ArchiveDirectory(str(scene.to), SYSTEM).close)


SCENES: list[tuple[int, Callable[[Scene], None], str]] = [
    (0, nothing, ""),
    (0, all_archived, ""),
    (1, a_gap, "record 4 gone from the log before"),
    (1, a_held_consumer, "has consumer 'archive'"),
    (1, two_names, "hard links"),
    (1, no_pyarrow, "pip install 'pmwal[archive]'"),
    (2, a_corrupt_log, "corrupt"),
    (3, no_log, "not a pmwal log"),
    (3, no_such_log, "No such file or directory"),
    (3, no_directory, "name a directory"),
    (3, a_damaged_archive, "this archive is damaged"),
    (4, another_archiver, "another pmwal archive writes into this directory"),
]
IN_PROCESS = {64, 74, 130, 141}


@pytest.mark.parametrize(("status", "scene", "words"), SCENES, ids=[scene.__name__ for _, scene, _ in SCENES])
def test_status_of_a_log(
    path: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, status: int, scene: Callable[[Scene], None], words: str
) -> None:
    """With a message on standard error that says why, or none."""
    made = Scene(path, tmp_path / "to", monkeypatch)
    scene(made)
    with made.clean:
        ran = cli("archive", path, made.to, "--once")
    assert ran.status == status, ran.err
    assert words in ran.err
    assert bool(ran.err) == bool(status)


@pytest.mark.parametrize(("status", "scene"), [(1, a_held_consumer), (2, a_corrupt_log), (3, no_log)])
def test_status_of_a_directory_is_the_worst(
    shm_dir: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, status: int, scene: Callable[[Scene], None]
) -> None:
    """And the other logs are archived."""
    with pmwal.open(shm_dir / "a.wal", size="64KiB") as wal:
        wal.append(b"a")
    made = Scene(shm_dir / "b.wal", tmp_path / "to", monkeypatch)
    scene(made)
    with made.clean:
        ran = cli("archive", shm_dir, made.to, "--once")
    assert ran.status == status, ran.err
    assert len(names(made.to)) == 1


def cut_short(file: Path) -> None:
    os.truncate(file, 100)


def cannot_open(file: Path) -> None:
    """Nobody can, also not root."""
    file.unlink()
    file.symlink_to(file.name)


@pytest.mark.parametrize("spoil", [cut_short, cannot_open])
@pytest.mark.parametrize("named", [False, True])
def test_log_without_its_last_archive_leaves_the_others(
    shm_dir: Path, tmp_path: Path, cli: Cli, spoil: Callable[[Path], None], *, named: bool
) -> None:
    """It is not archived, which is said once with the reason, until the file is moved away."""
    logs = [shm_dir / f"{name}.wal" for name in ("a", "b")]
    for log in logs:
        with pmwal.open(log, size="64KiB") as wal:
            wal.append(b"1")
        (written,) = archive(log, to=tmp_path)
        if log == logs[0]:
            last = Path(written.path)
            spoil(last)
        with pmwal.open(log) as wal:
            wal.append(b"2")
    with contextlib.closing(Archiver(list(map(str, logs)), str(tmp_path), rules(), SYSTEM)) as archiver:
        for _ in range(2):  # as a service does
            assert [each.log for each in archiver.look()] == []  # type: ignore[union-attr]
            assert list(archiver.problems) == [str(logs[0])]
    ran = cli("archive", *(logs if named else [shm_dir]), tmp_path, "--once")
    assert (ran.status, len(ran.lines)) == (3, 1)
    assert f"2 of {logs[1]}" in ran.lines[0]
    assert ran.err.startswith(f"pmwal: {logs[0]}: {last}: this archive ")
    assert "if it is moved away, what the log still has is archived again; until then this log is not archived" in ran.err
    last.unlink()
    assert cli("archive", shm_dir, tmp_path, "--once").status == 0
    assert len(kept(tmp_path)) == 4


def test_second_signal_interrupts(path: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, with status 130; what is not archived stays in the log."""
    open_small(path).close()
    monkeypatch.setattr(command, "refuse_closed_output", lambda: [signal.raise_signal(signal.SIGTERM) for _ in range(2)])
    assert cli("archive", path, tmp_path).status == 130


@pytest.mark.parametrize(("redirection", "status"), [(">/dev/full", 74), ("| true", 141), ("--every often", 64)])
def test_status_of_the_output_and_of_wrong_usage(path: Path, tmp_path: Path, redirection: str, status: int) -> None:
    """A file that was archived before the output failed stays archived."""
    with open_small(path) as wal:
        wal.append(b"a")
    script = f'set -o pipefail; "$0" -m pmwal archive "$1" "$2" --once {redirection}'
    if status == 141:  # the reader is gone before anything is printed
        script = 'exec 3> >(:); wait $!; "$0" -m pmwal archive "$1" "$2" --once >&3'
    done = subprocess.run(
        ["/bin/bash", "-c", script, sys.executable, path, tmp_path / "to"], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert (tmp_path / "to").exists() == (status != 64)


def test_help_and_guide_list_the_statuses_that_happen() -> None:
    """No more and no fewer, and each has a test here."""
    listed = {int(number) for number in re.findall(r"^  (\d+) +\w", command._EPILOG.split("Examples:")[0], re.MULTILINE)}
    rows = read_table(read_section("guide-archives.md", "What it guarantees"), "exit status")
    in_guide = {int(number) for row in rows for number in row[0].split(", ")}
    assert listed == in_guide == {status for status, _, _ in SCENES} | IN_PROCESS
