"""Results of a run: counts, latencies over time, recoveries, resources, violations; as plain values for JSON and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pmwal.testing import machine
from pmwal.testing.stress.cost import CommitCost
from pmwal.testing.stress.journal import STORES, Entries, Op, State
from pmwal.testing.stress.resources import GROWTH_MAX, WARM_UP, Watch
from pmwal.testing.stress.wording import counted

VERSION = 2
PIECES = 24  # intervals of the charts over time; in most of them each engine has a life
COLUMNS = 96  # of the heat map, at most
_PER_DECADE = 40
_MERGED = 5  # bins of a histogram to one row of the heat map
_DECADES = 9  # from 100 ns on
_FIRST_NS = 100.0

Histogram = npt.NDArray[np.int64]


def histogram(times_ns: npt.NDArray[Any]) -> Histogram:
    """Counts of times in bins whose bounds are 6 % apart."""
    steps = np.log10(np.maximum(times_ns.astype(np.float64), _FIRST_NS) / _FIRST_NS) * _PER_DECADE
    return np.bincount(np.minimum(steps.astype(np.int64), _PER_DECADE * _DECADES - 1), minlength=_PER_DECADE * _DECADES)


def percentile(counts: Histogram, q: float) -> float:
    """The upper bound in ns of the bin of the percentile."""
    step = int(np.searchsorted(np.cumsum(counts), q / 100 * counts.sum()))
    return float(_FIRST_NS * 10 ** ((min(step, len(counts) - 1) + 1) / _PER_DECADE))


def growth_text(growths: dict[str, dict[str, float | None]]) -> str:
    """The growth of each process, as text."""
    units = {"memory": (1 << 20, 2, " MiB"), "descriptors": (1, 1, " descriptors"), "threads": (1, 1, " threads")}
    texts = []
    for name, rises in growths.items():
        parts = []
        for what, rise in rises.items():
            if rise is not None:
                scale, digits, unit = units[what]
                parts.append(f"{round(rise / scale, digits) + 0.0:+.{digits}f}{unit}")  # + 0.0: never "-0.0"
        if parts:
            texts.append(f"{name} {', '.join(parts)}")
    return "; ".join(texts) or "run too short to judge"


def environment_of(site: machine.Site, chosen: Sequence[str]) -> dict[str, str]:
    """The environment of a run with logs on these media, for the report."""
    return {"medium": ", ".join(chosen), **machine.facts(site)}


@dataclass
class Results:
    """The results of one run. Times are seconds since its start."""

    environment: dict[str, str]
    seed: int
    command: str
    scope: tuple[str, ...] = ()  # sentences: what such a run shows, and what it cannot show
    seconds: float = 0.0
    kills: list[tuple[float, str]] = field(default_factory=list)  # time, and what it hit: "open", "work", "reader"
    closes: list[float] = field(default_factory=list)
    logs: int = 0
    lives: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    records_checked: int = 0
    under_way: Counter[str] = field(default_factory=Counter)  # calls that a kill interrupted, by their outcome
    cases: Counter[str] = field(default_factory=Counter)  # rows of docs/recovery.md
    looks: dict[str, int] = field(default_factory=dict)  # of the readers, by kind
    recoveries: list[tuple[float, float, int, str]] = field(default_factory=list)  # time, seconds, bytes read, engine
    short_of_space: Counter[str] = field(default_factory=Counter)  # lives, by what was short
    costs: list[CommitCost] = field(default_factory=list)
    disk: list[tuple[float, int, int]] = field(default_factory=list)  # time, sectors written and flushes so far, of all users
    watch: Watch = field(default_factory=Watch)
    growths: dict[str, dict[str, float | None]] = field(default_factory=dict)
    violation: tuple[str, str] | None = None  # kind and message
    kept: str | None = None
    interrupted: str | None = None  # name of the signal
    control: str | None = None
    _latency: dict[tuple[str, int], Histogram] = field(default_factory=dict)  # by engine and second
    _rates: dict[int, Counter[str]] = field(default_factory=dict)  # by second

    def count_calls(self, entries: Entries, engine: str, start_ns: int) -> None:
        """Count the calls of a life."""
        for op in Op:
            states = entries["state"][entries["op"] == op]
            self.calls[op.name.lower()] += int((states == State.DONE).sum() + (states == State.REFUSED).sum())
        stored = entries[(entries["state"] == State.DONE) & np.isin(entries["op"], STORES)]
        ends = ((stored["end_ns"].astype(np.int64) - start_ns) // 1_000_000_000).tolist()
        for second, durable, count in zip(ends, stored["durable"].tolist(), stored["count"].tolist(), strict=True):
            self._rates.setdefault(second, Counter()).update(calls=1, durable=durable, records=count)
        timed = stored[stored["durable"] == 1]
        seconds = (timed["end_ns"].astype(np.int64) - start_ns) // 1_000_000_000
        for second in sorted(set(seconds.tolist())):
            mine = timed[seconds == second]
            counts = histogram((mine["end_ns"] - mine["start_ns"]).astype(np.int64))
            key = engine, second
            self._latency[key] = self._latency.get(key, 0) + counts

    @property
    def _piece_seconds(self) -> int:
        """Length of an interval of the charts over time."""
        return max(1, -(-int(self.seconds + 1) // PIECES))

    def latency(self) -> dict[str, list[dict[str, float]]]:
        """By engine: percentiles in ns of durable calls in each interval of the run."""
        width = self._piece_seconds
        found: dict[str, list[dict[str, float]]] = {}
        for engine in sorted({engine for engine, _ in self._latency}):
            pieces: dict[int, Histogram] = {}
            for (name, second), counts in self._latency.items():
                if name == engine:
                    pieces[second // width] = pieces.get(second // width, 0) + counts
            found[engine] = [
                {
                    "seconds": (piece + 0.5) * width,
                    "calls": int(counts.sum()),
                    **{f"p{q:g}": percentile(counts, q) for q in (50, 99, 99.9)},
                    "max": percentile(counts, 100),
                }
                for piece, counts in sorted(pieces.items())
            ]
        return found

    def heat(self) -> dict[str, Any]:
        """How many durable calls took how long, over the run: counts by engine, column of time and row of latency."""
        width = max(1, -(-int(self.seconds + 1) // COLUMNS))
        counts: dict[str, dict[int, list[int]]] = {}
        for (engine, second), fine in self._latency.items():
            rows = fine.reshape(-1, _MERGED).sum(axis=1)
            column = counts.setdefault(engine, {})
            column[second // width] = (np.asarray(column.get(second // width, 0)) + rows).tolist()
        bounds = [round(_FIRST_NS * 10 ** (row * _MERGED / _PER_DECADE)) for row in range(_PER_DECADE * _DECADES // _MERGED + 1)]
        return {"column_seconds": width, "bounds_ns": bounds, "counts": counts}

    def throughput(self) -> list[dict[str, float]]:
        """Stores in each interval of the run: calls that returned, durable ones among them, and records, in a second."""
        width = self._piece_seconds
        pieces: dict[int, Counter[str]] = {}
        for second, counts in self._rates.items():
            pieces.setdefault(second // width, Counter()).update(counts)
        return [
            {"seconds": (piece + 0.5) * width, **{what: counts[what] / width for what in ("calls", "durable", "records")}}
            for piece, counts in sorted(pieces.items())
        ]

    @property
    def again(self) -> str:
        """After a violation: what was kept, and how to see it again."""
        disposable = "" if self.control is None else "\nthe mistake was planted, so what was kept may be removed"
        replay = f"kept: {self.kept}; judge it again: pmwal stress --replay {self.kept}"
        return f"{replay}{disposable}\nthe same plan again: {self.command}"

    @property
    def verdict(self) -> str:
        """The result in one line."""
        done = f"{counted(len(self.kills), 'kill')}, {counted(self.records_checked, 'record')} compared, in {self.seconds:.0f} s"
        if self.violation is not None:
            kind, message = self.violation
            found = f"VIOLATION {kind}: {message.splitlines()[0]}" if message else f"VIOLATION {kind}"
            return f"{found} ({done})" if self.control is None else f"NOTICED the planted mistake {self.control}: {kind} ({done})"
        if self.control is not None:
            return f"NOT NOTICED: the planted mistake {self.control} ({done})"
        if self.interrupted is not None:
            return f"INTERRUPTED by {self.interrupted}, no violation until then ({done})"
        if not self.records_checked:
            return f"NOTHING PROVED: no record was compared, so run it for longer ({done})"
        return f"SOUND: no violation ({done})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "version": VERSION,
            "verdict": self.verdict,
            "scope": list(self.scope),
            "environment": self.environment,
            "seed": self.seed,
            "command": self.command,
            "control": self.control,
            "seconds": round(self.seconds, 3),
            "logs": self.logs,
            "lives": self.lives,
            "kills": {what: sum(met == what for _, met in self.kills) for what in ("open", "work", "reader")},
            "kill_times": [[round(when, 3), what] for when, what in self.kills],
            "closes": len(self.closes),
            "calls": dict(self.calls),
            "records_checked": self.records_checked,
            "calls_under_way": dict(self.under_way),
            "recovery_cases": dict(self.cases),
            "looks": self.looks,
            "recoveries": [
                {"seconds": when, "took_seconds": took, "bytes_read": size, "engine": engine}
                for when, took, size, engine in self.recoveries
            ],
            "latency_ns": self.latency(),
            "latency_piece_seconds": self._piece_seconds,
            "latency_heat": self.heat(),
            "throughput": self.throughput(),
            "commit_costs": [cost._asdict() for cost in self.costs],
            "short_of_space": dict(self.short_of_space),
            "disk": [{"seconds": round(when, 3), "sectors": sectors, "flushes": flushes} for when, sectors, flushes in self.disk],
            "resources": {name: [sample._asdict() for sample in samples] for name, samples in self.watch.samples.items()},
            "growth": self.growths,
            "growth_tolerated": {**GROWTH_MAX, "after_share_of_time": WARM_UP},
            "violation": None if self.violation is None else {"kind": self.violation[0], "message": self.violation[1]},
            "kept": self.kept,
            "interrupted": self.interrupted,
        }

    def summary(self) -> str:
        """A summary in a few lines."""
        writers = sum(what != "reader" for _, what in self.kills)
        opens = sum(what == "open" for _, what in self.kills)
        under_way = ", ".join(f"{count} {what}" for what, count in sorted(self.under_way.items())) or "none"
        lives = "1 life" if self.lives == 1 else f"{self.lives} lives"
        killed = (
            f"{counted(writers, 'writer')} killed ({opens} while opening), {counted(len(self.kills) - writers, 'reader')} killed"
        )
        lines = [
            f"{self.seconds:.1f} s: {lives} of {counted(self.logs, 'log')}; {killed}, {counted(len(self.closes), 'close')}",
            f"{counted(sum(self.calls.values()), 'call')} returned, {counted(self.records_checked, 'record')} compared",
            f"calls under way at a kill: {under_way}",
            f"readers: {', '.join(f'{count} {what}' for what, count in self.looks.items()) or 'none'}",
            f"verdicts: {', '.join(f'{count} {case}' for case, count in sorted(self.cases.items())) or 'none'}",
        ]
        lines += [cost.text for cost in self.costs]
        if self.short_of_space:
            lines.append(f"lives short of space: {', '.join(f'{n} {what}' for what, n in sorted(self.short_of_space.items()))}")
        if self.interrupted is not None:
            lines.insert(0, f"interrupted by {self.interrupted}; until then:")
        return "\n".join([*lines, f"growth: {growth_text(self.growths)}"])
