"""Oracles: what must be true of every image that a crash left. A violation names its oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from pmwal.errors import PmwalError
from pmwal.format.layout import SUPERBLOCK_OFFSET, Superblock
from pmwal.format.scan import scan_for
from pmwal.reading.walk import View, Walker, damaged
from pmwal.recovery.judge import Judgement, judge
from pmwal.recovery.superblock import Identity, identify
from pmwal.testing._simulator.model import Expectation, Found, brief
from pmwal.testing.violation import Violation

CRASH_ROWS = ("R1", "R2", "R3", "R7")


class Examined(NamedTuple):
    """The verdict on an image, and what recovery would keep of it."""

    judgement: Judgement
    found: Found

    @property
    def case(self) -> str:
        """The row of the recovery table."""
        return self.judgement.row.label

    @property
    def corrupt(self) -> bool:
        """Whether the verdict is loud."""
        return self.judgement.row.outcome == "corrupt"


@dataclass
class Examiner:
    """Judges images of logs as the chosen engine would, without writing them to a file."""

    _superblocks: bytes = b""
    _identity: Identity | None = None

    def examine(self, image: bytes) -> Examined:
        """The verdict. Raises what a recovery would raise for a file that is no log."""
        identity = self._identify(image)
        block = identity.block
        window = memoryview(image)

        def load(offset: int, length: int) -> bytes:
            return image[offset : offset + length]

        judgement = judge(load, identity, None, scan_for(block, window))
        found = Found(judgement.tail.next_seq, ())
        slot = judgement.control.newest
        if slot is not None and judgement.row.outcome != "corrupt":
            view = View(judgement.tail, judgement.end, slot.epoch, slot.epoch_first_seq, None, judgement.control.starts)
            walker = Walker(block, load, lambda at, _: damaged(block, at), scan=scan_for(block, window))
            records = walker.walk(view, view.tail, view.end.next_seq)
            found = found._replace(items=tuple((record.seq, record.data) for record in records))
        return Examined(judgement, found)

    @property
    def block(self) -> Superblock:
        """The superblock of the image that was examined last."""
        assert self._identity is not None
        return self._identity.block

    def _identify(self, image: bytes) -> Identity:
        """The superblock, decoded again only when its bytes are others."""
        if self._identity is not None and self._superblocks == _superblocks(image, self._identity.block):
            return self._identity
        self._identity = identify(lambda offset, length: image[offset : offset + length], len(image), "image")
        self._superblocks = _superblocks(image, self._identity.block)
        return self._identity


def _superblocks(image: bytes, block: Superblock) -> bytes:
    size = block.control_offset // 2
    return image[SUPERBLOCK_OFFSET:size] + image[block.copy_offset : block.copy_offset + size]


def check(examined: Examined, expectation: Expectation) -> None:
    """The oracles that every image is shown to."""
    judgement, found = examined
    if expectation.lied and examined.corrupt:
        return
    if examined.case not in CRASH_ROWS:
        raise Violation("verdict", f"{examined.case}: {judgement.report.reason}; expected {expectation}")
    if [seq for seq, _ in found.items] != list(range(found.first_seq, found.next_seq)):
        raise Violation("issued", f"numbers do not follow one another: {brief(found.items)}")
    report = judgement.report
    told = report.first_seq, report.last_seq, report.records
    if told != (found.first_seq, found.next_seq - 1, len(found.items)):
        raise Violation("verdict", f"the report tells of {told}; found {brief(found.items)}")
    if expectation.allows(found):
        return
    oracle = "issued" if expectation.holds_acknowledged(found) else "acknowledged"
    raise Violation(oracle, f"found from {found.first_seq}: {brief(found.items)} ({examined.case}); expected {expectation}")


def check_damaged(examined: Examined, expectation: Expectation) -> None:
    """Oracle "damage": the verdict is loud, or nothing is missing, or what was made durable past the newest slot of a
    pipelined log, and the report says that it may be."""
    found = examined.found
    if examined.corrupt or expectation.allows(found):
        return
    if not (examined.judgement.report.maybe_acknowledged and expectation.begins_with(found)):
        sure = f"; sure up to {expectation.sure_seq}"
        raise Violation("damage", f"found {brief(found.items)} ({examined.case}); expected {expectation}{sure}")


@contextmanager
def documented_errors() -> Iterator[None]:
    """Oracle "errors": only errors of pmwal and ``OSError`` are documented. Here even those are violations, of "verdict"."""
    try:
        yield
    except (Violation, KeyboardInterrupt):
        raise
    except (PmwalError, OSError) as error:
        raise Violation("verdict", f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise Violation("errors", f"{type(error).__name__}: {error}") from error
