"""A whole record that a rollback discarded is never taken for one that is lost, whatever lies in the gap before the ring's end.

The record after the gap is at the start of the next lap; in the gap there may still be a discarded one with its number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pmwal
from marks import first_fast
from pmwal.format.control import filled_region
from pmwal.format.epochs import STARTS_MAX, add_start, has_expected_epoch, least_epoch, pack_starts, starts_through
from pmwal.format.layout import HEADER
from pmwal.format.ring import RingReader, Rules
from pmwal.format.scan import scan_for
from pmwal.records import Bound
from support import contents, image, look, open_small, overwrite, payloads, superblock

pytestmark = pytest.mark.both_engines

LIVE = {7: b"live 7" + bytes(398), 8: b"live 8"}


def with_gap(path: Path) -> pmwal.Wal:
    """Records 5 to 8; in the gap before the ring's end, discarded records 7 and 8 of an older epoch."""
    wal = open_small(path, size="4KiB", align=8, ordering="strict")
    wal.extend([b"%d" % seq + bytes(599) for seq in range(1, 7)])
    wal.truncate(before=5)
    wal.append(b"rolled back 7")
    wal.append(b"rolled back 8")
    wal.rollback(after=6)
    assert [wal.append(data) for data in LIVE.values()] == list(LIVE)
    return wal


def lose_seventh(path: Path) -> None:
    """Zero the record at the ring's start."""
    overwrite(path, superblock(path).ring_offset, bytes(448))


def forget_epochs(path: Path) -> None:
    """Slots that all say the same, as after a repair or after a turn of commits."""
    block, slot = superblock(path), look(path).control.newest
    assert slot is not None
    overwrite(path, block.control_offset, filled_region(slot, block))


READS: dict[str, Callable[[Any], Any]] = {
    "read": lambda log: list(log.read()),
    "iterate": list,
    "from 7": lambda log: list(log.read(start=7)),
    "7": lambda log: log[7],
    "8": lambda log: log[8],
    "follow": lambda log: list(log.follow(timeout=0)),
    "array": lambda log: log.read_array("V14", start=7),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("reopened", [False, True])
def test_reads_beside_a_writer_raise(path: Path, name: str, reopened: bool) -> None:
    """By the writer and by a reader, in the epoch of the rollback and in a later one."""
    wal = with_gap(path)
    if reopened:
        wal.close()
        wal = open_small(path)
    lose_seventh(path)
    with pmwal.open(path, "r") as reader:
        for log in (wal, reader):
            with pytest.raises(pmwal.CorruptWal, match="record 7 "):
                READS[name](log)
    wal.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_frame_ends_before_a_discarded_record(path: Path, reopened: bool) -> None:
    """And the next one would begin with it."""
    wal = with_gap(path)
    if reopened:
        wal.close()
        wal = open_small(path)
    lose_seventh(path)
    with pmwal.open(path, "r") as reader:
        frame = reader.frame(5, size_max=1 << 20)
        assert frame is not None
        assert (frame.first, frame.last) == (5, 6)
        with pytest.raises(pmwal.CorruptWal, match="record 7 "):
            reader.frame(7, size_max=1 << 20)
    wal.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_nothing_makes_a_discarded_record_part_of_the_log(path: Path, reopened: bool) -> None:
    """Neither a rollback nor a truncate to it, nor a close."""
    wal = with_gap(path)
    if reopened:
        wal.close()
        wal = open_small(path)
    lose_seventh(path)
    live = pmwal.verify(path)
    for change in (lambda: wal.rollback(after=7), lambda: wal.truncate(before=8)):
        with pytest.raises(pmwal.CorruptWal):
            change()
    wal.close()
    for report in (live, pmwal.verify(path)):
        assert (report.case, report.first_seq, report.last_seq) == ("R4", 5, 6)
        assert (report.lost_first_seq, report.lost_last_seq) == (7, 7)
    with pmwal.open(path, "r", recover="salvage") as salvaged:
        assert [record.seq for record in salvaged] == [5, 6, 8]
        assert list(salvaged)[-1].data == LIVE[8]


def test_end_of_the_walk_tells_where_the_slots_do_not(path: Path) -> None:
    """No slot names the rollback any more: all numbers are found, but the last record ends elsewhere."""
    with_gap(path).close()
    open_small(path).close()
    forget_epochs(path)
    wal = open_small(path)
    lose_seventh(path)
    with pmwal.open(path, "r") as reader:
        for log in (wal, reader):
            with pytest.raises(pmwal.CorruptWal):
                list(log.read())
            assert [record.seq for record in log.read(stop=7)] == [5, 6]
        with pytest.raises(pmwal.CorruptWal):
            reader.frame(5, size_max=1 << 20)
    reports = [pmwal.verify(path)]
    wal.close()
    for report in (*reports, pmwal.verify(path)):
        # A record may be as long as the ring, so it could be any of them that wrapped.
        assert (report.case, report.first_seq, report.last_seq) == ("R4", 5, 4)
        assert (report.lost_first_seq, report.lost_last_seq) == (5, 8)
        assert "one of the numbers 5 to 8 is not whole" in report.reason
    with pytest.raises(pmwal.CorruptWal, match="numbers 5 to 8"):
        open_small(path)


def test_sector_with_older_contents_is_damage(path: Path) -> None:
    """A write that the medium lost: the discarded record of an older epoch is back, at its place and of the same size."""
    wal = open_small(path, size="8KiB", align=512, ordering="strict")
    wal.append(b"one")
    wal.append(b"rolled back")
    place = superblock(path).ring_offset + 512
    older = image(path)[place : place + 512]
    wal.rollback(after=1)
    wal.append(b"acknowledged")
    wal.close()
    open_small(path).close()
    overwrite(path, place, older)
    report = pmwal.verify(path)
    assert (report.case, report.lost_first_seq, report.lost_last_seq) == ("R4", 2, 2)


def test_healthy_log_with_discarded_records_in_its_gap(path: Path) -> None:
    """They are no damage."""
    wal = with_gap(path)
    for _ in range(2):
        with pmwal.open(path, "r") as reader:
            assert payloads(reader)[2:] == payloads(wal)[2:] == list(LIVE.values())
        assert pmwal.verify(path).case == "R2"
        wal.close()
        assert pmwal.verify(path).outcome == "clean"
        wal = open_small(path)
    wal.close()


def test_writer_remembers_a_bounded_number_of_epochs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And readers still find each record."""
    monkeypatch.setattr("pmwal.format.epochs.STARTS_MAX", 8)
    with open_small(path) as wal:
        for number in range(20):
            wal.extend([b"kept %d" % number, b"discarded"])
            wal.rollback(after=wal.next_seq - 2)
        assert len(wal._engine.view.starts) == 16 * 8
        kept = [b"kept %d" % number for number in range(20)]
        with pmwal.open(path, "r") as reader:
            assert payloads(wal) == payloads(reader) == kept


def random_log(path: Path, random: Random) -> tuple[pmwal.Wal, dict[int, bytes]]:
    """A log in its later laps, with rollbacks just before its wraps; and what it contains."""
    wal = open_small(path, size="4KiB", align=random.choice([8, 64]), on_full="overwrite", ordering="strict")
    model: dict[int, bytes] = {}
    for number in range(random.randrange(20, 60)):
        action = random.random()
        if action < 0.7:
            data = b"%d " % number + random.randbytes(random.choice([0, 20, 300, 700]))
            model[wal.append(data)] = data
        elif action < 0.9:
            after = random.randrange(max(wal.first_seq, wal.next_seq - 4) - 1, wal.next_seq)
            wal.rollback(after=after)
            model = {seq: data for seq, data in model.items() if seq <= after}
        else:
            wal.close()
            wal = open_small(path, size=None, on_full="overwrite", ordering="strict")
    return wal, {seq: data for seq, data in model.items() if seq >= wal.first_seq}


@pytest.mark.parametrize("part", first_fast(range(8)))
def test_damage_beside_a_writer_never_brings_a_record_back(path: Path, part: int) -> None:
    """Random logs, and a sector of zeros, or of what was there before: reads give the log's own records, or raise."""
    random = Random(part)
    damaged = 0
    for _ in range(20):
        path.unlink(missing_ok=True)
        wal, model = random_log(path, random)
        assert dict(contents(wal)) == model
        block = superblock(path)
        at = random.randrange(block.ring_offset, block.ring_offset + block.capacity, 512)
        overwrite(path, at, bytes(512))
        with pmwal.open(path, "r") as reader:
            for log in (wal, reader):
                for seq, data in model.items():
                    try:
                        assert log[seq].data == data, (part, seq)
                    except pmwal.CorruptWal:
                        damaged += 1
                try:
                    assert dict(contents(log)) == model, part
                except pmwal.CorruptWal:
                    damaged += 1
        live = pmwal.verify(path)
        assert live.outcome == "corrupt" or list(range(live.first_seq, live.last_seq + 1)) == list(model)
        wal.close()
    assert damaged > 20


# -- the rule


def test_starts_say_the_least_epoch() -> None:
    """An epoch that a later one discarded from its first number on says nothing; a later start at the same number says more."""
    starts = pack_starts({1: 1, 2: 10, 3: 5, 4: 5, 6: 20})
    assert [least_epoch(starts, seq) for seq in (0, 1, 4, 5, 10, 19, 20, 1 << 60)] == [0, 1, 1, 4, 4, 4, 6, 6]
    assert add_start(pack_starts({1: 1, 2: 10, 3: 5, 4: 5}), 6, 20) == starts
    assert starts_through(starts, 5) == pack_starts({1: 1, 4: 5})
    assert least_epoch(b"", 7) == 0
    assert len(pack_starts({epoch: epoch for epoch in range(1, 3000)})) == 16 * STARTS_MAX


def test_both_engines_take_the_same_epochs(path: Path) -> None:
    """Records of random epochs: a run in C ends where the rule in Python says."""
    random = Random(12)
    with open_small(path, size="64KiB") as wal:
        wal.extend([b"x"] * 40)
        block, load = wal._engine.block, wal._engine.mapping.load
        scan = scan_for(block)
        epoch = wal._engine.state.epoch
        ring = RingReader(block, load, scan=scan)
        for _ in range(500):
            firsts = {old: random.randrange(1, 45) for old in random.sample(range(1, 9), random.randrange(5))}
            newest, first = random.randrange(1, 4), random.randrange(1, 45)
            rules = Rules(41, 1 << 40, newest, first, starts=pack_starts(firsts))
            taken = 0
            while taken < 40 and has_expected_epoch(taken + 1, epoch, newest, first, rules.starts):
                taken += 1
            if scan is not None:
                assert ring.run(Bound(0, 1), rules, 0, 0, None).at.next_seq == taken + 1
                assert len(RingReader(block, load, scan=scan).records(Bound(0, 1), rules)) == taken
            found = ring.whole(0)
            assert found is not None
            assert found.end == HEADER + 8
            assert rules.takes_epoch(found) == (taken > 0)
