"""The page of a run: one HTML file with embedded charts, drawn from the values in the JSON."""

from __future__ import annotations

import html
import importlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from benchmark.charts import COLOURS, MARKS
from benchmark.stats import time_text
from stressing.results import growth_text

CALLS_MIN = 200  # of an interval, for a p99
POINTS_MAX = 120  # of a line of rates, for legibility
WRITTEN_MIN = 1 << 20  # bytes; no chart for less
Values = dict[str, Any]

_STYLE = """
body { font-family: sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: left; border-bottom: 1px solid #ddd }
th { font-weight: 600; vertical-align: top } figure { margin: 2em 0 } svg { width: 100%; height: auto }
figcaption { color: #555; font-size: .9em } .good { color: #00664b } .bad { color: #b00020 }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .8em }
"""


def missing() -> str | None:
    """What to install to draw charts; None if it is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return "--html needs matplotlib: pip install 'pmwal[bench]', or omit --html"
    return None


def render(values: Values) -> str:
    """The page."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plot = importlib.import_module("matplotlib.pyplot")
    parts = [_head(values)]
    for caption, figure in figures(values, plot):
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
        plot.close(figure)
        picture = drawn.getvalue()
        parts.append(f"<figure>{picture[picture.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>")
    title = "pmwal stress run"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"


def _head(values: Values) -> str:
    """The verdict, its scope, and the figures."""
    violation = values["violation"]
    if violation is None:
        verdict = '<p class="good"><strong>No violation.</strong></p>'
    else:
        text = html.escape(f"{violation['kind']}: {violation['message']}")
        kept = html.escape(str(values["kept"]))
        verdict = f'<p class="bad"><strong>A violation.</strong></p><pre>{text}\nkept: {kept}</pre>'
    tolerated = values["growth_tolerated"]
    rule = f"tolerated: {tolerated['memory'] >> 20} MiB, {tolerated['descriptors']} descriptors, {tolerated['threads']} threads"
    interrupted = f", interrupted by {values['interrupted']}" if values["interrupted"] else ""
    mutant = f", mutant {values['mutant']}" if values["mutant"] else ""
    rows = [
        ("run", f"{values['seconds']:.0f} s, seed {values['seed']}{mutant}{interrupted}"),
        ("run it again", values["command"]),
        *values["environment"].items(),
        ("lives", f"{values['lives']} of {values['logs']} logs; {values['closes']} ended by a close"),
        ("kills", f"{_counts(values['kills'])} (open: a writer that was still opening the log)"),
        ("records compared", f"{values['records_checked']:,}"),
        ("calls returned", _counts(values["calls"])),
        ("calls that a kill interrupted", _counts(values["calls_under_way"])),
        ("verdicts (docs/recovery.md)", _counts(values["recovery_cases"])),
        ("growth over the run", f"{growth_text(values['growth'])}; {rule}"),
    ]
    return f"{verdict}<p>{html.escape(values['proves'])}</p>{_table(rows)}"


def figures(values: Values, plot: Any) -> Iterator[tuple[str, Any]]:
    """Caption and figure of each chart that has data."""
    if any(values["latency_ns"].values()):
        caption = (
            "Durable append, extend, batch and reserve, with other threads and the background load, in intervals of the run. "
            f"No p99 of fewer than {CALLS_MIN} calls, and no line over an interval in which the engine did not run."
        )
        yield caption, _latency(values, plot)
    if values["kill_times"]:
        yield "SIGKILLs so far. After every kill of a writer the whole log is checked.", _kills(values, plot)
    if values["recoveries"]:
        caption = "Each open of a log after a kill or a close, by the next writer or by the supervisor."
        yield caption, _recoveries(values, plot)
    shown = {name: samples for name, samples in values["resources"].items() if len(samples) > 1}
    if shown:
        caption = (
            "Private resident memory. The supervisor's grows with the figures it collects, and a process forked from it later, "
            "a writer or the next reader 2, starts with as much. Only steady and reader 1 are judged."
        )
        yield caption, (_resource(plot, shown, "Private memory", "MiB", lambda sample: sample["memory"] / (1 << 20)))
        yield (
            "Open descriptors. A process that was forked later inherits some more.",
            (_resource(plot, shown, "Descriptors", "descriptors", lambda sample: sample["descriptors"])),
        )
        yield (
            "Processor time, averaged between points; 100 % is one processor.",
            (_rates(plot, shown, "Processor time", "%", lambda sample: 100 * sample["cpu_seconds"])),
        )
    if any(samples[-1]["written_bytes"] - samples[0]["written_bytes"] >= WRITTEN_MIN for samples in shown.values()):
        yield (
            "Bytes written to block devices, as the kernel counts them, averaged between points.",
            (_rates(plot, shown, "Written", "MB/s", lambda sample: sample["written_bytes"] / 1e6)),
        )


def _axes(plot: Any, title: str, unit: str) -> tuple[Any, Any]:
    figure, axes = plot.subplots(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    axes.grid(visible=True, which="major", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("time since the start (s)")
    axes.set_ylabel(unit)
    return figure, axes


def _legend(figure: Any) -> None:
    figure.legend(fontsize=9, loc="outside right upper")


def _latency(values: Values, plot: Any) -> Any:
    figure, axes = _axes(plot, "Latency of durable calls", "time of one call")
    styles = {"p50": "-", "p99": "--", "max": ":"}
    for number, (engine, points) in enumerate(values["latency_ns"].items()):
        for name, style in styles.items():
            enough = [point for point in points if name != "p99" or point["calls"] >= CALLS_MIN]
            axes.plot(
                *_broken([(point["seconds"], point[name]) for point in enough], values["latency_piece_seconds"]),
                color=COLOURS[number],
                linestyle=style,
                marker=MARKS[number],
                markersize=3,
                linewidth=1.4,
                label=f"{engine} {name}",
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: time_text(value)))
    axes.minorticks_off()
    axes.set_xlim(0, values["seconds"])
    _legend(figure)
    return figure


def _broken(points: list[tuple[float, float]], step: float) -> tuple[list[float], list[float]]:
    """The points of a line that breaks if the next point is more than a step away."""
    times: list[float] = []
    heights: list[float] = []
    for time, height in points:
        if times and time - times[-1] > 1.5 * step:
            times.append(time)
            heights.append(math.nan)
        times.append(time)
        heights.append(height)
    return times, heights


def _kills(values: Values, plot: Any) -> Any:
    figure, axes = _axes(plot, "Kills", "kills since the start")
    labels = {"work": "writer, at work", "open": "writer, opening", "reader": "reader"}
    for number, (what, label) in enumerate(labels.items()):
        times = [0.0, *(when for when, met in values["kill_times"] if met == what), values["seconds"]]
        counts = [*range(len(times) - 1), len(times) - 2]
        axes.step(times, counts, where="post", color=COLOURS[number], linewidth=1.6, label=label)
    axes.set_xlim(0, values["seconds"])
    axes.set_ylim(bottom=0)
    _legend(figure)
    return figure


def _recoveries(values: Values, plot: Any) -> Any:
    figure, axes = _axes(plot, "Opening after a kill or a close", "time of one open (ms)")
    for number, engine in enumerate(sorted({point["engine"] for point in values["recoveries"]})):
        mine = [point for point in values["recoveries"] if point["engine"] == engine]
        sizes = [12 + 40 * point["bytes_read"] / (4 << 20) for point in mine]
        times = [1000 * point["took_seconds"] for point in mine]
        when = [point["seconds"] for point in mine]
        axes.scatter(when, times, s=sizes, color=COLOURS[number], marker=MARKS[number], alpha=0.7, label=f"{engine} engine")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(plot.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlim(0, values["seconds"])
    axes.set_title("larger marks: more bytes read", fontsize=9, color="#444444")
    _legend(figure)
    return figure


def _lines(axes: Any, series: dict[str, tuple[list[float], list[float]]]) -> None:
    for number, (name, (times, heights)) in enumerate(series.items()):
        if name == "writer":  # successive processes: no line connects them
            axes.scatter(times, heights, s=6, color=COLOURS[7], label="writers")
        else:
            axes.plot(times, heights, color=COLOURS[number], linewidth=1.5, label=name)


def _resource(plot: Any, shown: dict[str, list[Values]], title: str, unit: str, value: Callable[[Values], float]) -> Any:
    figure, axes = _axes(plot, title, unit)
    series = {
        name: ([sample["seconds"] for sample in samples], [value(sample) for sample in samples]) for name, samples in shown.items()
    }
    _lines(axes, series)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(plot.MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    _legend(figure)
    return figure


def _rates(plot: Any, shown: dict[str, list[Values]], title: str, unit: str, total: Callable[[Values], float]) -> Any:
    """The rate of a total between samples; a new process with the same name starts a new total."""
    figure, axes = _axes(plot, title, unit)
    series = {}
    for name, samples in shown.items():
        times, rates = [], []
        step = 1 if name == "writer" else -(-len(samples) // POINTS_MAX)
        for before, after in pairwise(samples[::step]):
            gained, passed = total(after) - total(before), after["seconds"] - before["seconds"]
            if gained >= 0 and passed > 0 and after["process"] == before["process"]:
                times.append(after["seconds"])
                rates.append(gained / passed)
        if times:
            series[name] = times, rates
    _lines(axes, series)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _legend(figure)
    return figure
