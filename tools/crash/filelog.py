"""Every state in which a power cut can leave a log's file, taken from the writes and flushes of a real kernel.

    python tools/crash/filelog.py [--states N] [--seed S] [--engine NAME] [--ordering NAME] [--control NAME]
    python tools/crash/filelog.py --replay DIR

The file lies on a disk that logs its writes and flushes (``logdisk.py``). A program maps it, changes the log, and is
killed twice. Then states of the disk between flushes are made, opened with pmwal, and compared with what was acknowledged.
Needs root and /dev/fuse. Exit status: 0; 1 a state is wrong (it is kept); 2 it cannot run here.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script it is no part of a package

import pmwal
from crash.oracle import Found
from crash.program import NOTE_SIZE
from crash.rig import NOTES_MAX, Examine, Plan, Recording, Rig, look, main, run_program
from crash.storage import logged


def record(plan: Plan, directory: Path) -> Recording:
    """Create a log, make its file the disk, and let the program change it."""
    initial, image, disk = directory / "initial.img", directory / "disk.img", directory / "disk"
    pmwal.open(initial, "x", size=plan.size, medium="file").close()
    recording = Recording(plan, directory, limit=initial.stat().st_size)
    os.truncate(initial, recording.limit + NOTES_MAX * NOTE_SIZE)
    image.write_bytes(initial.read_bytes())  # without holes, which an open would fill
    with logged(image, recording.log, disk):
        run_program(plan, directory, str(disk), disk, recording.limit)
    return recording


@contextlib.contextmanager
def examiner(recording: Recording) -> Iterator[Examine]:
    """The state is the log."""

    def examine(recording: Recording) -> Found:
        os.truncate(recording.state, recording.limit)
        return look(recording.state)

    yield examine


RIG = Rig(
    name="filelog",
    description=__doc__,
    needs=("root", "fuse"),
    filesystems=("",),
    states_each=500,
    record=record,
    examiner=examiner,
)

if __name__ == "__main__":
    sys.exit(main(RIG))
