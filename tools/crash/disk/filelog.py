"""Power cuts of a log's file: judges the states that the writes and flushes of a real kernel can leave.

    python -m tools filelog [--states N] [--seed S] [--engine NAME] [--ordering NAME] [--size SIZE] [--control NAME]
    python -m tools filelog --replay DIR

The file is on a disk that logs its writes and flushes (``logdisk.py``). A program maps it, changes the log and is killed, several
times; once the power is cut, and the program continues with what that left. The rig then builds states of the disk between flushes,
opens each with pmwal, some of them twice, and compares it with what was acknowledged. Needs root and /dev/fuse.
Exit status: 0 no violation; 1 a state is wrong (it is kept); 2 it cannot run here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python put this directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pmwal
from crash.disk.campaign import main
from crash.disk.oracle import Found
from crash.disk.program import NOTE_SIZE
from crash.disk.recording import NOTES_MAX, Plan, Recording
from crash.disk.rig import Examine, Rig, look
from pmwal.storage.seam import SYSTEM


def begin(plan: Plan, directory: Path) -> Recording:
    """The disk holds nothing but a new log."""
    initial = directory / "initial.img"
    SYSTEM.control_size = plan.control_size
    pmwal.open(initial, "x", size=plan.size, medium="file").close()
    recording = Recording(plan, directory, limit=initial.stat().st_size)
    os.truncate(initial, recording.limit + NOTES_MAX * NOTE_SIZE)
    return recording


@contextlib.contextmanager
def attach(_: Recording, disk: Path) -> Iterator[Path]:
    """The disk is the log's file."""
    yield disk


@contextlib.contextmanager
def examiner(recording: Recording) -> Iterator[Examine]:
    """The state is the log's file."""

    def examine(recording: Recording, twice: bool) -> Found:
        os.truncate(recording.state, recording.limit)
        return look(recording.state, recording.plan.engine, twice)

    yield examine


RIG = Rig(
    name="filelog",
    description=__doc__,
    needs=("root", "fuse"),
    filesystems=("",),
    states_each=500,
    begin=begin,
    attach=attach,
    creates=False,
    repairs=False,
    examiner=examiner,
)

if __name__ == "__main__":
    sys.exit(main(RIG))
