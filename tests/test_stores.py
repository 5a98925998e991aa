"""Stores to cache lines: past the cache or written back, the bytes are the same, and no line of another record is stored again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import pmwal
from pmwal.format.layout import CONTROL_OFFSET, HEADER, LINE, PAGE, record_size
from pmwal.native import native
from pmwal.native.choice import STORES
from pmwal.opening import open_log
from pmwal.testing import Recorder

pytestmark = [
    pytest.mark.usefixtures("native_engine"),
    pytest.mark.skipif(native is None or not native.can_stream, reason="needs the native engine, and stores past the cache"),
]

CHUNK = 4096  # bytes that are stored past the cache at a time
LENGTHS = sorted(
    {*range(150), *(CHUNK * count - HEADER + near for count in (1, 2) for near in (-17, -16, -1, 0, 1, 15, 16, 17, 64))}
)


@pytest.fixture(params=STORES)
def stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to store."""
    monkeypatch.setenv("PMWAL_STORES", request.param)
    return str(request.param)


@pytest.mark.parametrize("form", [bytes, bytearray])
@pytest.mark.parametrize("align", [8, 64, 512])
def test_record_of_every_length_is_stored_with_its_padding(path: Path, stores: str, align: int, form: type) -> None:
    """From the caller's memory and from a copy, in every line and chunk it ends in: payload, header and zeros, over older bytes."""
    data = {length: random.Random(length).randbytes(length) for length in LENGTHS}
    with (
        pmwal.open(path, "x", size="256KiB", medium="emulated-dax", align=align, ordering="strict") as wal,
        path.open("rb", 0) as file,
    ):
        for _ in range(2):  # so that nothing is there by chance
            wal.truncate(before=wal.next_seq)
            wal.extend([b"\xff" * 4000] * 60)
        wal.truncate(before=wal.next_seq)
        for length in LENGTHS:
            if wal.free < 2 * record_size(length, align) + 4096:
                wal.truncate(before=wal.next_seq - 1)
            seq = wal.append(form(data[length]))
            (record,) = wal.read(seq)
            assert record.data == data[length], length
            block, position = wal._engine.block, wal._engine.find(seq).position
            file.seek(block.ring_offset + position % block.capacity + HEADER + length)
            assert not any(file.read(record_size(length, align) - HEADER - length)), length


@pytest.mark.parametrize("align", [8, 64])
def test_only_whole_lines_of_one_record_are_stored_past_the_cache(path: Path, stores: str, align: int) -> None:
    """With a smaller alignment than a line, records are written back: a neighbour may be durable. Slots are lines of their own."""
    recorder = Recorder(stores=stores)
    with open_log(path, "x", size="64KiB", medium="emulated-dax", align=align, ordering="strict", seam=recorder) as wal:
        ring = wal._engine.block.ring_offset  # type: ignore[union-attr]
        recorder.events.clear()
        for length in (0, 1, 16, 17, 128, 1000, 5000):
            wal.append(bytes(length))  # type: ignore[union-attr]
            wal.extend([bytes(length), b"x"])  # type: ignore[union-attr]
        steps = [step for step in recorder.events if step.offset >= CONTROL_OFFSET]
    streamed = [step for step in steps if step.name == "stream"]
    assert all(step.offset % LINE == step.length % LINE == 0 for step in streamed)
    records = [step for step in steps if step.offset >= ring and step.name != "write_back"]
    sizes = {step.length for step in records if step.name == "stream"}
    assert sizes == ({step.length for step in records if stores == "stream" or step.length >= 1024} if align == LINE else set())
    slots = [step for step in steps if step.offset < ring and step.name != "write_back"]
    assert slots
    assert {step.name for step in slots} == {"stream" if stores == "stream" else "store"}


@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_every_store_is_written_back_or_past_the_cache_before_the_fence(path: Path, stores: str, ordering: str) -> None:
    """A fence finds nothing that was only stored: the lines were written back since, or stored past the cache."""
    recorder = Recorder(stores=stores)
    with open_log(path, "x", size="64KiB", medium="emulated-dax", ordering=ordering, seam=recorder) as wal:
        recorder.events.clear()
        for length in (0, 100, 3000):
            wal.append(bytes(length))  # type: ignore[union-attr]
        wal.rollback(after=2)  # type: ignore[union-attr]
        waiting: set[int] = set()
        for step in recorder.events:
            lines = set(range(step.offset // LINE, -(-(step.offset + step.length) // LINE)))
            if step.name == "store" and not 4096 <= step.offset < 4096 + PAGE:
                waiting |= lines
            elif step.name == "write_back":
                waiting -= lines
            elif step.name == "fence":
                assert not waiting
    assert any(step.name == "fence" for step in recorder.events)
