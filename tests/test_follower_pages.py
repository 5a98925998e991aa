"""The page of the ring that a native follower maps while it sleeps."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest

import pmwal
from conftest import Place
from pmwal.format.layout import LIVE_OFFSET, PAGE
from pmwal.native import native
from pmwal.reading import follow
from processes import PATIENCE, child
from support import kill, open_small
from test_follow import follow_elsewhere, wait_until

pytestmark = [
    pytest.mark.both_engines,
    pytest.mark.native_engine,
    pytest.mark.skipif(native is None, reason="needs the native engine"),
]


def ring_pages(path: Path, pid: str = "self") -> list[int]:
    """The offsets in the file of single pages that a process has mapped to read them."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    found = re.findall(rf"^([0-9a-f]+)-([0-9a-f]+) r--s ([0-9a-f]+) \S+ \d+ +{re.escape(str(path))}$", maps, re.MULTILINE)
    ranges = [(int(start, 16), int(end, 16), int(offset, 16)) for start, end, offset in found]
    return [offset for start, end, offset in ranges if end - start == PAGE and offset > LIVE_OFFSET]


def test_page_is_mapped_for_small_records_and_at_no_other_time(place: Place) -> None:
    """It is where the next record starts. After a large record it may be part of a large folio. At the end nothing is left."""
    got: list[bytes] = []
    with open_small(place.path, **place.options) as wal, pmwal.open(place.path, "r") as reader:
        capacity = wal.stats().capacity
        ring, position = place.path.stat().st_size - capacity, 0
        follower = threading.Thread(target=lambda: got.extend(record.data for record in reader.follow()))
        follower.start()
        for number in range(120):
            data = bytes(PAGE + number) if number % 20 == 10 else b"%08d" % number * 25
            seq = wal.append(data)
            wal.truncate(before=seq)
            size = wal.stats().used
            if position % capacity + size > capacity:  # at the ring's start
                position += capacity - position % capacity
            position += size
            wait_until(lambda data=data: got[-1:] == [data])
            offset = ring + position % capacity
            pages = [offset // PAGE * PAGE] if size < PAGE and offset % PAGE else []
            wait_until(lambda pages=pages: ring_pages(place.path) == pages)
        assert position > 2 * capacity
        wal.close()
        follower.join(PATIENCE)
        assert not follower.is_alive()
        assert ring_pages(place.path) == []


def test_file_that_is_cut_before_the_mapped_page_is_an_error(shm_dir: Path) -> None:
    """And no signal, though the records that the live page shows are gone."""
    path = shm_dir / "log"
    wal = open_small(path)
    with child(follow_elsewhere, path, {}) as reader:
        assert reader.hear() == "ready"
        for seq in 1, 2:
            wal.append(b"x")
            assert reader.hear() == (seq, b"x")
        wait_until(lambda: ring_pages(path, reader.pid) == [path.stat().st_size - wal.stats().capacity])
        os.kill(reader.pid, signal.SIGSTOP)
        wal.append(b"y")
        os.truncate(path, LIVE_OFFSET + PAGE)
        os.kill(reader.pid, signal.SIGCONT)
        assert reader.hear() == "PersistError"
    kill(wal)


@pytest.mark.parametrize("ends", ["close", "collector"])
def test_page_stays_over_an_idle_time_and_goes_with_the_follower(shm_dir: Path, ends: str) -> None:
    """A wait that ends without a record changes nothing."""
    path, seen = shm_dir / "log", list[list[int]]()

    def append_later() -> None:
        seen.append(ring_pages(path))
        wal.append(b"x")

    with open_small(path) as wal, pmwal.open(path, "r") as reader:
        ring, records = path.stat().st_size - wal.stats().capacity, reader.follow()
        wal.append(b"x")
        assert next(records).seq == 1
        for seq in 2, 3, 4:
            timer = threading.Timer(2.5 * follow.PAUSE_MAX, append_later)
            timer.start()
            assert next(records).seq == seq
            timer.join()
        assert seen == [[ring], [ring], [ring]]
        if ends == "close":
            records.close()
        else:
            del records
        assert ring_pages(path) == []
