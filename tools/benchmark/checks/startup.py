"""Checks of whole processes: what importing pmwal and short commands take beyond a Python that does nothing.

All processes run in turns, with the same options and the same pmwal as this one, from compiled bytecode: the first round, which
compiles, is not counted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmark import child
from benchmark.context import Context
from benchmark.gate import BARS, Row, absolute
from pmwal.testing.bench import workloads
from pmwal.testing.bench.stats import median

_TURNS = 8  # in each round of the gate
_COMMAND = "import sys, pmwal_command; sys.exit(pmwal_command.main())"


def import_package(context: Context) -> Iterator[Row]:
    """``import pmwal``, against ``pass``."""
    yield from _rows(context, {"import": ("import pmwal",)})


def command_line(context: Context) -> Iterator[Row]:
    """``pmwal --version`` and ``pmwal info`` of a closed log, against ``pass``."""
    with workloads.new_log(context.memory_dir, size=context.scale.small_ring, warmed=False) as wal:
        wal.extend([workloads.PAYLOAD] * 100)
        wal.close()
        yield from _rows(context, {"pmwal --version": (_COMMAND, "--version"), "pmwal info": (_COMMAND, "info", wal.path)})


def _rows(context: Context, scripts: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    environment = child.environment()
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    bare: list[float] = []
    more: dict[str, list[float]] = {name: [] for name in scripts}
    for turn in range(1 + _TURNS * context.scale.rounds):
        floor = _seconds(("pass",), environment)
        took = {name: _seconds(script, environment) for name, script in scripts.items()}
        if turn:
            bare.append(1e3 * floor)
            for name, seconds in took.items():
                more[name].append(1e3 * (seconds - floor))
    for name, differences in more.items():
        what = f"{'import pmwal' if name == 'import' else name}, beyond python -c pass, median of {len(differences)}"
        note = f"python -c pass took {median(bare):.1f} ms; the least difference is {min(differences):.1f} ms"
        check = "import" if name == "import" else "command line"
        yield absolute(check, what, median(differences), "ms", "at most", BARS[f"{name} ms"], note)


def _seconds(script: tuple[str, ...], environment: Mapping[str, str]) -> float:
    """How long one process takes."""
    command = [sys.executable, "-P", "-c", *script]
    start = time.perf_counter()
    subprocess.run(command, env=environment, cwd=Path("/"), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
