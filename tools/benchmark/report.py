"""Results: tables and the gate as text and Markdown, and everything as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.gate import Row
from pmwal.testing.bench.stats import PERCENTILES, Latency, rate_text, time_text
from pmwal.testing.machine import TMPFS_NOTE

VERSION = 1


@dataclass
class Table:
    """A table. ``note``, which is always printed, says where it was measured."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str

    def text(self) -> str:
        """Aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [_line(self.columns, widths), "  ".join("-" * width for width in widths)]
        lines += [_line(row, widths) for row in self.rows]
        return "\n".join([self.title, *("  " + line for line in lines), f"  ({self.note})"])

    def markdown(self) -> str:
        """As Markdown."""
        return f"**{self.title}** ({self.note})\n\n{self.markdown_rows()}"

    def markdown_rows(self) -> str:
        """As Markdown, without title and note."""
        rows = [self.columns, ["---"] * len(self.columns), *([cell.replace("|", "\\|") for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@dataclass
class Results:
    """The results of a run. Charts are drawn from ``series``."""

    environment: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    gate: list[Row] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """The results as JSON."""
        values = {
            "version": VERSION,
            "environment": self.environment,
            "tables": [vars(table) for table in self.tables],
            "gate": [row.as_dict() for row in self.gate],
            "series": self.series,
        }
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Results:
        """The results from the text of ``as_json``."""
        values = json.loads(text)
        if values.get("version") != VERSION:
            raise ValueError(f"results of version {values.get('version')}, not {VERSION}")
        return cls(
            values["environment"],
            [Table(**table) for table in values["tables"]],
            [Row.from_dict(row) for row in values["gate"]],
            values["series"],
        )

    def save(self, path: Path) -> None:
        """Write the JSON."""
        path.write_text(self.as_json() + "\n")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def environment_text(environment: dict[str, str]) -> str:
    """The head of a report."""
    width = max(map(len, environment), default=0)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in environment.items())


LATENCY_COLUMNS = ["what", "p50", "p99", "p99.9", "p99.99", "max", "rate"]


def tail_texts(latency: Latency) -> list[str]:
    """p50 to max as text; "-" for a percentile above which there is less than one call."""
    values = zip(PERCENTILES, (latency.p50, latency.p99, latency.p999, latency.p9999), strict=True)
    texts = [time_text(value) if (100 - q) * latency.calls >= 99.9 else "-" for q, value in values]
    return [*texts, time_text(latency.max)]


def latency_row(name: str, latency: Latency) -> list[str]:
    """One line of a table of latencies."""
    return [name, *tail_texts(latency), rate_text(latency.rate)]


def latency_table(title: str, rows: Iterable[tuple[str, Latency]], note: str) -> Table:
    """A table of latencies."""
    return Table(title, LATENCY_COLUMNS, [latency_row(*row) for row in rows], note)


def figure_text(value: float, unit: str) -> str:
    """A figure of the gate with its unit; "ns" is a time, units that end with "/s" are rates."""
    if math.isnan(value):
        return "-"
    if unit == "ns":
        return time_text(value)
    if unit.endswith("/s"):
        return rate_text(value, unit)
    return f"{value:.3g} {unit}".strip()


def ratio_text(row: Row) -> str:
    """What a row compares with its bar: the ratio, or the figure if there is no floor."""
    if math.isnan(row.floor):
        return figure_text(row.ours, row.unit)
    return "none" if math.isnan(row.ratio) else f"{row.ratio:.3f}"


def bar_text(row: Row) -> str:
    """The bar, in the same unit."""
    return f"{row.sense} {figure_text(row.bar, row.unit) if math.isnan(row.floor) else f'{row.bar:g}'}"


def gate_lines(row: Row) -> str:
    """One row of the gate as text."""
    if not row.what:
        return f"{row.verdict:<8} {row.check}: {row.note}"
    figures = f"pmwal {figure_text(row.ours, row.unit)}"
    if not math.isnan(row.floor):
        figures = f"{row.floor_name} {figure_text(row.floor, row.unit)}, {figures}, ratio {ratio_text(row)}"
    head = f"{row.verdict:<8} {row.check}: {row.what}"
    lines = [head, f"{'':<9}{figures}, bar {bar_text(row)}"]
    if row.note:
        lines.append(f"{'':<9}{row.note}")
    return "\n".join(lines)


def row_line(row: Row) -> str:
    """The same in one line, for one run of several."""
    return f"{row.verdict:<8} {row.check}: {f'{row.what}: {ratio_text(row)}' if row.what else row.note}"


def gate_table(rows: Sequence[Row]) -> Table:
    """The gate as a table."""
    columns = ["check", "what", "floor", "floor's figure", "pmwal", "ratio", "bar", "verdict"]
    cells = []
    for row in rows:
        if not row.what:
            cells.append([row.check, row.note, "-", "-", "-", "-", "-", row.verdict])
            continue
        floor, ours = figure_text(row.floor, row.unit), figure_text(row.ours, row.unit)
        ratio = "-" if math.isnan(row.floor) else ratio_text(row)
        cells.append([row.check, row.what, row.floor_name, floor, ours, ratio, bar_text(row), row.verdict])
    return Table("Gate", columns, cells, f"rows on memory and emulated-dax are on {TMPFS_NOTE}")
