"""Sentences that several commands print: counts of records, what a record survives, what a crash left torn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmwal.opening.units import format_size
from pmwal.records import RecoveryReport


def records_in_words(first: int, last: int) -> str:
    """``"no records"``, ``"1 record, 7"`` or ``"3 records, 7 to 9"``."""
    count = last - first + 1
    if count <= 0:
        return "no records"
    return f"1 record, {first}" if count == 1 else f"{count} records, {first} to {last}"


def numbers_in_words(first: int, last: int | None) -> str:
    """``"record 7"``, ``"records 7 to 9"`` or ``"records from 7 on"``."""
    if last is None:
        return f"records from {first} on"
    return f"record {first}" if last <= first else f"records {first} to {last}"


def lost_in_words(first: int, last: int | None) -> str:
    """What is known to be lost: records after the last one that anything whole names may be lost, too."""
    return f"{'' if last is None else 'at least '}{numbers_in_words(first, last)} lost"


def durability_in_words(durability: str) -> str:
    """What an acknowledged record survives."""
    if durability == "unknown":
        return "the death of the process; whether a power cut, is up to the server of the file system"
    return "a power cut" if durability == "power" else "the death of the process only, not a power cut"


def writer_in_words(writer: Mapping[str, Any] | None) -> str:
    """The writer that the live page names, as ``info`` and ``stat`` describe it in JSON."""
    if writer is None:
        return "none"
    state = "running" if writer["alive"] else "gone without closing the log"
    return f"process {writer['pid']}, " + (state if writer["of_this_file"] else "of the file that this is a copy of")


def torn_in_words(report: RecoveryReport, offset: int | None = None) -> list[str]:
    """What is torn in a log that is usable, one phrase each; empty if nothing is.

    ``offset`` is the file offset where the kept records end.
    """
    phrases = []
    if report.dropped_records:
        what = "1 unfinished record" if report.dropped_records == 1 else f"{report.dropped_records} unfinished records"
        where = "" if offset is None else f", file offset {offset}"
        doubt = "; it may have been acknowledged" if report.maybe_acknowledged else ""
        phrases.append(f"{what} ({format_size(report.dropped_bytes)}) dropped from number {report.last_seq + 1} on{where}{doubt}")
    if report.slots_lost:
        phrases.append("1 commit slot is torn or lost; its neighbour is used")
    if report.superblocks_lost:
        phrases.append("1 of 2 superblock copies is damaged; the other is used")
    return phrases
