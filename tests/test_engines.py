"""Two engines, one log: given the same calls, both leave the same bytes and give the same answers.

The random programs run twice: through a recording seam, which the C code calls for every step, and straight into the mapping
as it ships, with the clock of the process stopped (tests/preload.py). PMWAL_TEST_EXAMPLES=1000 runs more of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine_programs
import pmwal
from pmwal.format import layout
from pmwal.native.choice import ENGINES
from preload import run
from support import kill, superblock

EXAMPLES = int(os.environ.get("PMWAL_TEST_EXAMPLES", "60"))

# -- random programs


def test_both_engines_leave_the_same_file_through_a_seam(library: Path) -> None:
    """Random programs give the same answers and, after every step, the same bytes, each step being one call of the seam."""
    assert run(library, engine_programs.__name__, "play_recorded", EXAMPLES // 2, patience=60 + EXAMPLES) == "same"


def test_both_engines_leave_the_same_file_directly(library: Path) -> None:
    """Random programs give the same answers and, after every step, the same bytes, straight into the mapping."""
    assert run(library, engine_programs.__name__, "play_directly", EXAMPLES, "/dev/shm", patience=60 + EXAMPLES) == "same"


def test_both_engines_leave_the_same_file_on_a_disk(library: Path, tmp_path: Path) -> None:
    """The same where the file lies on a disk, with prefetching and real barriers."""
    assert run(library, engine_programs.__name__, "play_directly", EXAMPLES // 6, str(tmp_path), patience=60 + EXAMPLES) == "same"


@pytest.mark.parametrize("medium", ["file", "emulated-dax"])
def test_comparison_of_the_engines_finds_one_changed_bit(library: Path, medium: str) -> None:
    """The check above can fail: one payload that differs by a bit is seen."""
    with pytest.raises(AssertionError, match="the files differ at"):
        run(library, engine_programs.__name__, "play_with_a_difference", medium)


# -- limits that the fast path leaves to Python


@pytest.mark.parametrize("limit", ["generation", "seq", "position", "epoch"])
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_end_of_the_numbers_is_the_same_full_log(shm_dir: Path, limit: str, ordering: str) -> None:
    """Near the last generation, number, position or epoch both engines take the same calls and raise the same WalFull."""
    answers = []
    for engine in ENGINES:
        path = shm_dir / engine
        fast_forward(path, limit, ordering)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PMWAL_ENGINE", engine)
            wal = pmwal.open(path, medium="file", ordering=ordering)
        try:
            answers.append(to_the_end(wal))
        finally:
            kill(wal)
    assert answers[0] == answers[1]
    assert any("WalFull" in answer for answer in answers[1][0])


def to_the_end(wal: pmwal.Wal) -> tuple[list[str], list[tuple[int, bytes]]]:
    """What calls answer until the numbers are used up, and what is there then."""
    steps: list[Callable[[], Any]] = [
        *[lambda: wal.append(b"x" * 900)] * 8,
        lambda: wal.extend([b"y"] * 3),
        wal.commit,
        lambda: wal.append(b"z"),
        lambda: wal.truncate(wal.next_seq),
        *[lambda: wal.append(b"x" * 900)] * 8,
        *[lambda: wal.rollback(wal.next_seq - 2)] * 3,
    ]
    noted = []
    for step in steps:
        try:
            noted.append(str(step()))
        except (pmwal.PmwalError, OverflowError, ValueError) as error:
            noted.append(repr(error).replace(wal.path, "PATH"))
    return noted, [(record.seq, record.data) for record in wal]


def fast_forward(path: Path, limit: str, ordering: str) -> None:
    """A log that has nearly used up one of its numbers."""
    pmwal.open(path, size="16KiB", medium="file", ordering=ordering).close()
    block = superblock(path)
    generation, epoch, seq, position = 5000, 5, 10, 0
    if limit == "generation":
        generation = layout.GENERATION_MAX - 10
    if limit == "epoch":
        epoch = layout.EPOCH_MAX - 2
    if limit == "seq":
        seq = layout.SEQ_MAX - 6
    if limit == "position":
        position = (layout.POSITION_MAX - 5000) // 8 * 8
    with path.open("r+b") as file:
        for number in range(generation - block.turn + 1, generation + 1):
            index = layout.slot_index(number, block.control_pages)
            file.seek(layout.slot_offset(index))
            slot = layout.Slot(epoch, number, seq + 1, position, seq, position, seq + 1, layout.SLOT_CLEAN)
            file.write(layout.encode_slot(slot, block.uuid, index))
