"""Random histories, then one lost piece of the file: repair keeps exactly what was live, and salvage finds what is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmwal
import pmwal.recovery.rebuild as rebuild_module
import pmwal.repair
from history import History
from marks import first_fast
from pmwal.format.layout import HEADER, PAGE, SECTOR, SLOT, Slot, decode_slot, slot_index, slot_offset
from pmwal.format.ring import Found, Load, Scan
from pmwal.records import START, Bound
from pmwal.recovery.evidence import everything
from pmwal.recovery.judge import Judgement
from pmwal.recovery.rebuild import Rebuilt, rebuild
from pmwal.repair import RepairReport, repair
from pmwal.testing._simulator.model import Found as State
from pmwal.testing._simulator.model import brief
from support import contents, file_offset, look, open_small, overwrite, whole_records

pytestmark = pytest.mark.both_engines

SEEDS = 15  # histories in one test
PARTS = 5
PARTS_NIGHTLY = 70
ROUNDS = 8
LOSSES = ("control_sector", "superblock_copy", "ring_sector")
HISTORIES = [(ordering, on_full) for ordering in ("strict", "pipelined") for on_full in ("raise", "overwrite")]
Numbered = list[tuple[int, bytes]]


class Loss:
    """The log as a crash left it, what recovery would keep of it, and copies to damage."""

    def __init__(self, history: History, directory: Path) -> None:
        self.history = history
        self.rng = history.rng
        self.path = directory / "damaged.wal"
        self.raw = history.path.read_bytes()
        self.restore()
        judgement = look(self.path)
        assert judgement.control.newest is not None
        self.block, self.slot = judgement.identity.block, judgement.control.newest
        self.found = list(whole_records(self.path).values())
        self.live = read(self.path)
        self.first_seq = judgement.tail.next_seq
        self.torn_slot = judgement.report.slots_lost > 0  # with the one before it lost too, nothing says that no newer one was
        self.torn_end = judgement.report.dropped_records > 0

    def restore(self) -> None:
        """Make a fresh copy, and remove what the last repair left."""
        for file in self.path.parent.iterdir():
            file.unlink()
        self.path.write_bytes(self.raw)

    def lose(self, offset: int, length: int) -> None:
        """These bytes are gone: zeros, ones or noise."""
        filler = self.rng.choice([bytes(length), b"\xff" * length, self.rng.randbytes(length)])
        overwrite(self.path, offset, filler)

    # -- the three pieces that may be lost

    def control_sector(self) -> None:
        """Eight commit slots, often with the newest among them: the live records stay, and nothing else comes back."""
        self.restore()
        newest = slot_offset(slot_index(self.slot.generation, self.block.control_pages))
        other = self.block.control_offset + self.rng.randrange(self.block.control_size)
        sector = self.rng.choice([newest, other]) // SECTOR * SECTOR
        self.lose(sector, SECTOR)
        report = repair(self.path)
        self.check_kept(report, f"control sector at {sector}, {report.before.case}")

    def superblock_copy(self) -> None:
        """Either copy."""
        self.restore()
        self.lose(self.rng.choice([0, self.block.copy_offset]), PAGE)
        report = repair(self.path)
        self.check_kept(report, "a superblock copy")

    def check_kept(self, report: RepairReport, what: str) -> None:
        """The repaired log has exactly the live records, is clean, and needs no repair."""
        found, first_seq = read(self.path), report.after.first_seq
        assert pmwal.verify(self.path).case == "R1"
        if found == self.live and first_seq == self.first_seq:
            assert report.lost_first_seq is None
            assert report.lost_records == 0
        else:
            # A crash inside a truncate or rollback leaves the old state or the new one; its slot may be the one that is lost.
            assert self.slots_differ(), f"{what}: {brief(tuple(found))} from {first_seq}, but live are {brief(tuple(self.live))}"
            assert self.history.expected.allows(State(first_seq, tuple(found)))
        if not self.torn_slot:
            assert report.doubtful_records == 0
        assert repair(self.path).actions == ("nothing: the log needs no repair",)
        with open_small(self.path, "r+", medium="file") as wal:
            assert contents(wal) == found

    def slots_differ(self) -> bool:
        """Whether the newest slot begins something that the one before does not carry."""
        before = self.slot_before()
        return before is None or _in_effect(self.slot) != _in_effect(before)

    def slot_before(self) -> Slot | None:
        """The slot before the newest."""
        index = slot_index(self.slot.generation - 1, self.block.control_pages) if self.slot.generation else 0
        raw = self.raw[slot_offset(index) : slot_offset(index) + SLOT.size]
        return decode_slot(raw, self.block.uuid, index)

    def ring_sector(self) -> None:
        """A part of the ring: what lies before it is kept, and salvage finds what is whole after it."""
        self.restore()
        if not self.found:
            return
        target = self.rng.choice(self.found)
        inside = file_offset(self.block, target.position) + self.rng.randrange(HEADER + target.header.length)
        sector = inside // SECTOR * SECTOR
        self.lose(sector, SECTOR)
        hit = {found.header.seq for found in self.found if self._is_hit(found, sector)}
        if not hit:
            return  # the lost bytes were what they are now
        first = min(hit)
        before = [item for item in self.live if item[0] < first]
        others = [item for item in self.live if item[0] > first and item[0] not in hit]
        verdict = pmwal.verify(self.path)
        what = f"ring sector at {sector}, records {sorted(hit)}, {verdict.case}"
        with pmwal.open(self.path, "r", recover="salvage") as reader:
            salvaged = contents(reader)
        if verdict.case != "R4":
            cut = len(before) - self._of_broken_batch(first)
            before, others = before[:cut], before[cut:] + others
        if verdict.outcome == "corrupt":
            others = self._findable(others, hit)
            if self.torn_end:  # what was begun past the end is taken for live if the damage reaches to the end
                salvaged = salvaged[: len(before) + len(others)]
            assert salvaged == before + others, f"{what}: salvaged {brief(tuple(salvaged))}, live {brief(tuple(self.live))}"
            report = repair(self.path)
            assert self.torn_end or report.lost_records == len(others)
            assert report.doubtful_records == 0
        else:  # the last writes, which look torn
            acknowledged = {seq for seq, _ in self.history.model.acknowledged}
            assert verdict.maybe_acknowledged or not hit & acknowledged, what
        found = read(self.path)
        assert found == before, f"{what}: {brief(tuple(found))}, but live before it are {brief(tuple(before))}"

    def _findable(self, others: Numbered, hit: set[int]) -> Numbered:
        """Without those past every mark whose batch was hit: the same as a batch that a crash left unfinished."""
        whole = [found for found in self.found if found.header.seq not in hit]
        marks = [found.header.durable for found in whole if found.header.epoch == self.slot.epoch]
        mark = max([self.slot.commit_position, *marks])
        unfinished = set()
        for found in whole:
            first = found.header.seq - found.header.batch_index
            later = range(found.header.seq + 1, first + found.header.batch_count)
            if found.position >= mark and not hit.isdisjoint(later):
                unfinished.add(found.header.seq)
        return [item for item in others if item[0] not in unfinished]

    def _is_hit(self, found: Found, sector: int) -> bool:
        """Whether the loss changed bytes of this record; zeros may have become zeros."""
        start = file_offset(self.block, found.position)
        begin, end = max(start, sector), min(start + HEADER + found.header.length, sector + SECTOR)
        return begin < end and self.raw[begin:end] != self.path.read_bytes()[begin:end]

    def _of_broken_batch(self, first: int) -> int:
        """How many records before this one belong to its batch."""
        header = next(found.header for found in self.found if found.header.seq == first)
        return min(header.batch_index, first - self.first_seq)


def _in_effect(slot: Slot) -> tuple[int, int, int]:
    return slot.epoch, slot.epoch_first_seq, slot.tail_seq


def read(path: Path) -> Numbered:
    """What the log shows to a reader, which is what recovery would keep."""
    with pmwal.open(path, "r") as reader:
        return contents(reader)


class DamagedHistory(History):
    """After each crash, copies of the log lose a piece and are repaired."""

    def __init__(self, path: Path, seed: int, losses: tuple[str, ...], **options: Any) -> None:
        super().__init__(path, seed, **options)
        self.losses = losses
        self.aside = path.with_suffix(".aside")
        self.aside.mkdir()

    def _crash(self) -> None:
        super()._crash()
        loss = Loss(self, self.aside)
        for name in self.losses:
            check: Callable[[], None] = getattr(loss, name)
            check()


def run_all(directory: Path, seeds: range, *losses: str) -> None:
    """The histories of these seeds, with these losses."""
    for seed in seeds:
        ordering, on_full = HISTORIES[seed % len(HISTORIES)]
        path = directory / f"{seed}.wal"
        DamagedHistory(path, seed, losses, ordering=ordering, on_full=on_full).run(ROUNDS)


@pytest.mark.parametrize("part", first_fast(range(PARTS)))
def test_repair_keeps_exactly_what_was_live_after_one_loss(part: int, shm_dir: Path) -> None:
    """At every crash of random histories one piece is lost: a sector of slots, a superblock copy, or a sector of the ring."""
    run_all(shm_dir, range(part * SEEDS, (part + 1) * SEEDS), *LOSSES)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(PARTS, PARTS_NIGHTLY))
def test_repair_keeps_exactly_what_was_live_in_many_histories(part: int, shm_dir: Path) -> None:
    """The same, a thousand times."""
    run_all(shm_dir, range(part * SEEDS, (part + 1) * SEEDS), *LOSSES)


def longest_run(load: Load, judgement: Judgement, scan: Scan | None = None) -> Rebuilt:
    """The rule of version 0.1 where more than one slot is lost: the longest run of whole records, each number's newest epoch."""
    if judgement.row.by_pointer:
        return rebuild(load, judgement, scan)
    block = judgement.identity.block
    newest: dict[int, Found] = {}
    for found in sorted(everything(block, load), key=lambda found: (found.header.epoch, found.position)):
        newest[found.header.seq] = found
    runs: list[list[Found]] = [[]]
    for _, found in sorted(newest.items()):
        last = runs[-1][-1] if runs[-1] else None
        if last is not None and (found.header.seq, found.position) != (last.header.seq + 1, last.end):
            runs.append([])
        runs[-1].append(found)
    run = max(runs, key=len)
    tail, end = (Bound(run[0].position, run[0].header.seq), Bound(run[-1].end, run[-1].header.seq + 1)) if run else (START, START)
    return Rebuilt(tail, end, (), (), end.next_seq - 1, None, False, 0, judgement.epoch_max)


def discarded_too(whole: Any, slots: Any) -> Any:
    """A choice that does not notice what a rollback discarded."""
    live = whole[np.lexsort((~whole["position"], ~whole["epoch"], whole["seq"]))]
    return live[np.append(True, live["seq"][1:] != live["seq"][:-1])[: len(live)]]


@pytest.mark.parametrize(
    ("loss", "place", "name", "mutant"),
    [
        ("control_sector", pmwal.repair, "rebuild", longest_run),
        ("ring_sector", rebuild_module, "_not_discarded", discarded_too),
    ],
    ids=["longest run", "discarded records"],
)
def test_the_oracle_notices_another_rule(
    loss: str, place: Any, name: str, mutant: Any, shm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these rules loses live records or brings others back in some of these histories."""
    monkeypatch.setattr(place, name, mutant)
    with pytest.raises(AssertionError, match=r"live (are|before it are|\[)"):
        run_all(shm_dir, range(100), loss)
