"""Charts of a run, in colours that the colour-blind can distinguish, with different marks.

They are drawn from ``Results`` alone, so the charts of an earlier run can be drawn from its JSON.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import alternatives
from benchmark.gate import Row
from benchmark.report import Results, bar_text, ratio_text
from pmwal.testing.bench.stats import time_text
from pmwal.testing.machine import TMPFS_NOTE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito (2008)."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
OURS, FLOOR, PEER, BAD = COLOURS[0], COLOURS[6], COLOURS[4], COLOURS[1]
LINES = {
    "append, pipelined": COLOURS[0],
    "append, strict": COLOURS[1],
    "append": COLOURS[2],
    "append(commit=False)": COLOURS[3],
}
"""pmwal's lines of latencies, each with the same colour in every picture."""

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


def _figure(
    plot: Any, results: Results, title: str, medium: str, *, height: float = 5.6, wide: int = 105, panels: int = 1
) -> tuple[Any, Any]:
    """A figure with its title and, below that, the environment of the measurement; axes, or as many as there are panels."""
    figure, axes = plot.subplots(1, panels, figsize=(9, height), layout="constrained", sharey=True)
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
    said = textwrap.fill(" | ".join(filter(None, parts)), wide)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    first, *others = axes if panels > 1 else [axes]
    first.set_title(said, fontsize=8, color="#444444", loc="left" if others else "center")
    for each in (first, *others):
        each.grid(visible=True, which="major", linewidth=0.5, alpha=0.5)
        each.set_axisbelow(True)
    return figure, axes


def _legend(figure: Any) -> None:
    """A legend below the axes."""
    figure.legend(fontsize=9, loc="outside lower center", ncols=3)


def _times(axis: Any, plot: Any) -> None:
    """Label a logarithmic axis of nanoseconds with units, such as 10 µs."""
    axis.set_major_formatter(plot.FuncFormatter(lambda value, _: time_text(value) if value >= 1 else f"{value:.2g} ns"))


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each line of a picture of latencies: pmwal's have their own, floors take the others in turn."""
    others = itertools.cycle(colour for colour in reversed(COLOURS) if colour not in LINES.values())
    return {name: LINES.get(name) or next(others) for name in names}


def _tail(plot: Any, results: Results, medium: str, lines: dict[str, list[list[float]]]) -> Any:
    """Latency by percentile, on a scale that expands the tail, like HdrHistogram's."""
    figure, axes = _figure(plot, results, f"Latency of one record of 128 B: {medium}", medium)
    last = max(point[0] for points in lines.values() for point in points)
    colours = colours_of(list(lines))
    for number, (name, points) in enumerate(lines.items()):
        ours = name in LINES
        axes.plot(
            [100 / (100 - q) for q, _ in points],
            [value for _, value in points],
            color=colours[name],
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
    """Payload bytes per second by record size: each line beside the one that was measured in turns with it."""
    names = {point["peer name"] for point in points if point["peer"]}
    figure, axes = _figure(plot, results, f"Throughput by record size: {medium}", medium, panels=2 if names else 1)
    left, *right = axes if names else (axes,)
    _panel(plot, left, points, ("floor", "floor (C)", FLOOR, "s"), ("pmwal", "pmwal", OURS, "o"))
    _name(left, "In one process, later laps of a ring.\nAt each size: pmwal / floor")
    left.set_ylabel("payload stored, one record a call (MB/s), logarithmic")
    for panel in right:
        best = f"best peer: {names.pop()}" if len(names) == 1 else "best peer"
        _panel(plot, panel, points, ("peer", best, PEER, "^"), ("beside", "_pmwal", OURS, "o"))
        _name(panel, "Each in a process of its own, a new log.\nAt each size: pmwal / best peer")
        for point in points if best == "best peer" else []:
            at = (point["size"], point["peer"] * point["size"] / 1e6)
            panel.annotate(point["peer name"], at, (0, 9), textcoords="offset points", ha="center", fontsize=7)
    _legend(figure)
    return figure


def _name(axes: Any, text: str) -> None:
    """What a panel shows, in its upper left corner, where a rising line leaves space."""
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=9)


def _panel(plot: Any, axes: Any, points: list[dict[str, Any]], *lines: tuple[str, str, str, str]) -> None:
    """A line of others and one of pmwal, measured in turns, and below each size the ratio of both."""
    x = [point["size"] for point in points]
    (other, *_), (ours, *_) = lines
    for key, label, colour, mark in lines:
        width, style = (2.4, "-") if key == ours else (1.4, "--")
        rates = [point[key] * point["size"] / 1e6 for point in points]
        axes.plot(x, rates, color=colour, marker=mark, linewidth=width, linestyle=style, label=label)
    for point in points:
        at = (point["size"], min(point[ours], point[other]) * point["size"] / 1e6)
        text = f"{point[ours] / point[other]:.2f}"
        axes.annotate(text, at, (3, -16), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xticks(x, [_size_text(size) for size in x], rotation=45, fontsize=8)
    axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("payload of one record")


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
    """Each figure as a part of what its bar allows: the rows up to 1 pass."""
    measured = [row for row in results.gate if row.judged and row.passed is not None and math.isfinite(row.ratio)]
    labelled = list(zip(nearest(measured), labels_of(nearest(measured)), strict=True))
    peers = sorted((each for each in labelled if each[0].check == "peers"), key=lambda each: each[0].ratio)
    rows = [each for each in labelled if each[0].check != "peers"] + peers[:3]  # only the three closest peers are shown
    title = "Each figure beside the bar that it has to meet"
    figure, axes = _figure(plot, results, title, "all", height=2.2 + 0.29 * len(rows), wide=76)
    shares = [min(_share(row), 3.0) for row, _ in rows]
    for position, ((row, _), share) in enumerate(zip(rows, shares, strict=True)):
        axes.barh(position, share, color=OURS if row.passed else BAD, height=0.6)
        text = f"  {ratio_text(row)} ({bar_text(row)}{'' if row.passed else ', missed'})"
        axes.text(max(share, 1), position, text, va="center", fontsize=8)
    for colour, label in (OURS, "meets its bar"), (BAD, "misses its bar"):
        axes.barh(0, 0, color=colour, label=label)
    axes.axvline(1, color=FLOOR, linewidth=2.5, label="the bar")
    axes.set_yticks(range(len(rows)), [textwrap.fill(label, 70) for _, label in rows], fontsize=8)
    axes.set_xlim(0, max(1.0, *shares) * 1.6)  # space for the figures to the right of the bars
    axes.set_ylim(len(rows) - 0.4, -0.6)
    said = "Beside each row: pmwal / floor and its bar,\nor a figure with its unit if there is no floor"
    axes.set_xlabel(f"figure / bar if less is better, bar / figure if more is better\n{said}", fontsize=9)
    _legend(figure)
    return figure


def nearest(rows: Sequence[Row]) -> list[Row]:
    """Of a figure with two bars, at least and at most, the row whose bar is nearer."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        other = best.setdefault((row.check, row.what, row.floor_name), row)
        if _share(row) > _share(other):
            best[row.check, row.what, row.floor_name] = row
    return list(best.values())


def _share(row: Row) -> float:
    """1 at the bar, more if the row fails."""
    if row.sense == "at most":
        return float(row.ratio / row.bar)
    return float(row.bar / row.ratio) if row.ratio else math.inf


_SAID_ELSEWHERE = re.compile(
    r"[,;:] the slowest.*|,? median of \d+|( of \d+)? in turn$|: pmwal (ahead|behind)|(, live|,) log of \d+ MiB"
)
"""In a row's description: the name of the check, the figures beside the bar, or the text below the picture has it."""


def labels_of(rows: Sequence[Row]) -> list[str]:
    """The check of each row, and what tells the row from the others of its check: phrases of its description, else the floor."""
    labels = []
    for row in rows:
        others = [_phrases(each) for each in rows if each.check == row.check and each is not row]
        shared = set(_phrases(row)).intersection(*others)
        own = [phrase for phrase in _phrases(row) if phrase not in shared and phrase != "the same"]
        if others and (not own or _phrases(row) in others) and math.isfinite(row.floor):
            own.append(row.floor_name)
        labels.append(f"{row.check}: {', '.join(own)}" if others else row.check)
    return labels


def _phrases(row: Row) -> list[str]:
    """The parts of a row's description; a comma in parentheses parts nothing."""
    return re.split(r"[,;:] (?![^(]*\))", _SAID_ELSEWHERE.sub("", row.what))


def _peers(plot: Any, results: Results, workload: str, peers: dict[str, dict[str, Any]]) -> Any:
    """The median call of each peer: dots, since a bar on a logarithmic scale would have a length without a meaning."""
    on_disk = workload.startswith("durable")
    medium = "disk" if on_disk else "memory"
    records = max(round(figures["p50"] * figures["rate"] / 1e9, -3) for figures in peers.values())
    title = {
        "read": f"Reading {records:,.0f} records of 128 B",
        "durable extend": "1,000 records of 128 B with one commit, durable",
    }
    shown = title.get(workload, f"{workload.capitalize()}, 128 B")
    figure, axes = _figure(plot, results, f"{shown}: median", medium, height=1.7 + 0.42 * len(peers), wide=90)
    names = sorted(peers, key=lambda name: float(peers[name]["p50"]))
    for position, figures in enumerate(peers[name] for name in names):
        axes.plot(figures["p50"], position, color=OURS if figures["ours"] else PEER, marker="o", markersize=10)
        axes.annotate(
            time_text(figures["p50"]), (figures["p50"], position), (9, 0), textcoords="offset points", va="center", fontsize=9
        )
    axes.set_yticks(range(len(peers)), names, fontsize=9)
    axes.set_xscale("log")
    values = [figures["p50"] for figures in peers.values()]
    axes.set_xlim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.5)))
    axes.set_ylim(len(peers) - 0.5, -0.5)
    axes.minorticks_off()
    _times(axes.xaxis, plot)
    call = {"read": f"one pass over all {records:,.0f} records", "durable extend": "one batch of 1,000 records"}
    axes.set_xlabel(f"time for {call.get(workload, 'one record')}, less is better; logarithmic")
    return figure
