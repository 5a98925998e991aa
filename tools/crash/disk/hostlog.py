"""Power cuts of ext4 or xfs with a log on it: creation, renames and directory entries included.

    python -m tools hostlog [--states N] [--seed S] [--filesystem NAME] [--engine NAME] [--ordering NAME] [--size SIZE]
                                  [--control NAME]
    python -m tools hostlog --replay DIR

The file system is on a loop device over a disk that logs its writes and flushes. A program creates a log there, changes it, is
killed, damages the log and repairs it; once the power is cut, and the program continues with what that left. The rig then builds
states of the disk between flushes, mounts each, opens the log with pmwal, in some of them twice, and compares it with what was
acknowledged. The program writes its notes to the end of the disk, bypassing the file system. Needs root, /dev/fuse, loop devices
and mkfs for both. Exit status: 0 no violation; 1 a state is wrong (it is kept); 2 it cannot run here.
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
from crash.storage import forget_blocks, loop_device, mounted
from pmwal.testing.stress.violation import Violation

SIZES = {"ext4": 32 << 20, "xfs": 304 << 20}  # of the file system; mkfs.xfs makes none below 300 MiB
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
}
TEARS = {"ext4": 1024, "xfs": 512}
"""Bytes that the disk writes atomically. ext4 does not survive a torn superblock (1,024 bytes): its checksum fails."""

NAME = "test.wal"


def make_filesystem(image: Path, filesystem: str) -> None:
    """Make an image with an empty file system."""
    image.touch()
    os.truncate(image, SIZES[filesystem])
    subprocess.run([*MAKE[filesystem], image], check=True)
    subprocess.run(["fallocate", "--dig-holes", image], check=True)  # every state is a copy: holes keep that cheap


def begin(plan: Plan, directory: Path) -> Recording:
    """The disk holds a new file system."""
    recording = Recording(plan, directory, limit=SIZES[plan.filesystem], unit=TEARS[plan.filesystem])
    make_filesystem(recording.initial, plan.filesystem)
    os.truncate(recording.initial, recording.limit + NOTES_MAX * NOTE_SIZE)
    (directory / "mounted").mkdir()
    return recording


@contextlib.contextmanager
def attach(recording: Recording, disk: Path) -> Iterator[Path]:
    """Mount the disk; the log is a file on it."""
    mountpoint = recording.directory / "mounted"
    with loop_device(disk, direct=True) as device, mounted(device, mountpoint, recording.plan.filesystem):
        yield mountpoint / NAME


@contextlib.contextmanager
def examiner(recording: Recording) -> Iterator[Examine]:
    """Mount the state, so that the file system recovers, and open the log in it."""
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
