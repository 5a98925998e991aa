"""What users choose between: pmwal beside other ways to keep a record or a log line, as a table and as a picture.

Both are made of the tables of a run, so every figure is on docs/measured.md, too.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmark.loggers import EVENT, FILE, HANDLER, LOGGERS, SYNCED_FILE, SYNCED_HANDLER
from benchmark.peers import PEERS
from benchmark.report import Table

TEXT, PAPER, OURS, OTHERS = "#1f2328", "#ffffff", "#0969da", "#afb8c1"
DARK = {TEXT: "#e6edf3", PAPER: "#0d1117", OURS: "#4493f8", OTHERS: "#57606a"}
"""The colours of the picture, and those for a reader whose system is dark."""

_UNITS = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}


class Bar(NamedTuple):
    """One way to do it: the time as the table has it."""

    name: str
    shown: str
    ours: bool

    @property
    def nanoseconds(self) -> float:
        """The time as a number."""
        number, unit = self.shown.split()
        return float(number) * _UNITS[unit]


class Panel(NamedTuple):
    """Ways to do the same, the fastest first."""

    title: str
    where: str
    bars: list[Bar]


class _Source(NamedTuple):
    """The table of a panel, by the beginning of its title; the column of its figures; its rows, and their names in the picture."""

    title: str
    table: str
    column: str
    names: dict[str, str]


_SOURCES = (
    _Source(
        "A record of 128 bytes on a disk: after the call it survives a power cut",
        "Peers: durable append",
        "p50",
        {
            "pmwal": "pmwal",
            "plain file": "plain file, fdatasync (no checksum, no recovery)",
            "plyvel": "LevelDB (plyvel), sync",
            "rocksdict": "RocksDB (rocksdict), sync",
            "sqlite3 FULL": "SQLite, WAL, synchronous=FULL",
            "persist-queue": "persist-queue (SQLite)",
            "lmdb": "LMDB, sync",
            "sdsavior": "sdsavior, fsync",
        },
    ),
    _Source(
        "A record of 128 bytes on tmpfs: after the call it survives a kill",
        "Peers: process append",
        "p50",
        {
            "pmwal": "pmwal",
            "plain file": "plain file, write (no checksum, no recovery)",
            "plyvel": "LevelDB (plyvel)",
            "rocksdict": "RocksDB (rocksdict)",
            "sqlite3 NORMAL": "SQLite, WAL, synchronous=NORMAL",
            "persist-queue": "persist-queue (SQLite)",
            "lmdb": "LMDB, no sync",
            "sdsavior": "sdsavior",
        },
    ),
    _Source(
        "A log line with three values on a disk: after the call it survives a power cut",
        "Disk: a log line",
        "p50",
        {SYNCED_FILE: "logging, FileHandler and fdatasync", SYNCED_HANDLER: 'logging, LogHandler(commit="each")'},
    ),
    _Source(
        "A log line with three values on tmpfs: after the call it survives a kill",
        "Loggers:",
        "a call",
        {
            EVENT: "pmwal.events",
            HANDLER: "logging, pmwal.LogHandler",
            FILE: "logging, FileHandler",
            "structlog, pmwal factory": "structlog, pmwal",
            "structlog, BytesLogger": "structlog, file",
            "loguru, pmwal sink": "loguru, pmwal",
            "loguru, file": "loguru, file",
            "picologging, FileHandler": "picologging, FileHandler",
        },
    ),
)


def panels(tables: Sequence[Table]) -> list[Panel]:
    """The panels for which a run has tables."""
    found = []
    for source in _SOURCES:
        for table in tables:
            if not table.title.startswith(source.table):
                continue
            column = table.columns.index(source.column)
            bars = [Bar(source.names[row[0]], row[column], _ours(row[0])) for row in table.rows if row[0] in source.names]
            found.append(Panel(source.title, table.note, sorted(bars, key=lambda bar: bar.nanoseconds)))
    return found


def _ours(name: str) -> bool:
    return LOGGERS[name].ours if name in LOGGERS else PEERS[name].ours


def block(tables: Sequence[Table], environment: dict[str, str]) -> str:
    """The panels as tables, and where they were measured."""
    parts = [f"One run: {where_text(environment)}."]
    for panel in panels(tables):
        rows = [[f"**{bar.name}**" if bar.ours else bar.name, bar.shown] for bar in panel.bars]
        parts.append(Table(panel.title, ["", "a call, median"], rows, panel.where).markdown())
    return "\n\n".join(parts)


def where_text(environment: dict[str, str]) -> str:
    """The machine and the date."""
    processor = re.sub(r"\((R|TM)\)", "", environment["processor"]).replace(" for this process", " of them")
    kernel = re.match(r"Linux [\d.]+", environment["kernel"])
    text = f"{environment['date']}, {processor}, {kernel[0] if kernel else environment['kernel']}, {environment['python']}"
    return f"{text}, QUICK RUN: figures are worthless" if "quick" in environment.get("run", "") else text


def svg(plot: Any, tables: Sequence[Table], environment: dict[str, str]) -> str:
    """The panels as bars from zero, one below the other, light or dark as the reader's system is."""
    shown = panels(tables)
    with importlib.import_module("matplotlib").rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "pmwal", "font.family": "sans-serif", "text.color": TEXT}
    ):
        heights = [len(panel.bars) + 1.4 for panel in shown]
        figure, all_axes = plot.subplots(len(shown), figsize=(8.4, 0.8 + 0.24 * sum(heights)), height_ratios=heights, squeeze=False)
        figure.patch.set_facecolor(PAPER)
        for axes, panel in zip(all_axes[:, 0], shown, strict=True):
            _draw(axes, panel)
        figure.text(0.012, 0.012, f"Median time of a call, less is better. One run: {where_text(environment)}.", fontsize=8)
        figure.subplots_adjust(left=0.385, right=0.9, top=0.975, bottom=0.045, hspace=0.12)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plot.close(figure)
    dark = "".join(f'[style*="fill: {light}"]{{fill:{colour} !important}}' for light, colour in DARK.items())
    return file.getvalue().replace("<defs>", f"<style>@media (prefers-color-scheme: dark){{{dark}}}</style>\n <defs>", 1)


def _draw(axes: Any, panel: Panel) -> None:
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylim(len(panel.bars) - 0.4, -1.5)
    longest = max(bar.nanoseconds for bar in panel.bars)
    axes.set_xlim(0, longest * 1.02)
    axes.text(-0.725, -1.05, panel.title, transform=axes.get_yaxis_transform(), fontsize=10.5, fontweight="bold", va="center")
    for place, bar in enumerate(panel.bars):
        weight = "bold" if bar.ours else "normal"
        axes.barh(place, bar.nanoseconds, height=0.7, color=OURS if bar.ours else OTHERS)
        axes.text(
            -0.01, place, bar.name, transform=axes.get_yaxis_transform(), fontsize=9, ha="right", va="center", fontweight=weight
        )
        axes.text(bar.nanoseconds + longest * 0.01, place, bar.shown, fontsize=9, va="center", fontweight=weight)
