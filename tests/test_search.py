"""The search for whole records: every implementation finds what a plain search finds, in work that the bytes bound and no length.

The implementations are the native one, its portable one (what a processor without the instructions gets) and the one in numpy.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crc32c
import numpy as np
import pytest

import pmwal
from dense_lookalikes import PATTERNS, forge, lookalikes, plain_search, random_ring
from pmwal.format import linear
from pmwal.format.layout import HEADER, Header, Superblock
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.recovery import search

UUID = bytes(range(16))
IMPLEMENTATIONS = ("python",) if native is None else ("python", "native", "portable")
SMALL = {"PIECE": 4096, "LOAD": 8192}

Spans = list[tuple[int, int]]


class Ring:
    """A file with nothing but this ring, at its place; it knows its holes, and counts the bytes that are loaded."""

    def __init__(self, block: Superblock, ring: bytes | bytearray, data: Spans | None = None) -> None:
        self.block = block
        self.loaded = 0
        self._ring = bytes(ring)
        self._data = [(0, len(ring))] if data is None else data

    def load(self, offset: int, length: int) -> bytes:
        """Some bytes of the ring."""
        self.loaded += length
        offset -= self.block.ring_offset
        assert 0 <= offset <= offset + length <= len(self._ring)
        return self._ring[offset : offset + length]

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts that are no holes."""
        ring = self.block.ring_offset
        yield from ((max(start, ring + a), min(stop, ring + b)) for a, b in self._data if ring + a < stop and ring + b > start)


class ViewedRing(Ring):
    """The same, with bytes in place that last until the next load or view, as read-ahead has them."""

    def __init__(self, block: Superblock, ring: bytes | bytearray, lengths: Callable[[], int]) -> None:
        super().__init__(block, ring)
        self.viewed = 0
        self._lengths = lengths
        self._area = bytearray()

    def load(self, offset: int, length: int) -> bytes:
        self._area[:] = bytes(len(self._area))
        return super().load(offset, length)

    def view_at(self, offset: int) -> memoryview | None:
        """Some bytes from this offset of the file on, at random none."""
        self._area[:] = bytes(len(self._area))
        offset -= self.block.ring_offset
        self._area = bytearray(self._ring[offset : offset + self._lengths()])
        self.viewed += len(self._area)
        return memoryview(self._area) if self._area else None


def geometry(capacity: int, alignment: int = 8) -> Superblock:
    """A log with a ring of this size."""
    return Superblock(UUID, 8192, capacity, alignment, 0)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation in turn."""
    if request.param == "portable":
        made = functools.partial(native.Search, portable=True)
        monkeypatch.setattr(search, "native", SimpleNamespace(Search=made))
    return str(request.param)


def pieces(monkeypatch: pytest.MonkeyPatch, pending_min: int = 1 << 22, **sizes: int) -> None:
    """Search in pieces of these sizes, and with these limits."""
    monkeypatch.setattr(search, "PENDING_MIN", pending_min)
    for name, size in sizes.items():
        monkeypatch.setattr(search, name, size)


def found_by(implementation: str, ring: Ring, start: int, stop: int, **limits: int) -> list[tuple[int, Header]]:
    """What an implementation finds."""
    scan = None if implementation == "python" else scan_for(ring.block)
    limits = {"epoch": 1, "seq_min": 1, "newer_seq_min": 1, **limits}
    parts = search.whole_records(ring.block, ring.load, start, stop, scan=scan, **limits)
    return [
        (position, Header(*fields))
        for part in parts
        for position, fields in zip(part.positions.tolist(), part.headers.tolist(), strict=True)
    ]


def expected(ring: bytes | bytearray, block: Superblock, start: int, stop: int) -> list[tuple[int, Header]]:
    """What a plain search finds."""
    return [(found.position, found.header) for found in plain_search(block, ring, start, stop)]


@pytest.mark.parametrize("alignment", [8, 64])
@pytest.mark.parametrize("seed", range(12))
def test_search_finds_what_a_plain_search_finds(
    implementation: str, monkeypatch: pytest.MonkeyPatch, seed: int, alignment: int
) -> None:
    """Look-alikes, whole records that overlap or end anywhere, copies for another position; from any start, over the ring's end."""
    rng = random.Random(seed)
    block = geometry(rng.choice([16384, 20480, 65536]), alignment)
    lap = rng.choice([0, 1, 1 << 16, (1 << 40) // block.capacity]) * block.capacity
    start = lap + rng.randrange(0, block.capacity, alignment)
    ring = random_ring(block, start, rng)
    pieces(monkeypatch, rng.choice([1 << 22, 40]), **rng.choice([SMALL, {}]))
    stop = start + rng.choice([block.capacity, rng.randrange(alignment, block.capacity)])
    assert expected(ring, block, start, stop) == found_by(implementation, Ring(block, ring), start, stop), f"seed {seed}"


@pytest.mark.parametrize("seed", range(12))
def test_search_in_place_finds_the_same(implementation: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Views that end anywhere, before a header's end, or that there are none of; nothing of one is used after the next load."""
    rng = random.Random(seed)
    block = geometry(65536)
    start = rng.randrange(0, block.capacity, 8)
    ring = random_ring(block, start, rng)
    pieces(monkeypatch, rng.choice([1 << 22, 40]), **SMALL)
    viewed = ViewedRing(block, ring, lambda: rng.choice([0, 8, 4096, 4096 + HEADER - 8, rng.randrange(65536), 65536]))
    stop = start + block.capacity
    assert expected(ring, block, start, stop) == found_by(implementation, viewed, start, stop), f"seed {seed}"
    assert bool(viewed.viewed) == (implementation != "python")


def test_random_rings_contain_what_they_are_for() -> None:
    """The negative control of the test above: its rings contain whole records, and some that overlap."""
    rings = []
    for seed in range(12):
        rng = random.Random(seed)
        block = geometry(rng.choice([16384, 20480, 65536]))
        rings.append(plain_search(block, random_ring(block, 0, rng), 0, block.capacity))
    assert sum(map(len, rings)) > 100
    assert any(a.end > b.position for found in rings for a, b in pairwise(found))


@pytest.mark.parametrize("seed", range(6))
def test_records_are_found_without_knowing_the_lap(implementation: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """``durable`` tells the lap; records of different laps are found in one search."""
    rng = random.Random(seed)
    block = geometry(rng.choice([16384, 20480]))
    ring = random_ring(block, 0, rng)
    wanted = []
    for place in range(0, block.capacity - 512, 512):
        position = place + rng.randrange(1 << 20) * block.capacity
        header = Header(
            0, rng.randrange(400), place + 1, position - rng.randrange(min(position + 1, block.capacity)), 0, 1, 0, 0, 0, 1
        )
        forge(ring, block, position, header)
        wanted.append(position)
    pieces(monkeypatch, **rng.choice([SMALL, {}]))
    scan = None if implementation == "python" else scan_for(block)
    found = [
        position for part in search.unplaced_records(block, Ring(block, ring).load, scan) for position in part.positions.tolist()
    ]
    assert set(wanted) <= set(found), f"seed {seed}"
    assert [position % block.capacity for position in found] == sorted(position % block.capacity for position in found)


@pytest.mark.parametrize("alignment", [8, 64])
def test_search_begins_and_ends_exactly_where_it_is_told(
    implementation: str, monkeypatch: pytest.MonkeyPatch, alignment: int
) -> None:
    """A record at the first place and at the last one is found, and one at the place after it is not."""
    block = geometry(65536, alignment)
    pieces(monkeypatch, **SMALL)
    for start, stop in ((0, 8192), (4096 - alignment, 8192 + alignment), (64, 65536 - 64), (60032, 65536 + 4096)):
        for place, is_in in ((start - alignment, False), (start, True), (stop - alignment, True), (stop, False)):
            if place >= 0:
                ring = bytearray(block.capacity)
                forge(ring, block, place, Header(0, 16, 1, 0, 0, 1, 0, 0, 0, 1))
                assert [place] * is_in == [at for at, _ in found_by(implementation, Ring(block, ring), start, stop)]


def test_what_waits_is_bounded(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that end far away are settled before more than the given share of the area waits."""
    block, start = geometry(1 << 20), 1 << 40
    ring = lookalikes(PATTERNS["every 40 bytes"], block.capacity, start, 1, block.payload_max, np.random.default_rng(1))
    waiting: list[int] = []
    original = search._Part._step

    def step(part: Any, until: int) -> bytes:
        found = original(part, until)
        waiting.append(part._search.pending)
        return found

    monkeypatch.setattr(search._Part, "_step", step)
    pieces(monkeypatch, 100, PENDING_SHARE=1024, **SMALL)
    assert found_by(implementation, Ring(block, ring), start, start + block.capacity) == []
    assert 1024 < max(waiting) <= block.capacity // 1024 + SMALL["LOAD"] // 8


@pytest.mark.parametrize(
    ("limits", "seqs"),
    [
        ({"epoch": 2, "seq_min": 1, "newer_seq_min": 1}, [2, 3, 4]),
        ({"epoch": 2, "seq_min": 3, "newer_seq_min": 1}, [3, 4]),
        ({"epoch": 2, "seq_min": 1, "newer_seq_min": 5}, [2, 3]),
        ({"epoch": 0, "seq_min": 2, "newer_seq_min": 2}, [2, 3, 4]),
        ({"epoch": 3, "seq_min": 9, "newer_seq_min": 1}, []),
    ],
)
def test_limits_choose_by_epoch_and_number(implementation: str, limits: dict[str, int], seqs: list[int]) -> None:
    """Of the epoch from one number on, of greater epochs from another."""
    block = geometry(16384)
    ring = bytearray(block.capacity)
    for seq, epoch in ((1, 1), (2, 2), (3, 2), (4, 3)):
        forge(ring, block, 1024 * seq, Header(0, 100, seq, 0, 0, epoch, 0, 0, 0, 1))
    assert seqs == [header.seq for _, header in found_by(implementation, Ring(block, ring), 0, block.capacity, **limits)]


@pytest.mark.parametrize("seed", range(6))
def test_holes_are_zeros_that_nobody_reads(implementation: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Records that end in a hole, after it, or begin in the last bytes before data are found, and only data is loaded."""
    rng = random.Random(seed)
    block = geometry(1 << 20)
    ring, data = bytearray(block.capacity), []
    for page in sorted(rng.sample(range(1, 256), 9)):
        data.append((4096 * page, 4096 * (page + 1)))
        ring[4096 * page : 4096 * (page + 1)] = rng.randbytes(4096)
        length = rng.choice([100, 4000, 5000, 100_000, 400_000])
        position = 4096 * page + rng.randrange(0, 4000, 8)
        if position + HEADER + length <= block.capacity:
            forge(ring, block, position, Header(0, length, page, 0, 0, 1, 0, 0, 0, 1))
    pieces(monkeypatch, rng.choice([1 << 22, 1]), **SMALL)
    file = Ring(block, ring, data)
    assert expected(ring, block, 0, block.capacity) == found_by(implementation, file, 0, block.capacity), f"seed {seed}"
    assert file.loaded < 10 * len(data) * 3 * 4096


class Work(SimpleNamespace):
    """The bytes that were checksummed, and the candidates that were joined."""

    summed: int
    candidates: int


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Work]:
    """A function that starts to count the work of an implementation."""

    def counted(implementation: str) -> Work:
        work = Work(summed=0, candidates=0)
        if implementation == "python":
            registers, shift = linear.registers, linear.shift

            def count_registers(start: int, raw: Any) -> Any:
                work.summed += len(raw)
                return registers(start, raw)

            def count_shift(start: Any, distances: Any) -> Any:
                work.candidates += len(start)
                return shift(start, distances)

            monkeypatch.setattr(linear, "registers", count_registers)
            monkeypatch.setattr(linear, "shift", count_shift)
            return work
        made, begun = search.native.Search, []

        def create(*args: Any) -> Any:
            begun.append(made(*args))
            work.count = lambda: (sum(each.summed for each in begun), sum(each.candidates for each in begun))
            return begun[-1]

        monkeypatch.setattr(search, "native", SimpleNamespace(Search=create))
        return work

    return counted


@pytest.mark.parametrize("lengths", ["none", "random", "greatest"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_work_is_bounded_by_the_bytes_whatever_the_lengths(
    implementation: str, monkeypatch: pytest.MonkeyPatch, work: Any, pattern: str, lengths: str
) -> None:
    """At the densest look-alikes each byte is summed a few times at most, and each place joined once."""
    block = geometry(1 << 20)
    start = block.capacity if not PATTERNS[pattern].position_min else 1 << 40
    most = {"none": 70, "random": block.payload_max, "greatest": block.payload_max}[lengths]
    rng = np.random.default_rng(1)
    ring = bytearray(lookalikes(PATTERNS[pattern], block.capacity, start, 1, most, rng))
    if lengths == "greatest":
        words = np.frombuffer(ring, "<u8").copy()
        field = PATTERNS[pattern].starts[0] % PATTERNS[pattern].period
        if PATTERNS[pattern].period > 4:
            words[field :: PATTERNS[pattern].period] |= np.uint64((block.payload_max // 2) << 32)
        ring = bytearray(words.tobytes())
    pieces(monkeypatch, 1000, PIECE=16384, LOAD=65536)
    counted = work(implementation)
    assert found_by(implementation, Ring(block, ring), start, start + block.capacity) == []
    summed, joined = (counted.summed, counted.candidates) if implementation == "python" else counted.count()
    places = block.capacity // 8
    assert len(ring) <= summed + 65536, "the look-alikes were not taken for possible headers"
    assert joined <= places
    # A settling pass covers at most half of the ring, and begins only after as many candidates as a 64th of the bytes.
    assert summed <= block.capacity + (joined * 64 // block.capacity + 1) * (block.capacity // 2 + 65536)


@pytest.mark.skipif(native is None or len(os.sched_getaffinity(0)) < 2, reason="needs the native engine and two processors")
@pytest.mark.parametrize("alignment", [8, 64])
@pytest.mark.parametrize("pending_min", [1 << 22, 40])
def test_two_threads_find_what_one_finds(monkeypatch: pytest.MonkeyPatch, pending_min: int, alignment: int) -> None:
    """Where look-alikes are dense two threads share the search: the same records, also those that end far away or in a hole."""
    rng = random.Random(alignment)
    load = 32_768 * alignment
    block = geometry(5 * load, alignment)
    start, stop = block.capacity, 2 * block.capacity
    ring = bytearray(lookalikes(PATTERNS["every 16 bytes"], block.capacity, start, 1, block.payload_max, np.random.default_rng(1)))
    hole = 3 * load + 8192
    ring[hole : hole + load] = bytes(load)
    for _ in range(60):
        place = rng.randrange(0, block.capacity - HEADER, alignment)
        length = rng.choice([0, rng.randrange(300), rng.randrange(block.capacity - place - HEADER)])
        forge(ring, block, start + place, Header(0, min(length, block.payload_max), 7, 0, -1, 2, 5, 0, 0, 1))
    pieces(monkeypatch, pending_min, PIECE=8192, LOAD=load)
    searches: list[Any] = []

    def made(*arguments: Any) -> Any:
        searches.append(native.Search(*arguments))
        return searches[-1]

    monkeypatch.setattr(search, "native", SimpleNamespace(Search=made))
    file = Ring(block, ring, [(0, hole), (hole + load, block.capacity)])
    own = os.sched_getaffinity(0)
    shared = found_by("native", file, start, stop)
    try:
        os.sched_setaffinity(0, {min(own)})
        alone = found_by("native", file, start, stop)
    finally:
        os.sched_setaffinity(0, own)
    assert shared == alone == found_by("python", file, start, stop)
    assert len(shared) > 10
    assert 2 * searches[0].shared > searches[0].candidates // 2 > searches[1].shared == 0
    assert searches[0].candidates == searches[1].candidates


def test_shift_is_the_checksum_of_zeros() -> None:
    """All implementations shift as the checksum moves over zeros: each short distance, and long ones."""
    rng = random.Random(5)
    for distance in [*range(1200), *(2**bits + delta for bits in (11, 12, 16, 22, 23) for delta in (-1, 0, 1))]:
        start = rng.randrange(1 << 32)
        wanted = crc32c.crc32c(bytes(distance), start ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        assert wanted == numpy_shift(start, distance), distance
        if native is not None:
            assert wanted == native.crc32c_shift(start, distance) == native.crc32c_shift(start, distance, True), distance


@pytest.mark.skipif(native is None, reason="needs the native engine")
def test_long_shifts_agree_and_add_up() -> None:
    """For distances up to 2^33 the implementations agree, and two shifts are one over the sum."""
    rng = random.Random(6)
    for _ in range(300):
        start, first, second = rng.randrange(1 << 32), rng.randrange(1 << 32), rng.randrange(1 << 32)
        both = native.crc32c_shift(start, first + second)
        assert both == native.crc32c_shift(native.crc32c_shift(start, first), second, True)
        assert both == native.crc32c_shift(start, first + second, True) == numpy_shift(start, first + second)
    with pytest.raises(ValueError, match="below"):
        native.crc32c_shift(1, 1 << 33)


def numpy_shift(start: int, distance: int) -> int:
    """One shift in numpy."""
    return int(linear.shift(np.array([start], np.uint32), np.array([distance], np.uint64))[0])


@pytest.mark.parametrize("words", [0, 1, 7, 8, 9, 64, 1000])
def test_registers_are_checksums_of_prefixes(words: int) -> None:
    """In numpy: the register before each word, and after the last."""
    raw = random.Random(words).randbytes(8 * words)
    registers = linear.registers(77, raw).tolist()
    assert registers == [crc32c.crc32c(raw[: 8 * index], 77 ^ 0xFFFFFFFF) ^ 0xFFFFFFFF for index in range(words + 1)]


@pytest.mark.skipif(native is None, reason="needs the native engine")
class TestNativeSearch:
    """What the type refuses, because only its caller can do it wrong."""

    def search(self, spans: Spans | None = None, **changes: int) -> Any:
        """A search of a small ring."""
        arguments = {"capacity": 16384, "alignment": 8, "payload_max": 4096, "piece": 4096, **changes}
        return native.Search(
            uuid_crc=1, limits=(True, 0, 1, 1, 1), spans=[(0, 16384, True)] if spans is None else spans, **arguments
        )

    @pytest.mark.parametrize(
        "spans",
        [
            [],
            [(0, 8, True)],
            [(8, 0, True)],
            [(0, 0, True), (0, 16384, True)],
            [(0, 8, True), (16, 16384, True)],
            [(4, 16384, True)],
        ],
    )
    def test_spans_that_do_not_cover_the_ring_are_refused(self, spans: Any) -> None:
        """They are adjacent, and end with the ring."""
        with pytest.raises(ValueError, match="span"):
            self.search(spans)

    @pytest.mark.parametrize(
        "changes", [{"alignment": 4}, {"piece": 1000}, {"piece": 1 << 31}, {"payload_max": 1 << 32}, {"capacity": 0}]
    )
    def test_impossible_geometry_is_refused(self, changes: dict[str, int]) -> None:
        """No table is indexed by a number from outside before it is checked."""
        with pytest.raises(ValueError, match="geometry"):
            self.search(**changes)

    @pytest.mark.parametrize(
        ("size", "length", "starts"), [(0, 0, 0), (4096, 4095, 0), (4096, 8192, 0), (4096, 4096, 4097), (32768, 32768, 0)]
    )
    def test_bytes_that_are_no_whole_pieces_are_refused(self, size: int, length: int, starts: int) -> None:
        """Pieces that are not due, or longer than what is given."""
        with pytest.raises(ValueError, match="whole pieces"):
            self.search().data(bytes(size), length, starts)

    def test_hole_that_is_not_due_is_refused(self) -> None:
        """A span with data is read, and a hole is not."""
        with pytest.raises(ValueError, match="due"):
            self.search().hole()
        with pytest.raises(ValueError, match="due"):
            self.search([(0, 16384, False)]).data(bytes(4096), 4096, 4096)

    def test_file_shortened_while_it_is_searched_in_place_is_an_error(self, shm_dir: Path) -> None:
        """A mapping of a file that loses its pages: an OSError, and the process lives."""
        pmwal.open(shm_dir / "log", size="64KiB").close()  # installs the handler
        file = shm_dir / "ring"
        file.write_bytes(bytes(lookalikes(PATTERNS["every 40 bytes"], 16384, 16384, 1, 4096, np.random.default_rng(1))))
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 16384, prot=mmap.PROT_READ) as mapping:
            os.truncate(file, 4096)
            with memoryview(mapping) as view, pytest.raises(OSError, match="shortened"):
                self.search().data(view, 16384, 16384)

    def test_search_with_pending_candidates_does_not_rewind(self) -> None:
        """They would be settled against the registers of another pass."""
        block = geometry(16384)
        ring = bytearray(block.capacity)
        forge(ring, block, 0, Header(0, 5000, 1, 0, 0, 1, 0, 0, 0, 1))
        begun = self.search(payload_max=block.payload_max)
        assert begun.data(bytes(ring), 4096, 4096) == b""
        assert begun.pending == 1
        with pytest.raises(ValueError, match="wait"):
            begun.rewind(0)
