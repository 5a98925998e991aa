"""Repairs: after the loss of one sector of the slots, or of one superblock, exactly what was live is there.

Invariants
----------
- The log is at rest, as a kill leaves it: what it has follows from its bytes before the loss, so no history of calls is needed.
- A repaired log is recovered like any other: nothing that the repair left out comes back by a crash after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from pmwal.errors import PmwalError
from pmwal.format.layout import PAGE, SECTOR, SUPERBLOCK_OFFSET, Superblock
from pmwal.opening import open_log
from pmwal.repair import repair
from pmwal.testing._simulator.explore import History, start_of
from pmwal.testing._simulator.model import Found, brief
from pmwal.testing._simulator.operations import perform
from pmwal.testing._simulator.oracles import Examiner
from pmwal.testing._simulator.session import Session
from pmwal.testing.process import kill
from pmwal.testing.recorder import Recorder
from pmwal.testing.violation import Violation
from pmwal.writing.wal import Wal


def explore_repair(directory: Path, history: History) -> int:
    """Run a history, and repair it after each loss; how many there were. ``Violation`` of oracle "repaired"."""
    path = directory / "repaired.wal"
    perform(Session(history.setting, path, start_of(history.setting), history.seed), history.names)
    image, examiner, losses = path.read_bytes(), Examiner(), 0
    live = examiner.examine(image).found
    for what, damaged in _losses(image, examiner.block, Random(history.seed)):
        losses += 1
        for leftover in directory.iterdir():
            leftover.unlink()
        path.write_bytes(damaged)
        try:
            repair(path)
        except (PmwalError, OSError) as error:
            raise Violation("repaired", f"{what}: {type(error).__name__}: {error}") from error
        _check(examiner, path, live, what)
        _append(path)
        _check(examiner, path, live._replace(items=(*live.items, (live.next_seq, b"after the repair"))), f"{what}, then an append")
    return losses


def _losses(image: bytes, block: Superblock, random: Random) -> Iterator[tuple[str, bytes]]:
    """Each sector of slots lost, and each superblock copy, to zeros, ones or noise."""
    sectors = range(block.control_offset, block.control_offset + block.control_size, SECTOR)
    lost = [(offset, SECTOR, "slots") for offset in sectors]
    lost += [(offset, PAGE, "a superblock") for offset in (SUPERBLOCK_OFFSET, block.copy_offset)]
    for offset, length, what in lost:
        fill = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
        yield f"{what} at {offset} lost", image[:offset] + fill + image[offset + length :]


def _append(path: Path) -> None:
    """A writer opens the repaired log, appends a record, and is killed."""
    try:
        wal = open_log(path, "r+", medium="file", on_full="overwrite", seam=Recorder())
    except (PmwalError, OSError) as error:
        raise Violation("repaired", f"the repaired log does not open: {type(error).__name__}: {error}") from error
    assert isinstance(wal, Wal)
    wal.append(b"after the repair")
    kill(wal)


def _check(examiner: Examiner, path: Path, expected: Found, what: str) -> None:
    examined = examiner.examine(path.read_bytes())
    report = examined.judgement.report
    if examined.corrupt:
        raise Violation("repaired", f"{what}: {examined.case}: {report.reason}")
    if report.slots_lost or report.superblocks_lost:
        raise Violation("repaired", f"{what}: {report.slots_lost} slots and {report.superblocks_lost} superblocks are still lost")
    found = examined.found
    # Overwriting may have freed the front for the record that was appended.
    items = tuple(item for item in expected.items if item[0] >= found.first_seq)
    if found.items != items or found.first_seq < expected.first_seq:
        raise Violation(
            "repaired",
            f"{what}: found from {found.first_seq} {brief(found.items)}; live from {expected.first_seq} {brief(expected.items)}",
        )
