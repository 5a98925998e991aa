"""The gate: its bars, and the rows that are compared with them.

A row compares one figure of pmwal with one of a floor from the same run. "at most" bars are for times and counts, "at least" bars
for rates. The ratio is pmwal's figure divided by the floor's; without a floor it is the figure itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Sense = Literal["at most", "at least"]

BARS: dict[str, float] = {
    "append memory": 1.65,
    "append memory p99.9": 2.2,
    "dax strict": 1.3,
    "dax pipelined": 1.25,
    "dax 1 KiB": 1.3,
    "extend memory": 1.25,
    "extend array": 10e6,
    "read array": 0.5,
    "disk append p50": 1.08,
    "disk append p99": 1.2,
    "disk append p99.9": 1.3,
    "disk append sectors least": 8.0,
    "disk append sectors most": 10.0,
    "large 4 KiB": 1.15,
    "large 64 KiB": 1.35,
    "large 256 KiB": 1.5,
    "large 16 MiB": 1.5,
    "disk extend": 0.7,
    "creation": 0.9,
    "copy": 0.5,
    "threads barriers": 0.2,
    "threads rate": 0.95,
    "tasks": 20.0,
    "beside computing": 0.4,
    "sleeper ticks": 800.0,
    "pause ms": 2.0,
    "seek 64 MiB ms": 5.0,
    "seek 4 GiB ms": 20.0,
    "consumers ack µs": 20.0,
    "consumers resume ms": 20.0,
    "queue": 1.0,
    "recovery small": 0.5,
    "recovery large": 0.75,
    "recovery cold": 0.9,
    "read": 1.0,
    "peers": 1.0,
    "flat append": 1.25,
    "follow": 1.6,
    "follow idle %": 1.0,
    "log event": 0.08,
    "log event enqueued": 1.0,
    "log handler ns": 500.0,
    "event call ns": 150.0,
    "first record ms": 5.0,
    "merged read": 1.7,
    "ship floor": 3.0,
    "ship single": 0.333,
    "ship acknowledged": 2.0,
    "ship idle %": 1.0,
    "import ms": 20.0,
    "pmwal --version ms": 20.0,
    "pmwal info ms": 80.0,
}
"""All bars of the gate. "pause ms" is beyond a switch interval of the interpreter."""


@dataclass(frozen=True)
class Row:
    """One comparison. ``passed`` is None if it could not be measured; ``note`` has the reason, or further figures.

    A row that is not ``judged`` is shown beside its bar, and decides nothing. Of a check that ran several times the figures are
    medians, ``passed`` is the verdict on them, and ``passes`` of the ``runs`` passed alone.
    """

    check: str
    what: str
    floor_name: str
    floor: float
    ours: float
    unit: str
    ratio: float
    sense: Sense
    bar: float
    passed: bool | None
    note: str = ""
    judged: bool = True
    runs: int = 1
    passes: int = 0

    @property
    def verdict(self) -> str:
        """One word, and how many runs passed if there were several."""
        if self.passed is None:
            return "skipped"
        word = ("pass" if self.passed else "FAIL") if self.judged else ("within" if self.passed else "over")
        return word if self.runs == 1 else f"{word}, {self.passes} of {self.runs}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN."""
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The row from the values of ``as_dict``."""
        numbers = {key: math.nan for key in ("floor", "ours", "ratio") if values[key] is None}
        return cls(**(values | numbers))


def within(ratio: float, sense: Sense, bar: float) -> bool:
    """Whether a ratio is on the right side of its bar. NaN never is."""
    return ratio <= bar if sense == "at most" else ratio >= bar


def compare(
    check: str, what: str, floor_name: str, figures: Sequence[float], unit: str, sense: Sense, bar: float, note: str = ""
) -> Row:
    """A row of two figures, (floor, pmwal). Figures that are not positive never pass."""
    floor, ours = figures
    ratio = ours / floor if floor > 0 and ours > 0 else math.nan
    return Row(check, what, floor_name, floor, ours, unit, ratio, sense, bar, within(ratio, sense, bar), note)


def absolute(check: str, what: str, ours: float, unit: str, sense: Sense, bar: float, note: str = "") -> Row:
    """A row whose bar is the figure itself."""
    return Row(check, what, "the bar itself", math.nan, ours, unit, ours, sense, bar, within(ours, sense, bar), note)


def skipped(check: str, why: str) -> Row:
    """A row that cannot be measured here."""
    return Row(check, "", "", math.nan, math.nan, "", math.nan, "at most", math.nan, None, why)


def broken(check: str, why: str) -> Row:
    """A row of a check that ended with an error, which is a failure."""
    return replace(skipped(check, why), passed=False)


def beside(row: Row) -> Row:
    """The same row, which decides nothing."""
    return replace(row, judged=False)


def combined(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of several runs of one check: medians, and how many passed. A run that ended early gives its own rows instead."""
    if len(runs) == 1:
        return list(runs[0])
    shortest = min(runs, key=len)
    if any(len(run) != len(shortest) for run in runs):
        return [*shortest]
    return [_combined_row(rows) for rows in zip(*runs, strict=True)]


def _combined_row(rows: Sequence[Row]) -> Row:
    measured = [row for row in rows if row.what]
    if len(measured) < len(rows) or any(math.isnan(row.ratio) for row in rows):
        return next((row for row in rows if row.passed is False), rows[-1])
    ratios = sorted(row.ratio for row in rows)
    middle = min(rows, key=lambda row: abs(row.ratio - statistics.median(ratios)))
    figures = {
        name: statistics.median([getattr(row, name) for row in rows]) for name in ("floor", "ours", "ratio")
    }  # the median of the ratios, which need not be the ratio of the medians
    spread = f"{len(rows)} runs: {ratios[0]:.3g} to {ratios[-1]:.3g}"
    return replace(
        middle,
        **figures,
        passed=within(figures["ratio"], middle.sense, middle.bar),
        note="; ".join(filter(None, (spread, middle.note))),
        runs=len(rows),
        passes=sum(row.passed is True for row in rows),
    )


def exit_code(rows: Iterable[Row]) -> int:
    """1 if a judged row failed, 3 if nothing was measured, else 0."""
    verdicts = [row.passed for row in rows if row.judged]
    if False in verdicts:
        return 1
    return 0 if True in verdicts else 3
