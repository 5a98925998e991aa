"""Scenario 39, damage of every kind: only documented errors, and no acknowledged record lost or changed without a report."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest

import pmwal
from marks import first_fast
from pmwal.format import control
from pmwal.format.layout import CONTROL_OFFSET, HEADER, LIVE_OFFSET, PAGE
from pmwal.format.ring import Found
from pmwal.reading.walk import View, Walker
from pmwal.records import Bound
from pmwal.recovery import judge
from pmwal.recovery import superblock as identity
from pmwal.recovery.salvage import salvage
from support import SMALL_CONTROL, contents, kill, open_small, overwrite, superblock, whole_records

pytestmark = pytest.mark.both_engines

Numbered = list[tuple[int, bytes]]
SECONDS_MAX = 2.0


class Image:
    """The bytes of a log in memory, and the records acknowledged in it."""

    def __init__(self, path: Path, acknowledged: Numbered, issued: Numbered | None = None) -> None:
        self.issued = acknowledged if issued is None else issued
        overwrite(path, LIVE_OFFSET, bytes(PAGE))  # it names this process, which is alive, as the writer
        self.original = path.read_bytes()
        self.raw = bytearray(self.original)
        self.capacity = superblock(path).capacity
        self.records = list(whole_records(path).values())
        self.acknowledged = acknowledged

    def load(self, offset: int, length: int) -> bytes:
        """Load bytes, as from a file."""
        return bytes(self.raw[offset : offset + length])

    def check(self) -> str:
        """Judge the current bytes; return the label of the verdict, or "FormatError"."""
        try:
            block_in_use = identity.identify(self.load, len(self.raw), "image")
        except pmwal.FormatError:
            return "FormatError"
        judgement = judge.judge(self.load, block_in_use)
        report = judgement.report
        if report.outcome == "corrupt":
            assert report.reason
            judgement.error("image")
            salvaged = [found.header.seq for found in salvage(self.load, judgement)]
            assert sorted(set(salvaged)) == salvaged
            return report.case

        def explain(at: Bound, view: View) -> pmwal.PmwalError:
            raise AssertionError(f"kept record {at.next_seq} cannot be read")

        slot = judgement.control.newest
        assert slot is not None
        view = View(judgement.tail, judgement.end, slot.epoch, slot.epoch_first_seq, None, judgement.control.starts)

        records = Walker(block_in_use.block, self.load, explain).walk(view, view.tail, view.end.next_seq)
        kept = [(record.seq, record.data) for record in records]
        missing = {seq for seq, _ in self.acknowledged} - {seq for seq, _ in kept}
        assert [item for item in self.acknowledged if item[0] not in missing] == kept, "changed or foreign records"
        if missing:
            assert report.maybe_acknowledged, f"{sorted(missing)} are missing and not reported: {report}"
            witnesses = [seq for seq in self._witnesses(judgement.end.position) if seq in missing]
            assert not witnesses, f"{witnesses} are whole and say that {sorted(missing)} were durable: {report}"
        return report.case

    def _witnesses(self, stop: int) -> list[int]:
        """Records with unchanged bytes whose mark says that the log was durable past ``stop``.

        Only damage to all of them as well, up to the very end, can pass for a torn tail.
        """
        return [found.header.seq for found in self.records if found.header.durable > stop and self._intact(found)]

    def _intact(self, found: Found) -> bool:
        start = len(self.raw) - self.capacity + found.position % self.capacity
        stored = slice(start, start + HEADER + found.header.length)
        return self.raw[stored] == self.original[stored]


def small(path: Path, *, clean: bool, ordering: str) -> Image:
    """A log of a dozen records of many sizes that has wrapped, been truncated and rolled back."""
    wal = open_small(path, size=4096, medium="file", ordering=ordering)
    for number in range(12):
        wal.append(b"%d-" % number * (number * 9))
        if number % 3 == 2:
            wal.truncate(before=number - 1)
    wal.rollback(after=11)
    wal.extend([b"batch one", b"", b"batch three"])
    wal.append(b"before last" * 9)
    wal.append(b"last")
    acknowledged = contents(wal)
    if clean:
        wal.close()
    else:
        kill(wal)
    return Image(path, acknowledged)


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse equal control regions once, because most damage does not touch them."""
    monkeypatch.setattr(judge, "read_control", functools.lru_cache(maxsize=64)(control.read_control))


STATES = [(True, "strict"), (False, "strict"), (True, "pipelined"), (False, "pipelined")]


@pytest.mark.slow
@pytest.mark.parametrize(("clean", "ordering"), [(True, "strict"), (False, "pipelined")])
@pytest.mark.usefixtures("parsed_once")
def test_every_single_bit_flip_in_the_ring_is_noticed_or_harmless(clean: bool, ordering: str, shm_dir: Path) -> None:
    """A flipped bit in a record is R4, R5 or, within the window, a torn tail that reports maybe_acknowledged."""
    image = small(shm_dir / "a.wal", clean=clean, ordering=ordering)
    verdicts: set[str] = set()
    for offset in range(len(image.raw) - 4096, len(image.raw)):
        for bit in range(8):
            image.raw[offset] ^= 1 << bit
            verdicts.add(image.check())
            image.raw[offset] ^= 1 << bit
    assert ({"R1", "R4"} if clean else {"R2", "R3", "R5"}) <= verdicts


@pytest.mark.slow
@pytest.mark.native_engine
@pytest.mark.parametrize(("clean", "ordering"), STATES)
def test_every_single_bit_flip_outside_of_the_ring_is_noticed_or_harmless(clean: bool, ordering: str, shm_dir: Path) -> None:
    """After a flipped bit in a superblock or slot, its copy or the previous slot is used, and the report says so.

    The verdict depends only on the superblock in use, the slots and the ring, so each pair of the first two is judged once.
    """
    image = small(shm_dir / "a.wal", clean=clean, ordering=ordering)
    judged: dict[object, str] = {}
    part = STATES.index((clean, ordering))
    for offset in range(part, len(image.raw) - 4096, len(STATES)):
        if LIVE_OFFSET <= offset < LIVE_OFFSET + PAGE:
            continue  # recovery never reads there: see the next test
        for bit in range(8):
            image.raw[offset] ^= 1 << bit
            try:
                in_use = identity.identify(image.load, len(image.raw), "image")
                key: object = in_use
                if 0 <= offset - CONTROL_OFFSET < SMALL_CONTROL:
                    key = control.read_control(image.load(CONTROL_OFFSET, SMALL_CONTROL), in_use.block)
            except pmwal.FormatError as error:
                key = str(error)
            if key not in judged:
                judged[key] = image.check()
            image.raw[offset] ^= 1 << bit
    assert {"R7", "R10"} == set(judged.values())


def test_recovery_never_reads_the_live_page(shm_dir: Path) -> None:
    """Recovery loads no byte of the live page, so its content does not matter."""
    image = small(shm_dir / "a.wal", clean=False, ordering="pipelined")
    loads: list[tuple[int, int]] = []

    def load(offset: int, length: int) -> bytes:
        loads.append((offset, length))
        return image.load(offset, length)

    judge.judge(load, identity.identify(load, len(image.raw), "image"))
    assert [item for item in loads if item[0] < LIVE_OFFSET + PAGE and item[0] + item[1] > LIVE_OFFSET] == []


def test_every_truncation_of_the_file_is_refused(shm_dir: Path) -> None:
    """A file that is too short by any number of bytes is a FormatError and is never mapped."""
    path = shm_dir / "a.wal"
    image = small(path, clean=True, ordering="strict")
    for length in range(len(image.original)):
        image.raw = bytearray(image.original[:length])
        assert image.check() == "FormatError", length
    for length in range(0, len(image.original), 509):
        path.write_bytes(image.original[:length])
        with pytest.raises(pmwal.FormatError):
            pmwal.open(path)
        with pytest.raises(pmwal.FormatError):
            pmwal.open(path, "r")


def large(path: Path, *, clean: bool, ordering: str, seed: int) -> Image:
    """A log that fills most of a ring of 24 KiB and has wrapped many times."""
    rng = random.Random(seed)
    wal = open_small(path, size=24576, medium="file", ordering=ordering, on_full="overwrite")
    issued: Numbered = []
    for _ in range(150):
        items = [rng.randbytes(rng.randrange(600)) for _ in range(rng.choice([1, 1, 1, 4]))]
        first, _ = wal.extend(items)
        issued += list(enumerate(items, first))
    acknowledged = contents(wal)
    if clean:
        wal.close()
    else:
        kill(wal)
    return Image(path, acknowledged, issued)


def mutate(rng: random.Random, raw: bytearray) -> None:
    """Apply one random damage: flipped bits, zeros, ones, garbage, a swap, a copy, a shift, an old page."""
    size = len(raw)
    start = rng.randrange(size)
    if rng.random() < 0.5:
        start = start // 64 * 64
    length = min(rng.choice([1, 2, 8, 48, 64, 512, 4096]), size - start)
    other = rng.randrange(size - length + 1)
    match rng.randrange(7):
        case 0:
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case 1:
            raw[start : start + length] = bytes(length)
        case 2:
            raw[start : start + length] = b"\xff" * length
        case 3:
            raw[start : start + length] = rng.randbytes(length)
        case 4:
            raw[start : start + length] = raw[other : other + length]
        case 5:
            raw[start : start + length] = (
                (rng.choice([0, 1, size, 2**32 - 1, 2**63, 2**64 - 1])).to_bytes(8, "little")[:length].ljust(length, b"\0")
            )
        case 6:
            raw[start : start + length] = raw[start + 1 : start + length] + b"\0"


@pytest.mark.parametrize("part", first_fast(range(10)))
@pytest.mark.usefixtures("parsed_once")
def test_random_mutations_of_larger_logs_are_noticed_or_harmless(part: int, shm_dir: Path) -> None:
    """Ten thousand cases in all, each with one to three mutations of a fresh copy."""
    clean, ordering = STATES[part % 4]
    image = large(shm_dir / "a.wal", clean=clean, ordering=ordering, seed=part)
    for number in range(1000):
        rng = random.Random(part * 1000 + number)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            mutate(rng, image.raw)
        try:
            image.check()
        except Exception as error:
            raise AssertionError(f"mutation {part * 1000 + number}: {error}") from error
        image.raw[:] = image.original


@pytest.mark.parametrize("seed", first_fast(range(4)))
def test_damaged_files_open_or_fail_with_documented_errors(seed: int, shm_dir: Path) -> None:
    """The same on files through the public calls: open for writing, read, salvage, verify."""
    path = shm_dir / "a.wal"
    clean, ordering = STATES[seed]
    image = large(path, clean=clean, ordering=ordering, seed=seed)
    rng = random.Random(seed)
    for _ in range(60):
        raw = bytearray(image.raw)
        mutate(rng, raw)
        path.write_bytes(raw)
        outcome = None
        try:
            outcome = pmwal.verify(path).outcome
            with pmwal.open(path, "r", recover="salvage") as reader:
                assert set(contents(reader)) <= set(image.issued)  # without slots, also records that were truncated
            with pmwal.open(path, "r") as reader:
                assert set(contents(reader)) <= set(image.acknowledged)
            with pmwal.open(path, "r+") as wal:
                assert outcome != "corrupt"
                assert set(contents(wal)) <= set(image.acknowledged)
                wal.append(b"next") if wal.free > 1000 else None
        except pmwal.CorruptWal:
            assert outcome == "corrupt"
        except pmwal.FormatError:
            assert outcome is None


def test_random_bytes_are_no_log(shm_dir: Path) -> None:
    """A file of random bytes, with or without a whole superblock first, gives a documented error."""
    image = small(shm_dir / "a.wal", clean=True, ordering="strict")
    size = len(image.raw)
    for seed in range(100):
        rng = random.Random(seed)
        image.raw[:] = rng.randbytes(size)
        assert image.check() == "FormatError", seed
        image.raw[:PAGE] = image.original[:PAGE]
        assert image.check() == "R9", seed
