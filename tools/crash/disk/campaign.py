"""The command line of the disk rigs: recordings of all kinds until there are enough states, several at a time."""

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

from crash import needs
from crash.disk.oracle import STAGES
from crash.disk.program import CONTROLS, LARGE
from crash.disk.recording import Plan
from crash.disk.rig import Broken, Rig, Totals, explore, replay
from crash.disk.storage import StorageError, own_mounts
from crash.process import die_with_parent
from pmwal.format.layout import CONTROL_SIZE_DEFAULT, CONTROL_SIZE_MIN
from pmwal.native.choice import ENGINES
from pmwal.units import parse_size

ORDERINGS = ("pipelined", "strict")
SHAPES = (
    (4 * LARGE, CONTROL_SIZE_MIN),
    (1 << 16, CONTROL_SIZE_MIN),
    (1 << 18, CONTROL_SIZE_MIN),
    (1 << 16, CONTROL_SIZE_MIN),
    (1 << 17, CONTROL_SIZE_DEFAULT),
)
"""Sizes of the ring and of the slots' region, in turn. The smallest region has 128 slots: a run goes round them, and recovery is
done with them soon."""
STATES_EACH_MIN = 50  # a recording takes longer than that many states
SHM = Path("/dev/shm")
VIOLATION, CANNOT = 1, 2  # exit status


def plans(rig: Rig, options: argparse.Namespace) -> Iterator[Plan]:
    """Recordings until there are as many states as wanted, over engines, orderings, file systems and sizes in turn."""
    choices = (options.filesystem or rig.filesystems, options.engine or ENGINES, options.ordering or ORDERINGS)
    # Those with an even sum of indices first: among them is each pair of choices, so that a short run has them all.
    picks = sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=lambda pick: sum(pick) % 2)
    kinds = [tuple(choice[index] for choice, index in zip(choices, pick, strict=True)) for pick in picks]
    shapes = [shape for shape in SHAPES if options.size in (None, shape[0])] or [(options.size, CONTROL_SIZE_MIN)]
    left = options.states
    each = max(STATES_EACH_MIN, min(rig.states_each, -(-left // len(kinds))))
    for number in itertools.count():
        if left <= 0:
            return
        filesystem, engine, ordering = kinds[number % len(kinds)]
        size, control_size = shapes[number % len(shapes)]  # there are 2, 4 or 8 kinds: in each turn they get other shapes
        states, seed = min(each, left), options.seed + number // len(kinds)
        yield Plan(rig.name, seed, engine, ordering, options.control, states, size, control_size, filesystem)
        left -= each


def parse_options(rig: Rig, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=rig.description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=200, help="how many states to look at (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default: both in turn")
    parser.add_argument("--ordering", action="append", choices=ORDERINGS, help="default: both in turn")
    parser.add_argument("--size", type=parse_size, help="of the ring (default: several in turn)")
    if rig.filesystems != ("",):
        parser.add_argument("--filesystem", action="append", choices=rig.filesystems, help="default: all in turn")
    parser.add_argument("--control", choices=CONTROLS, help="run with this mistake: it must be noticed (exit status 1)")
    jobs = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=jobs, help="recordings at a time (default: one a processor, %(default)s)")
    parser.add_argument("--keep", type=Path, help=f"a new directory for what is wrong (default: {rig.name}-violation-SEED)")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="judge what was kept there once more, and nothing else")
    options = parser.parse_args(arguments)
    options.filesystem = getattr(options, "filesystem", None)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    return options


def main(rig: Rig, arguments: Sequence[str] | None = None) -> int:
    """Record, look, say what was found."""
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
    """On SIGTERM blocks end as they do on Ctrl-C."""
    sys.exit(128 + signal.SIGTERM)


def _say(what: str, totals: Totals, seconds: float) -> None:
    """The summary."""
    each = seconds * 1000 / max(totals.states, 1)
    stages = ", ".join(f"{totals.stages[stage]} in {words}" for stage, words in STAGES.items())
    facts = ", ".join(f"{count} {fact}" for fact, count in totals.facts.items())
    print(f"{what}: {totals.states} states, {totals.distinct} distinct, {seconds:.1f} s, {each:.1f} ms a state; {facts}")
    print(f"cut: {stages}")


def _replay(rig: Rig, kept: Path, work: Path) -> int:
    """Judge what was kept; the exit status."""
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
    """Explore all plans in some processes; what was looked at, and the exit status of the first that found something.

    The others are killed then, as all are on an interrupt: the kernel lets go of what they have (``storage.py``), whatever they are
    at, while an exception in the midst of a system call could lose a descriptor, and with it keep a disk in use.
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
                except EOFError:  # it has ended
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
    """One of the processes: explore the next plan until there is none left, or until something is wrong."""
    die_with_parent()
    own_mounts()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process gets it, too, and ends this one
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
    """Keep what is wrong and say how to see it again."""
    plan = broken.recording.plan
    lines = [f"{plan}: {broken.cut}: {broken}", f"again with: {again(plan)}"]
    try:
        broken.recording.keep(keep, broken.cut)
    except FileExistsError:
        lines.append(f"not kept: {keep} is there already")
    else:
        lines.append(f"kept in {keep}; again with: python -m tools {plan.rig} --replay {keep}")
    print("\n".join(lines), file=sys.stderr)


def again(plan: Plan) -> str:
    """The command that makes the same calls and takes cuts by the same seed."""
    command = f"python -m tools {plan.rig} --states {plan.states} --seed {plan.seed} --size {plan.size}"
    command += f" --engine {plan.engine} --ordering {plan.ordering}"
    command += f" --filesystem {plan.filesystem}" if plan.filesystem else ""
    return command + (f" --control {plan.control}" if plan.control else "")
