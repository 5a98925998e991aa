"""The results of a benchmark: rows, what limits the place, JSON, and the comparison of two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from pmwal.testing.bench.stats import rate_text, time_text
from pmwal.testing.bench.ways import FILE, MEMORY, kind_of

VERSION = 1
NOISE_MIN = 0.05  # relative: a smaller change of a figure is not worth a mark
_STEADY = 2.0  # times the fastest round: floors that vary more were disturbed
_NEAR = 1.5  # times its floor: the medium is what limits
_MANIFOLD = 10  # times as long: told so, and not in percent
_VARYING = ("date", "load")  # of the environment: other ones in any other run
_SCALES = 1.5  # times the rate of one thread


class Row(NamedTuple):
    """One way. ``cost`` is nanoseconds of a call: the median of the rounds, of which the fastest and the slowest are given, too."""

    key: str
    name: str
    kind: str
    records: int
    calls: int
    cost: float
    fastest: float
    slowest: float
    p50: float
    p99: float
    p999: float
    max: float
    floor: str | None  # its key
    ratio: float | None  # to the floor, the median of the rounds

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / self.cost * 1e9

    @property
    def spread(self) -> float:
        """How far the rounds are apart, relative to the median."""
        return (self.slowest - self.fastest) / self.cost


class Threads(NamedTuple):
    """Durable appends by some threads: records per second, barriers per record, the median call, and the rate of threads in C."""

    threads: int
    rate: float
    barriers: float
    p50: float
    floor_rate: float | None


@dataclass
class Results:
    """Everything that one run has measured."""

    environment: dict[str, str]
    medium: str
    ordering: str
    durability: str
    engine: str
    flush: str
    seconds: float
    rows: list[Row] = field(default_factory=list)
    threads: list[Threads] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, key: str) -> Row | None:
        """The row with this key."""
        return next((row for row in self.rows if row.key == key), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = asdict(self)
        rows = [{**row._asdict(), "records_per_second": row.rate} for row in self.rows]
        threads = [one._asdict() for one in self.threads]
        return {"version": VERSION, **values, "rows": rows, "threads": threads, "limit": limit(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Results:
        """The results of an earlier run; ``ValueError`` for other values."""
        try:
            if values["version"] != VERSION:
                raise ValueError(f"version {values['version']}")
            rows = [Row(**{name: row[name] for name in Row._fields}) for row in values["rows"]]
            threads = [Threads(**one) for one in values["threads"]]
            plain = {
                name: values[name] for name in ("environment", "medium", "ordering", "durability", "engine", "flush", "seconds")
            }
            return cls(**plain, rows=rows, threads=threads, notes=values["notes"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no results of pmwal bench: {error!r}") from None


def limit(results: Results) -> str:
    """A sentence on what limits a durable append here, and what would help."""
    row = results.row(f"append {results.ordering}")
    if row is None or row.ratio is None or row.floor is None:
        return "There is no floor to compare with, so nothing can be said about what limits it."
    floor = results.row(row.floor)
    assert floor is not None
    took = (
        f"A durable append takes {time_text(row.cost)}, in the median round {row.ratio:.2f} times as long as the floor in it "
        f"({floor.name}: {time_text(floor.cost)})"
    )
    kind = kind_of(results.medium)
    if kind == FILE and results.durability == "process":
        return f"{took}: no disk is waited for here, so the processor limits it, in calls of the file system. {_sharing(results)}"
    if kind == FILE:
        if row.ratio > _NEAR:
            return f"{took}: the way to the disk through the file system costs more than the disk. {_sharing(results)}"
        return f"{took}: the disk limits it, one flush after another. {_sharing(results)}"
    what = "no medium is waited for" if kind == MEMORY else "the stores and fences are done in the processor's time"
    batch = results.row("extend 1000")
    more = f" In batches of 1,000 a record takes {time_text(batch.cost / batch.records)}." if batch is not None else ""
    return f"{took}: {what}, so the processor limits it, and the rest is the call from Python.{more}"


def unsteady(results: Results) -> str:
    """A warning if the floors themselves show that something else used the machine or the device; else nothing."""
    worst = max((row.slowest / row.fastest for row in results.rows if row.kind == "floor"), default=1.0)
    if worst <= _STEADY:
        return ""
    return (
        f"UNSTEADY: of the same work without a log, the slowest round took {worst:.1f} times as long as the fastest; measure again "
        "while nothing else uses the machine."
    )


def _sharing(results: Results) -> str:
    """What threads gain, which share flushes."""
    if not results.threads:
        return ""
    alone, best = results.threads[0], max(results.threads, key=lambda one: one.rate)
    gain = best.rate / alone.rate
    batch = results.row("extend 1000")
    batched = f"; extend stores {rate_text(batch.rate, ' records/s')}" if batch is not None else ""
    if gain > best.threads:  # a flush serves each of them once at most
        return f"What threads gain cannot be told from this run: {best.threads} stored {gain:.1f} times as much as one{batched}."
    if gain < _SCALES:
        return f"Threads share flushes but gain only {gain:.1f} times here{batched}."
    return f"{best.threads} threads that share flushes store {gain:.1f} times as much as one{batched}."


# -- text


def lines(results: Results) -> Iterator[str]:
    """The results as text; the last line is the sentence on what limits."""
    width = max(map(len, results.environment)) + 2
    for name, value in results.environment.items():
        yield f"{name:<{width}}{value}"
    log = f"{results.medium}, {results.flush}, {results.ordering}, survives: {results.durability}, {results.engine} engine"
    yield f"{'log':<{width}}{log}"
    yield from results.notes
    names = {row.key: row for row in results.rows}
    wide = max((len(row.name) for row in results.rows), default=0) + 2
    for kind, title in (("floor", "floors: the same work without a log"), ("pmwal", "pmwal")):
        chosen = [row for row in results.rows if row.kind == kind]
        if chosen:
            yield ""
            yield f"{title:<{wide}}{'call':>10}{'p99':>10}{'p99.9':>10}{'max':>10}{'records/s':>12}{'ratio':>8}"
        for row in chosen:
            cells = "".join(f"{time_text(value):>10}" for value in (row.cost, row.p99, row.p999, row.max))
            ratio = "" if row.ratio is None else f"{row.ratio:>8.2f}  of {names[row.floor or ''].name}"
            yield f"{row.name:<{wide}}{cells}{rate_text(row.rate, ''):>12}{ratio}"
    if results.threads:
        yield ""
        bare = f"{'in C':>12}" if any(one.floor_rate is not None for one in results.threads) else ""
        yield f"{'threads, one durable append each':<{wide}}{'call':>10}{'records/s':>12}{'barriers/record':>18}{bare}"
        for one in results.threads:
            bare = "" if one.floor_rate is None else f"{rate_text(one.floor_rate, ''):>12}"
            yield f"{one.threads:<{wide}}{time_text(one.p50):>10}{rate_text(one.rate, ''):>12}{one.barriers:>18.2f}{bare}"
    yield ""
    if unsteady(results):
        yield unsteady(results)
    yield limit(results)


def compare(old: Results, new: Results) -> Iterator[str]:
    """What differs between two runs: the environment, and each figure, marked where it changed by more than the rounds differ."""
    for name in dict.fromkeys([*old.environment, *new.environment]):
        before, after = old.environment.get(name, "none"), new.environment.get(name, "none")
        if before != after and name not in _VARYING:
            yield f"{name}: {before} -> {after}"
    for name in ("medium", "ordering", "durability", "engine", "flush"):
        if getattr(old, name) != getattr(new, name):
            yield f"{name}: {getattr(old, name)} -> {getattr(new, name)}"
    pairs = _pairs(old.rows, new.rows)
    wide = max((len(after.name) for _, after in pairs), default=0) + 2
    yield f"{'call':<{wide}}{'old':>10}{'new':>10}{'change':>9}"
    for earlier, row in pairs:
        noise = max(NOISE_MIN, earlier.spread, row.spread)
        change = _change(earlier.cost, row.cost, noise)
        yield f"{row.name:<{wide}}{time_text(earlier.cost):>10}{time_text(row.cost):>10}{change}"
    by_threads = {one.threads: one.rate for one in old.threads}
    for one in new.threads:
        if (rate := by_threads.get(one.threads)) is not None:
            change = _change(1 / rate, 1 / one.rate, 2 * NOISE_MIN)
            name = f"{one.threads} {'thread' if one.threads == 1 else 'threads'}, a record"
            yield f"{name:<{wide}}{time_text(1e9 / rate):>10}{time_text(1e9 / one.rate):>10}{change}"
    missing = [row.name for row in old.rows if all(row.key != after.key for _, after in pairs)]
    if missing:
        yield f"measured only in the old run: {', '.join(missing)}"


def _pairs(old: Sequence[Row], new: Sequence[Row]) -> list[tuple[Row, Row]]:
    known = {row.key: row for row in old}
    return [(known[row.key], row) for row in new if row.key in known]


def _change(before: float, after: float, noise: float) -> str:
    """The change of a time in percent, or as a multiple from ten on; the mark says that it is more than noise."""
    change = after / before - 1
    mark = "" if abs(change) <= noise else "  faster" if change < 0 else "  SLOWER"
    text = f"{100 * change:+.1f}%" if after < _MANIFOLD * before else f"x{after / before:,.0f}"
    return f" {text:>8}{mark}"
