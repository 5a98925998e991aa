"""Compares the log after a kill with what was issued and acknowledged. It does no I/O.

Invariants
----------
- The expected contents come from the acknowledgements in the pipe and the input lines, never from the log.
- Every record in the log is compared: number, kind (which identifies its writer) and payload. So a record of an earlier
  writer, of an earlier lap of the ring, or one dropped before, cannot pass for the right one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pmwal.cli.wording import numbers_in_words
from pmwal.records import Record

IN_FLIGHT = 1  # the most records a writer can have between the start of append and its acknowledgement
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One writer: its first number, the index of the line it appended there, and the kind of its records."""

    first_seq: int
    line: int
    kind: int


class Ledger:
    """The kind and payload expected at every number."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = lines
        self._runs: list[Run] = []

    def begin(self, run: Run) -> None:
        """Add a new writer; from its first number on it replaces what earlier writers issued."""
        self._runs.append(run)

    def expected(self, seq: int) -> tuple[int, bytes]:
        """Kind and payload expected at a number."""
        run = self._runs[bisect_right(self._runs, seq, key=lambda run: run.first_seq) - 1]
        return run.kind, self._lines[(run.line + seq - run.first_seq) % len(self._lines)]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a killed writer reported: the last number acknowledged, and the last truncations finished and begun.

    Without a truncation both are the log's first number before it started.
    """

    last_seq: int
    truncated: int
    truncating: int


@dataclass(slots=True)
class Finding:
    """The verdict on one kill. ``extra``: records after the last acknowledged one, with the right number and payload."""

    compared: int = 0
    lost: int = 0
    changed: int = 0
    foreign: int = 0
    extra: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every acknowledged record was kept, and nothing else."""
        return not (self.lost or self.changed or self.foreign or self.problems)

    def problem(self, text: str) -> None:
        """Describe a problem; only the first few are kept."""
        if len(self.problems) < _PROBLEMS_SHOWN:
            self.problems.append(text)


def check(records: Iterable[Record], claims: Claims, ledger: Ledger, first_seq: int, next_seq: int) -> Finding:
    """Compare a log of records from ``first_seq`` up to, not including, ``next_seq`` with the claims."""
    finding = Finding()
    if first_seq > claims.truncating:
        finding.lost += first_seq - claims.truncating
        finding.problem(f"{numbers_in_words(claims.truncating, first_seq - 1)} gone without a truncate")
    if first_seq < claims.truncated:
        finding.foreign += claims.truncated - first_seq
        finding.problem(f"{numbers_in_words(first_seq, claims.truncated - 1)} back after truncate had returned")
    if next_seq <= claims.last_seq:
        finding.lost += claims.last_seq - next_seq + 1
        finding.problem(f"{numbers_in_words(next_seq, claims.last_seq)} acknowledged and lost")
    finding.extra = max(0, next_seq - 1 - claims.last_seq)
    if finding.extra > IN_FLIGHT:
        finding.foreign += finding.extra - IN_FLIGHT
        finding.problem(f"{finding.extra} records past the last acknowledgement; at most {IN_FLIGHT} can have been in flight")
    at = first_seq
    for record in records:
        _compare(record, at, ledger, finding)
        at += 1
    if at != next_seq:
        finding.lost += max(1, next_seq - at)
        finding.problem(f"{at - first_seq} records were read, {next_seq - first_seq} expected")
    return finding


def _compare(record: Record, seq: int, ledger: Ledger, finding: Finding) -> None:
    finding.compared += 1
    kind, payload = ledger.expected(seq)
    if record.seq != seq:
        finding.foreign += 1
        finding.problem(f"record {record.seq} found where {seq} was expected")
    elif record.kind != kind:
        finding.foreign += 1
        finding.problem(f"record {seq} comes from writer {record.kind}, not from writer {kind}")
    elif record.data != payload:
        finding.changed += 1
        finding.problem(f"record {seq} differs from the line that was issued")
