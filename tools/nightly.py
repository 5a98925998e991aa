"""Long runs of everything that tries to break a log, one after the other, and a line about each to paste into a report.

    python -m tools nightly --list                what would run, and for how long
    python -m tools nightly                       all of it: several hours on two processors
    python -m tools nightly --minutes 60          the same runs, scaled to take about this long
    python -m tools nightly --only stress         the runs whose names begin so; repeatable

The tests marked nightly are not scaled. What a run prints goes to a file of its own in --logs; the summary line says what was run,
what it counted, its result and its time. A run that fails, or for which something is missing here, does not stop the others.
Exit status: 0; 1 a run did not pass; 2 usage.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FAILED, USAGE = 1, 2
_PYTEST_FOUND_NOTHING = 5  # exit status


class Planned(NamedTuple):
    """One long run. ``{amount}`` in the command is the amount at full length, times the scale, but not below ``least``.

    The summary takes what the run counted from the lines of its output that match ``tells``.
    """

    name: str
    command: str
    minutes: float  # at full length, on two processors
    tells: str
    amount: int = 0
    least: int = 1
    cannot_run: tuple[int, ...] = ()  # exit statuses that mean that something is missing here

    def scaled(self, scale: float) -> int:
        """The amount of this run."""
        return max(self.least, round(self.amount * scale))


_SIM = "tools/crashsim.py --{mode} --images {amount} --seed {seed}"
_DISK = "tools/crash/disk/{rig}.py --states {amount} --seed {seed}"
_VM = "tools/crash/vm --device {device} --cuts {amount} --kills 2 --seed {seed}"
_STRESS = "tools/stress.py --seconds {amount} --seed {seed} --path {path}"
RUNS = (
    Planned("tests", "-m pytest -q -m nightly", 0, r"(?:passed|failed|deselected|no tests ran).* in "),
    Planned("crashsim", _SIM, 25, r"^ *\d+ histories", 1_000_000, 50_000, (2,)),
    Planned("stepper", "tools/crash/stepper --states {amount} --seed {seed}", 25, r"^\w+, seed", 50_000, 500, (3,)),
    Planned("filelog", _DISK.replace("{rig}", "filelog"), 10, r"^filelog, seed", 10_000, 50, (2,)),
    Planned("hostlog", _DISK.replace("{rig}", "hostlog"), 15, r"^hostlog, seed", 5_000, 50, (2,)),
    Planned("vm nvdimm", _VM.replace("{device}", "nvdimm"), 10, "^no mistake", 100, 3, (2,)),
    Planned("vm disk", _VM.replace("{device}", "virtio-blk"), 10, "^no mistake", 100, 3, (2,)),
    Planned("stress memory", _STRESS.replace("{path}", "{memory}"), 10, r"lives of|records compared", 600, 10, (2,)),
    Planned("stress disk", _STRESS.replace("{path}", "{disk}"), 10, r"lives of|records compared", 600, 10, (2,)),
    Planned("fuzz ring", "tools/fuzz/run.py --seconds {amount} --seed {seed}", 20, "executions", 1200, 10, (2,)),
    Planned("fuzz files", "tools/fuzz/file_fuzz.py --seconds {amount} --seed {seed}", 20, r"cases in", 1200, 10),
)


def command_of(run: Planned, scale: float, options: argparse.Namespace) -> list[str]:
    """The command line of a run, without the interpreter."""
    amount = run.scaled(scale)
    mode = "full" if amount >= run.amount else "quick"  # --full explores whole sets of sequences, however few images are asked for
    words = run.command.format(amount=amount, seed=options.seed, mode=mode, memory="{memory}", disk="{disk}").split()
    paths = {"{memory}": str(options.memory_dir), "{disk}": str(options.disk_dir)}
    return [paths.get(word, word) for word in words]


def told(run: Planned, output: str) -> str:
    """What a run counted: the lines of its output that say so, the last where there are many."""
    lines = [line.strip() for line in output.splitlines() if re.search(run.tells, line)]
    return "; ".join(dict.fromkeys(lines[-2:])) or (output.strip().splitlines() or ["no output"])[-1]


def result_of(run: Planned, status: int) -> str:
    """One word or two."""
    if status == 0:
        return "ok"
    if run.name == "tests" and status == _PYTEST_FOUND_NOTHING:
        return "NO TESTS"
    return "CANNOT RUN HERE" if status in run.cannot_run else f"FAILED ({status})"


def perform(run: Planned, command: list[str], log: Path) -> bool:
    """Run it, and print its line; whether it passed."""
    started = time.monotonic()
    with log.open("w") as output:
        print("+ python", shlex.join(command), file=output, flush=True)
        ended = subprocess.run([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
    minutes = (time.monotonic() - started) / 60
    result = result_of(run, ended.returncode)
    cells = (run.name, told(run, log.read_text(errors="replace")), result, f"{minutes:.1f} min", f"`{shlex.join(command)}`")
    print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
    if result != "ok":
        print(f"see {log}", file=sys.stderr, flush=True)
    return result == "ok"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--minutes", type=float, metavar="N", help="how long all runs together should take, the marked tests aside")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="runs whose names begin so; repeatable")
    parser.add_argument("--seed", type=int, help="of every run (default: another one each time)")
    parser.add_argument("--memory-dir", type=Path, default=Path("/dev/shm"), help="a directory on tmpfs (default: %(default)s)")
    parser.add_argument("--disk-dir", type=Path, default=Path("/var/tmp"), help="a directory on a disk (default: %(default)s)")
    parser.add_argument(
        "--logs", type=Path, default=Path("build/nightly"), help="where each run's output goes (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    options.chosen = [run for run in RUNS if not options.only or run.name.startswith(tuple(options.only))]
    if not options.chosen:
        parser.error(f"no run begins with {' or '.join(options.only)}; the names are {', '.join(run.name for run in RUNS)}")
    if options.minutes is not None and options.minutes <= 0:
        parser.error("--minutes must be more than 0")
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big") + 1
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was chosen; the exit status."""
    options = parse(arguments)
    full = sum(run.minutes for run in options.chosen)
    scale = 1.0 if options.minutes is None or not full else options.minutes / full
    planned = [(run, command_of(run, scale, options)) for run in options.chosen]
    if options.list:
        for run, command in planned:
            print(f"{run.name:<14} {f'{run.minutes * scale:.0f} min' if run.minutes else '':>8}  python {shlex.join(command)}")
        return 0
    options.logs.mkdir(parents=True, exist_ok=True)
    print("| run | counted | result | time | python |\n|---|---|---|---|---|", flush=True)
    passed = [perform(run, command, options.logs / f"{run.name.replace(' ', '-')}.log") for run, command in planned]
    print(f"{sum(passed)} of {len(passed)} runs passed; seed {options.seed}", flush=True)
    return 0 if all(passed) else FAILED


if __name__ == "__main__":
    sys.exit(main())
