"""A crash at any step of an open for writing or of a close."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from dying import create, dies, steps_of
from marks import first_fast
from pmwal.format.layout import HEADER
from processes import elsewhere
from support import BarrierRecorder, contents, file_offset, flip, kill, open_small, payloads
from support import superblock as superblock_of

pytestmark = pytest.mark.both_engines


def clean_log(path: Path) -> list[tuple[int, bytes]]:
    """A log that was closed."""
    with open_small(path, medium="file") as wal:
        wal.extend([b"a", b"b" * 500, b"c"])
        wal.truncate(before=2)
        return contents(wal)


def killed_log(path: Path, ordering: str) -> list[tuple[int, bytes]]:
    """A log whose writer was killed with records past the pointer, the last of them torn."""
    kept: list[tuple[int, bytes]] = elsewhere(_leave_torn, path, ordering)
    return kept


def _leave_torn(path: Path, ordering: str) -> list[tuple[int, bytes]]:
    wal = open_small(path, medium="file", ordering=ordering)
    wal.extend([b"a", b"b" * 500, b"c"])
    wal.append(b"d", commit=False)
    kept = contents(wal)
    torn = wal._engine.state.head.position
    wal.append(b"torn" * 100, commit=False)
    kill(wal)
    flip(path, file_offset(superblock_of(path), torn) + HEADER)
    return kept


LOGS: dict[str, Callable[[Path], list[tuple[int, bytes]]]] = {
    "clean": clean_log,
    "killed-strict": lambda path: killed_log(path, "strict"),
    "killed-pipelined": lambda path: killed_log(path, "pipelined"),
}


@pytest.mark.parametrize("torn", first_fast([False, True]), ids=["before", "within"])
@pytest.mark.parametrize("log", LOGS)
def test_crash_at_any_step_of_an_open_changes_nothing(path: Path, log: str, torn: bool) -> None:
    """Wherever the recovery or the close after it ends, the next one finds the same records and drops nothing more."""
    kept = LOGS[log](path)
    whole = path.read_bytes()
    steps = steps_of(create, path)
    assert len(steps) > 8
    for last in range(len(steps)):
        path.write_bytes(whole)
        dies(create, path, last, torn)
        with pmwal.open(path, "r") as reader:
            assert contents(reader) == kept, last
        with open_small(path) as wal:
            assert contents(wal) == kept, last
            assert wal.append(b"next") == kept[-1][0] + 1


@pytest.mark.parametrize("torn", [False, True], ids=["before", "within"])
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_crash_at_any_step_of_a_close_keeps_what_was_acknowledged(path: Path, ordering: str, torn: bool) -> None:
    """A crash while the last commit or the closing slot is written loses nothing durable, and leaves no hole."""

    def work(path: Path, seam: BarrierRecorder) -> None:
        hook, seam.before = seam.before, None
        wal = open_small(path, medium="file", ordering=ordering, seam=seam)
        wal.extend([b"a", b"b"])
        wal.append(b"c", commit=False)
        seam.events.clear()
        seam.before = hook
        wal.close()

    steps = steps_of(work, path)
    assert len(steps) >= 4
    for last in range(len(steps)):
        path.unlink()
        dies(work, path, last, torn)
        with open_small(path) as wal:
            assert payloads(wal) == [b"a", b"b", b"c"], last  # the store was done, so the page cache has it
