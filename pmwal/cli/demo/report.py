"""What the demo prints: a line for each kill, the last recovery, the latencies, and the verdict."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import numpy as np

from pmwal.cli.demo.cycle import Cycle, Demo
from pmwal.cli.demo.input import Input
from pmwal.cli.wording import durability_in_words, records_in_words
from pmwal.errors import PmwalError
from pmwal.opening.files import inspect
from pmwal.opening.units import format_size
from pmwal.records import WalStats
from pmwal.storage.seam import SYSTEM

_PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
_HEADINGS = ("kill", "after", "acknowledged", "extra", "dropped", "recovery", "verdict")
_WIDTHS = (4, 8, 12, 5, 7, 9)  # with the verdict they fit a terminal of 80 columns


class Printer:
    """Prints progress and results, unless quiet."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose

    def header(self, path: str, stats: WalStats, lines: Input, seed: int, args: argparse.Namespace) -> None:
        """What is tested, on which medium, with which lines."""
        self._print(f"log      {path}")
        self._print(f"         ring of {format_size(stats.capacity)}, {stats.engine} engine, {stats.ordering} ordering")
        self._print(f"medium   {stats.medium} on {stats.filesystem}, flush: {stats.flush}")
        for note in (f"a record survives {durability_in_words(stats.durability)}", *stats.assumptions):
            self._print(f"         {note}")
        self._print(f"input    {len(lines.lines):,} lines of")
        self._print(f"         {lines.source}")
        self._print(f"kills    {args.cycles}, each at most {args.seconds:g} s after the first acknowledgement; seed {seed}")
        if args.sabotage:
            self._print("sabotage the writer acknowledges before it appends: the demo must fail")
        self._print("")
        self._print(_row(_HEADINGS))

    def cycle(self, cycle: Cycle) -> None:
        """One kill."""
        report, finding = cycle.report, cycle.finding
        case = "" if report is None else f" ({report.outcome}, {report.case})"
        self._print(
            _row(
                (
                    str(cycle.number),
                    f"{cycle.killed_after:.3f} s",
                    f"{cycle.acknowledged:,}",
                    str(finding.extra),
                    "-" if report is None else str(report.dropped_records),
                    f"{cycle.recovery_seconds * 1e3:.1f} ms",
                    ("ok" if cycle.sound else "FAILED") + case,
                )
            )
        )
        for problem in finding.problems:
            self._print(f"      {problem}")

    def end(self, value: dict[str, Any]) -> None:
        """The last recovery, the latencies and the verdict."""
        report = value["recovery"]
        if report is not None:
            kept = records_in_words(report["first_seq"], report["last_seq"])
            self._print(f"\nlast recovery: {report['outcome']} ({report['case']})")
            self._print(f"  {report['reason']}")
            past = f", {report['kept_past_pointer']} of them past the commit pointer and every durable mark"
            epoch = f"; epoch {report['epoch']}"
            self._print(f"  kept {kept}{past if self._verbose else ''}")
            if report["first_seq"] > 1:
                self._print("  older ones were truncated, by the writer or after a kill")
            dropped = f"{report['dropped_records']} ({format_size(report['dropped_bytes'])})"
            self._print(f"  dropped {dropped}{epoch if self._verbose else ''}")
            self._print(f"  {format_size(report['bytes_scanned'])} read in {report['seconds'] * 1e3:.1f} ms")
        latency = value["latency_us"]
        if latency:
            self._print("\nfrom append to acknowledgement, µs" + "".join(f"{name:>11}" for name in latency))
            self._print(f"{value['acknowledged']:>25,} records" + "".join(f"{number:>11,.1f}" for number in latency.values()))
        self._print("")
        if value["error"]:
            self._print(f"NOTHING PROVED: {value['error']}")
        else:
            for line in _verdict(value):
                self._print(line)
        if "kept" in value:
            self._print(f"the log is kept: {value['kept']}")

    def _print(self, line: str) -> None:
        if not self._quiet:
            print(line, flush=True)


def _row(cells: tuple[str, ...]) -> str:
    *numbers, verdict = cells
    return "  ".join([f"{cell:>{width}}" for cell, width in zip(numbers, _WIDTHS, strict=True)] + [verdict])


def summary(demo: Demo, stats: WalStats, lines: Input, seed: int, error: str) -> dict[str, Any]:
    """All results as plain values, for JSON."""
    cycles = demo.cycles
    acknowledged = sum(cycle.acknowledged for cycle in cycles)
    report = next((cycle.report for cycle in reversed(cycles) if cycle.report is not None), None)
    return {
        "sound": not error and acknowledged > 0 and all(cycle.sound for cycle in cycles),
        "error": error,
        "path": demo.path,
        "seed": seed,
        "input": lines.source,
        "lines": len(lines.lines),
        "medium": stats.medium,
        "filesystem": stats.filesystem,
        "durability": stats.durability,
        "ordering": stats.ordering,
        "engine": stats.engine,
        "capacity": stats.capacity,
        "acknowledged": acknowledged,
        "lost": sum(cycle.finding.lost for cycle in cycles),
        "changed": sum(cycle.finding.changed for cycle in cycles),
        "foreign": sum(cycle.finding.foreign for cycle in cycles),
        "kept_extra": sum(cycle.finding.extra for cycle in cycles),
        "wraps": _wraps(demo.path),
        "latency_us": {} if demo.sabotage else _latency(demo),
        "recovery": None if report is None else report.as_dict(),
        "cycles": [_cycle(cycle) for cycle in cycles],
    }


def _cycle(cycle: Cycle) -> dict[str, Any]:
    finding = cycle.finding
    return {
        "cycle": cycle.number,
        "killed_after_seconds": cycle.killed_after,
        "acknowledged": cycle.acknowledged,
        "truncations": cycle.truncations,
        "compared": finding.compared,
        "kept_extra": finding.extra,
        "dropped": None if cycle.report is None else cycle.report.dropped_records,
        "lost": finding.lost,
        "changed": finding.changed,
        "foreign": finding.foreign,
        "problems": finding.problems,
        "recovery_ms": cycle.recovery_seconds * 1e3,
        "outcome": None if cycle.report is None else cycle.report.outcome,
        "case": None if cycle.report is None else cycle.report.case,
        "sound": cycle.sound,
    }


def _latency(demo: Demo) -> dict[str, float]:
    values = np.concatenate(demo.latencies_ns) if demo.latencies_ns else np.zeros(0)
    if not len(values):
        return {}
    numbers = np.percentile(values, list(_PERCENTILES.values())) / 1000
    return {name: round(float(number), 3) for name, number in zip(_PERCENTILES, numbers, strict=True)}


def _wraps(path: str) -> int:
    """How often the log went past the ring's end."""
    with contextlib.suppress(PmwalError, OSError), inspect(path, SYSTEM) as (_, judgement):
        return judgement.end.position // judgement.identity.block.capacity
    return 0


def _verdict(value: dict[str, Any]) -> list[str]:
    kills, wraps = len(value["cycles"]), value["wraps"]
    times = {0: "did not wrap", 1: "wrapped once"}.get(wraps, f"wrapped {wraps} times")
    what = f"{kills} {'kill' if kills == 1 else 'kills'}, {value['acknowledged']:,} acknowledged lines; the ring {times}"
    if not value["sound"]:
        wrong = [f"{value[name]:,} {name}" for name in ("lost", "changed", "foreign") if value[name]]
        return [f"FAILED: {', '.join(wrong) or 'see above'} ({what})"]
    extra = value["kept_extra"]
    kept = f"and {extra} more in flight at a kill" if extra else "and nothing else"
    return [
        f"PROVED: {what}.",
        "After every kill the log had each acknowledged line that was not truncated,",
        f"in order and byte for byte, {kept}.",
        "Only the death of a process was tested: nothing here survives a power cut."
        if value["durability"] == "process"
        else "Only the death of a process was tested, not what the disk does in a power cut.",
    ]
