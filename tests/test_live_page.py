"""The live page: whole for readers wherever its writer is stopped, and never believed when it is old, torn or forged."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from onlookers import Misled, Onlookers
from pmwal.format.layout import (
    CONTROL_OFFSET,
    LINE,
    LIVE_BOUNDS,
    LIVE_FOLLOWERS_OFFSET,
    LIVE_OFFSET,
    LIVE_OPEN,
    LIVE_OPEN_OFFSET,
    LIVE_SECOND_OFFSET,
    LIVE_WRITER,
    LIVE_WRITER_OFFSET,
    PAGE,
)
from pmwal.records import Bound
from pmwal.storage.live_page import LiveBounds, read_bounds, read_writer
from pmwal.testing import Step
from support import BarrierRecorder, kill, open_small, overwrite

pytestmark = [pytest.mark.both_engines, pytest.mark.usefixtures("hints_first")]

ROOT = Path(__file__).parent.parent
SEED = random.randrange(1 << 32)


# -- a writer that is stopped


def batch(wal: pmwal.Wal) -> None:
    """Three records in one batch."""
    with wal.batch() as staged:
        for payload in (b"x" * 100, b"", b"y" * 900):
            staged.append(payload)


def fill(wal: pmwal.Wal) -> None:
    """Append until old records must go."""
    for number in range(8):
        wal.append(b"%d" % number * 1500)


OPERATIONS: dict[str, Callable[[pmwal.Wal], Any]] = {
    "append": lambda wal: wal.append(b"new" * 30),
    "batch": batch,
    "store-commit": lambda wal: (wal.append(b"later", commit=False), wal.commit()),
    "truncate": lambda wal: wal.truncate(before=4),
    "truncate-pending": lambda wal: (wal.append(b"pending", commit=False), wal.truncate(before=5)),
    "rollback": lambda wal: wal.rollback(after=5),
    "rollback-append": lambda wal: (wal.rollback(after=5), wal.append(b"other")),
    "overwrite": fill,
    "close": lambda wal: wal.close(),
}


def _seen(wal: pmwal.Wal) -> list[tuple[int, int, bytes]]:
    return [(record.seq, record.kind, record.data) for record in wal.read()]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_readers_are_not_misled_wherever_the_writer_is_stopped(path: Path, ordering: str, operation: str) -> None:
    """Before and after each store and flush, all readers see the same whole records: such as were stored, in a row."""
    seam = BarrierRecorder()
    stops = 0
    wal = open_small(path, seam=seam, medium="file", ordering=ordering, on_full="overwrite")
    wal.extend([b"%d" % number * 300 for number in range(1, 9)])
    known = {(seq, data) for seq, _, data in _seen(wal)}
    with Onlookers(path) as onlookers:

        def look(_: Step | None) -> None:
            nonlocal stops
            stops += 1
            first, seen = onlookers.look()
            known.update((record.seq, record.data) for record in ([] if wal.closed else wal.read()))
            assert [seq for seq, _, _ in seen] == list(range(first, first + len(seen)))
            assert {(seq, data) for seq, _, data in seen} <= known

        seam.before = seam.after = look
        OPERATIONS[operation](wal)
        seam.before = seam.after = None
        look(None)
        if not wal.closed:
            assert onlookers.look()[1] == _seen(wal)
        assert onlookers.overruns == 0 or operation in ("rollback", "rollback-append", "overwrite")
    assert stops > 4
    kill(wal)


@pytest.mark.parametrize("end", ["close", "kill"])
def test_readers_are_not_misled_wherever_a_writer_that_opens_is_stopped(path: Path, end: str) -> None:
    """The page of the writer before is not believed, whether that was closed or killed, and the new one's is when it is whole."""
    first = open_small(path, medium="file")
    first.extend([b"%d" % number * 300 for number in range(1, 9)])
    if end == "close":
        first.close()
    else:
        first.append(b"not committed", commit=False)
        kill(first)
    seam = BarrierRecorder()
    with Onlookers(path) as onlookers:
        expected = onlookers.look()
        assert len(expected[1]) == (8 if end == "close" else 9)

        def look(_: Step) -> None:
            assert onlookers.look() == expected

        seam.before = seam.after = look
        wal = open_small(path, seam=seam, medium="file")
        assert onlookers.look() == expected
        wal.close()
        assert onlookers.overruns == 0


def test_stores_of_the_bounds_in_the_wrong_order_are_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the tests above: a seam that stores both versions before the fields misleads some reader."""
    seam = BarrierRecorder()
    wal = open_small(path, seam=seam, medium="file", ordering="strict")
    wal.extend([b"%d" % number * 300 for number in range(1, 9)])
    store, held = BarrierRecorder.store, []

    def swapped(self: BarrierRecorder, mapping: Any, offset: int, data: bytes) -> None:
        if offset == LIVE_OFFSET + 8:
            held.append(data)
        else:
            store(self, mapping, offset, data)
        if offset == LIVE_OFFSET + LINE - 8:
            store(self, mapping, LIVE_OFFSET + 8, held.pop())

    monkeypatch.setattr(BarrierRecorder, "store", swapped)
    with Onlookers(path) as onlookers:
        onlookers.look()
        before = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]

        def look(step: Step) -> None:
            if step.name == "store" and step.offset == LIVE_OFFSET + 8:
                torn = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]
                assert torn[8:-8] == before[8:-8]
                assert torn[:8] == torn[-8:] != before[:8]
                first, _ = onlookers.look()
                raise Misled(f"the log still begins at {first}")

        seam.before = look
        with pytest.raises(Misled):
            wal.truncate(before=4)
    seam.before = None
    kill(wal)


@pytest.fixture
def stopped(path: Path) -> Iterator[tuple[pmwal.Wal, bytes, bytes]]:
    """A writer, with its page before and after a truncate of 49 of 100 records; its page is put right at the end."""
    wal = pmwal.open(path, size="64KiB", medium="file")
    for number in range(100):
        wal.append(b"%d" % number * 20)
    old = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE]
    wal.truncate(before=50)
    new = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE]
    yield wal, old, new
    overwrite(path, LIVE_OFFSET, new)
    wal.close()


@pytest.mark.parametrize("words", range(9))
def test_torn_first_line_is_replaced_by_the_second_in_a_few_loads(
    path: Path, stopped: tuple[pmwal.Wal, bytes, bytes], words: int
) -> None:
    """After any number of its eight words was stored, the line before is believed; nobody waits."""
    _, old, new = stopped
    overwrite(path, LIVE_OFFSET, new[: 8 * words] + old[8 * words : LINE])
    overwrite(path, LIVE_SECOND_OFFSET, old[LIVE_SECOND_OFFSET - LIVE_OFFSET :][:LINE])
    loads = 0

    def load(offset: int, length: int) -> bytes:
        nonlocal loads
        loads += 1
        return path.read_bytes()[offset : offset + length]

    bounds = read_bounds(load)
    assert bounds is not None
    assert bounds.tail.next_seq == (50 if words == 8 else 1)
    assert loads <= 4
    with Onlookers(path) as onlookers:
        first, seen = onlookers.look()
    assert (first, len(seen)) == ((50, 51) if words == 8 else (1, 100))


def test_line_that_looks_whole_and_is_half_old_is_not_believed(path: Path, stopped: tuple[pmwal.Wal, bytes, bytes]) -> None:
    """Version 0.1 stored the second 16 bytes first: equal versions around half old, half new fields. The second copy is newer."""
    _, old, new = stopped
    overwrite(path, LIVE_OFFSET, old[:16] + new[16:32] + old[32:LINE])
    with Onlookers(path) as onlookers:
        first, seen = onlookers.look()
    assert (first, len(seen)) == (50, 51)


def _as_0_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on writers are of version 0.1, as far as readers can tell: no byte is locked and no open is named."""
    begin = pmwal.storage.live_page.LivePage.begin

    def begin_0_1(self: Any, timing_step: int, announce: Callable[[], bool]) -> None:
        kept = self._mapping.load(LIVE_SECOND_OFFSET, LINE + LIVE_OPEN.size)
        begin(self, timing_step, lambda: False)
        self._mapping.store(LIVE_SECOND_OFFSET, kept)

    monkeypatch.setattr("pmwal.storage.live_page.LivePage.begin", begin_0_1)


def _stale_open(path: Path) -> None:
    """Make the page's open one of another process, as a writer of version 0.2 before this one left it."""
    at = LIVE_OPEN_OFFSET + LIVE_OPEN.offsets["start_time"]
    overwrite(path, at, struct.pack("<Q", 17))


def test_second_copy_of_an_earlier_open_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer of version 0.1 leaves it as it is; a torn line of its own then means the newest commit slot."""
    with open_small(path) as wal:
        wal.append(b"by 0.2")
    _as_0_1(monkeypatch)
    wal = open_small(path, ordering="strict")
    _stale_open(path)
    wal.append(b"by 0.1")
    wal.append(b"by 0.1 too")
    whole = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]
    version = int.from_bytes(whole[:8], "little")
    stale = LIVE_BOUNDS.struct.pack(version, 0, 1, 64, 1, 1, 1, version)
    overwrite(path, LIVE_SECOND_OFFSET, stale)
    overwrite(path, LIVE_OFFSET, struct.pack("<Q", version + 1))
    with pmwal.open(path, "r") as reader:
        assert read_writer(reader._mapping.load).open_id == b""
        assert read_bounds(reader._mapping.load) is None
        assert [record.data for record in reader] == [b"by 0.2", b"by 0.1", b"by 0.1 too"]
    overwrite(path, LIVE_OFFSET, whole)
    kill(wal)


def test_half_old_line_of_version_0_1_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second copy the slots, which are stored before the page, show that the line is old."""
    _as_0_1(monkeypatch)
    wal = pmwal.open(path, size="64KiB", medium="file")
    _stale_open(path)
    for number in range(100):
        wal.append(b"%d" % number * 20)
    old = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]
    wal.truncate(before=50)
    new = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]
    overwrite(path, LIVE_OFFSET, old[:16] + new[16:32] + old[32:])
    assert pmwal.verify(path).outcome == "recovered"
    with pmwal.open(path, "r") as reader, contextlib.suppress(pmwal.Overrun):
        assert [record.seq for record in reader] == list(range(50, 101))
    overwrite(path, LIVE_OFFSET, new)
    kill(wal)


def test_page_that_changes_all_the_time_is_answered_by_the_slots(path: Path) -> None:
    """A reader that never gets the same line twice does not wait for one."""
    wal = open_small(path, ordering="strict")
    wal.extend([b"a", b"b"])
    with pmwal.open(path, "r") as reader:
        load, turns = reader._mapping.load, iter(range(1, 1 << 62))

        def moving(offset: int, length: int) -> bytes:
            data = bytearray(load(offset, length))
            if offset == LIVE_OFFSET and length >= LINE:
                data[:8] = data[56:64] = struct.pack("<Q", next(turns))
            return bytes(data)

        reader._mapping.load = moving  # type: ignore[method-assign]
        assert read_bounds(moving) is None
        assert [record.data for record in reader] == [b"a", b"b"]
        assert next(turns) < 1000
    wal.close()


def test_reader_never_goes_back_when_the_slots_lag(path: Path) -> None:
    """A pipelined writer's slot names less than it has shown; what a reader has seen of it stays."""
    wal = open_small(path, medium="file", ordering="pipelined")
    wal.append(b"a")
    with pmwal.open(path, "r") as reader:
        assert reader.committed_seq == 1
        follower = reader.follow(timeout=0.01)
        assert next(follower).seq == 1
        line = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]
        overwrite(path, LIVE_OFFSET, b"\xff")
        overwrite(path, LIVE_SECOND_OFFSET, bytes(LINE))
        assert reader.committed_seq == 1
        assert list(follower) == []
        with pmwal.open(path, "r") as late:
            assert late.committed_seq == 0
        overwrite(path, LIVE_OFFSET, line)
        overwrite(path, LIVE_SECOND_OFFSET, line)
    wal.close()


# -- pages that no writer leaves

NUMBERS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
STRUCTURES = {
    "bounds": (LIVE_OFFSET, LIVE_BOUNDS),
    "second": (LIVE_SECOND_OFFSET, LIVE_BOUNDS),
    "writer": (LIVE_WRITER_OFFSET, LIVE_WRITER),
    "open": (LIVE_OPEN_OFFSET, LIVE_OPEN),
}
FORGERIES = [
    (structure, field.name, number)
    for structure, (_, fields) in STRUCTURES.items()
    for field in fields.fields
    if fields.field_size(field.name) == 8
    for number in NUMBERS
]


def _use(path: Path, expected: dict[int, bytes]) -> None:
    """Read in all ways: documented errors are allowed, records that do not exist are not."""

    def check(records: Any) -> None:
        for record in records:
            assert expected.get(record.seq) == record.data

    with contextlib.suppress(pmwal.PmwalError):
        pmwal.verify(path)
    for options in ({}, {"recover": "salvage"}):
        with contextlib.suppress(pmwal.PmwalError), pmwal.open(path, "r", **options) as reader:
            for use in (
                lambda: check(reader),
                lambda: len(reader),
                lambda: (reader.first_seq, reader.committed_seq, reader.stats(), reader.recovery),
                lambda: check([reader[3]]),
                lambda: check(reader.read(start=2)),
                lambda: check(reader.follow(timeout=0)),
                lambda: check(reader.follow(5, timeout=0)),
            ):
                with contextlib.suppress(pmwal.PmwalError, IndexError, ValueError if options else pmwal.PmwalError):
                    use()


@pytest.fixture
def written(path: Path) -> Iterator[tuple[pmwal.Wal, dict[int, bytes]]]:
    """A living writer with some records; its page is put right at the end."""
    wal = open_small(path)
    payloads = [b"%d" % number * 100 for number in range(1, 9)]
    wal.extend(payloads)
    whole = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE]
    yield wal, dict(enumerate(payloads, 1))
    overwrite(path, LIVE_OFFSET, whole)
    wal.close()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_impossible_numbers_are_documented_errors(path: Path, written: tuple[pmwal.Wal, dict[int, bytes]], structure: str) -> None:
    """Each field of the page with numbers up to 2^64 - 1, one at a time, beside a living writer."""
    offset, fields = STRUCTURES[structure]
    whole = path.read_bytes()[offset : offset + fields.size]
    for _, name, number in (forgery for forgery in FORGERIES if forgery[0] == structure):
        overwrite(path, offset + fields.offsets[name], struct.pack("<Q", number))
        _use(path, written[1])
        overwrite(path, offset, whole)
        with pmwal.open(path, "r") as reader:
            assert reader.committed_seq == 8


def test_random_pages_are_documented_errors(path: Path, written: tuple[pmwal.Wal, dict[int, bytes]]) -> None:
    """Random bytes anywhere on the page, with the writer's name left on it half of the time."""
    rng = random.Random(SEED)
    whole = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + PAGE]
    for turn in range(60):
        page = bytearray(rng.randbytes(PAGE) if turn % 2 else whole)
        for _ in range(rng.randrange(1, 5)):
            at = rng.choice((0, LIVE_SECOND_OFFSET - LIVE_OFFSET)) + 8 * rng.randrange(8)
            page[at : at + 8] = struct.pack("<Q", rng.choice((*NUMBERS, rng.randrange(1 << 14))))
        overwrite(path, LIVE_OFFSET, bytes(page))
        _use(path, written[1])
    overwrite(path, LIVE_OFFSET, whole)


@pytest.mark.parametrize("number", NUMBERS)
def test_forged_bounds_of_equal_versions_are_documented_errors(
    path: Path, written: tuple[pmwal.Wal, dict[int, bytes]], number: int
) -> None:
    """Both copies agree on a field that is wrong."""
    for name in LIVE_BOUNDS.offsets:
        for offset in (LIVE_OFFSET, LIVE_SECOND_OFFSET):
            overwrite(path, offset + LIVE_BOUNDS.offsets[name], struct.pack("<Q", number))
        _use(path, written[1])
        line = path.read_bytes()[LIVE_OFFSET : LIVE_OFFSET + LINE]
        assert len(line) == LINE
    overwrite(path, LIVE_OFFSET, bytes(LINE))


def test_bounds_are_possible_or_not(path: Path) -> None:
    """What a writer shows is possible; other numbers are refused before they are used."""
    with open_small(path) as wal:
        wal.extend([b"x"] * 3)
        block, state = wal._engine.block, wal._engine.state
        shown = LiveBounds(state.tail, state.durable, state.epoch, state.epoch_first_seq)
        assert read_bounds(wal._engine.mapping.load) == shown
        assert shown.possible(block)
        for wrong in (
            {"tail": Bound(0, 0)},
            {"tail": Bound(8, 1)},
            {"tail": Bound(64, 5)},
            {"durable": Bound(block.capacity + block.alignment, 4)},
            {"durable": Bound(0, 4)},
            {"durable": Bound(state.durable.position, 2**64)},
            {"epoch": 0},
            {"epoch": 2**32},
            {"epoch_first_seq": 0},
            {"epoch_first_seq": 5},
        ):
            assert not shown._replace(**wrong).possible(block) or wrong == {"tail": Bound(8, 1)}


def test_new_fields_lie_where_version_0_1_has_nothing() -> None:
    """They are past its counters, on the same page, and share no cache line with the bounds."""
    assert (LIVE_SECOND_OFFSET, LIVE_OPEN_OFFSET) == (5440, 5504)
    assert LIVE_SECOND_OFFSET >= 5416
    assert LIVE_SECOND_OFFSET % LINE == LIVE_OFFSET % LINE == 0
    assert LIVE_OPEN_OFFSET + LIVE_OPEN.size <= CONTROL_OFFSET
    assert LIVE_FOLLOWERS_OFFSET == 4224


# -- another processor

STUB = """
#include "live.h"
void store_line(struct live_bounds *line, const struct live_bounds *bounds) { live_store(line, bounds); }
void store_durable(struct live_bounds *line, unsigned long version, unsigned long position, unsigned long seq)
{
    live_store_durable(line, version, position, seq);
}
"""
COMPILERS = (
    ("aarch64-linux-gnu-gcc",),
    ("clang", "--target=aarch64-linux-gnu"),
    (sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu"),
)


def _assembly(source: Path) -> str | None:
    """The stub compiled for aarch64 by the first compiler that can; None if there is none."""
    target = source.with_suffix(".s")
    options = ["-O3", "-S", "-idirafter", "/usr/include", "-I", str(ROOT / "pmwal/native"), str(source), "-o", str(target)]
    for compiler in COMPILERS:
        if shutil.which(compiler[0]) and not subprocess.run([*compiler, *options], capture_output=True, check=False).returncode:
            return target.read_text()
    return None


def _barriers(assembly: str, function: str) -> list[str]:
    """The stores (by offset) and barriers of a function, in order."""
    body = assembly.split(f"\n{function}:", 1)[1].split("\n\t.size", 1)[0]
    found: list[str] = []
    bases = {"x0": 0}  # of registers that point into the line
    for line in body.splitlines():
        words = line.replace(",", " ").replace("[", " ").replace("]", " ").replace("#", "").split()
        if words[:1] == ["dmb"]:
            found.append("barrier")
        elif words[:1] == ["add"] and words[2] in bases:
            bases[words[1]] = bases[words[2]] + int(words[3])
        elif words and words[0] in ("str", "stp", "stlr", "stur"):
            base, at = (words[-2], int(words[-1])) if words[-1].isdigit() else (words[-1], 0)
            at += bases[base]
            found += [str(at), str(at + 8)] if words[0] == "stp" else [str(at)]
    return found


def test_aarch64_build_has_a_barrier_between_versions_and_fields(tmp_path: Path) -> None:
    """The begin, barrier, all fields in any order, barrier, the end; a barrier before and after."""
    source = tmp_path / "stub.c"
    source.write_text(STUB)
    assembly = _assembly(source)
    if assembly is None:
        pytest.skip("no compiler for aarch64: apt-get install gcc-aarch64-linux-gnu, or pip install ziglang")
    whole = _barriers(assembly, "store_line")
    assert (whole[:3], whole[-3:]) == (["barrier", "0", "barrier"], ["barrier", "56", "barrier"])
    assert sorted(whole[3:-3], key=int) == ["8", "16", "24", "32", "40", "48"]
    durable = _barriers(assembly, "store_durable")
    assert (durable[:3], durable[-2:]) == (["barrier", "0", "barrier"], ["barrier", "56"])
    assert sorted(durable[3:-2], key=int) == ["24", "32"]


def test_x86_build_stores_each_word_in_order(tmp_path: Path) -> None:
    """Compiled as the engine is: no two words are combined into one store, and the versions enclose the fields."""
    if os.uname().machine != "x86_64" or shutil.which("gcc") is None:
        pytest.skip("needs gcc on x86-64")
    source = tmp_path / "stub.c"
    source.write_text(STUB)
    command = ["gcc", "-O3", "-S", "-masm=intel", "-I", str(ROOT / "pmwal/native"), str(source), "-o", "-"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    body = made.stdout.split("\nstore_line:", 1)[1].split("\n\t.size", 1)[0]
    stores = [line.split("PTR ")[1].split("[rdi]")[0] for line in body.splitlines() if "[rdi]" in line.split(",")[0]]
    assert "XMMWORD" not in body
    assert [int(store or 0) for store in stores] == list(range(0, 64, 8))
