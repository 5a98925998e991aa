"""A violation, kept: the log and what it was judged by, in a directory that can be judged once more."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pmwal.testing.process import using_engine
from pmwal.testing.stress.check import Contents
from pmwal.testing.stress.journal import ENTRY, Opened
from pmwal.testing.stress.judge import Case, judge
from pmwal.testing.stress.payloads import Payloads
from pmwal.testing.stress.violation import Violation

CASE, JOURNAL = "case.json", "journal.npy"


def save(case: Case, directory: Path) -> None:
    """Keep the case; the log is in the directory already."""
    values = {**asdict(case), "entries": None, "opening": None if case.opening is None else list(case.opening)}
    np.save(directory / JOURNAL, case.entries)
    (directory / CASE).write_text(json.dumps(values, indent=1, default=int) + "\n")


def load(directory: Path) -> Case:
    """The case that is kept in a directory; ``ValueError`` if there is none."""
    try:
        values = json.loads((directory / CASE).read_text())
        entries = np.load(directory / JOURNAL)
        if entries.dtype != ENTRY:
            raise ValueError("its journal is of another version")
        before = Contents(values["before"]["first_seq"], tuple(values["before"]["tickets"]))
        opening = None if values["opening"] is None else Opened(*values["opening"])
        values |= {"before": before, "entries": entries, "opening": opening}
        return Case(**{**values, "sightings": [(seq, ticket) for seq, ticket in values["sightings"]]})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory} keeps no violation of pmwal stress that can be judged again: {error}") from error


def again(directory: Path) -> Violation | None:
    """Judge a kept log once more; the violation, or None if the log meets its expectation now."""
    case = load(directory)
    with using_engine(case.engine):
        try:
            judge(case, directory, Payloads(case.seed))
        except Violation as violation:
            return violation
    return None
