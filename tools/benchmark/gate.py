"""The gate: its bars, and the rows that are compared with them.

A row compares one figure of pmwal with one of a floor from the same run. "at most" bars are for times and counts, "at least" bars
for rates. The ratio is pmwal's figure divided by the floor's; without a floor it is the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Sense = Literal["at most", "at least"]

BARS: dict[str, float] = {
    "append memory": 2.0,
    "append memory p99.9": 2.0,
    "dax strict": 1.25,
    "dax pipelined": 1.45,
    "extend memory": 1.5,
    "extend array": 10e6,
    "read array": 0.5,
    "disk append p50": 1.12,
    "disk append tail": 1.3,
    "disk append sectors least": 8.0,
    "disk append sectors most": 10.0,
    "disk extend": 0.8,
    "threads barriers": 0.3,
    "threads rate": 0.85,
    "tasks": 20.0,
    "beside computing": 0.4,
    "recovery small": 0.35,
    "recovery large": 0.6,
    "recovery cold": 0.8,
    "read": 1.0,
    "peers": 1.0,
    "flat append": 1.25,
    "follow": 1.6,
    "follow idle %": 1.0,
    "log event": 0.08,
    "log event enqueued": 1.0,
    "log handler ns": 500.0,
    "event call ns": 150.0,
    "import ms": 20.0,
    "pmwal --version ms": 20.0,
    "pmwal info ms": 80.0,
}
"""All bars of the gate."""


@dataclass(frozen=True)
class Row:
    """One comparison. ``passed`` is None if it could not be measured; ``note`` has the reason, or further figures."""

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

    @property
    def verdict(self) -> str:
        """One word."""
        return "skipped" if self.passed is None else "pass" if self.passed else "FAIL"

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


def exit_code(rows: Iterable[Row]) -> int:
    """1 if a row failed, 3 if nothing was measured, else 0."""
    verdicts = [row.passed for row in rows]
    if False in verdicts:
        return 1
    return 0 if True in verdicts else 3
