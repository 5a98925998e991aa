"""Where and how much is measured: directories, floors, the scale of a run, and the figures of the peers, measured once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from benchmark import native_floors
from benchmark.peers import DURABLE, PEERS
from benchmark.peers.base import DURABLE_EXTEND, READ
from benchmark.peers.run import PeerFailed, Round, measure
from pmwal.testing.bench.floors import Floors
from pmwal.testing.bench.stats import Latency, median, merge
from pmwal.testing.machine import Site

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CONTROL_SIZE = 128 << 10  # of the floors' commit slots, as of a log by default
_PEER_BYTES = 64 * MIB  # of payload in one round, which limits the count of large records
_MORE_TURNS = 3
_SHORTER = 8


class Scale(NamedTuple):
    """How much is measured. Counts are calls in one round."""

    rounds: int
    memory_calls: int  # only the loop is timed
    memory_timed: int  # each call is timed
    extends: int
    pairs: int  # of a durable append and its floor, in total
    disk_calls: int
    disk_extends: int
    each_thread: int
    beside: int
    ring: int
    small_ring: int  # recovery of 128-byte records
    large_ring: int  # recovery of 4 KiB records
    flat: tuple[int, ...]
    sizes: tuple[int, ...]
    recovery_rings: tuple[int, ...]
    peer_appends: int
    peer_process: int
    peer_extends: int
    peer_reads: int
    rows: int  # of one array
    tasks: int  # in one event loop
    follows: int  # records delivered to a sleeping follower
    idle: float  # seconds in which a follower gets no record
    watch: float  # seconds in which an onlooker sees nothing happen
    lap_ring: int  # the largest ring of which laps are measured
    lap_calls: int  # of one size on each lap
    large_append: int  # the largest record
    seek_ring: int


_SIZES = (16, 64, 128, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
FULL = Scale(
    rounds=5, memory_calls=200_000, memory_timed=200_000, extends=300, pairs=20_000, disk_calls=4000, disk_extends=200,
    each_thread=1000, beside=4000, ring=64 * MIB, small_ring=64 * MIB, large_ring=GIB, flat=(MIB, 64 * MIB, 4 * GIB),
    sizes=_SIZES, recovery_rings=(MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB),
    peer_appends=2000, peer_process=50_000, peer_extends=100, peer_reads=200_000,
    rows=1_000_000, tasks=10_000, follows=400, idle=5.0,
    watch=1.0, lap_ring=256 * MIB, lap_calls=1500, large_append=16 * MIB, seek_ring=4 * GIB,
)  # fmt: skip
QUICK = Scale(
    rounds=3, memory_calls=20_000, memory_timed=20_000, extends=30, pairs=1000, disk_calls=500, disk_extends=30,
    each_thread=100, beside=100, ring=16 * MIB, small_ring=8 * MIB, large_ring=64 * MIB, flat=(MIB, 16 * MIB, 64 * MIB),
    sizes=(16, 128, 1024, 16384), recovery_rings=(MIB, 4 * MIB, 16 * MIB, 64 * MIB),
    peer_appends=300, peer_process=5000, peer_extends=10, peer_reads=20_000,
    rows=100_000, tasks=1000, follows=100, idle=2.0,
    watch=0.3, lap_ring=32 * MIB, lap_calls=100, large_append=4 * MIB, seek_ring=64 * MIB,
)  # fmt: skip
TINY = Scale(
    rounds=1, memory_calls=50, memory_timed=50, extends=2, pairs=3, disk_calls=3, disk_extends=1,
    each_thread=2, beside=2, ring=MIB, small_ring=64 << 10, large_ring=MIB, flat=(256 << 10, MIB),
    sizes=(4096,), recovery_rings=(64 << 10, 256 << 10),
    peer_appends=2, peer_process=2, peer_extends=1, peer_reads=10,
    rows=100, tasks=10, follows=3, idle=0.5,
    watch=0.02, lap_ring=MIB, lap_calls=3, large_append=64 * KIB, seek_ring=MIB,
)  # fmt: skip
"""For tests: everything runs, but the figures are worthless."""


class PeerFigures(NamedTuple):
    """The latency of a peer's calls, and the median over rounds of its records per second."""

    latency: Latency
    rate: float


@dataclass
class Context:
    """The settings and shared state of a run."""

    memory: Site
    disk: Site
    scale: Scale
    say: Callable[[str], None] = print
    peer_names: Sequence[str] = tuple(PEERS)
    unavailable: dict[str, str] = field(default_factory=dict)
    _peers: dict[tuple[str, int], tuple[frozenset[str], dict[str, PeerFigures]]] = field(default_factory=dict, init=False)

    @cached_property
    def floors(self) -> Floors:
        """The floors; ``FloorsUnavailable`` if they cannot be built."""
        return native_floors.build()

    @property
    def rounds(self) -> range:
        """The rounds of an interleaved measurement."""
        return range(self.scale.rounds)

    @property
    def short_turns(self) -> tuple[range, int]:
        """Turns of loops in memory, of which the first is to warm up, and the calls of each.

        Many short turns share the fast and slow phases of a machine.
        """
        return range(1 + self.scale.rounds * _SHORTER), max(1, self.scale.memory_calls // _SHORTER)

    @property
    def memory_dir(self) -> Path:
        """The directory on tmpfs."""
        return self.memory.directory

    @property
    def disk_dir(self) -> Path:
        """The directory on a disk."""
        return self.disk.directory

    def again(self) -> Context:
        """The same settings, without what was measured before."""
        return replace(self, unavailable={})

    def site_for(self, workload: str) -> Site:
        """Where a peers' workload is measured."""
        return self.disk if workload in DURABLE else self.memory

    def peers(self, workload: str, names: Iterable[str] | None = None, size: int = 128) -> dict[str, PeerFigures]:
        """The figures of every peer with this workload, pmwal included, measured in turns. The result is kept."""
        key = (workload, size)
        wanted = [name for name in (self.peer_names if names is None else names) if workload in PEERS[name].settings]
        tried, known = self._peers.get(key, (frozenset[str](), {}))
        if not tried.issuperset(wanted):  # all again, so that what is compared ran in turns
            known = self._measure(wanted, workload, size)
            self._peers[key] = frozenset(wanted), known
        return {name: known[name] for name in wanted if name in known}

    def _measure(self, names: Sequence[str], workload: str, size: int) -> dict[str, PeerFigures]:
        usable = []
        for name in names:
            problem = PEERS[name].missing()
            if problem is None:
                usable.append(name)
            else:
                self._unavailable(name, problem)
        found: dict[str, list[Round]] = {name: [] for name in usable}
        count = {READ: self.scale.peer_reads, DURABLE_EXTEND: self.scale.peer_extends}.get(
            workload, self.scale.peer_appends if workload in DURABLE else self.scale.peer_process
        )
        count = min(count, max(20, _PEER_BYTES // size))
        turns = self.scale.rounds
        if workload in DURABLE and count >= 10 * _MORE_TURNS:  # a disk has fast and slow phases: shorter turns share them
            turns, count = turns * _MORE_TURNS, count // _MORE_TURNS
        for _ in range(turns):
            for name in usable:
                try:
                    found[name].append(measure(name, workload, self.site_for(workload).directory, count, size))
                except PeerFailed as error:
                    self._unavailable(f"{name}, {workload}", str(error))
        return {
            name: PeerFigures(
                Latency.of(merge([one.each for one in runs]), float(sum(one.total for one in runs))),
                median([one.records / one.total * 1e9 for one in runs]),
            )
            for name, runs in found.items()
            if runs
        }

    def _unavailable(self, key: str, message: str) -> None:
        """Report once why something is not in the tables."""
        if key not in self.unavailable:
            self.unavailable[key] = message
            self.say(message)


def free_space(directory: Path) -> int:
    """Free bytes of the file system of a directory."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
