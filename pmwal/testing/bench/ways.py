"""What is measured in a place: the floors of its medium, and the modes of a log beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

import pmwal
from pmwal.opening.options import Ordering
from pmwal.storage.medium import MediumName
from pmwal.testing.bench import workloads
from pmwal.testing.bench.floors import PAGE, Area, Floors, Loop, PageBuffer
from pmwal.testing.bench.workloads import PAYLOAD

RING_MAX, RING_MIN = 16 << 20, 1 << 20
GROUP, SMALL, LARGE_BATCH, LARGE = 100, 10, 1000, 4096
FILE, MEMORY, PMEM = "file", "memory", "pmem"
_CONTROL = 128 << 10  # of a strict floor's commit slots, as of a log


class Way(NamedTuple):
    """One way to store or read. ``each`` times every call, ``whole`` only the loop around them, for calls of some nanoseconds."""

    key: str  # for comparisons with earlier runs
    name: str
    kind: str  # "floor" or "pmwal"
    each: Callable[[int], Loop]
    whole: Callable[[int], Loop] | None = None
    records: int = 1  # of one call
    bytes_each: int = 256  # of the ring for each record, at most
    floors: tuple[str, ...] = ()  # keys: the fastest of these is what it is compared with


def kind_of(medium: str) -> str:
    """What commits on a medium of pmwal wait for: a disk, nothing, or the stores to persistent memory."""
    return {"dax": PMEM, "emulated-dax": PMEM, "memory": MEMORY}.get(medium, FILE)


class Place:
    """Logs and files in a directory, made when they are needed and removed at the end."""

    def __init__(self, directory: Path, medium: MediumName, floors: Floors | None, ring: int, stack: ExitStack) -> None:
        self.directory = directory
        self.ring = ring
        self.medium = medium
        self.kind = kind_of(medium)
        self.floors = floors
        self._stack = stack

    def log(self, *, ordering: Ordering = "auto") -> pmwal.Wal:
        """A new log."""
        return self._stack.enter_context(workloads.new_log(self.directory, size=self.ring, medium=self.medium, ordering=ordering))

    def area(self, name: str, size: int = 0, *, flags: int = 0) -> Area:
        """A new file for a floor, as large as a ring if nothing else is said."""
        return self._stack.enter_context(Area(self.directory / f"{name}.floor", size or self.ring, flags=flags))


def floors_of(place: Place) -> Iterator[Way]:
    """The floors of a medium; none without the loops in C."""
    floors = place.floors
    if floors is None:
        return
    plain = place.area("plain")
    if place.kind == FILE:
        with suppress(OSError):  # not every file system has O_DIRECT
            direct, page = place.area("direct", flags=os.O_DIRECT | os.O_DSYNC), PageBuffer()
            floors.pwrite(direct, page.address, PAGE, 1, sync=False)
            yield Way(
                "direct",
                "O_DIRECT|O_DSYNC write of 4 KiB",
                "floor",
                lambda n: floors.pwrite(direct, page.address, PAGE, n, sync=False),
            )
        yield Way("msync", "store, msync of its page", "floor", lambda n: floors.msync(plain, PAYLOAD, n))
        data = PAYLOAD * LARGE_BATCH
        yield Way(
            "sequential", f"write of {LARGE_BATCH} x {len(PAYLOAD)} B, fdatasync", "floor",
            lambda n: floors.pwrite(plain, data, len(data), n, sync=True), records=LARGE_BATCH,
        )  # fmt: skip
    if place.kind == PMEM:
        control = place.area("control", _CONTROL)
        for ordering, strict in (("strict", True), ("pipelined", False)):
            for how, streams in (("flushed", False), ("streamed", True)):
                store = partial(floors.dax, plain, control, PAYLOAD, strict=strict, non_temporal=streams)
                name = f"{'store, fence, slot, fence' if strict else 'store with CRC, fence'}, {how}"
                yield Way(f"{ordering} {how}", name, "floor", partial(store, each=True), store)
    yield Way(
        "copy", "clock, header, copy, CRC in C", "floor",
        lambda n: floors.append(plain, PAYLOAD, n, each=True), lambda n: floors.append(plain, PAYLOAD, n),
    )  # fmt: skip


def modes_of(place: Place) -> Iterator[Way]:
    """The modes of a log on a medium, each with the keys of its floors."""
    durable = {FILE: ("direct", "msync"), MEMORY: ("copy",)}.get(place.kind, ())
    for ordering in ("pipelined", "strict"):
        wal = place.log(ordering=ordering)
        keys = (f"{ordering} flushed", f"{ordering} streamed") if place.kind == PMEM else durable
        yield _append(f"append {ordering}", f"append, durable, {ordering}", wal, PAYLOAD, keys, commit=True)
    wal = place.log()
    yield _append("append unflushed", "append(commit=False)", wal, PAYLOAD, ("copy",), commit=False)
    yield _append(
        "append 4k", f"append of {LARGE} B, durable", wal, bytes(LARGE), ("direct",) if place.kind == FILE else (), commit=True
    )
    yield Way(
        "group", f"{GROUP} x append(commit=False), commit()", "pmwal", lambda n: _grouped(wal, n), records=GROUP,
    )  # fmt: skip
    for count in (SMALL, LARGE_BATCH):
        items = [PAYLOAD] * count
        keys = ("sequential",) if place.kind == FILE and count == LARGE_BATCH else ()
        yield Way(
            f"extend {count}", f"extend of {count} records, durable", "pmwal",
            partial(workloads.extend_each, wal, items), records=count, floors=keys,
        )  # fmt: skip
    yield Way("read", f"read, {LARGE_BATCH} records", "pmwal", lambda n: _read(wal, n), records=LARGE_BATCH, bytes_each=0)


def _append(key: str, name: str, wal: pmwal.Wal, payload: bytes, floors: tuple[str, ...], *, commit: bool) -> Way:
    return Way(
        key, name, "pmwal",
        lambda n: workloads.append_each(wal, payload, n, commit=commit),
        lambda n: workloads.append_loop(wal, payload, n, commit=commit),
        bytes_each=len(payload) + 128, floors=floors,
    )  # fmt: skip


def _grouped(wal: pmwal.Wal, count: int) -> Loop:
    """One commit for ``GROUP`` records."""
    append, clock, each = wal.append, time.perf_counter_ns, [0] * count
    for index in range(count):
        if workloads.room(wal, len(PAYLOAD)) < GROUP:
            workloads.empty(wal)
        start = clock()
        for _ in range(GROUP):
            append(PAYLOAD, commit=False)
        wal.commit()
        each[index] = clock() - start
    return Loop(sum(each), count, np.array(each, dtype=np.int64))


def _read(wal: pmwal.Wal, count: int) -> Loop:
    """The newest records, all checksums verified."""
    if len(wal) < LARGE_BATCH:
        workloads.empty(wal)
        wal.extend([PAYLOAD] * LARGE_BATCH)
    clock, each = time.perf_counter_ns, [0] * count
    for index in range(count):
        start = clock()
        for _ in islice(wal.read(wal.next_seq - LARGE_BATCH), LARGE_BATCH):
            pass
        each[index] = clock() - start
    return Loop(sum(each), count, np.array(each, dtype=np.int64))
