"""The native engine tells which slots are to be looked at: every judgement from those is that from all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from pmwal.format.control import (
    Slots,
    closing_slot,
    commit_bounds,
    filled_region,
    find_pointer,
    first_seqs,
    read_control,
    read_history,
)
from pmwal.format.layout import (
    EPOCH_MAX,
    GENERATION_MAX,
    LINE,
    PAGE,
    SEQ_MAX,
    SLOT,
    Slot,
    Superblock,
    encode_slot,
    initial_slot,
    slot_checks,
    slot_index,
)
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.records import Bound

pytestmark = pytest.mark.skipif(native is None, reason="the native engine was not built")

UUID = bytes(range(16))


def block_of(pages: int) -> Superblock:
    """A log with this many pages of slots."""
    return Superblock(UUID, control_size=pages * PAGE, capacity=1 << 20, alignment=8, created_ns=0)


def slots_in(raw: bytes, block: Superblock) -> tuple[Slots, Slots]:
    """The slots as each engine reads them: all of them, and those that the native one tells."""
    checks = bytes(slot_checks(raw[at * LINE : (at + 1) * LINE], block.uuid, at) for at in range(block.turn))
    scan = scan_for(block)
    assert scan is not None
    return Slots(raw, block, checks), Slots(raw, block, *scan.scanner.slots(raw))


def check_alike(raw: bytes, block: Superblock, rng: random.Random, told: Callable[[tuple[int, ...]], bool] | None = None) -> None:
    """Both engines' judgements are equal, for look-ups of any number, too."""
    plain, native_slots = slots_in(raw, block)
    assert plain.checks == native_slots.checks
    assert read_control(*plain) == read_control(*native_slots)
    assert first_seqs(plain) == first_seqs(native_slots)
    last = max((row[5] for row in plain.rows()[1] if row is not None and row[5] < 1 << 40), default=0)
    for seq in {1, last, last + 1, *(rng.randrange(last + 2) for _ in range(8))}:
        after = rng.randrange(seq + 1)
        assert list(commit_bounds(plain, after, seq)) == list(commit_bounds(native_slots, after, seq))
    if told is not None:
        assert native_slots.telling is not None
        assert told(native_slots.telling)


def a_log(block: Superblock, rng: random.Random, commits: int) -> tuple[bytearray, int, int]:
    """The slots of a log after these many commits, some of them of rollbacks and reopens; its newest generation and epoch."""
    region = bytearray(filled_region(initial_slot(), block))
    position, seq, epoch, first, ends = 0, 0, 1, 1, {0: 0}
    for generation in range(1, commits + 1):
        action = rng.random()
        if action < 0.03 or generation == 1:
            epoch, first = epoch + 1, seq + 1
        elif action < 0.06 and seq > 1:
            seq = rng.choice([*ends])
            position, epoch, first = ends[seq], epoch + 1, seq + 1
            ends = {number: end for number, end in ends.items() if number <= seq}
        else:
            records = rng.randrange(4)
            seq, position = seq + records, position + records * 64
            ends[seq] = position
        tail_seq = rng.choice([number for number in ends if ends[number] >= position - block.capacity][:3])
        slot = Slot(epoch, generation, first, position, seq, ends[tail_seq], tail_seq + 1, rng.randrange(4))
        at = slot_index(generation, block.control_pages)
        region[at * LINE : (at + 1) * LINE] = encode_slot(slot, block.uuid, at)
    return region, commits, epoch


@pytest.mark.parametrize("pages", [2, 3, 32])
@pytest.mark.parametrize("turns", [0.0, 0.02, 0.5, 1.0, 2.3])
def test_slots_that_are_told_say_what_all_of_them_say(pages: int, turns: float) -> None:
    """An empty log, one in its first turn, one that has filled it, and a later one; also with three pages."""
    block = block_of(pages)
    for seed in range(4):
        rng = random.Random(seed)
        region, _, epoch = a_log(block, rng, int(turns * block.turn))
        check_alike(bytes(region), block, rng, lambda telling, epochs=epoch: 1 <= len(telling) <= epochs + 2)  # type: ignore[misc]


def impossible(slot: Slot, rng: random.Random) -> Slot:
    """This slot with something that no log can have written."""
    return slot._replace(
        **rng.choice(
            [
                {"generation": GENERATION_MAX + 1},
                {"generation": slot.generation + 1},
                {"epoch": EPOCH_MAX + 1},
                {"epoch": 0 if slot.generation else 1},
                {"commit_seq": SEQ_MAX + 1},
                {"flags": 4},
                {"commit_position": (1 << 63) + 8},
                {"commit_position": slot.commit_position + 1},
                {"commit_position": slot.tail_position + (1 << 20) + 8},
                {"commit_position": slot.tail_position, "commit_seq": slot.tail_seq},
                {"tail_position": slot.commit_position + 8},
                {"tail_position": slot.tail_position + 4},
                {"tail_seq": 0},
                {"tail_seq": slot.commit_seq + 2},
                {"epoch_first_seq": 0},
                {"epoch_first_seq": slot.commit_seq + 2},
                {"commit_position": slot.tail_position + 48, "commit_seq": slot.tail_seq + 1},
            ]
        )
    )


def damage(region: bytearray, block: Superblock, rng: random.Random) -> None:
    """One slot is lost, older, of another index, or impossible with a right checksum; or a whole sector or page is zeros."""
    at = rng.randrange(block.turn)
    kind = rng.randrange(7)
    slot = Slot._make(SLOT.struct.unpack_from(region, at * LINE)[1:-1])
    if kind == 0:
        region[at * LINE + rng.randrange(LINE)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        older = slot._replace(generation=slot.generation - block.turn) if slot.generation > block.turn else initial_slot()
        region[at * LINE : (at + 1) * LINE] = encode_slot(older, block.uuid, at)
    elif kind == 2:
        other = rng.randrange(block.turn)
        region[at * LINE : (at + 1) * LINE] = region[other * LINE : (other + 1) * LINE]
    elif kind in (3, 4):
        region[at * LINE : (at + 1) * LINE] = encode_slot(impossible(slot, rng), block.uuid, at)
    elif kind == 5:
        region[at // 8 * 512 : at // 8 * 512 + 512] = bytes(512)
    else:
        region[at // 64 * PAGE : at // 64 * PAGE + PAGE] = bytes(PAGE)


@pytest.mark.parametrize("pages", [2, 3])
@pytest.mark.parametrize("turns", [0.0, 0.4, 1.7])
def test_damaged_slots_are_told(pages: int, turns: float) -> None:
    """Slots that are lost, too old, elsewhere, or impossible lead to the same facts, whichever engine read them."""
    block = block_of(pages)
    for seed in range(60):
        rng = random.Random(seed)
        region, _, _ = a_log(block, rng, int(turns * block.turn))
        for _ in range(rng.randrange(1, 4)):
            damage(region, block, rng)
        check_alike(bytes(region), block, rng)


def test_every_impossible_field_is_told() -> None:
    """A slot that no log can have written is told and named, in a first turn and in a later one."""
    block = block_of(2)
    for seed in range(400):
        rng = random.Random(seed)
        region, newest, _ = a_log(block, rng, rng.choice([50, 300]))
        at = slot_index(newest - rng.randrange(3), block.control_pages)
        slot = impossible(Slot._make(SLOT.struct.unpack_from(region, at * LINE)[1:-1]), rng)
        region[at * LINE : (at + 1) * LINE] = encode_slot(slot, block.uuid, at)
        plain, told = slots_in(bytes(region), block)
        assert told.telling is not None
        assert at in told.telling, slot
        assert read_control(*plain) == read_control(*told)


@pytest.mark.parametrize("pages", [2, 3, 32])
@pytest.mark.parametrize("turns", [0.02, 0.5, 1.0, 2.3])
def test_region_that_is_written_whole_names_the_epochs_of_before(pages: int, turns: float) -> None:
    """All that a slot of the log can name, also after more commits; and no end of a commit that is not the log's."""
    block = block_of(pages)
    for seed in range(5):
        rng = random.Random(seed)
        raw, newest, epoch = a_log(block, rng, int(turns * block.turn))
        before, _ = slots_in(bytes(raw), block)
        last = read_control(bytes(raw), block).newest
        assert last is not None
        end = Bound(last.commit_position - last.tail_position, last.commit_seq + 1)
        history = read_history(before)
        smaller = replace(block, capacity=max(2 * PAGE, -(-end.position // PAGE) * PAGE))
        for new in (block, smaller):
            slot = closing_slot(Bound(0, last.tail_seq), end, epoch, new, history)
            region = bytearray(filled_region(slot, new, history))
            control = read_control(bytes(region), new)
            assert (control.newest, control.lost, control.impossible) == (slot, 0, None)
            after, _ = slots_in(bytes(region), new)
            firsts, kept = first_seqs(before), first_seqs(after)
            assert kept.items() <= (firsts | {slot.epoch: slot.epoch_first_seq}).items()
            for one in firsts.keys() - kept.keys() if turns < 1.0 else ():
                assert new is smaller
                assert any(later > one and first <= firsts[one] for later, first in kept.items())
            assert set(commit_bounds(after, 0, slot.commit_seq)) <= {end}
            assert find_pointer(bytes(region), new) is not None
            check_alike(bytes(region), new, rng)
        assert slot.generation == newest + 2
