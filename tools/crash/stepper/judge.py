"""The verdict of pmwal on a state of the medium: on its bytes, and for some states by a real open."""

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
from pmwal.storage.medium import MediumName


class Verdict(NamedTuple):
    """The row of the recovery table, whether that is corrupt, the reason, and the records that recovery keeps."""

    case: str
    corrupt: bool
    reason: str
    first: int
    records: list[Numbered]


def remembered_slots() -> AbstractContextManager[Any]:
    """Cache ``read_control``, a pure function, in the block: most states differ only in the ring."""
    return mock.patch("pmwal.recovery.judge.read_control", lru_cache(maxsize=256)(read_control))


class Judge:
    """Judges images of one log. They share one superblock, which is never stored to."""

    def __init__(self, base: bytes, medium: MediumName, scratch: Path) -> None:
        self._identity: Identity = identify(lambda offset, length: base[offset : offset + length], len(base), "base")
        self._medium = medium
        self._scratch = scratch
        scan = scan_for(self.block)
        assert scan is not None  # the rig tests the C engine
        self._scan = scan

    @property
    def block(self) -> Superblock:
        """The superblock."""
        return self._identity.block

    def judged(self, image: bytearray) -> Verdict:
        """The verdict on the bytes."""
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
        view = View(judgement.tail, judgement.end, slot.epoch, slot.epoch_first_seq, None, judgement.control.starts)
        found = Walker(self.block, load, explain, scan=scan).walk(view, view.tail, view.end.next_seq)
        records = [(record.seq, record.kind, record.data) for record in found]
        return Verdict(report.case, False, report.reason, report.first_seq, records)

    def opened(self, image: bytearray) -> Verdict:
        """The verdict of a real open. The log must also accept another record, and be clean after a close."""
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
            return Verdict("open", True, f"after another append and a close: {report.outcome}, {report.reason}", 0, [])
        return verdict
