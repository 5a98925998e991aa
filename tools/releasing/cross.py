"""Compile the C engine for another processor and for another C library, and test its plain C parts there.

    python -m tools cross [--target aarch64|musl] [--executions N] [--seed N]
    python -m tools cross --control checksum|record|fault [--target NAME]

For each target all sources are compiled with -Wall -Wextra -Werror and the headers of this Python. Then three programs run, those
for aarch64 under qemu: checksums by every way that the processor has, against their definition; the fuzzer of ring.c, on its
corpus and mutations of it; the chains of SIGBUS handlers of tests/fault_chains.c. For musl the plain C objects are also loaded as a
library, by a process that already has threads. What calls Python is compiled and does not run: there is no Python of either kind.
A control plants a mistake in a copy of the sources, which must be noticed.
Exit status: 0 all is well; 1 something is wrong; 3 something that it needs is missing.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # run as a file: Python put its directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from crash import needs
from releasing.environments import ROOT, Failed, run

MISSING = 3
HERE = Path(__file__).parent
FUZZ = ROOT / "tools" / "fuzz"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-DPMWAL_CHECKS", "-pthread")
PLAIN = ("crc32c.c", "linear.c", "ring.c", "search.c", "slots.c", "persist.c", "fault.c", "parallel.c")
"""The sources that know no Python."""

CHAINS = ("", "setup", "jump setup chain", "once setup full", "nodefer jump setup nodefer chain", "stack jump setup chain threads")
HANGING = 600.0


class Target(NamedTuple):
    """What compiles and runs programs, and what the machine needs for that."""

    compiler: tuple[str, ...]
    linker: tuple[str, ...]
    emulator: tuple[str, ...]
    needs: tuple[str, ...]
    loads: bool


def _kernel_headers() -> tuple[str, ...]:
    """Those of this machine: a musl that runs beside another C library has none."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    return ("-idirafter", "/usr/include", "-idirafter", f"/usr/include/{multiarch}")


TARGETS = {
    "aarch64": Target(
        ("aarch64-linux-gnu-gcc",), ("-static",), ("qemu-aarch64",), ("aarch64-linux-gnu-gcc", "qemu-aarch64"), loads=False
    ),
    "musl": Target(("musl-gcc", *_kernel_headers()), (), (), ("musl-gcc",), loads=True),
}

CONTROLS = {
    "checksum": ("crc32c.c", "UINT32_C(0x82f63b78)", "UINT32_C(0x82f63b79)"),
    "record": ("ring.c", "header->batch_index < header->batch_count", "true"),
    "fault": ("fault.c", "guard.end = (uintptr_t)base + size;", "guard.end = (uintptr_t)base + (size & 0);"),
}
"""What is replaced in which source."""


def plant(name: str, native: Path) -> None:
    """Put a mistake into a copy of the sources."""
    source, old, new = CONTROLS[name]
    text = (native / source).read_text()
    if old not in text:
        raise Failed(f"control {name}: {source} has no {old!r}")
    (native / source).write_text(text.replace(old, new))


def headers(work: Path) -> Path:
    """The headers of this Python. Debian's pyconfig.h only knows the processor that it was made for."""
    to = work / "python"
    shutil.copytree(sysconfig.get_path("include"), to)
    shutil.copy(sysconfig.get_config_h_filename(), to / "pyconfig.h")
    return to


class Bench:
    """A target, the sources, and a directory for what is built."""

    def __init__(self, target: Target, native: Path, work: Path) -> None:
        """``native``: the directory of the engine's sources."""
        self.target = target
        self.native = native
        self.work = work

    def link(self, name: str, *sources: Path | str) -> Path:
        """Compile a program."""
        program = self.work / name
        run(*self.target.compiler, *FLAGS, *self.target.linker, f"-I{self.native}", *sources, "-o", program, timeout=HANGING)
        return program

    def execute(self, program: Path, *arguments: str | Path, status: int = 0) -> str:
        """Run it; what it printed. ``Failed`` if it ended with another status, negative for a signal."""
        command = [*self.target.emulator, str(program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGING, check=False, cwd=self.work)
        if done.returncode != status:
            said = (done.stdout + done.stderr)[-1000:]
            raise Failed(f"{' '.join((program.name, *map(str, arguments)))} ended with {done.returncode}: {said}")
        return done.stdout


def compile_all(bench: Bench) -> str:
    """Every source, with what it includes of Python."""
    include = headers(bench.work)
    sources = sorted(bench.native.glob("*.c"))
    run(*bench.target.compiler, *FLAGS, "-fPIC", f"-I{include}", "-c", *sources, cwd=bench.work, timeout=HANGING)
    return f"{len(sources)} sources compiled without a warning"


def checksums(bench: Bench) -> str:
    """By every way of the processor."""
    program = bench.link("checksums", HERE / "checksums.c", bench.native / "crc32c.c", bench.native / "linear.c")
    return "checksums: " + bench.execute(program).strip()


def records(bench: Bench, executions: int, seed: int) -> str:
    """The fuzzer of ring.c, without sanitizers: its model judges each answer."""
    sources = [FUZZ / "ring_fuzz.c", FUZZ / "standalone.c", bench.native / "ring.c", bench.native / "crc32c.c"]
    program = bench.link("ring_fuzz", f"-I{FUZZ}", *sources)
    said = bench.execute(program, "-n", str(executions), "-r", str(seed), FUZZ / "corpus")
    return "records: " + " ".join(said.split())


def faults(bench: Bench) -> str:
    """Faults in guards are caught, whatever other handlers there are; one in no guard ends the process."""
    program = bench.link("faults", ROOT / "tests" / "fault_chains.c", bench.native / "fault.c")
    for words in CHAINS:
        bench.execute(program, *words.split())
    bench.execute(program, "setup", "foreign", status=-signal.SIGBUS)
    return f"faults: caught in {len(CHAINS)} chains of handlers"


def loaded(bench: Bench) -> str:
    """The plain C objects as a library that is loaded later."""
    library = bench.link("library.so", "-shared", "-fPIC", *(bench.native / name for name in PLAIN))
    bench.execute(bench.link("loaded", HERE / "loaded.c"), library)
    return "loaded as a library: checksum and faults are right"


def check(name: str, executions: int, seed: int, control: str | None = None) -> None:
    """Compile and run everything for a target; ``Failed`` at the first that is wrong."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        native = work / "native"
        shutil.copytree(ROOT / "pmwal" / "native", native, ignore=shutil.ignore_patterns("*.so", "*.py*"))
        bench = Bench(TARGETS[name], native, work)
        steps: list[Callable[[Bench], str]] = [checksums, lambda bench: records(bench, executions, seed), faults]
        if control is None:
            steps.insert(0, compile_all)
            steps += [loaded] if bench.target.loads else []
        else:
            plant(control, native)
        for step in steps:
            print(f"{name}: {step(bench)}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--executions", type=int, default=3000, metavar="N", help="of the fuzzer (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the fuzzer (default: random)")
    parser.add_argument("--control", choices=CONTROLS, help="plant a mistake: exit status 1")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the targets; the exit status."""
    options = parse(arguments)
    targets = options.target or list(TARGETS)
    if absent := needs.missing(*(need for name in targets for need in TARGETS[name].needs)):
        print("\n".join(absent), file=sys.stderr)
        return MISSING
    seed = options.seed if options.seed is not None else random.randrange(1 << 24)
    try:
        for name in targets:
            check(name, options.executions, seed, options.control)
    except (Failed, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
