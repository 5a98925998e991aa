"""The file-system rig: each acknowledgement waits for a sync on each file system, and a missing one is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from crash import needs
from filesystems.media import FILESYSTEMS
from filesystems.program import Found
from filesystems.server import File

pytestmark = pytest.mark.rigs

RIG = Path(__file__).resolve().parent.parent / "tools" / "filesystems"
HANGING = 3600.0  # seconds after which a run hangs, on the slowest machine
SYNCED = [name for name, filesystem in FILESYSTEMS.items() if filesystem.syncs and filesystem.creates]


def run(name: str, engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the rig on one file system; skips the test if the machine lacks something."""
    needs.require(*FILESYSTEMS[name].needs, *(("cc",) if arguments else ()))
    command = [sys.executable, str(RIG), "--filesystem", name, "--engine", engine, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGING, check=False)


@pytest.mark.parametrize("engine", ["python", "native"])
@pytest.mark.parametrize("name", FILESYSTEMS)
def test_every_acknowledgement_waits_for_a_sync(name: str, engine: str) -> None:
    """FSYNC requests of FUSE servers, flushes of disks; and stats().durability says what the file system is worth."""
    done = run(name, engine)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}, {engine}: ")


@pytest.mark.parametrize("engine", ["python", "native"])
@pytest.mark.parametrize("name", SYNCED)
def test_a_barrier_that_does_nothing_is_noticed(name: str, engine: str) -> None:
    """Negative control: the counter does not move, and a power cut takes what a FUSE server was not asked to sync."""
    done = run(name, engine, "--control", "no-sync")
    assert done.returncode == 1
    assert f"{name}, {engine}: acknowledged without a sync: " in done.stderr
    if name.startswith("fuse"):
        assert "a power cut leaves" in done.stderr


def test_what_is_missing_is_named() -> None:
    """Without the right to mount, nothing runs, and the exit status says so."""
    needs.require("root")
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, str(RIG), "--filesystem", "fuse-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING, check=False)
    if "Permission denied" in done.stderr or "No such file" in done.stderr:
        pytest.skip("another user cannot run this interpreter")
    assert done.returncode == 2
    assert done.stdout.startswith("fuse-cache: skipped, needs root: ")


def test_server_keeps_a_write_for_stable_only_when_it_was_synced() -> None:
    """Otherwise the rig would find after a power cut what no barrier made durable."""
    file = File()
    file.resize(8)
    file.write(0, b"old")
    file.sync()
    file.write(0, b"new")
    assert (bytes(file.data[:3]), bytes(file.stable)) == (b"new", b"old" + bytes(5))
    file.sync()
    assert file.stable[:3] == b"new"


def test_findings_that_are_wrong_are_told() -> None:
    """Each check of a run can fail."""
    from filesystems.__main__ import problems  # noqa: PLC0415 (a module of this name runs as a program elsewhere)

    plain, bare = FILESYSTEMS["ext4"], FILESYSTEMS["fuse-no-rename"]
    fine = Found(durability="power", moved=True)
    assert list(problems(plain, fine)) == []
    for change in (
        {"durability": "process"},
        {"moved": False},
        {"unsynced": ["append"]},
        {"unlinked": True},
        {"refused": "test.wal: no"},
    ):
        assert list(problems(plain, Found(**{**vars(fine), **change}))), change
    assert list(problems(bare, fine))
    assert list(problems(bare, Found(refused="no")))
    assert list(problems(bare, Found(refused="test.wal: no", left=["test.wal"])))
    assert list(problems(bare, Found(refused="test.wal: no"))) == []
