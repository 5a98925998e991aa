"""What pmwal makes of a state of the medium: judged on the bytes, and now and then opened for real."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pmwal
from crash.stepper.plan import Numbered
from pmwal.errors import PmwalError
from pmwal.format.control import read_control
from pmwal.format.layout import Superblock
from pmwal.format.scan import scan_for
from pmwal.reading.walk import View, Walker, missing
from pmwal.records import Bound
from pmwal.recovery.judge import judge
from pmwal.recovery.superblock import Identity, identify


class Verdict(NamedTuple):
    """What was found: the row of the recovery table, whether it is corrupt, its reason, and the records that are kept."""

    case: str
    corrupt: bool
    reason: str
    first: int
    records: list[Numbered]


def remembered_slots() -> AbstractContextManager[Any]:
    """While it lasts, equal control regions are looked at once: most states differ in the ring only, and the function is pure."""
    return mock.patch("pmwal.recovery.judge.read_control", lru_cache(maxsize=256)(read_control))


class Judge:
    """Judges images of one log. All have the superblock of the first: it is never stored to."""

    def __init__(self, base: bytes, medium: str, scratch: Path) -> None:
        self._identity: Identity = identify(lambda offset, length: base[offset : offset + length], len(base), "base")
        self._medium = medium
        self._scratch = scratch
        scan = scan_for(self.block)
        assert scan is not None  # the rig is about the native engine
        self._scan = scan

    @property
    def block(self) -> Superblock:
        """The superblock."""
        return self._identity.block

    def judged(self, image: bytearray) -> Verdict:
        """The verdict on the bytes, with all the records that are kept."""
        window = memoryview(image)

        def load(offset: int, length: int) -> bytes:
            return bytes(window[offset : offset + length])

        def explain(at: Bound, view: View) -> PmwalError:
            return missing(self.block, at, view.tail, cut=False)

        scan = self._scan._replace(file=window)
        judgement = judge(load, self._identity, scan=scan)
        report, slot = judgement.report, judgement.control.newest
        if report.outcome == "corrupt" or slot is None:
            return Verdict(report.case, True, report.reason, report.first_seq, [])
        view = View(judgement.tail, judgement.end, slot.epoch, slot.epoch_first_seq)
        found = Walker(self.block, load, explain, scan=scan).walk(view, view.tail, view.end.next_seq)
        records = [(record.seq, record.kind, record.data) for record in found]
        return Verdict(report.case, False, report.reason, report.first_seq, records)

    def opened(self, image: bytearray) -> Verdict:
        """What a real open finds; the log must take another record then, and be clean after a close."""
        self._scratch.write_bytes(image)
        try:
            with pmwal.open(self._scratch, "r+", medium=self._medium) as wal:
                records = [(record.seq, record.kind, record.data) for record in wal.read()]
                verdict = Verdict(wal.recovery.case, False, wal.recovery.reason, wal.first_seq, records)
                wal.append(b"next")
        except PmwalError as error:
            return Verdict("open", True, f"{type(error).__name__}: {error}", 0, [])
        report = pmwal.verify(self._scratch)
        if report.outcome != "clean" or report.last_seq != verdict.first + len(records):
            return Verdict("open", True, f"after a record more and a close: {report.outcome}, {report.reason}", 0, [])
        return verdict
