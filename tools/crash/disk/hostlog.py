"""Every state in which a power cut can leave a file system with a log on it: creation, renames and directories included.

    python -m tools hostlog [--states N] [--seed S] [--filesystem NAME] [--engine NAME] [--ordering NAME] [--size SIZE]
                                  [--control NAME]
    python -m tools hostlog --replay DIR

ext4 or xfs of this kernel lies on a loop device over a disk that logs its writes and flushes. A program creates a log there,
changes it, is killed, damages and repairs it; once the power is cut, and the program goes on with what that left. Then states of
the disk between flushes are made and mounted, the log is opened with pmwal, in some of them twice, and what it holds is compared
with what was acknowledged. The notes of the program go past the file system, to the end of the disk. Needs root, /dev/fuse, loop
devices and mkfs for both. Exit status: 0; 1 a state is wrong (it is kept); 2 it cannot run here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # run as a file: Python put this directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from crash.disk.campaign import main
from crash.disk.oracle import Found
from crash.disk.program import NOTE_SIZE
from crash.disk.recording import NOTES_MAX, Plan, Recording
from crash.disk.rig import Examine, Rig, look
from crash.disk.storage import forget_blocks, loop_device, mounted
from violation import Violation

SIZES = {"ext4": 32 << 20, "xfs": 304 << 20}  # of the file system; mkfs.xfs makes none below 300 MiB
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
}
TEARS = {"ext4": 1024, "xfs": 512}
"""What the disk writes wholly or not at all. ext4 does not survive a torn super block (1024 bytes): its checksum is wrong."""

NAME = "test.wal"


def make_filesystem(image: Path, filesystem: str) -> None:
    """A file system in a new image of its size."""
    image.touch()
    os.truncate(image, SIZES[filesystem])
    subprocess.run([*MAKE[filesystem], image], check=True)
    subprocess.run(["fallocate", "--dig-holes", image], check=True)  # each state is a copy, and zeros take their time


def begin(plan: Plan, directory: Path) -> Recording:
    """A new file system is the disk."""
    recording = Recording(plan, directory, limit=SIZES[plan.filesystem], unit=TEARS[plan.filesystem])
    make_filesystem(recording.initial, plan.filesystem)
    os.truncate(recording.initial, recording.limit + NOTES_MAX * NOTE_SIZE)
    (directory / "mounted").mkdir()
    return recording


@contextlib.contextmanager
def attach(recording: Recording, disk: Path) -> Iterator[Path]:
    """The log lies on the file system on the disk."""
    mountpoint = recording.directory / "mounted"
    with loop_device(disk, direct=True) as device, mounted(device, mountpoint, recording.plan.filesystem):
        yield mountpoint / NAME


@contextlib.contextmanager
def examiner(recording: Recording) -> Iterator[Examine]:
    """The state is mounted, which lets the file system recover, and the log opened in it."""
    mountpoint = recording.directory / "examined"
    mountpoint.mkdir()
    with loop_device(recording.state) as device:

        def examine(recording: Recording, twice: bool) -> Found:
            forget_blocks(device)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(mounted(device, mountpoint, recording.plan.filesystem))
                except OSError as error:
                    raise Violation(f"{recording.plan.filesystem} itself did not survive: {error}") from error
                return look(mountpoint / NAME, recording.plan.engine, twice)

        yield examine


RIG = Rig(
    name="hostlog",
    description=__doc__,
    needs=("root", "fuse", "loop", "mkfs.ext4", "mkfs.xfs", "ext4", "xfs"),
    filesystems=("ext4", "xfs"),
    states_each=250,
    begin=begin,
    attach=attach,
    creates=True,
    repairs=True,
    examiner=examiner,
)

if __name__ == "__main__":
    sys.exit(main(RIG))
