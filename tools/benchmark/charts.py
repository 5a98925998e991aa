"""Charts of a run, in colours that the colour-blind can distinguish, with different marks.

They are drawn from ``Results`` alone, so the charts of an earlier run can be drawn from its JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import alternatives
from benchmark.report import Results, bar_text, ratio_text
from pmwal.testing.bench.stats import time_text
from pmwal.testing.machine import TMPFS_NOTE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito (2008)."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
OURS, FLOOR, PEER, BAD = COLOURS[0], COLOURS[6], COLOURS[4], COLOURS[1]

_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def missing() -> str | None:
    """What to install to draw charts; None if it is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return "--charts needs matplotlib: pip install matplotlib, or omit --charts"
    return None


def draw_all(results: Results, directory: Path) -> list[Path]:
    """Draw every chart for which there are results, as PNG files, and the picture of the README as an SVG; their paths."""
    problem = missing()
    if problem is not None:
        raise RuntimeError(problem)
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plot = importlib.import_module("matplotlib.pyplot")
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in _charts(results):
        figure = draw(plot)
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=130)
        plot.close(figure)
        written.append(path)
    if alternatives.panels(results.tables):
        written.append(directory / "alternatives.svg")
        written[-1].write_text(alternatives.svg(plot, results.tables, results.environment))
    return written


def _charts(results: Results) -> list[tuple[str, Callable[[Any], Any]]]:
    """Name and drawing function of each chart for which there are results."""
    series = results.series
    found: list[tuple[str, Callable[[Any], Any]]] = []
    for medium, lines in series.get("latency", {}).items():
        found.append((f"latency-{medium}", partial(_tail, results=results, medium=medium, lines=lines)))
    for medium, points in series.get("sizes", {}).items():
        found.append((f"sizes-{medium}", partial(_sizes, results=results, medium=medium, points=points)))
    if series.get("recovery"):
        found.append(("recovery", partial(_recovery, results=results, points=series["recovery"])))
    if any(row.judged and row.passed is not None and math.isfinite(row.ratio) for row in results.gate):
        found.append(("gate", partial(_gate, results=results)))
    for workload, peers in series.get("peers", {}).items():
        name = f"peers-{workload.replace(' ', '-')}"
        found.append((name, partial(_peers, results=results, workload=workload, peers=peers)))
    return found


def _figure(plot: Any, results: Results, title: str, medium: str, *, height: float = 5.6, wide: int = 105) -> tuple[Any, Any]:
    """A figure with its title and, below that, the environment of the measurement."""
    figure, axes = plot.subplots(figsize=(9, height), layout="constrained")
    environment = results.environment
    on_disk = medium in ("disk", "file")
    flush = environment.get(f"flush on {'file' if on_disk else medium}", "")
    where = environment.get("disk" if on_disk else "memory", "")
    if medium == "all":
        where, flush = f"disk: {environment.get('disk', '')}; memory and emulated-dax: {TMPFS_NOTE}", ""
    elif not on_disk:
        where = TMPFS_NOTE
    parts = [f"engine {environment.get('engine', '?')}", f"flush {flush}" if flush else "", where, environment.get("processor", "")]
    if "quick" in environment.get("run", ""):
        parts.append("QUICK RUN: figures are worthless")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes.set_title(textwrap.fill(" | ".join(filter(None, parts)), wide), fontsize=8, color="#444444")
    axes.grid(visible=True, which="major", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Any) -> None:
    """A legend below the axes."""
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)


def _times(axis: Any, plot: Any) -> None:
    """Label a logarithmic axis of nanoseconds with units, such as 10 µs."""
    axis.set_major_formatter(plot.FuncFormatter(lambda value, _: time_text(value) if value >= 1 else f"{value:.2g} ns"))


def _tail(plot: Any, results: Results, medium: str, lines: dict[str, list[list[float]]]) -> Any:
    """Latency by percentile, on a scale that expands the tail, like HdrHistogram's."""
    figure, axes = _figure(plot, results, f"Latency of one record of 128 B: {medium}", medium)
    last = max(point[0] for points in lines.values() for point in points)
    for number, (name, points) in enumerate(lines.items()):
        ours = name.startswith(("append", "extend"))
        axes.plot(
            [100 / (100 - q) for q, _ in points],
            [value for _, value in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=2.4 if ours else 1.4,
            linestyle="-" if ours else "--",
            label=f"pmwal {name}" if ours else name,
        )
    ticks = [q for q in _TICKS if q <= last]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([100 / (100 - q) for q in ticks], [f"{q:g}" for q in ticks])
    axes.minorticks_off()
    _times(axes.yaxis, plot)
    axes.set_xlabel("percentile of the calls (%)")
    axes.set_ylabel("time of one call, with two clock reads")
    _legend(figure)
    return figure


def _size_text(size: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:g} {unit}"
    return f"{size:g} B"


def _sizes(plot: Any, results: Results, medium: str, points: list[dict[str, Any]]) -> Any:
    """Payload bytes per second by record size."""
    figure, axes = _figure(plot, results, f"Throughput by record size: {medium}", medium)
    x = [point["size"] for point in points]
    for key, label, colour, mark in (
        ("floor", "floor (C)", FLOOR, "s"),
        ("pmwal", "pmwal", OURS, "o"),
        ("peer", "best peer", PEER, "^"),
    ):
        rates = [point[key] * point["size"] / 1e6 for point in points]
        if not any(rates):
            continue
        width, style = (2.4, "-") if key == "pmwal" else (1.4, "--")
        axes.plot(x, rates, color=colour, marker=mark, linewidth=width, linestyle=style, label=label)
        if key == "peer":
            for point, rate in zip(points, rates, strict=True):
                below = {"xytext": (0, -13), "textcoords": "offset points", "ha": "center", "fontsize": 7}
                axes.annotate(point["peer name"], (point["size"], rate), **below)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xticks(x, [_size_text(size) for size in x])
    axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("payload of one record")
    axes.set_ylabel("payload stored, one record a call (MB/s)")
    _legend(figure)
    return figure


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the regression line that minimises relative errors, so that small logs count too."""
    weights = [1 / value**2 for value in y]
    total = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weights, y, strict=True)) / total
    spread = sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    slope = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, y, strict=True)) / spread if spread else 0.0
    return mean_y - slope * mean_x, slope


def _recovery(plot: Any, results: Results, points: list[dict[str, float]]) -> Any:
    """Time to open by payload bytes."""
    figure, axes = _figure(plot, results, "Recovery after a kill: 128 B records, warm", "memory")
    x, seconds = [point["bytes"] for point in points], [point["seconds"] for point in points]
    intercept, slope = fit(x, seconds)
    axes.plot(x, seconds, color=OURS, marker="o", linewidth=0, markersize=8, label="pmwal.open")
    line = [intercept + slope * value for value in x]
    rate = f"{1 / slope / 1e6:,.0f} MB/s of payload" if slope > 0 else "no slope"
    text = f"linear fit: {time_text(max(0.0, intercept) * 1e9)} + {rate}"
    axes.plot(x, line, color=OURS, linewidth=1.4, label=text)
    floor = [point["crc"] for point in points]
    axes.plot(x, floor, color=FLOOR, marker="s", linestyle="--", label="C: one CRC32C for each payload")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(x, [f"{value / 2**20:.3g}" for value in x])
    axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: time_text(value * 1e9)))
    axes.set_xlabel("payload in the log (MiB)")
    axes.set_ylabel("time to open")
    _legend(figure)
    return figure


def _gate(plot: Any, results: Results) -> Any:
    """Each row relative to its bar: rows below 1 pass."""
    measured = [row for row in results.gate if row.judged and row.passed is not None and math.isfinite(row.ratio)]
    rows = [row for row in measured if row.check != "peers"]
    peers = [row for row in measured if row.check == "peers"]
    rows += sorted(peers, key=lambda row: row.ratio)[:3]  # only the three closest peers are shown
    figure, axes = _figure(plot, results, "Every figure and its bar", "all", height=1.6 + 0.3 * len(rows), wide=76)
    shares = [min(_share(row), 3.0) for row in rows]
    for position, (row, share) in enumerate(zip(rows, shares, strict=True)):
        axes.barh(position, share, color=OURS if row.passed else BAD, height=0.6)
        text = f"  {ratio_text(row)} ({bar_text(row)}{'' if row.passed else ', FAILS'})"
        axes.text(max(share, 1), position, text, va="center", fontsize=8)
    axes.axvline(1, color=FLOOR, linewidth=2.5)
    labels = [textwrap.fill(textwrap.shorten(f"{row.check}: {_short(row)}", 120, placeholder=" …"), 62) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_xlim(0, max(1.0, *shares) * 1.6)  # space for the figures to the right of the bars
    axes.set_ylim(len(rows) - 0.4, -0.6)
    said = "Figures: pmwal / floor and its bar, or a figure with a unit if there is no floor"
    axes.set_xlabel(f"figure / bar if less is better, bar / figure if more is better: over 1 fails\n{said}", fontsize=9)
    return figure


def _share(row: Any) -> float:
    """1 at the bar, more if the row fails."""
    if row.sense == "at most":
        return float(row.ratio / row.bar)
    return float(row.bar / row.ratio) if row.ratio else math.inf


def _short(row: Any) -> str:
    """A label that distinguishes the rows of a check."""
    if row.check == "peers":
        return f"{row.floor_name}, {row.what.partition(',')[0]}"
    for label in ("p99.9", "p99", "p50", "sectors", "barriers"):
        if label in row.floor_name or label in row.what:
            return label
    return str(row.what if math.isnan(row.floor) else row.floor_name)


def _peers(plot: Any, results: Results, workload: str, peers: dict[str, dict[str, Any]]) -> Any:
    """The median call of each peer."""
    on_disk = workload.startswith("durable")
    medium = "disk" if on_disk else "memory"
    title = {"read": "Reading all records of 128 B", "durable extend": "1,000 records of 128 B with one commit, durable"}
    shown = title.get(workload, f"{workload.capitalize()}, 128 B")
    figure, axes = _figure(plot, results, f"{shown}: median", medium, height=1.7 + 0.42 * len(peers), wide=90)
    names = sorted(peers, key=lambda name: float(peers[name]["p50"]))
    for position, figures in enumerate(peers[name] for name in names):
        axes.barh(position, figures["p50"], color=OURS if figures["ours"] else PEER, height=0.62)
        axes.text(figures["p50"], position, f"  {time_text(figures['p50'])}", va="center", fontsize=9)
    axes.set_yticks(range(len(peers)), names, fontsize=9)
    axes.set_xscale("log")
    values = [figures["p50"] for figures in peers.values()]
    axes.set_xlim(min(values) / 3, max(values) * 4)
    axes.invert_yaxis()
    axes.minorticks_off()
    _times(axes.xaxis, plot)
    call = {"read": "one pass over all records", "durable extend": "one batch of 1,000 records"}.get(workload, "one record")
    axes.set_xlabel(f"time for {call}, less is better")
    return figure
