"""Measure pmwal against floors, which do the same work without a log, and against other logs. See docs/performance.md.

    python -m tools bench [--memory-dir DIR] [--disk-dir DIR] [--quick]      measure all tables
    python -m tools bench --gate [--only NAME ...]                           check the bars; exit status 1 if one fails
    python -m tools bench --gate --repeat 10 --only NAME                     ten runs: the median decides; shows how many passed
    python -m tools bench --tables --gate --json FILE --charts DIR           everything
    python -m tools bench --from FILE --charts DIR --docs docs               charts and pages from an earlier run
    python -m tools bench --from docs/measured.md --charts docs/pictures     the README's picture from the figures of that page

Floors are C loops that share no code with pmwal and run in the same process, in turns with pmwal. Exit status: 0 all measured bars
passed; 1 a bar failed; 2 usage; 3 nothing could be measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmark import charts, pages, sections
from benchmark.checks import CHECKS, run_check
from benchmark.context import FULL, QUICK, Context
from benchmark.gate import Row, combined, exit_code
from benchmark.report import Results, environment_text, gate_lines, gate_table, row_line
from pmwal.testing import machine
from pmwal.testing.bench.floors import FloorsUnavailable

USAGE, NOTHING = 2, 3


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--memory-dir", type=Path, default=Path("/dev/shm"), metavar="DIR", help="a directory on tmpfs (default: %(default)s)"
    )
    parser.add_argument("--disk-dir", type=Path, metavar="DIR", help="a directory on a disk (default: that of temporary files)")
    parser.add_argument(
        "--quick", action="store_true", help="short runs, to see that everything works; their figures are worthless"
    )
    parser.add_argument("--tables", action="store_true", help="measure the tables (default without --gate)")
    parser.add_argument("--gate", action="store_true", help="measure the checks and compare them with their bars")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only checks and tables whose names begin with NAME; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all checks and tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--charts", type=Path, metavar="DIR", help="draw charts into this directory; needs matplotlib")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="use an earlier run: its JSON, or the tables of measured.md"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="run the gate N times; the medians are compared with the bars"
    )
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="put the tables into performance.md and measured.md of this directory"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    options.tables = options.tables or not options.gate
    return options


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """The names that begin with one of ``only``; a whole name means itself only."""
    return [name for name in names if not only or any(name == one or (one not in names and name.startswith(one)) for one in only)]


def run(options: argparse.Namespace, memory: Path, disk: Path) -> Results:
    """Measure, and print each result as soon as it is there."""
    context = Context(machine.look(memory), machine.look(disk), QUICK if options.quick else FULL)
    results = Results(machine.describe(context.memory, context.disk))
    results.environment["run"] = "quick: not for figures" if options.quick else f"{context.scale.rounds} rounds"
    if options.repeat > 1:
        results.environment["run"] += f", the gate {options.repeat} times"
    load = machine.load()
    results.environment["load"] = f"{load} at the start"
    print(environment_text(results.environment), flush=True)
    if options.tables:
        for name in chosen(list(sections.SECTIONS), options.only):
            try:
                tables = sections.SECTIONS[name](context, results.series)
            except FloorsUnavailable as error:
                print(f"\n{name}: skipped, {error}")
                continue
            except Exception as error:  # the other tables are still worth having
                print(f"\n{name}: FAILED, {type(error).__name__}: {error}")
                continue
            for table in tables:
                results.tables.append(table)
                print("\n" + (table.markdown() if options.markdown else table.text()), flush=True)
    if options.gate:
        print(f"\ngate (memory and emulated-dax: {machine.TMPFS_NOTE})")
        results.gate += run_gate(options, context)
        if options.markdown:
            print("\n" + gate_table(results.gate).markdown())
    results.environment["load"] = f"{load} at the start, {machine.load()} at the end"
    return results


def run_gate(options: argparse.Namespace, context: Context) -> list[Row]:
    """The rows of all checks, printed as soon as they are there. Of several runs each goes through all checks in turn."""
    names = chosen(list(CHECKS), options.only)
    runs: dict[str, list[list[Row]]] = {name: [] for name in names}
    for turn in range(options.repeat):
        again = context.again()
        for name in names:
            begin = time.monotonic()
            runs[name].append(run_check(name, again))
            for row in runs[name][-1]:
                print(f"run {turn + 1}: {row_line(row)}" if options.repeat > 1 else gate_lines(row), flush=True)
            print(f"{'':<9}({name}: {time.monotonic() - begin:.0f} s)", flush=True)
    rows = [row for name in names for row in combined(runs[name])]
    if options.repeat > 1:
        print(f"\nmedians of {options.repeat} runs")
        for row in rows:
            print(gate_lines(row), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or load results, and report; the exit status."""
    options = parse(arguments)
    if options.list:
        print("checks (--gate):", *CHECKS, sep="\n  ")
        print("tables:", *sections.SECTIONS, sep="\n  ")
        return 0
    if not chosen([*CHECKS, *sections.SECTIONS], options.only):
        print(f"no check or table begins with {', '.join(options.only)}; see --list", file=sys.stderr)
        return USAGE
    if options.charts is not None and (problem := charts.missing()):
        print(problem, file=sys.stderr)
        return USAGE
    if options.source is not None:
        source = options.source
        results = pages.read(source) if source.suffix == ".md" else Results.from_json(source.read_text())
        print(environment_text(results.environment))
        for table in [*results.tables, *([gate_table(results.gate)] if results.gate else [])]:
            print("\n" + (table.markdown() if options.markdown else table.text()))
    else:
        memory, disk = _directories(options)
        try:
            if not machine.look(memory).in_memory:
                print(f"{options.memory_dir} is not on tmpfs; name another directory with --memory-dir", file=sys.stderr)
                return USAGE
            results = run(options, memory, disk)
        finally:
            for directory in (memory, disk):
                shutil.rmtree(directory, ignore_errors=True)
    if options.json is not None:
        results.save(options.json)
    if options.charts is not None:
        for path in charts.draw_all(results, options.charts):
            print(f"wrote {path}")
    if options.docs is not None:
        try:
            for path in pages.fill(results, options.docs):
                print(f"wrote {path}")
        except ValueError as error:
            print(error, file=sys.stderr)
            return USAGE
    if not options.gate or options.source is not None:
        return 0
    failed = sorted({row.check for row in results.gate if row.judged and row.passed is False})
    skipped = sorted({row.check for row in results.gate if row.passed is None})
    passed = sum(row.judged and row.passed is True for row in results.gate)
    print(f"gate: {passed} rows passed; failed: {', '.join(failed) or 'none'}", end="")
    print(f"; skipped in part or entirely: {', '.join(skipped)}" if skipped else "")
    return exit_code(results.gate)


def _directories(options: argparse.Namespace) -> tuple[Path, Path]:
    """Two new directories, in memory and on disk."""
    disk = options.disk_dir if options.disk_dir is not None else Path(tempfile.gettempdir())
    for directory in (options.memory_dir, disk):
        if not os.access(directory, os.W_OK):
            raise SystemExit(f"{directory} is not a directory that can be written to")
    return tuple(Path(tempfile.mkdtemp(prefix="pmwal-bench-", dir=directory)) for directory in (options.memory_dir, disk))  # type: ignore[return-value]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the directories are removed
    sys.exit(main())
