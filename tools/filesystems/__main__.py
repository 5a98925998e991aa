"""Use a log on each file system, and see that every acknowledgement waited for a sync that reached the file system or its disk.

    python -m tools filesystems [--filesystem NAME]... [--engine NAME] [--control no-sync]

A program creates a log, appends in every way, also from several threads, over the end of the ring, past a limit on file sizes and
until the file system is full, and reopens it. During each call that acknowledges it counts the FSYNC requests of a FUSE server, or
the flushes of a loop device. Then the log is read as a power cut would have left it, and must have every acknowledged record. Needs
root, and for each file system its tools: what is missing is named, and that file system skipped. ``--control no-sync`` replaces the
barriers by nothing, and no disk is filled; it must be noticed. Exit status: 0 no violation; 1 a violation; 2 nothing could run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a directory: Python put it first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pmwal
from crash import needs
from crash.disk import preload
from crash.storage import PATIENCE, own_mounts
from filesystems.media import FILESYSTEMS, Filesystem
from filesystems.program import Found, Settings
from filesystems.server import NAME
from pmwal.native.choice import ENGINES

PROGRAM = Path(__file__).with_name("program.py")
SHOWN = 5


def run_program(settings: Settings, engine: str, library: Path | None) -> Found | str:
    """What the program found, or how it ended instead."""
    environment = {**os.environ, "PMWAL_ENGINE": engine}
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    command = [sys.executable, "-X", "faulthandler", str(PROGRAM), settings.dump()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        return f"the program ended with {done.returncode}: {done.stderr.strip()[-400:]}"
    return Found(**json.loads(done.stdout))


def problems(filesystem: Filesystem, found: Found) -> Iterator[str]:
    """What is wrong with a run."""
    if bool(found.refused) == filesystem.creates:
        yield f"creation: {found.refused or 'not refused'}"
    if found.refused:
        if NAME not in found.refused:
            yield f"the error does not name the log: {found.refused}"
        if found.left:
            yield f"a refused creation left {', '.join(found.left)}"
        return
    if found.durability != filesystem.durability:
        yield f'stats().durability is "{found.durability}"'
    if filesystem.syncs and found.unsynced:
        calls = Counter(found.unsynced).most_common(SHOWN)
        yield "acknowledged without a sync: " + ", ".join(f"{count} x {call}" for call, count in calls)
    if found.unlinked:
        yield "the log was taken for one that lost its name"
    if not found.moved:
        yield "the modification time did not move with commits"


def lost(filesystem: Filesystem, found: Found, work: Path) -> str | None:
    """What a power cut after the run has taken of what was acknowledged."""
    with filesystem.survivor(work) as log:
        if not log.exists():
            return "a power cut takes the file"
        report = pmwal.verify(log)
        if report.outcome == "corrupt":
            return f"a power cut leaves a corrupt log: {report.reason}"
        if report.last_seq < found.last_seq:
            return f"a power cut leaves records up to {report.last_seq}, and {found.last_seq} was acknowledged"
    return None


def examine(filesystem: Filesystem, engine: str, control: str | None, work: Path) -> tuple[Found | str, list[str]]:
    """Run the program on one file system; what it found, and what is wrong."""
    library = None if control is None else preload.build(control, work)
    with filesystem.mounted(work) as place:
        settings = Settings(str(place.directory / NAME), str(place.counter), filesystem.fills and control is None)
        found = run_program(settings, engine, library)
    if isinstance(found, str):
        return found, [found]
    wrong = list(problems(filesystem, found))
    if not found.refused and filesystem.syncs:
        gone = lost(filesystem, found, work)
        wrong += [] if gone is None else [gone]
    return found, wrong


def in_words(found: Found) -> str:
    """One line about a run without a violation."""
    if found.refused:
        return "no log can be created, and the error says so"
    full = f"; full: {found.failed}" if found.failed else ""
    return f"{found.acknowledged} acknowledgements, {len(found.unsynced)} without a sync{full}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools filesystems", description=__doc__.splitlines()[0])
    parser.add_argument("--filesystem", action="append", choices=FILESYSTEMS, metavar="NAME", help=", ".join(FILESYSTEMS))
    parser.add_argument("--engine", choices=ENGINES, help="one engine only (default: both)")
    parser.add_argument("--control", choices=("no-sync",), help="the program's barriers do nothing: must be noticed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rig; the exit status."""
    args = parse(arguments)
    ran = violations = 0
    apart = False
    for name in args.filesystem or FILESYSTEMS:
        filesystem = FILESYSTEMS[name]
        if missing := needs.missing(*filesystem.needs):
            print(f"{name}: skipped, needs {'; '.join(missing)}", flush=True)
            continue
        if not apart:
            own_mounts()
            apart = True
        for engine in [args.engine] if args.engine else ENGINES:
            work = Path(tempfile.mkdtemp(prefix=f"pmwal-filesystems-{os.getpid()}-", dir="/dev/shm"))
            try:
                found, wrong = examine(filesystem, engine, args.control, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            ran += 1
            violations += bool(wrong)
            for problem in wrong:
                print(f"{name}, {engine}: {problem}", file=sys.stderr, flush=True)
            if not wrong and isinstance(found, Found):
                print(f"{name}, {engine}: {in_words(found)}", flush=True)
    if not ran:
        return 2
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
