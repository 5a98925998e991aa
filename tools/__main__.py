"""Run one of the developers' tools, from the repository root.

    python -m tools VERB [ARGUMENT ...]      the arguments go to the tool
    python -m tools VERB --help              what the tool can do

Each verb runs a command that can also be called directly: a module such as pytest, or a file in tools/.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
USAGE = 2


class Verb(NamedTuple):
    """Commands that run one after another, each given the verb's arguments, or ``default`` where there are none.

    A command is the arguments of the Python interpreter. ``modules`` are what it imports beyond pmwal's own dependencies, and
    ``extra`` is the extra of the package that installs them.
    """

    about: str
    commands: tuple[tuple[str, ...], ...]
    modules: tuple[str, ...] = ()
    extra: str = "test"
    default: tuple[str, ...] = ()


def _file(path: str) -> tuple[tuple[str, ...], ...]:
    """The command that runs one file of tools/."""
    return ((f"tools/{path}",),)


_PYTEST = ("pytest", "xdist", "hypothesis")
_LINT = (("-m", "ruff", "check"), ("-m", "ruff", "format", "--check"), ("-m", "mypy"))
_DOCS = (("-m", "sphinx", "-W", "--keep-going", "docs", "build/docs"),)
VERBS = {
    "test": Verb("the default test suite, without tests marked slow, nightly and rigs", (("-m", "pytest", "-q"),), _PYTEST),
    "lint": Verb("ruff check, ruff format --check and mypy, of everything or of the files named", _LINT, ("ruff", "mypy")),
    "docs": Verb(
        "the documents as web pages, in build/docs; a warning is an error",
        _DOCS,
        ("sphinx", "myst_parser", "furo", "sphinx_copybutton"),
        "docs",
    ),
    "rigs": Verb(
        "the crash and stress rigs as tests: short runs, with their controls",
        (("-m", "pytest", "-q", "-m", "rigs and not nightly"),),
        _PYTEST,
    ),
    "nightly": Verb("the tests marked nightly and long runs of all rigs: hours; --list shows them", _file("nightly.py"), _PYTEST),
    "histories": Verb("random histories under kills and power cuts; --replay runs one again", (("tests/run_histories.py",),)),
    "stepper": Verb("single-step the C engine; judge what memory may hold at each instruction", _file("crash/stepper")),
    "filelog": Verb("power cuts of a log's file, from the writes and flushes of the kernel", _file("crash/disk/filelog.py")),
    "hostlog": Verb("power cuts of ext4 and xfs with a log on them", _file("crash/disk/hostlog.py")),
    "filesystems": Verb("count the syncs during each acknowledgement, on each file system", _file("filesystems")),
    "vm": Verb("power cuts of a virtual machine that writes a log", _file("crash/vm")),
    "soak": Verb(
        "one writer at a steady rate for an hour, with freezes of its disk; latency, memory", _file("soak.py"), ("psutil",)
    ),
    "bench": Verb("measure pmwal beside hardware floors and other logs; --gate checks the bars", _file("bench.py")),
    "sectors": Verb("count the sectors that a commit writes to a disk", _file("sectors.py")),
    "fuzz": Verb("fuzz the C engine's reading of a ring, under sanitizers", _file("fuzz/run.py")),
    "fuzz-files": Verb("open mutated log files with both engines and compare the answers", _file("fuzz/file_fuzz.py")),
    "sanitize": Verb("run tests over an engine built with sanitizers, or under valgrind", _file("sanitize.py"), _PYTEST),
    "pythons": Verb("run the tests under each Python that is found; --quick runs a part", _file("releasing/interpreters.py")),
    "wheel": Verb(
        "build the sdist and the wheel, audit them, and try the wheel in a clean environment",
        _file("releasing/wheels.py"),
        ("build", "twine", "auditwheel"),
        "release",
    ),
    "sdist": Verb("build an sdist, and run the tests from its unpacked tree", _file("releasing/sdists.py"), ("build", *_PYTEST)),
    "cross": Verb("compile the C engine for aarch64 and for musl, and test it there", _file("releasing/cross.py")),
    "picture": Verb("record the demo in a terminal, and draw the README's picture of it", _file("record_demo.py"), ("rich",)),
    "header": Verb("write the C engine's format header from pmwal/format/layout.py", _file("make_format_header.py")),
    "golden": Verb("write the golden files that tests/data lacks", _file("make_golden.py"), default=("tests/data",)),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The verb, of the first argument; all others belong to the tool."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:<{width}}{verb.about}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        usage="%(prog)s [-h] VERB [ARGUMENT ...]",
        description=__doc__,
        epilog=f"verbs:\n{verbs}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of those below")
    return parser.parse_args(arguments[:1])


def problem(verb: Verb) -> str | None:
    """Why the verb cannot run here, and what to do; None when it can."""
    if Path.cwd() != ROOT:
        return f"run it from the repository root: cd {shlex.quote(str(ROOT))}"
    for modules, extra in ((("numpy", "crc32c"), ""), (verb.modules, f"[{verb.extra}]")):
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if absent:
            install = shlex.join([sys.executable, "-m", "pip", "install", "-e", f".{extra}"])
            return f"{', '.join(absent)} is not installed; install it with: {install}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the commands of a verb, all of them, and return the first exit status that is not 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = parse(given).verb
    verb = VERBS[name]
    if (message := problem(verb)) is not None:
        print(f"{name}: {message}", file=sys.stderr)
        return USAGE
    passed = given[1:] or verb.default
    commands = [[sys.executable, *command, *passed] for command in verb.commands]
    if len(commands) == 1:
        sys.stdout.flush()
        os.execv(commands[0][0], commands[0])  # so that signals and the exit status are the tool's own
    statuses = []
    for command in commands:
        print("+", shlex.join(command), flush=True)
        statuses.append(subprocess.run(command, check=False).returncode)
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    sys.exit(main())
