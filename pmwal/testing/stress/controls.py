"""The negative controls: mistakes that a run must notice, and the kinds of violation that it must report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pmwal
from pmwal.testing.stress.plan import LifePlan
from pmwal.testing.stress.violation import Violation

BUSY_SECONDS = 0.3, 0.6  # shortest and longest life, so that a kill ends it in the middle of calls
FEW = 12  # records that a log needs before a mistake can be made in it


@dataclass(frozen=True)
class Control:
    """``after_kill`` changes the log between a kill and the check; other mistakes are made in the writer and the readers."""

    what: str
    kinds: tuple[str, ...]
    after_kill: Callable[[Path], None] | None = None
    single: bool = False  # needs one thread and overwriting: the mistake predicts numbers, or must not need space


def _reopened(path: Path) -> pmwal.Wal:
    wal = pmwal.open(path, "r+", on_full="overwrite")
    assert isinstance(wal, pmwal.Wal)
    return wal


def _lose(path: Path) -> None:
    with _reopened(path) as wal:
        if len(wal) >= FEW:
            wal.rollback(wal.next_seq - FEW)


def _swap(path: Path) -> None:
    with _reopened(path) as wal:
        records = list(wal)[-FEW:]
        if len(records) == FEW:
            wal.rollback(records[0].seq - 1)
            for record in reversed(records):
                wal.append(record.data, kind=record.kind)


def _resurrect(path: Path) -> None:
    with _reopened(path) as wal:
        old = next((record for record in wal if 16 <= len(record.data) <= 1000), None)
        if old is not None:
            wal.append(old.data, kind=old.kind)


def _damage(path: Path) -> None:
    with pmwal.open(path, "r") as reader:
        records = list(reader)
    if len(records) < FEW:
        return
    payload = max((record.data for record in records[: FEW // 2]), key=len)
    with path.open("r+b") as file:
        at = file.read().find(payload)
        os.pwrite(file.fileno(), bytes([payload[0] ^ 1]), at)


CONTROLS: dict[str, Control] = {
    "early-ack": Control(
        "the writer acknowledges 2 ms before the call",
        ("missing-record",),
        single=True,
    ),
    "lost-record": Control(
        "recovery drops the newest records",
        ("missing-record", "torn-batch"),  # those may be the end of a batch that was under way
        _lose,
    ),
    "changed-byte": Control("one record in 20 is stored with a wrong last byte", ("changed-record", "foreign-record")),
    "resurrected-record": Control("recovery finds an old record after the newest", ("resurrected-record",), _resurrect),
    "swapped-records": Control("recovery reorders the newest records", ("misplaced-record", "changed-record"), _swap),
    "damaged-file": Control("one bit of an old payload changes in the file", ("corrupt-log",), _damage),
    "split-batch": Control("extend stores its records one by one", ("torn-batch",), single=True),
    "kept-batch": Control(
        "a batch is stored although its block raised",
        ("resurrected-record", "foreign-record", "wrong-order"),
    ),
    "ignored-truncate": Control("truncate returns and does nothing", ("wrong-bounds",), single=True),
    "ignored-rollback": Control(
        "rollback returns and does nothing",
        ("resurrected-record", "foreign-record", "wrong-order", "misplaced-record", "changed-record"),
    ),
    "repeated-rollback": Control(
        "rollback discards again after it returned",
        ("missing-record", "wrong-order", "misplaced-record", "changed-record", "foreign-record", "commit-too-early"),
    ),
    "reader-changed-byte": Control("a reader is shown a wrong byte", ("changed-record",)),
    "reader-ghost": Control("a reader is shown records that the log does not have", ("ghost-of-a-reader",)),
    "unlocked-writer": Control("the writer claims a lock that it does not take", ("unnoticed-writer",)),
    "leak-descriptors": Control("each close of a log leaks a descriptor", ("leak-of-descriptors",)),
    "leak-memory": Control("each close of a log leaks 4 MiB", ("leak-of-memory",)),
}


RENAMED = {"early-acknowledgement": "early-ack"}
"""Names of 0.1, which still work until 0.3."""


def adjust(plan: LifePlan) -> LifePlan:
    """Adapt a life so that its mistake can be made, and a kill meets it."""
    if plan.control is None:
        return plan
    control = CONTROLS[plan.control]
    if control.single:
        plan = replace(plan, threads=1, on_full="overwrite", commit="each", space="plenty")
    return replace(plan, seconds=min(max(plan.seconds, BUSY_SECONDS[0]), BUSY_SECONDS[1]), clean=False)


def after_kill(plan: LifePlan) -> None:
    """Make the planted mistake in the log, between the kill and the check."""
    change = None if plan.control is None else CONTROLS[plan.control].after_kill
    if change is not None:
        try:
            change(plan.log.path)
        except pmwal.PmwalError as error:
            raise Violation(f"the control cannot change the log: {error}", "unexpected-error") from error
