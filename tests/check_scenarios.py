"""What tests/test_checks_native.py runs over a build with checks: python tests/check_scenarios.py NAME DIRECTORY.

A scenario takes a moment: ordinary use, a fault that pmwal handles, or (``misuse``) a call that breaks the engine's own rules.
DIRECTORY lies on tmpfs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pmwal
from pmwal import events
from pmwal.format import layout
from pmwal.native import _native
from pmwal.opening import open_log
from pmwal.storage.medium import Medium
from pmwal.storage.seam import Seam

LARGE = 4096 - layout.HEADER  # four of these fill a ring of 16 KiB
SMALL = 56  # what a record of one byte takes
PLACES = [f"{medium}-{ordering}" for medium in ("memory", "emulated-dax", "file", "disk") for ordering in ("strict", "pipelined")]
SCENARIOS: dict[str, Callable[[Path], None]] = {}


def scenario(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a scenario under its name."""
    SCENARIOS[function.__name__] = function
    return function


def opened(directory: Path, place: str = "memory-strict", **options: Any) -> pmwal.Wal:
    """A log of 16 KiB. A "disk" is a file on tmpfs that is taken for one, so that no machine lacks it."""
    medium, _, ordering = place.rpartition("-")
    if medium == "disk":
        Medium.on_disk = Medium.synced_writes = property(lambda self: True)  # type: ignore[assignment]
        medium = "file"
    options = {"size": "16KiB", **options}
    return pmwal.open(directory / "log", medium=medium, ordering=ordering, **options)


def core_of(wal: pmwal.Wal) -> _native.Core:
    """The engine's part in C."""
    return wal._engine.core  # type: ignore[attr-defined, no-any-return]


@contextlib.contextmanager
def held_elsewhere(lock: Any, seconds: float = 1) -> Iterator[None]:
    """Let another thread hold this lock for a while."""
    taken, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            leave.wait(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


def use(directory: Path, place: str) -> None:
    """All that stores, commits, frees and discards, over several laps."""
    with opened(directory, place) as wal:
        with contextlib.suppress(pmwal.RecordTooLarge):
            wal.append(bytes(8 * 1024))
        with contextlib.suppress(pmwal.RecordTooLarge):
            wal.extend([bytes(LARGE)] * 5)
        wal.extend([bytes(LARGE)] * 4)  # to the ring's very end
        wal.truncate(before=wal.next_seq)
        wal.append(b"not yet", commit=False)
        wal.append(b"both")
        wal.append(b"later", commit=False)
        wal.commit()
        wal.extend([bytes(length) for length in range(0, 150, 7)])
        wal.extend([bytes(9)] * 100)
        with wal.batch() as batch:
            batch.append(b"batched")
            batch.append(b"too")
        with wal.reserve(100) as view:
            view[:5] = b"hello"
        for _ in range(60):
            wal.append(bytes(1111))
            wal.append(bytes(3000))
            wal.truncate(before=wal.next_seq - 2)
        wal.extend([bytes(LARGE - 1000)] * 2)
        wal.rollback(after=wal.next_seq - 2)
        wal.append(b"instead")
        with contextlib.suppress(pmwal.WalFull):
            while True:
                wal.append(bytes(900))
        wal.commit()
        assert [record.seq for record in wal] == list(range(wal.first_seq, wal.next_seq))
    with opened(directory, place, on_full="overwrite", commit="manual") as wal:
        for _ in range(100):
            wal.append(bytes(700))
        wal.commit()


for _place in PLACES:
    SCENARIOS[_place] = lambda directory, place=_place: use(directory, place)  # type: ignore[misc]


@scenario
def alone(directory: Path) -> None:
    """One thread on a disk, after enough commits for one system call each."""
    with opened(directory, "disk-pipelined", size="256KiB") as wal:
        for length in (*range(0, 1000, 5), 5000):
            wal.append(bytes(length))
        wal.append(b"", commit=False)
        wal.append(b"")


@scenario
def last_lap(directory: Path) -> None:
    """Such commits of batches, over several laps."""
    with opened(directory, "disk-pipelined", size="64KiB", on_full="overwrite") as wal:
        for _ in range(150):
            wal.extend([bytes(1001)] * 3)


@scenario
def bulk(directory: Path) -> None:
    """Batches that go into the page cache by pwrite(2), over several laps."""
    with opened(directory, "file-strict", size="256KiB") as wal:
        for _ in range(20):
            wal.extend([bytes(1001)] * 45)
            wal.truncate(before=wal.next_seq - 3)


@scenario
def long(directory: Path) -> None:
    """Records and batches of many pages on a disk, in one system call and in several."""
    with opened(directory, "disk-pipelined", size="4MiB") as wal:
        for _ in range(70):
            wal.append(b"")
        wal.append(bytearray(300_000))
        wal.append(bytes(1_200_000))
        wal.extend([bytes(1001)] * 1200)
        wal.append(bytes(1001))


@scenario
def crooked_lines(directory: Path) -> None:
    """Records that share cache lines, large and small."""
    with opened(directory, "emulated-dax-strict", size="256KiB", align=8) as wal:
        for length in (1, 100, 1500, 5000):
            wal.append(bytes(length))


@scenario
def together(directory: Path) -> None:
    """Threads that share barriers."""
    with opened(directory, "file-strict", size="256KiB") as wal:
        core_of(wal).yields = True
        threads = [threading.Thread(target=lambda: [wal.append(b"x") for _ in range(100)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@scenario
def locked(directory: Path) -> None:
    """A lock taken twice by one thread, and one that another waits for."""
    lock = _native.Lock()
    with lock:
        with lock:
            pass
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        time.sleep(0.5)
    thread.join()


@scenario
def writer_held(directory: Path) -> None:
    """An append while another thread holds the writer."""
    with opened(directory) as wal, held_elsewhere(wal._engine.writing):
        wal.append(b"", commit=False)


@scenario
def guard_held(directory: Path) -> None:
    """An append, and a commit, while another thread changes the log."""
    with opened(directory, "memory-pipelined") as wal:
        with held_elsewhere(wal._engine.guard):
            wal.append(b"", commit=False)
        with held_elsewhere(wal._engine.guard):
            core_of(wal).commit_through(1)


@scenario
def stray(directory: Path) -> None:
    """An append after one that an exception ended in the middle."""
    with opened(directory) as wal:
        core_of(wal).stray_records = True
        wal.append(b"", commit=False)


class Refusing(Seam):
    """A clock that leaps, and barriers of which the fourth to last is interrupted, the last fails."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.ticks = 0

    def monotonic_ns(self) -> int:
        self.ticks += 1 << 50
        return self.ticks

    def flush(self, mapping: Any, offset: int, length: int) -> None:
        self.left -= 1
        if self.left == 3:
            raise InterruptedError
        if self.left <= 0:
            raise OSError(errno.EIO, "the medium failed")
        super().flush(mapping, offset, length)


@scenario
def seam(directory: Path) -> None:
    """Stores and barriers through a test's seam, until one fails."""
    wal = open_log(directory / "log", seam=Refusing(40), size="16KiB", medium="file", ordering="strict")
    with contextlib.suppress(pmwal.PersistError):
        while True:
            wal.append(b"x")
    with contextlib.suppress(pmwal.PersistError):
        wal.close()


@scenario
def seam_in_memory(directory: Path) -> None:
    """The same where a barrier is no step of the seam."""
    with open_log(directory / "log", seam=Refusing(40), size="16KiB", medium="memory") as wal:
        wal.append(b"x")


def fill_from(directory: Path, slot: layout.Slot) -> None:
    """Append to a log whose newest slot is this one, until something is used up."""
    with opened(directory) as wal:
        block = wal._engine.block
    with (directory / "log").open("r+b") as file:
        for generation in range(slot.generation - block.turn + 1, slot.generation + 1):
            index = layout.slot_index(generation, block.control_pages)
            file.seek(layout.slot_offset(index))
            file.write(layout.encode_slot(slot._replace(generation=generation), block.uuid, index))
    with contextlib.suppress(pmwal.WalFull), opened(directory) as wal:
        while True:
            wal.append(b"")


@scenario
def last_generation(directory: Path) -> None:
    """A log that uses up the generations of its slots."""
    fill_from(directory, layout.Slot(5, layout.GENERATION_MAX - 9, 1, 0, 0, 0, 1, layout.SLOT_CLEAN))


@scenario
def last_position(directory: Path) -> None:
    """A log that uses up the positions."""
    position = (layout.POSITION_MAX - 500) // 8 * 8
    fill_from(directory, layout.Slot(5, 5000, 1, position, 0, position, 1, layout.SLOT_CLEAN))


@scenario
def follower(directory: Path) -> None:
    """An append while a reader of another process is asleep."""
    with opened(directory) as wal:
        with (directory / "log").open("r+b") as file:
            file.seek(layout.LIVE_FOLLOWERS_OFFSET)
            file.write(b"\1")
        wal.append(b"")


@scenario
def event_calls(directory: Path) -> None:
    """Events of every size around what C packs."""
    with opened(directory, size="256KiB") as wal:
        call = events.Logger(wal).event("{} {}")
        for length in (0, 10, *range(980, 1030)):
            call("x" * length, 1)


@scenario
def values(directory: Path) -> None:
    """Records and checksums for themselves."""
    assert type(_native.Record(1, 0, 0, type("Named", (bytes,), {})(b"x")).data) is bytes
    assert {_native.crc32c(b"123456789", 0, way) for way in _native.CRC32C_WAYS} == {0xE3069283}
    assert len({_native.crc32c(bytes(100_000), 0, way) for way in _native.CRC32C_WAYS}) == 1
    for portable in (False, True):
        assert _native.crc32c_shift(1, 100_000, portable) == ~_native.crc32c(bytes(100_000), ~1 & 0xFFFFFFFF) & 0xFFFFFFFF
        with contextlib.suppress(ValueError):
            _native.crc32c_shift(1, 1 << 33, portable)


def misuse(directory: Path, call: Callable[[pmwal.Wal, _native.Core, list[int]], object]) -> None:
    """A call that no engine makes. The state: positions and numbers of tail, head and durable, epoch and its first number."""
    with opened(directory, commit="manual") as wal:
        wal.extend([b"a", b"b", b"c"])
        wal.commit()
        wal.truncate(before=2)
        wal.append(b"d")
        core = core_of(wal)
        call(wal, core, list(core.state))


STATE = ("tail", "tail_seq", "head", "head_seq", "durable", "durable_seq", "epoch", "epoch_first_seq")


def changed(state: list[int], changes: dict[str, int]) -> Any:
    """The state with these differences."""
    return tuple(value + changes.get(name, 0) for name, value in zip(STATE, state, strict=True))


def become(**changes: int) -> Callable[[pmwal.Wal, _native.Core, list[int]], object]:
    """Let another state take effect."""
    return lambda _, core, state: core.become(changed(state, changes))


def write(**changes: int) -> Callable[[pmwal.Wal, _native.Core, list[int]], object]:
    """Write a slot that states another."""
    return lambda _, core, state: core.write_slot(changed(state, changes), 0)


def while_held(call: Callable[[_native.Core, Any], object]) -> Callable[[pmwal.Wal, _native.Core, list[int]], object]:
    """While another thread holds ``guard``."""

    def held(wal: pmwal.Wal, core: _native.Core, state: list[int]) -> None:
        with held_elsewhere(wal._engine.guard, 5):
            call(core, tuple(state))

    return held


MISUSES: dict[str, Callable[[pmwal.Wal, _native.Core, list[int]], object]] = {
    "older-epoch": become(epoch=-1),
    "falling-tail": become(tail=-SMALL),
    "falling-durable": become(durable=-SMALL, durable_seq=-1),
    "moved-head": become(head=SMALL, head_seq=1),
    "tail-past-durable": become(epoch=1, tail=1 << 10, tail_seq=2),
    "numbers-out-of-order": become(epoch=1, tail_seq=5),
    "two-tails": become(epoch=1, durable=-2 * SMALL, durable_seq=-1),
    "two-heads": become(epoch=1, head=-SMALL),
    "longer-than-the-ring": become(epoch=1, head=1 << 14, head_seq=1),
    "crooked": become(epoch=1, head=1),
    "durable-before-its-slot": become(epoch=1, durable=-SMALL, durable_seq=-1),
    "slot-of-an-older-epoch": write(epoch=-1),
    "slot-before-its-tail": write(tail=1 << 10),
    "slot-that-takes-back": write(durable=-SMALL, durable_seq=-1),
    "slot-by-another-thread": while_held(lambda core, state: core.write_slot(state, 0)),
    "state-by-another-thread": while_held(lambda core, state: core.become(state)),
    "flush-by-another-thread": while_held(lambda core, _: core.flush()),
}
for _name, _call in MISUSES.items():
    SCENARIOS[_name] = lambda directory, call=_call: misuse(directory, call)  # type: ignore[misc]


if __name__ == "__main__":
    assert _native.checks, f"{_native.__file__} has no checks"
    assert Path(_native.__file__).parts[:-3] == Path(os.environ["PYTHONPATH"].split(":")[0]).parts, _native.__file__
    SCENARIOS[sys.argv[1]](Path(sys.argv[2]))
