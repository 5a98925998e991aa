"""The floors of the bars: floors.c of the package, built for the very processor that measures.

The one that the package contains is built for any x86-64 processor, so that a wheel can contain it. A bar compares with the best
that this processor can do: ``gcc -O2 -march=native``, into a temporary directory that is removed at exit.
"""

from __future__ import annotations

import atexit
import functools
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import pmwal
from pmwal.testing.bench.floors import Floors, FloorsUnavailable

SOURCE = Path(pmwal.__file__).parent / "testing" / "bench" / "floors.c"


@functools.cache
def build() -> Floors:
    """Compile and load the floors; ``FloorsUnavailable`` if that is not possible."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise FloorsUnavailable(f"the floors are written for x86-64, not {platform.machine()}")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FloorsUnavailable("the floors need gcc")
    if not SOURCE.exists():
        raise FloorsUnavailable(
            f"the floors of the bars are compiled from {SOURCE}, which an installed wheel does not have: install this checkout "
            "with pip install -e ., or run pmwal bench, whose floors are in the wheel"
        )
    directory = Path(tempfile.mkdtemp(prefix="pmwal-floors-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    library = directory / "floors.so"
    errors = ""
    for target in ("-march=native", "-msse4.2"):
        command = [compiler, "-O2", target, "-Wall", "-shared", "-fPIC", "-pthread", "-o", str(library), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return Floors(library)
        errors = done.stderr.strip()
    raise FloorsUnavailable(f"floors.c does not compile: {errors}")
