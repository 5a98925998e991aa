"""Large records: read into one copy, and without keeping other threads from running meanwhile."""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from pmwal.format.layout import Superblock, decode_header
from pmwal.format.ring import Rules, Scan, Window
from pmwal.format.scan import scan_for
from pmwal.native import native
from pmwal.records import START
from pmwal.storage.mapping import Mapping
from processes import PATIENCE
from support import flip, superblock, whole_records

KIB = 1 << 10


def _by_reader(wal: pmwal.Wal) -> pmwal.Record:
    with pmwal.open(wal.path, "r") as reader:
        return reader[2]


READS: dict[str, Callable[[pmwal.Wal], Any]] = {
    "wal": lambda wal: wal[2],
    "iteration": lambda wal: next(wal.read(start=2)),
    "follow": lambda wal: next(wal.follow(2, timeout=0)),
    "reader": _by_reader,
}


@pytest.mark.both_engines
@pytest.mark.parametrize("size", [64 * KIB, 300 * KIB, 700 * KIB])
@pytest.mark.parametrize("read", READS)
def test_payload_is_copied_straight_into_the_record(path: Path, monkeypatch: pytest.MonkeyPatch, read: str, size: int) -> None:
    """Beyond 64 KiB (256 KiB, which a reader scans at a time) the bytes that were loaded and checked are the record's."""
    payload = bytes(range(256)) * (size // 256 + 1)
    loads: list[bytes] = []
    load = Mapping.load

    def noting(self: Mapping, offset: int, length: int) -> bytes:
        loads.append(load(self, offset, length))
        return loads[-1]

    with pmwal.open(path, size="4MiB") as wal:
        wal.extend([b"before", payload[:size], b"after"])
        monkeypatch.setattr(Mapping, "load", noting)
        record = READS[read](wal)
        monkeypatch.undo()
    assert (record.seq, record.data) == (2, payload[:size])
    copies = [loaded for loaded in loads if len(loaded) == size]
    assert any(copy is record.data for copy in copies) == (size > 64 * KIB)
    assert len(copies) <= 2  # once more to find it


@pytest.mark.both_engines
@pytest.mark.parametrize("at", [5, 60, 200 * KIB])
def test_damage_in_a_large_record_is_noticed(path: Path, at: int) -> None:
    """A wrong bit in its header, or anywhere in its payload."""
    with pmwal.open(path, size="4MiB") as wal:
        wal.extend([b"before", b"x" * 300 * KIB, b"after"])
        copy = path.with_name("copy.wal")
        copy.write_bytes(path.read_bytes())
        flip(path, superblock(path).ring_offset + whole_records(copy)[2].position + at)
        for read in READS.values():
            with pytest.raises(pmwal.CorruptWal):
                read(wal)


@pytest.mark.both_engines
def test_large_records_are_read_over_laps(path: Path) -> None:
    """Where a record may lie here or at the start of the next lap, the right one is delivered."""
    with pmwal.open(path, size="1MiB", on_full="overwrite") as wal, pmwal.open(path, "r") as reader:
        for number in range(40):
            wal.append(b"%d" % number * ((1 + number % 7) * 30 * KIB))
            for handle in (wal, reader):
                for record in handle.read():
                    assert record.data == b"%d" % (record.seq - 1) * ((1 + (record.seq - 1) % 7) * 30 * KIB)


def scan_of(block: Superblock) -> Scan:
    """Scans of this log in C."""
    scan = scan_for(block)
    if scan is None:
        pytest.skip("the native engine is not built")
    return scan


def check_other_threads_run_during(call: Callable[[], object]) -> None:
    """A thread that waits for the interpreter gets it during one of these calls, though no switch is ever forced."""
    ran = threading.Event()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=ran.set)
        deadline = time.monotonic() + PATIENCE
        thread.start()
        while not ran.is_set() and time.monotonic() < deadline:
            call()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert time.monotonic() < deadline


@pytest.mark.native_engine
def test_other_threads_run_while_a_large_load_copies(path: Path) -> None:
    """A load of many pages lets go of the interpreter."""
    if native is None:
        pytest.skip("the native engine is not built")
    path.write_bytes(bytes(16 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        check_other_threads_run_during(lambda: native.load(mapped, 0, 16 << 20))


@pytest.mark.native_engine
@pytest.mark.parametrize("length", [200, 4 * KIB, 80 * KIB])
@pytest.mark.parametrize("method", ["run", "records", "rows", "frame"])
def test_other_threads_run_while_a_large_window_is_scanned(path: Path, method: str, length: int) -> None:
    """What recovery, verify, readers, arrays and frames check of more than 64 KiB is checked without the interpreter."""
    with pmwal.open(path, size="1MiB") as wal:
        wal.extend([bytes(length)] * (240 * KIB // (length + 48)))
    raw, block = path.read_bytes(), superblock(path)
    scan = scan_of(block)
    window = Window(raw[block.ring_offset : block.ring_offset + 256 * KIB], 0, 1 << 63)
    epoch = decode_header(window.data).epoch
    rules, count = Rules(1 << 62, 1 << 20, epoch, 1), 240 * KIB // (length + 48)
    rows = bytearray(count * length)
    calls: dict[str, Callable[[], Any]] = {
        "run": lambda: scan.scanner.run(window, START, rules, 1, 0, None, 1 << 20),
        "records": lambda: scan.scanner.records(pmwal.Record, window, START, rules, 2000),
        "rows": lambda: scan.scanner.rows(window, START, rules._replace(stop_seq=count + 1), rows, 0, length),
        "frame": lambda: scan.scanner.frame(window, START, rules, 1 << 20),
    }
    check_other_threads_run_during(calls[method])
    assert scan.scanner.run(window, START, rules, 1, 0, None, 1 << 20)[1] == count + 1
    assert [record.seq for record, *_ in calls["records"]()] == [*range(1, count + 1)]
    assert calls["rows"]() == count
    assert len(calls["frame"]()[0]) == count * (14 + length)


@pytest.mark.native_engine
def test_other_threads_run_while_a_long_frame_is_unpacked() -> None:
    """After some thousands of records."""
    if native is None:
        pytest.skip("the native engine is not built")
    body = bytes(14) * 10_000
    check_other_threads_run_during(lambda: native.unpack_frame(body))
    assert native.unpack_frame(body) == [(0, 0, b"")] * 10_000


@pytest.mark.native_engine
@pytest.mark.parametrize("count_max", [1, 2, 15, 16, 17, 60, 256])
def test_no_more_records_are_made_than_were_asked_for(path: Path, count_max: int) -> None:
    """Wherever in a window the part begins that is checked without the interpreter."""
    with pmwal.open(path, size="1MiB") as wal:
        wal.extend([b"%d" % number * 1000 for number in range(58)])
    raw, block = path.read_bytes(), superblock(path)
    scan = scan_of(block)
    window = Window(raw[block.ring_offset : block.ring_offset + 256 * KIB], 0, 1 << 63)
    rules = Rules(58, 1 << 20, decode_header(window.data).epoch, 1)
    made = scan.scanner.records(pmwal.Record, window, START, rules, count_max)
    assert [(record.seq, record.data) for record, *_ in made] == [
        (number + 1, b"%d" % number * 1000) for number in range(min(count_max, 57))
    ]


@pytest.mark.both_engines
def test_large_records_come_back_from_a_disk_whose_cache_is_empty(tmp_path: Path) -> None:
    """Whatever pieces they are read in: shorter than a piece, whole pieces, a byte more, and more than is read ahead."""
    path = tmp_path / "test.wal"
    sizes = [65 * KIB, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, 384 * KIB - 48, 5000 * KIB + 7]
    payloads = [bytes(range(251)) * (size // 251) + b"x" * (size % 251) for size in sizes]
    with pmwal.open(path, size="16MiB", medium="file") as wal:
        wal.extend(payloads)
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert [record.data for record in wal.read()] == payloads


@pytest.mark.native_engine
@pytest.mark.parametrize("left", [100 * KIB, 130 * KIB, 7 << 20])
def test_large_record_that_a_shortened_file_cuts_is_an_error(tmp_path: Path, left: int) -> None:
    """The end of the file is met in the first piece that is copied, in the next one, and after all that was read ahead."""
    path = tmp_path / "test.wal"
    wal = pmwal.open(path, size="32MiB", medium="file")
    wal.append(bytes(8 << 20))
    os.truncate(path, superblock(path).ring_offset + left)
    with pytest.raises(pmwal.PmwalError):
        next(wal.read())
    wal.close()
