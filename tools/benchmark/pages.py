"""The pages of documentation with figures: performance.md and measured.md, whose tables are those of a run.

A page has blocks between ``<!-- NAME -->`` and ``<!-- end -->``. The gate's table and the figures beside those of alternatives go
into the blocks of the run's processor ("gate, Intel", "gate, AMD"), so that a run on one leaves the figures of the other.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmark import alternatives
from benchmark.report import Results, Table, bar_text, figure_text, ratio_text
from pmwal.testing.machine import TMPFS_NOTE

VENDORS = ("Intel", "AMD")
FLOORS = (
    "append memory",
    "extend memory",
    "dax strict",
    "dax pipelined",
    "disk append fresh",
    "large 4 KiB",
    "large 256 KiB",
    "disk extend",
    "threads",
    "recovery small",
    "recovery large",
    "recovery cold",
)
"""Checks whose first row is shown to users beside its floor."""
FLOOR_COLUMNS = ["what", "floor", "pmwal", "ratio"]
END = "<!-- end -->"


def fill(results: Results, directory: Path) -> list[Path]:
    """Put the tables of a run into the pages of this directory; those that were changed."""
    if "quick" in results.environment.get("run", ""):
        raise ValueError("the figures of a quick run are worthless: the pages are for those of a full one")
    blocks: dict[str, dict[str, str]] = {"performance.md": {}, "measured.md": {}}
    who = vendor(results)
    if results.gate:
        blocks["performance.md"][f"gate, {who}"] = gate_block(results)
        if floors := floor_rows(results):
            blocks["performance.md"][f"floors, {who}"] = Table("", FLOOR_COLUMNS, floors, "").markdown_rows()
    if results.tables:
        blocks["measured.md"]["tables"] = tables_block(results)
    if alternatives.panels(results.tables):
        blocks["performance.md"][f"alternatives, {who}"] = alternatives.block(results.tables, results.environment)
    changed = []
    for name, wanted in blocks.items():
        path = directory / name
        for block, text in wanted.items():
            path.write_text(replaced(path.read_text(), block, text))
            changed.append(path)
    return changed


def read(page: Path) -> Results:
    """The environment and the tables of a run, from a page that has its block of tables."""
    text = page.read_text()
    block = text.partition("<!-- tables -->\n")[2].partition(END)[0]
    environment = dict(re.findall(r"^\| ([a-z][\w -]*) \| (.*) \|$", block.partition("**")[0], re.MULTILINE))
    tables = []
    for title, note, lines in re.findall(r"^\*\*(.*)\*\* \((.*)\)\n\n((?:\|.*\n?)+)", block, re.MULTILINE):
        columns, _, *rows = (
            [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines.splitlines()
        )
        tables.append(Table(title, columns, rows, note))
    return Results(environment, tables)


def vendor(results: Results) -> str:
    """The maker of the processor of a run."""
    processor = results.environment.get("processor", "")
    for name in VENDORS:
        if name in processor:
            return name
    raise ValueError(f"the pages have no block for this processor: {processor or 'unknown'}")


def replaced(page: str, block: str, text: str) -> str:
    """A page with other text in one of its blocks."""
    begin = f"<!-- {block} -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page has no block {begin} ... {END}, or several")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{END}", page)


def gate_block(results: Results) -> str:
    """Where the gate ran, its table, and the notes of the rows that did not pass."""
    environment = results.environment
    shown = ("date", "processor", "kernel", "python", "disk", "flush on emulated-dax", "run", "load")
    where = "; ".join(f"{key}: {environment[key]}" for key in shown if key in environment)
    columns = ["check", "what", "floor", "pmwal", "ratio", "bar", "met"]
    rows = []
    for row in results.gate:
        if not row.what:
            rows.append([row.check, row.note, "", "", "", "", row.verdict])
            continue
        floor = "-" if row.floor != row.floor else f"{row.floor_name}, {figure_text(row.floor, row.unit)}"
        ratio = "-" if row.floor != row.floor else ratio_text(row)
        rows.append([row.check, row.what, floor, figure_text(row.ours, row.unit), ratio, bar_text(row), row.verdict])
    judged = [row for row in results.gate if row.judged and row.passed is not None]
    met = f"{sum(row.passed is True for row in judged)} of {len(judged)} bars met"
    table = Table(met, columns, rows, f"memory and emulated-dax: {TMPFS_NOTE}")
    return f"{where}.\n\n{table.markdown()}"


def floor_rows(results: Results) -> list[list[str]]:
    """The figures that have a floor, one of each check, without their bars."""
    rows: dict[str, list[str]] = {}
    for row in results.gate:
        if row.check in FLOORS and row.check not in rows and row.judged and row.floor == row.floor:
            floor = f"{row.floor_name}, {figure_text(row.floor, row.unit)}"
            rows[row.check] = [row.what, floor, figure_text(row.ours, row.unit), ratio_text(row)]
    return list(rows.values())


def tables_block(results: Results) -> str:
    """The environment and all tables of a run."""
    head = [f"| {key} | {value} |" for key, value in results.environment.items()]
    return "\n\n".join(["\n".join(["| | |", "|---|---|", *head]), *(table.markdown() for table in results.tables)])
