"""The command line of the disk rigs: recordings of every kind, several at a time, until enough states were judged."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from crash import needs
from crash.disk.oracle import STAGES
from crash.disk.program import CONTROLS, LARGE
from crash.disk.recording import Plan
from crash.disk.rig import Broken, Rig, Totals, explore, replay
from crash.process import die_with_parent
from crash.storage import StorageError, own_mounts
from pmwal.format.layout import CONTROL_SIZE_DEFAULT, CONTROL_SIZE_MIN
from pmwal.format.payload import parse_size
from pmwal.native.choice import ENGINES
from pmwal.opening.options import Ordering

ORDERINGS = ("pipelined", "strict")
SHAPES = (
    (4 * LARGE, CONTROL_SIZE_MIN),
    (1 << 16, CONTROL_SIZE_MIN),
    (1 << 18, CONTROL_SIZE_MIN),
    (1 << 16, CONTROL_SIZE_MIN),
    (1 << 17, CONTROL_SIZE_DEFAULT),
)
"""Sizes of the ring and of the control region, in turn. The smallest region has 128 slots: a run wraps it, and recovery reads it
quickly."""
STATES_EACH_MIN = 50  # recording a run takes longer than judging this many states
SHM = Path("/dev/shm")
VIOLATION, CANNOT = 1, 2  # exit status


def plans(rig: Rig, options: argparse.Namespace) -> Iterator[Plan]:
    """Recordings for the states wanted, cycling through engines, orderings, file systems and sizes."""
    choices = (options.filesystem or rig.filesystems, options.engine or ENGINES, options.ordering or ORDERINGS)
    # Combinations with an even index sum come first: they contain every pair of choices, so a short run covers all pairs.
    picks = sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=lambda pick: sum(pick) % 2)
    kinds = [tuple(choice[index] for choice, index in zip(choices, pick, strict=True)) for pick in picks]
    shapes = [shape for shape in SHAPES if options.size in (None, shape[0])] or [(options.size, CONTROL_SIZE_MIN)]
    left = options.states
    each = max(STATES_EACH_MIN, min(rig.states_each, -(-left // len(kinds))))
    for number in itertools.count():
        if left <= 0:
            return
        filesystem, engine, ordering = kinds[number % len(kinds)]
        size, control_size = shapes[number % len(shapes)]  # 2, 4 or 8 kinds against 5 shapes: each cycle pairs them differently
        states, seed = min(each, left), options.seed + number // len(kinds)
        yield Plan(rig.name, seed, engine, cast(Ordering, ordering), options.control, states, size, control_size, filesystem)
        left -= each


def parse_options(rig: Rig, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=rig.description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=200, help="states to judge (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the calls and the cuts (default: random)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: both in turn")
    parser.add_argument("--ordering", action="append", choices=ORDERINGS, help="default: both in turn")
    parser.add_argument("--size", type=parse_size, help="of the ring, such as 64KiB (default: several in turn)")
    if rig.filesystems != ("",):
        parser.add_argument("--filesystem", action="append", choices=rig.filesystems, help="default: all in turn")
    parser.add_argument(
        "--control", choices=CONTROLS, help="run with this deliberate mistake, which must be noticed (exit status 1)"
    )
    jobs = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--jobs", type=int, default=jobs, help="recordings at a time (default: one for each processor, %(default)s)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help=f"new directory for a wrong state (default: {rig.name}-violation-SEED)"
    )
    parser.add_argument("--replay", type=Path, metavar="DIR", help="only judge the state kept in this directory again")
    options = parser.parse_args(arguments)
    options.filesystem = getattr(options, "filesystem", None)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    return options


def main(rig: Rig, arguments: Sequence[str] | None = None) -> int:
    """Record runs, judge their states, report; the exit status."""
    options = parse_options(rig, arguments)
    wanting = needs.missing(*rig.needs)
    if wanting:
        print(f"{rig.name} needs " + "; ".join(wanting), file=sys.stderr)
        return CANNOT
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix=f"pmwal-{rig.name}-{os.getpid()}-", dir=SHM if SHM.is_dir() else None) as work:
        if options.replay is not None:
            return _replay(rig, options.replay, Path(work))
        begin = time.monotonic()
        totals, status = _campaign(rig, options, Path(work))
    if not status:
        _say(f"{rig.name}, seed {options.seed}", totals, time.monotonic() - begin)
    return status


def _leave(*_: object) -> None:
    """On SIGTERM unwind as on Ctrl-C, so that everything is unmounted."""
    sys.exit(128 + signal.SIGTERM)


def _say(what: str, totals: Totals, seconds: float) -> None:
    """Print the summary."""
    each = seconds * 1000 / max(totals.states, 1)
    stages = ", ".join(f"{totals.stages[stage]} in {words}" for stage, words in STAGES.items())
    facts = ", ".join(f"{count} {fact}" for fact, count in totals.facts.items())
    print(f"{what}: {totals.states} states, {totals.distinct} distinct, {seconds:.1f} s, {each:.1f} ms a state; {facts}")
    print(f"cut: {stages}")


def _replay(rig: Rig, kept: Path, work: Path) -> int:
    """Judge a kept state again; the exit status."""
    own_mounts()
    try:
        replay(rig, kept, work)
    except Broken as broken:
        print(f"{broken.recording.plan}: {broken.cut}: {broken}", file=sys.stderr)
        return VIOLATION
    except (StorageError, OSError) as error:
        print(f"{rig.name}: {error}", file=sys.stderr)
        return CANNOT
    print(f"{kept}: nothing wrong")
    return 0


# -- several recordings at a time


def _campaign(rig: Rig, options: argparse.Namespace, work: Path) -> tuple[Totals, int]:
    """Explore all plans in worker processes; the totals, and the exit status of the first worker that found something.

    The others are killed then, and all are on an interrupt: the kernel releases what a dead process holds (``storage.py``), while
    an exception between a system call and its assignment could leak a descriptor and keep a disk in use.
    """
    todo = list(enumerate(plans(rig, options)))
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)
    totals, status = Totals(), 0
    workers = []
    try:
        for _ in range(min(options.jobs, len(todo))):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (rig, todo, following, work, options.keep, theirs)
            workers.append((context.Process(target=_work, args=arguments), ours))
            workers[-1][0].start()
            theirs.close()
        open_ends = [ours for _, ours in workers]
        while open_ends and not status:
            ready = wait(open_ends)
            for ours in [end for end in open_ends if end in ready]:
                try:
                    totals.add(ours.recv())
                except EOFError:  # the worker has ended
                    open_ends.remove(ours)
                    process = next(process for process, end in workers if end is ours)
                    process.join()
                    status = status or abs(process.exitcode or 0)
    finally:
        for process, _ in workers:
            process.kill()
        for process, _ in workers:
            process.join()
    return totals, status


def _work(
    rig: Rig,
    todo: Sequence[tuple[int, Plan]],
    following: multiprocessing.sharedctypes.Synchronized[int],
    work: Path,
    keep: Path | None,
    results: Connection,
) -> None:
    """The body of a worker: explore one plan after another until none is left or a state is wrong."""
    die_with_parent()
    own_mounts()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and kills this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        with following.get_lock():
            number, following.value = following.value, following.value + 1
        if number >= len(todo):
            return
        plan = todo[number][1]
        directory = work / str(number)
        directory.mkdir()
        try:
            results.send(explore(rig, plan, directory))
        except Broken as broken:
            _report(broken, keep or Path(f"{rig.name}-violation-{plan.seed}"))
            sys.exit(VIOLATION)
        except (StorageError, OSError) as error:
            print(f"{plan}: {error}", file=sys.stderr)
            sys.exit(CANNOT)
        shutil.rmtree(directory)


def _report(broken: Broken, keep: Path) -> None:
    """Keep the wrong state, and print how to see it again."""
    plan = broken.recording.plan
    lines = [f"{plan}: {broken.cut}: {broken}", f"run it again: {again(plan)}"]
    try:
        broken.recording.keep(keep, broken.cut)
    except FileExistsError:
        lines.append(f"not kept, because {keep} exists already: name another directory with --keep")
    else:
        lines.append(f"kept in {keep}; judge it again: python -m tools {plan.rig} --replay {keep}")
    print("\n".join(lines), file=sys.stderr)


def again(plan: Plan) -> str:
    """The command that makes the same calls and cuts."""
    command = f"python -m tools {plan.rig} --states {plan.states} --seed {plan.seed} --size {plan.size}"
    command += f" --engine {plan.engine} --ordering {plan.ordering}"
    command += f" --filesystem {plan.filesystem}" if plan.filesystem else ""
    return command + (f" --control {plan.control}" if plan.control else "")
