"""Run the tests marked nightly, and the rigs for long, one after another; print a table row about each for a report.

    python -m tools nightly --list                print what would run, and for how long
    python -m tools nightly                       run everything: about five hours on two idle processors
    python -m tools nightly --minutes 60          scale the rigs so that all of them take about an hour
    python -m tools nightly --only stress         only runs whose names begin with "stress"; repeatable

The marked tests are not scaled. The output of each run goes to a file in the directory --logs; its row has what was run, what it
counted, the result and the time. After a run that failed, or that cannot run on this machine, the others still run.
Exit status: 0 all runs passed; 1 a run did not pass; 2 usage.
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
    """One long run. ``{amount}`` in the command is ``amount`` times the scale, but at least ``least``.

    ``tells`` matches the lines of the output that have the counts for the summary.
    """

    name: str
    command: str
    minutes: float  # at full length, on two processors
    tells: str
    amount: int = 0
    least: int = 1
    cannot_run: tuple[int, ...] = ()  # exit statuses for a machine that lacks something

    def scaled(self, scale: float) -> int:
        """The amount at this scale."""
        return max(self.least, round(self.amount * scale))


_SIM = "-m pmwal crashsim --{mode} --images {amount} --seed {seed}"
_DISK = "tools/crash/disk/{rig}.py --states {amount} --seed {seed}"
_VM = "tools/crash/vm --device {device} --cuts {amount} --kills 2 --seed {seed}"
_STRESS = "-m pmwal stress {path} --seconds {amount} --seed {seed}"
RUNS = (
    Planned("tests", "-m pytest -q -m nightly", 0, r"(?:passed|failed|deselected|no tests ran).* in "),
    Planned("pythons", "-m tools pythons --others", 0, r" passed|FAILED", cannot_run=(2,)),
    Planned("sdist", "-m tools sdist", 0, r"(?:passed|failed).* in "),
    Planned("cross", "-m tools cross --executions {amount} --seed {seed}", 5, "records: ", 100_000, 1000, (3,)),
    Planned("crashsim", _SIM, 25, r"^ *\d+ histories", 1_000_000, 50_000, (64,)),
    Planned("histories", "-m tools histories --histories {amount} --seed {seed} --processes 0", 20, "histories, ", 10_000, 100),
    Planned("stepper", "tools/crash/stepper --states {amount} --seed {seed}", 25, r"^\w+, seed", 50_000, 500, (3,)),
    Planned("filelog", _DISK.replace("{rig}", "filelog"), 10, r"^filelog, seed", 10_000, 50, (2,)),
    Planned("hostlog", _DISK.replace("{rig}", "hostlog"), 15, r"^hostlog, seed", 5_000, 50, (2,)),
    Planned("vm nvdimm", _VM.replace("{device}", "nvdimm"), 10, "^no mistake", 100, 3, (2,)),
    Planned("vm disk", _VM.replace("{device}", "virtio-blk"), 10, "^no mistake", 100, 3, (2,)),
    Planned("stress memory", _STRESS.replace("{path}", "{memory}"), 10, r"lives of|records compared", 600, 10, (64,)),
    Planned("stress disk", _STRESS.replace("{path}", "{disk}"), 10, r"lives of|records compared", 600, 10, (64,)),
    Planned("stress isolated", _STRESS.replace("{path}", "{memory} --isolated-readers"), 5, r"^readers|lives of", 300, 10, (64,)),
    Planned("soak", "tools/soak.py --seconds {amount} --seed {seed} --path {memory}", 60, r"acknowledged|^growth", 3600, 600, (2,)),
    Planned("races", "tools/sanitize.py --threads --rounds {amount}", 5, "reports of the sanitizer", 15, 1, (2,)),
    Planned("fuzz ring", "tools/fuzz/run.py --seconds {amount} --seed {seed}", 20, "executions", 1200, 10, (2,)),
    Planned("fuzz files", "tools/fuzz/file_fuzz.py --seconds {amount} --seed {seed}", 20, r"cases in", 1200, 10),
)


def command_of(run: Planned, scale: float, options: argparse.Namespace) -> list[str]:
    """The command line of a run, without the interpreter."""
    amount = run.scaled(scale)
    mode = "full" if amount >= run.amount else "quick"  # --full explores whole sets of sequences, even for few images
    words = run.command.format(amount=amount, seed=options.seed, mode=mode, memory="{memory}", disk="{disk}").split()
    paths = {"{memory}": str(options.memory_dir), "{disk}": str(options.disk_dir)}
    return [paths.get(word, word) for word in words]


def told(run: Planned, output: str) -> str:
    """The counts of a run: the last two matching lines of its output; without one, the last line."""
    lines = [line.strip() for line in output.splitlines() if re.search(run.tells, line)]
    return "; ".join(dict.fromkeys(lines[-2:])) or (output.strip().splitlines() or ["no output"])[-1]


def result_of(run: Planned, status: int) -> str:
    """The result of a run, from its exit status."""
    if status == 0:
        return "ok"
    if run.name == "tests" and status == _PYTEST_FOUND_NOTHING:
        return "NO TESTS"
    return "CANNOT RUN HERE" if status in run.cannot_run else f"FAILED ({status})"


def perform(run: Planned, command: list[str], log: Path) -> bool:
    """Run a command and print its table row; whether it passed."""
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
    parser.add_argument("--minutes", type=float, metavar="N", help="length of all rigs together (default: unscaled)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only runs whose names begin with NAME; repeatable"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of every run (default: random)")
    parser.add_argument(
        "--memory-dir", type=Path, default=Path("/dev/shm"), metavar="DIR", help="a directory on tmpfs (default: %(default)s)"
    )
    parser.add_argument(
        "--disk-dir", type=Path, default=Path("/var/tmp"), metavar="DIR", help="a directory on a disk (default: %(default)s)"
    )
    parser.add_argument(
        "--logs", type=Path, default=Path("build/nightly"), metavar="DIR", help="for the output of the runs (default: %(default)s)"
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
    """Run everything chosen; the exit status."""
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
