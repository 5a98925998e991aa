"""Run the tests under each CPython that is found here, each with a build of its own.

    python -m tools pythons                          the default suite: several minutes for each
    python -m tools pythons --quick                  a part of it, a minute or less for each: CI runs this
    python -m tools pythons --only 3.13 -- -k fork   one version, and arguments for pytest
    python -m tools pythons --list                   what is found

The versions from 3.11 to 3.14, free-threaded ones too, are looked for on the path, in pyenv's directory and in /opt/python; of each
the newest is used. The environments lie in build/pythons and are kept; pmwal is built and installed anew in each run.
Exit status: 0 all passed; 1 some did not; 2 none was found.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # run as a file: Python put its directory first, but the imports start at tools/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from releasing.environments import CHECKED, ROOT, Failed, make_environment, requirements, run

FAILED, NONE = 1, 2
OLDEST, NEWEST = (3, 11), (3, 14)
PROBE = """
import json, sys, sysconfig
print(json.dumps([sys.implementation.name, sys.version_info[:3], bool(sysconfig.get_config_var("Py_GIL_DISABLED"))]))
"""
QUICK = (
    *("test_imports.py", "test_interpreters.py", "test_api.py", "test_calls.py", "test_recovery_table.py", "test_exporters.py"),
    *("test_code_inside_calls.py", "test_fork.py", "test_log_handler.py"),
)
"""Import, opening, appending and recovery with both engines, buffers, forks, threads and logging: what a new Python may break."""

QUICK_NEEDS = ("pytest", "pytest-xdist", "hypothesis", "psutil", "tqdm")


class Python(NamedTuple):
    """An interpreter that was found."""

    version: tuple[int, int, int]
    free_threaded: bool
    path: Path

    @property
    def name(self) -> str:
        """The version as in the names of executables."""
        return f"{self.version[0]}.{self.version[1]}" + "t" * self.free_threaded


def candidates() -> Iterator[Path]:
    """Where interpreters may be."""
    names = [f"python{major}.{minor}{t}" for major, minor in _versions() for t in ("", "t")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for name in names:
        yield from (Path(directory) / name for directory in os.get_exec_path())
        yield from pyenv.glob(f"versions/*/bin/{name}")
        yield from Path("/opt/python").glob(f"*/bin/{name}")


def _versions() -> Iterator[tuple[int, int]]:
    return ((OLDEST[0], minor) for minor in range(OLDEST[1], NEWEST[1] + 1))


@functools.cache
def probe(path: Path) -> Python | None:
    """The interpreter at a path; None if there is none, or not CPython."""
    if not os.access(path, os.X_OK):
        return None
    done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode:  # as a shim of pyenv for a version that is not chosen
        return None
    implementation, version, free_threaded = json.loads(done.stdout)
    return Python(tuple(version), free_threaded, path) if implementation == "cpython" else None


def find() -> list[Python]:
    """Of each version the newest interpreter."""
    newest: dict[str, Python] = {}
    for python in filter(None, map(probe, candidates())):
        if python.name not in newest or newest[python.name].version < python.version:
            newest[python.name] = python
    return sorted(newest.values())


def install(python: Python, quick: bool) -> Path:
    """The interpreter of the version's environment, with pmwal and what its tests need."""
    directory = ROOT / "build" / "pythons" / python.name
    executable = directory / "bin" / "python"
    if probe(executable) != python._replace(path=executable):
        make_environment(directory, python.path)
    needs = requirements("test", QUICK_NEEDS) if quick else requirements("test")
    run(executable, "-m", "pip", "install", "-q", "--upgrade-strategy", "only-if-needed", *needs, "-e", ".", env=CHECKED)
    return executable


def test(python: Python, quick: bool, arguments: Sequence[str]) -> bool:
    """Build, test, and print a line; whether all passed."""
    started = time.monotonic()
    chosen = [*(f"tests/{name}" for name in QUICK if quick), *arguments]
    try:
        executable = install(python, quick)
        built = time.monotonic()
        lock = {"PYTHON_GIL": "1"} if python.free_threaded else {}  # without a warning that it is taken back
        said = run(executable, "-m", "pytest", "-q", *chosen, env={"PMWAL_REQUIRE_NATIVE": "1", **lock})
    except Failed as error:
        print(f"{python.name:<6} FAILED after {time.monotonic() - started:.0f} s, {python.path}\n{error}", flush=True)
        return False
    times = f"built in {built - started:.0f} s, tested in {time.monotonic() - built:.0f} s"
    print(f"{python.name:<6} {said.strip().splitlines()[-1]}; {times}, {python.path}", flush=True)
    return True


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print what is found, and run nothing")
    parser.add_argument("--quick", action="store_true", help="run a part of the suite, a minute or less")
    parser.add_argument("--others", action="store_true", help="leave out the version that runs this")
    parser.add_argument("--only", action="append", metavar="VERSION", help="as 3.13 or 3.13t; repeatable")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="for pytest, after --")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests under each interpreter; the exit status."""
    options = parse(arguments)
    pythons = [python for python in find() if not options.only or python.name in options.only]
    if options.others:
        pythons = [python for python in pythons if python.version[:2] != sys.version_info[:2] or python.free_threaded]
    if not pythons:
        print(
            f"no such interpreter was found; install one of {', '.join(f'{major}.{minor}' for major, minor in _versions())}",
            file=sys.stderr,
        )
        return NONE
    if options.list:
        for python in pythons:
            print(f"{python.name:<6} {'.'.join(map(str, python.version)):<8} {python.path}")
        return 0
    passed = [test(python, options.quick, options.arguments) for python in pythons]
    return 0 if all(passed) else FAILED


if __name__ == "__main__":
    sys.exit(main())
