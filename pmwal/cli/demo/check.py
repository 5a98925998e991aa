"""The demo's judge: what was issued and acknowledged, against what the log holds after a kill. Pure.

Invariants
----------
- It believes the acknowledgements that came through the pipe and the lines themselves; it never asks the log what it should
  hold.
- Every record in the log is compared: number, kind (which names the writer that stored it) and payload, so that a record of
  an earlier writer, of an earlier lap, or one that was dropped before, cannot pass for the right one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pmwal.cli.common import numbers_in_words
from pmwal.records import Record

IN_FLIGHT = 1  # records that one writer has between the start of append and its acknowledgement
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Run:
    """One writer: its first number, the line that it carried, and the kind of its records."""

    first_seq: int
    line: int
    kind: int


class Ledger:
    """What every number must hold."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = lines
        self._runs: list[Run] = []

    def begin(self, run: Run) -> None:
        """A new writer goes on; numbers from its first on that earlier ones had issued were dropped."""
        self._runs.append(run)

    def expected(self, seq: int) -> tuple[int, bytes]:
        """Kind and payload of a number."""
        run = self._runs[bisect_right(self._runs, seq, key=lambda run: run.first_seq) - 1]
        return run.kind, self._lines[(run.line + seq - run.first_seq) % len(self._lines)]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a killed writer claimed: acknowledged through ``last_seq``, and which truncations it had begun and finished.

    Without a truncation both are the log's first number before it started.
    """

    last_seq: int
    truncated: int
    truncating: int


@dataclass(slots=True)
class Finding:
    """The verdict on one kill. ``extra``: whole records past the last acknowledgement, right by number and bytes."""

    compared: int = 0
    lost: int = 0
    changed: int = 0
    foreign: int = 0
    extra: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.changed or self.foreign or self.problems)

    def problem(self, text: str) -> None:
        """Note what is wrong; the first few are enough."""
        if len(self.problems) < _PROBLEMS_SHOWN:
            self.problems.append(text)


def check(records: Iterable[Record], claims: Claims, ledger: Ledger, first_seq: int, next_seq: int) -> Finding:
    """Compare a log that says it holds ``first_seq`` up to, not including, ``next_seq`` with what was claimed."""
    finding = Finding()
    if first_seq > claims.truncating:
        finding.lost += first_seq - claims.truncating
        finding.problem(f"{numbers_in_words(claims.truncating, first_seq - 1)} gone, and nobody had truncated them")
    if first_seq < claims.truncated:
        finding.foreign += claims.truncated - first_seq
        finding.problem(f"{numbers_in_words(first_seq, claims.truncated - 1)} back, although truncate had returned")
    if next_seq <= claims.last_seq:
        finding.lost += claims.last_seq - next_seq + 1
        finding.problem(f"{numbers_in_words(next_seq, claims.last_seq)} acknowledged and lost")
    finding.extra = max(0, next_seq - 1 - claims.last_seq)
    if finding.extra > IN_FLIGHT:
        finding.foreign += finding.extra - IN_FLIGHT
        finding.problem(f"{finding.extra} records past the last acknowledgement; only {IN_FLIGHT} can have been under way")
    at = first_seq
    for record in records:
        _compare(record, at, ledger, finding)
        at += 1
    if at != next_seq:
        finding.lost += max(1, next_seq - at)
        finding.problem(f"{at - first_seq} records were read where {next_seq - first_seq} should be")
    return finding


def _compare(record: Record, seq: int, ledger: Ledger, finding: Finding) -> None:
    finding.compared += 1
    kind, payload = ledger.expected(seq)
    if record.seq != seq:
        finding.foreign += 1
        finding.problem(f"record {record.seq} stands where number {seq} should")
    elif record.kind != kind:
        finding.foreign += 1
        finding.problem(f"record {seq} comes from writer {record.kind}, not from writer {kind}")
    elif record.data != payload:
        finding.changed += 1
        finding.problem(f"record {seq} differs from the line that was issued")
