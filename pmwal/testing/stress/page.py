"""The report of a run: one HTML file that needs nothing else, drawn from the values in the JSON.

It is light or dark as the reader's system is.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from pmwal.testing.bench.stats import time_text
from pmwal.testing.stress.results import growth_text
from pmwal.testing.stress.svg import Chart, Mark, Point, nanoseconds

CALLS_MIN = 200  # of an interval, for a p99
POINTS_MAX = 120  # of a line of rates, for legibility
WRITTEN_MIN = 1 << 20  # bytes; no chart for less
Values = dict[str, Any]
Figure = tuple[str, str, str]
"""Title, drawing, and what it shows."""

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --text: #1c1c1a; --muted: #64635e; --line: #e2e1dc; --box: #f3f2ee;
  --good: #006b3c; --good-box: #e3f4e9; --bad: #a4161a; --bad-box: #fbe6e4;
  --c0: #2a6fbb; --c1: #c4571b; --c2: #1f8a5b; --c3: #8a4fb0; --c4: #a88600; --c5: #5c6b78 }
@media (prefers-color-scheme: dark) { :root { --page: #171716; --text: #eceae4; --muted: #a3a198; --line: #353431; --box: #222220;
  --good: #7fd6a4; --good-box: #14301f; --bad: #ff9a93; --bad-box: #3b1716;
  --c0: #6da8ea; --c1: #f0935a; --c2: #5cc795; --c3: #c596e6; --c4: #d9bb4a; --c5: #a3b1bd } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; background: var(--page);
  color: var(--text) }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
.verdict { border-radius: 8px; padding: .8rem 1rem; margin: 1rem 0; font-weight: 600; overflow-wrap: anywhere }
.good { background: var(--good-box); color: var(--good) } .bad { background: var(--bad-box); color: var(--bad) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 500; color: var(--muted); white-space: nowrap } td { overflow-wrap: anywhere }
td.n, th.n { text-align: right } .scroll td { overflow-wrap: normal; white-space: nowrap }
figure { margin: 0; overflow-x: auto } figcaption { color: var(--muted); font-size: .88rem; margin-top: .3rem }
figure > svg { display: block; width: 100%; min-width: 42rem; height: auto } text { fill: var(--muted); font-size: 12px }
.grid { stroke: var(--line) } .axis { stroke: var(--muted) } .scroll { overflow-x: auto }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; margin: .3rem 0; font-size: .88rem }
.legend svg { vertical-align: -2px; margin-right: .4rem }
pre { white-space: pre-wrap; background: var(--box); padding: .8rem; border-radius: 6px; overflow-wrap: anywhere }
.h { fill: var(--c0) }
""" + "\n".join(
    f".l{n} {{ stroke: var(--c{n}); stroke-width: 1.8; fill: none }} .f{n} {{ fill: var(--c{n}) }} "
    f".m{n} {{ fill: var(--c{n}); fill-opacity: .65 }}"
    for n in range(6)
)


def render(values: Values) -> str:
    """The page."""
    parts = [_head(values), *(_figure(*figure) for figure in figures(values))]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>pmwal stress: {html.escape(values['verdict'].split(':')[0])}</title><style>{_STYLE}</style></head>\n"
        "<body><h1>pmwal stress</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _figure(title: str, drawing: str, caption: str) -> str:
    return f"<h2>{html.escape(title)}</h2><figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"


def _head(values: Values) -> str:
    """The verdict, its scope, and the figures."""
    violation = values["violation"]
    good = (violation is None) == (values["control"] is None)
    parts = [f'<p class="verdict {"good" if good else "bad"}">{html.escape(values["verdict"])}</p>']
    if violation is not None:
        said = f"{violation['kind']}: {violation['message']}\n\nkept: {values['kept']}"
        again = f"judge it again: pmwal stress --replay {values['kept']}\nthe same plan again: {values['command']}"
        parts.append(f"<pre>{html.escape(said)}\n{html.escape(again)}</pre>")
    parts.append("<h2>What this proves, and what not</h2>")
    parts.append(f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in values['scope'])}</ul>")
    parts += ["<h2>The place</h2>", _table(list(values["environment"].items()))]
    tolerated = values["growth_tolerated"]
    rule = f"tolerated: {tolerated['memory'] >> 20} MiB, {tolerated['descriptors']} descriptors, {tolerated['threads']} threads"
    interrupted = f", interrupted by {values['interrupted']}" if values["interrupted"] else ""
    control = f", with the planted mistake {values['control']}" if values["control"] else ""
    rows = [
        ("run", f"{values['seconds']:.0f} s, seed {values['seed']}{control}{interrupted}"),
        ("run it again", values["command"]),
        ("lives", f"{values['lives']} of {values['logs']} logs; {values['closes']} ended by a close"),
        ("lives short of space", _counts(values["short_of_space"])),
        ("kills", f"{_counts(values['kills'])} (open: a writer that was still opening the log)"),
        ("records compared", f"{values['records_checked']:,}"),
        ("calls returned", _counts(values["calls"])),
        ("calls that a kill interrupted", _counts(values["calls_under_way"])),
        ("looks of readers", _counts(values["looks"])),
        ("recovery cases", _counts(values["recovery_cases"])),
        ("growth over the run", f"{growth_text(values['growth'])}; {rule}"),
    ]
    return "\n".join([*parts, "<h2>What was done</h2>", _table(rows), _costs(values)])


def _costs(values: Values) -> str:
    """The cost of one commit, by medium and ordering."""
    costs = values["commit_costs"]
    if not costs:
        return ""
    counted = [name for name in ("sectors", "flushes") if any(cost[name] is not None for cost in costs)]
    heads = ("medium", "ordering", "time", "barriers", *counted, "commits measured")
    rows = []
    for cost in costs:
        device = ["" if cost[name] is None else f"{cost[name]:g}" for name in counted]
        cells = [time_text(cost["nanoseconds"]), f"{cost['barriers']:g}", *device, f"{cost['commits']}"]
        rows.append(
            f"<tr><td>{html.escape(cost['medium'])}</td><td>{cost['ordering']}</td>"
            f"{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        )
    top = "".join(f"<th{'' if at < 2 else ' class=n'}>{head}</th>" for at, head in enumerate(heads))
    caption = "One durable append of 128 bytes before the run began, without other load: medians."
    if counted:
        caption += " Sectors of 512 bytes written and flushes are counted by the kernel, for all who use the device."
    else:
        caption += " No device counts sectors or flushes here."
    table = f'<div class="scroll"><table><tr>{top}</tr>{"".join(rows)}</table></div>'
    return f"<h2>What a commit costs</h2><figure>{table}<figcaption>{caption}</figcaption></figure>"


def figures(values: Values) -> Iterator[Figure]:
    """The charts that have data."""
    if any(values["latency_ns"].values()):
        yield _latency(values)
        yield from _heat(values)
    if values["throughput"]:
        yield _throughput(values)
    if values["kill_times"]:
        yield _kills(values)
    if values["recoveries"]:
        yield _recoveries(values)
    shown = {name: samples for name, samples in values["resources"].items() if len(samples) > 1}
    if shown:
        yield _resource(
            values, shown, "Private memory", "MiB", lambda sample: sample["memory"] / (1 << 20),
            "Private resident memory. The supervisor's grows with the figures it collects, and a process forked from it later, "
            "a writer or the next reader 2, starts with as much. Only steady and reader 1 are judged.",
        )  # fmt: skip
        yield _resource(
            values, shown, "Descriptors", "descriptors", lambda sample: sample["descriptors"],
            "Open descriptors. A process that was forked later inherits some more.",
        )  # fmt: skip
        yield _rates(
            values, shown, "Processor time", "%", lambda sample: 100 * sample["cpu_seconds"],
            "Averaged between points; 100 % is one processor.",
        )  # fmt: skip
    if any(samples[-1]["written_bytes"] - samples[0]["written_bytes"] >= WRITTEN_MIN for samples in shown.values()):
        yield _rates(
            values, shown, "Written to block devices", "MB/s", lambda sample: sample["written_bytes"] / 1e6,
            "By process, as the kernel counts it, averaged between points.",
        )  # fmt: skip
    if len(values["disk"]) > 2:
        yield _device(values)


def _top(heights: list[float]) -> float:
    return max(heights, default=1.0) or 1.0


def _latency(values: Values) -> Figure:
    points = [point for engine in values["latency_ns"].values() for point in engine]
    low, high = min(point["p50"] for point in points), max(point["max"] for point in points)
    chart = Chart(values["seconds"], low / 1.5, high * 1.2, "time of one call", log=True, text=nanoseconds)
    dashes = {"p50": "", "p99": "6 3", "max": "1.5 3"}
    gap = 1.5 * values["latency_piece_seconds"]
    for colour, (engine, mine) in enumerate(values["latency_ns"].items()):
        for name, dash in dashes.items():
            enough = [point for point in mine if name != "p99" or point["calls"] >= CALLS_MIN]
            line: list[Point] = [(min(point["seconds"], values["seconds"]), point[name]) for point in enough]
            if line:
                chart.line(f"{engine} {name}", line, colour, dash=dash, gap=gap)
    caption = (
        "Durable append, extend, batch and reserve, with other threads and the background load, in intervals of the run. "
        f"No p99 of fewer than {CALLS_MIN} calls, and no line over an interval in which the engine did not run."
    )
    return "Latency of durable calls", chart.svg("percentiles of latency over time"), caption


def _heat(values: Values) -> Iterator[Figure]:
    """One map for each engine: the darker a cell, the more of its column's calls took that long."""
    heat = values["latency_heat"]
    bounds, width = heat["bounds_ns"], heat["column_seconds"]
    for engine, columns in heat["counts"].items():
        rows = [row for counts in columns.values() for row, count in enumerate(counts) if count]
        if not rows:
            continue
        low, high = bounds[min(rows)], bounds[max(rows) + 1]
        chart = Chart(values["seconds"], low, high, "time of one call", log=True, text=nanoseconds)
        for column, counts in columns.items():
            total, top, left = sum(counts), max(counts), int(column) * width
            for row, count in enumerate(counts):
                if count:
                    took = f"{time_text(bounds[row])} to {time_text(bounds[row + 1])}: {count} of {total} calls"
                    share = (count / top) ** 0.5  # so that single slow calls are seen
                    chart.cell(left, left + width, bounds[row], bounds[row + 1], share, f"{left} s, {took}")
        caption = (
            f"Each column is {width} s. The fuller the colour, the more of its durable calls took that long; "
            "faint cells are single calls."
        )
        yield f"Latency as a heat map, {engine} engine", chart.svg(f"heat map of latency, {engine} engine"), caption


def _throughput(values: Values) -> Figure:
    series = {"records": "records stored", "calls": "calls that store", "durable": "durable ones among them"}
    top = _top([point[name] for point in values["throughput"] for name in series])
    chart = Chart(values["seconds"], 0, top, "in a second")
    for colour, (name, label) in enumerate(series.items()):
        line: list[Point] = [(min(point["seconds"], values["seconds"]), point[name]) for point in values["throughput"]]
        chart.line(label, line, colour, dash=("", "6 3", "1.5 3")[colour])
    caption = (
        "Averages over intervals of the run, which include kills, recoveries and checks; not what pmwal can do "
        "(pmwal bench measures that)."
    )
    return "Throughput", chart.svg("calls and records per second"), caption


def _kills(values: Values) -> Figure:
    labels = {"work": "writer, at work", "open": "writer, opening", "reader": "reader"}
    times = {what: [when for when, met in values["kill_times"] if met == what] for what in labels}
    chart = Chart(values["seconds"], 0, max(map(len, times.values())), "kills since the start")
    for colour, (what, label) in enumerate(labels.items()):
        chart.step(label, times[what], colour, dash=("", "6 3", "1.5 3")[colour])
    caption = "SIGKILLs so far. After every kill of a writer the whole log is checked."
    return "Kills", chart.svg("kills over time"), caption


def _recoveries(values: Values) -> Figure:
    times = [point["took_seconds"] * 1e9 for point in values["recoveries"]]
    chart = Chart(values["seconds"], min(times) / 1.5, max(times) * 1.5, "time of one open", log=True, text=nanoseconds)
    for colour, engine in enumerate(sorted({point["engine"] for point in values["recoveries"]})):
        marks: list[Mark] = [
            (
                point["seconds"],
                point["took_seconds"] * 1e9,
                2.5 + 3 * (point["bytes_read"] / (4 << 20)) ** 0.5,
                f"{point['seconds']:.1f} s: {time_text(point['took_seconds'] * 1e9)}, {point['bytes_read'] >> 10} KiB read",
            )
            for point in values["recoveries"]
            if point["engine"] == engine
        ]
        chart.marks(f"{engine} engine", marks, colour, square=colour == 1)
    caption = "Each open of a log after a kill or a close, by the next writer or by the supervisor. Larger marks: more bytes read."
    return "Recovery", chart.svg("time of each open"), caption


def _resource(
    values: Values, shown: dict[str, list[Values]], title: str, unit: str, value: Callable[[Values], float], caption: str
) -> Figure:
    series = {name: [(sample["seconds"], value(sample)) for sample in samples] for name, samples in shown.items()}
    return title, _lines(values, series, unit).svg(f"{title} of each process over time"), caption


def _rates(
    values: Values, shown: dict[str, list[Values]], title: str, unit: str, total: Callable[[Values], float], caption: str
) -> Figure:
    """The rate of a total between samples; a new process with the same name starts a new total."""
    series: dict[str, list[Point]] = {}
    for name, samples in shown.items():
        step = 1 if name == "writer" else -(-len(samples) // POINTS_MAX)
        rates: list[Point] = []
        for before, after in pairwise(samples[::step]):
            gained, passed = total(after) - total(before), after["seconds"] - before["seconds"]
            if gained >= 0 and passed > 0 and after["process"] == before["process"]:
                rates.append((after["seconds"], gained / passed))
        if rates:
            series[name] = rates
    return title, _lines(values, series, unit).svg(f"{title} of each process over time"), caption


def _lines(values: Values, series: dict[str, list[Point]], unit: str) -> Chart:
    chart = Chart(values["seconds"], 0, _top([height for points in series.values() for _, height in points]), unit)
    dashes = ("", "6 3", "1.5 3", "8 2 2 2", "3 2", "")
    for number, (name, points) in enumerate((name, points) for name, points in series.items() if name != "writer"):
        chart.line(name, points, number % 5, dash=dashes[number % len(dashes)])
    if "writer" in series:  # successive processes: no line connects them
        chart.marks("writers", [(x, y, 1.8, f"{x:.1f} s: {y:.1f}") for x, y in series["writer"]], 5)
    return chart


def _device(values: Values) -> Figure:
    step = -(-len(values["disk"]) // POINTS_MAX)
    written: list[Point] = []
    flushes: list[Point] = []
    for before, after in pairwise(values["disk"][::step]):
        passed = after["seconds"] - before["seconds"]
        if passed > 0:
            written.append((after["seconds"], (after["sectors"] - before["sectors"]) / passed))
            flushes.append((after["seconds"], (after["flushes"] - before["flushes"]) / passed))
    chart = Chart(values["seconds"], 1, _top([height for _, height in written + flushes]) * 1.2, "in a second", log=True)
    chart.line("sectors written", written, 0)
    chart.line("flushes", flushes, 1, dash="6 3")
    caption = "Counted by the kernel for all who use the device, the background load included; averaged between points."
    return "The device", chart.svg("sectors and flushes of the device per second"), caption
