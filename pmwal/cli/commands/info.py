"""``pmwal info``: describe logs, whole or damaged. It opens the files read-only and never writes."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from pmwal.cli.exit_status import CORRUPT, OK, UNREADABLE
from pmwal.cli.inspection import end_offset
from pmwal.cli.parser import Commands, add_command, add_json
from pmwal.cli.places import ShortNames, add_paths, logs_named, one_log
from pmwal.cli.superblocks import Superblocks, read_superblocks
from pmwal.cli.terminal import print_json, progress_bar
from pmwal.cli.times import local_text, utc_text
from pmwal.cli.wording import (
    count_in_words,
    durability_in_words,
    printable,
    records_in_words,
    table,
    torn_in_words,
    writer_in_words,
)
from pmwal.errors import FormatError
from pmwal.format.layout import PAGE, SLOT, SLOT_CLEAN, SLOT_PIPELINED, slot_offset
from pmwal.opening.files import inspect
from pmwal.opening.units import format_size
from pmwal.recovery.judge import Judgement
from pmwal.storage.descriptors import open_descriptor
from pmwal.storage.live_page import read_writer
from pmwal.storage.liveness import living_writer
from pmwal.storage.mapping import Mapping
from pmwal.storage.seam import SYSTEM

_LOST_SHOWN = 3
_EPILOG = """\
PATH is a log file, a directory (all *.wal in it), or a pattern in quotes.
Several logs are a table with a line for each; in JSON each is an object on a
line.

The file is never written to, and a writer may be running.

Exit status (the worst of all logs): 0, even if one is torn; 2 if it is corrupt;
3 if the file cannot be opened as a log (what can be read of it is still
printed).

Examples:
  pmwal info app.wal
  pmwal info /var/log/shop
  pmwal info --json /var/log/shop | jq '.path, .records.fill'
"""

Facts = dict[str, Any]


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "info",
        run,
        "show geometry, writer and state of logs",
        "Show geometry, medium, writer and state of logs.",
        _EPILOG,
    )
    add_paths(parser)
    add_json(parser, "print JSON, for scripts: one object per log, each on a line")


def run(args: argparse.Namespace) -> int:
    """Collect the facts and print them."""
    args.path = one_log(args.paths)
    if args.path is None:
        return _show_several(args)
    facts = _collect(args.path)
    if args.json:
        print_json(facts)
    else:
        for name, text in _lines(facts):
            print(f"{name:<13}{text}")
    return int(facts["status"])


def _show_several(args: argparse.Namespace) -> int:
    paths, worst = logs_named(args.paths)
    several = []
    for path in paths:
        try:
            facts = _collect(path)
        except OSError as error:
            facts = {"path": path, "status": UNREADABLE, "error": error.strerror or str(error)}
        worst = max(worst, facts["status"])
        several.append(facts)
        if args.json:
            print_json(facts)
    if not args.json:
        print("\n".join(_table(several)))
    return worst


def _table(several: list[Facts]) -> list[str]:
    """A line for each log, and the sums."""
    names = ShortNames(facts["path"] for facts in several)
    rows = [(printable(names[facts["path"]]), *_row(facts)) for facts in several]
    size = sum(facts.get("size_bytes", 0) for facts in several)
    records = sum(facts["records"]["count"] for facts in several if "records" in facts)
    heading = ("log", "size", "records", "fill", "writer", "verdict")
    return [
        *table(heading, rows),
        f"{count_in_words(len(several), 'log')}, {format_size(size)}, {count_in_words(records, 'record')}",
    ]


def _row(facts: Facts) -> tuple[str, ...]:
    size = format_size(facts["size_bytes"]) if "size_bytes" in facts else "-"
    if "error" in facts:
        return size, "-", "-", "-", f"CANNOT BE OPENED: {facts['error']}"
    records, writer = facts["records"], facts["writer"]
    who = str(writer["pid"]) if writer and writer["alive"] else "-"
    return size, f"{records['count']:,}", f"{records['fill']:.1%}", who, _verdict_in_words(facts)


def _collect(path: str) -> Facts:
    with open(path, "rb", opener=_open_quietly) as file:
        size = os.fstat(file.fileno()).st_size
        copies = read_superblocks(file.fileno(), size)
    facts: Facts = {"path": path, "size_bytes": size} | _about_superblocks(copies)
    try:
        with progress_bar("info") as progress, inspect(path, SYSTEM, progress, around=True) as (mapping, judgement):
            facts |= _about_log(mapping, judgement)
            if mapping.missing:
                facts |= {"status": UNREADABLE, "missing_bytes": mapping.missing}
    except FormatError as error:
        facts |= {"status": UNREADABLE, "error": str(error).removeprefix(f"{path}: ")}
    return facts


def _open_quietly(path: str, _flags: int) -> int:
    """Open read-only, without waiting for the writer of a FIFO."""
    return open_descriptor(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _about_superblocks(copies: Superblocks) -> Facts:
    facts: Facts = {"superblocks": list(copies.state)}
    if copies.clue:
        facts["clue"] = copies.clue
    block = copies.block
    if block is None:
        return facts
    return facts | {
        "format": f"{block.version_major}.{block.version_minor}",
        "compatible": block.compatible,
        "incompatible": block.incompatible,
        "uuid": block.uuid.hex(),
        "label": block.label,
        "application": block.application.hex(),
        "created_ns": block.created_ns,
        "created": utc_text(block.created_ns),
        "geometry": {
            "file_size": block.file_size,
            "control_offset": block.control_offset,
            "control_size": block.control_size,
            "slots": block.turn,
            "ring_offset": block.ring_offset,
            "capacity": block.capacity,
            "alignment": block.alignment,
            "payload_max": block.payload_max,
        },
    }


def _about_log(mapping: Mapping, judgement: Judgement) -> Facts:
    report, medium = replace(judgement.report, unreadable=mapping.unreadable), mapping.medium
    block, newest = judgement.identity.block, judgement.control.newest
    named, living = read_writer(mapping.load), living_writer(mapping, SYSTEM)
    used = judgement.end.position - judgement.tail.position
    lost = judgement.control.lost_slots
    return {
        "status": CORRUPT if report.outcome == "corrupt" else OK,
        "writer": None
        if not named.named
        else {
            "pid": named.pid,
            "alive": living is not None,
            "of_this_file": named.inode == mapping.inode,
            "heartbeat_ns": named.heartbeat_ns,
            "heartbeat": utc_text(named.heartbeat_ns),
        },
        "live_page_valid": named.named or not named.pid,
        "medium": {
            "kind": medium.kind,
            "filesystem": medium.filesystem,
            "durability": medium.durability,
            "flush": medium.flush,
            "assumptions": list(medium.assumptions),
        },
        "slots": {
            "lost": judgement.control.lost,
            "lost_offsets": [slot_offset(index) for index in lost],
            "impossible": judgement.control.impossible,
            "newest": None if newest is None else newest._asdict(),
        },
        "records": {
            "first_seq": report.first_seq,
            "last_seq": report.last_seq,
            "count": report.records,
            "used_bytes": used,
            "fill": used / block.capacity,
        },
        "torn": torn_in_words(report, end_offset(judgement)),
        "verdict": report.as_dict(),
    }


def _lines(facts: Facts) -> list[tuple[str, str]]:
    """The same facts for people."""
    first, second = facts["superblocks"]
    lines = [
        ("file", f"{printable(facts['path'])}, {format_size(facts['size_bytes'])}"),
        ("superblocks", f"copy 0 {first}, copy 1 {second}"),
    ]
    if "clue" in facts:
        lines.append(("", facts["clue"]))
    if "uuid" in facts:
        lines += _identity_lines(facts)
    if "error" in facts:
        lines.append(("verdict", f"CANNOT BE OPENED: {facts['error']}"))
    else:
        lines += _log_lines(facts)
    return lines


def _identity_lines(facts: Facts) -> list[tuple[str, str]]:
    geometry = facts["geometry"]
    flags = f", compatible flags {facts['compatible']:#x}" if facts["compatible"] else ""
    flags += f", incompatible flags {facts['incompatible']:#x}" if facts["incompatible"] else ""
    lines = [("format", facts["format"] + flags), ("uuid", facts["uuid"])]
    if facts["label"]:
        lines.append(("label", printable(facts["label"])))
    elif facts["application"].strip("0"):
        lines.append(("application", facts["application"]))
    return [
        *lines,
        ("created", local_text(facts["created_ns"])),
        (
            "geometry",
            f"ring of {format_size(geometry['capacity'])} at offset {geometry['ring_offset']}, {geometry['slots']} commit slots, "
            f"records aligned to {geometry['alignment']}, payloads up to {format_size(geometry['payload_max'])}",
        ),
    ]


def _log_lines(facts: Facts) -> list[tuple[str, str]]:
    medium, records = facts["medium"], facts["records"]
    on = f"{medium['kind']} on {medium['filesystem']}; a record survives {durability_in_words(medium['durability'])}"
    kept = records_in_words(records["first_seq"], records["last_seq"])
    return [
        ("medium", "; ".join([on, *medium["assumptions"]])),
        ("writer", writer_in_words(facts["writer"]) if facts["live_page_valid"] else "unknown: the live page is not valid"),
        ("slots", _slots_in_words(facts)),
        ("records", f"{kept}; {format_size(records['used_bytes'])} in use, {records['fill']:.1%} of the ring"),
        *(("unreadable", f"bytes {start} to {end}") for start, end in facts["verdict"]["unreadable"]),
        ("verdict", _verdict_in_words(facts)),
    ]


def _slots_in_words(facts: Facts) -> str:
    slots, total = facts["slots"], facts["geometry"]["slots"]
    words = []
    if slots["lost"]:
        shown = slots["lost_offsets"][:_LOST_SHOWN]
        control = facts["geometry"]["control_offset"]
        named = ", ".join(
            f"slot {(offset - control) % PAGE // SLOT.size} of control page {(offset - control) // PAGE} (file offset {offset})"
            for offset in shown
        )
        words.append(f"{slots['lost']} of {total} lost: {named}" + (" ..." if len(slots["lost_offsets"]) > len(shown) else ""))
    else:
        words.append(f"all {total} whole")
    if slots["impossible"]:
        words.append(f"impossible: {slots['impossible']}")
    newest = slots["newest"]
    if newest is not None:
        flags = [name for bit, name in ((SLOT_CLEAN, "clean close"), (SLOT_PIPELINED, "pipelined")) if newest["flags"] & bit]
        words.append(
            f"newest: generation {newest['generation']}, epoch {newest['epoch']}, tail at record {newest['tail_seq']}, "
            f"commit pointer after record {newest['commit_seq']}" + (f" ({', '.join(flags)})" if flags else "")
        )
    return "; ".join(words)


def _verdict_in_words(facts: Facts) -> str:
    report = facts["verdict"]
    if "missing_bytes" in facts:
        return (
            f"CANNOT BE OPENED: shortened, {facts['missing_bytes']} bytes are missing at its end; pmwal repair keeps what is whole"
        )
    if report["outcome"] == "corrupt":
        return f"CORRUPT ({report['case']}): {report['reason']}"
    if report["live"]:
        return f"in use, sound so far: {records_in_words(report['first_seq'], report['last_seq'])} durable and judged"
    return f"{report['outcome']} ({report['case']}): {'; '.join(facts['torn']) or report['reason']}"
