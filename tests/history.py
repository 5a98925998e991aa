"""Random histories of a log under crashes, checked against a list.

The model knows what was acknowledged, what was issued but not acknowledged, and which bounds an operation under way may
leave. After each crash the log must open, and hold one of the states that the model allows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pmwal
from pagecache import PageCache
from pmwal.opening import open_log
from pmwal.writing.wal import Wal
from support import Crash, contents, kill

Numbered = list[tuple[int, bytes]]


@dataclass
class Model:
    """``acked`` is durable; ``pending`` are groups, each whole or absent, issued after it in this order."""

    acked: Numbered = field(default_factory=list)
    pending: list[Numbered] = field(default_factory=list)
    first_seq: int = 1
    tail_may_reach: int = 1  # the greatest first_seq that an operation under way may have made durable
    cut_after: int | None = None  # a rollback under way

    @property
    def next_seq(self) -> int:
        """Number of the next record, all pending ones counted."""
        groups = [*self.pending[-1:], self.acked]
        return next((group[-1][0] + 1 for group in groups if group), self.first_seq)

    def allowed(self) -> list[Numbered]:
        """Every content that a crash may leave, before the tail is looked at."""
        state = list(self.acked)
        states = [state]
        for group in self.pending:
            state = state + group
            states.append(state)
        if self.cut_after is not None:
            states += [[item for item in state if item[0] <= self.cut_after] for state in states]
        return states

    def settle(self, found: Numbered, first_seq: int, next_seq: int) -> None:
        """Check what a recovery found, and go on from it."""
        assert [seq for seq, _ in found] == list(range(first_seq, next_seq)), "numbers do not follow one another"
        assert self.first_seq <= first_seq <= max(self.tail_may_reach, self.first_seq), (self.first_seq, first_seq)
        for state in self.allowed():
            end = state[-1][0] + 1 if state else self.first_seq
            # An empty log begins where it ends; a tail past the end of a state cannot belong to it.
            fits = first_seq <= max(end, self.first_seq) and next_seq == max(end, first_seq)
            if fits and found == [item for item in state if item[0] >= first_seq]:
                break
        else:
            raise AssertionError(f"holds {brief(found)} from {first_seq}; allowed: {[brief(s) for s in self.allowed()]}")
        self.acknowledge(found, first_seq)

    def acknowledge(self, found: Numbered, first_seq: int) -> None:
        """Everything is durable now."""
        self.acked, self.pending, self.cut_after = list(found), [], None
        self.first_seq = self.tail_may_reach = first_seq


def brief(items: Numbered) -> str:
    """Numbers and sizes, short."""
    return "[" + " ".join(f"{seq}:{len(data)}:{data[:6]!r}" for seq, data in items) + "]"


class History:
    """One random history: operations, kills, power cuts, failed msyncs, reopens."""

    def __init__(self, path: Path, seed: int, *, ordering: str, on_full: str, medium: str = "file") -> None:
        self.rng = random.Random(seed)
        self.path = path
        self.options: dict[str, Any] = {
            "ordering": ordering,
            "on_full": on_full,
            "medium": medium,
            "timeout": 0,
        }
        self.model = Model()
        self.cache = PageCache(path, self.rng)
        self.cache.uuid = seed.to_bytes(16, "little")
        self.wal: Wal | None = None
        self.issued = 0
        self.crashes = self.operations = 0
        self._create()

    def _create(self) -> None:
        seam = self.cache
        hidden, seam.path = seam.path, self.path.parent
        size = self.rng.choice([4096, 16384, 16384])
        open_log(self.path, "x", size=size, align=self.rng.choice([8, 8, 64]), seam=seam, **self.options).close()
        seam.path = hidden
        seam.versions.clear()
        seam.dirty.clear()

    def run(self, rounds: int) -> None:
        """Open, work, crash, again and again."""
        try:
            self._rounds(rounds)
        finally:
            if self.wal is not None and not self.wal.closed:
                kill(self.wal)

    def _rounds(self, rounds: int) -> None:
        for _ in range(rounds):
            wal = self.reopen()
            try:
                self.cache.crash_in = self.rng.randrange(100) if self.rng.random() < 0.8 else None
                self.cache.fail_in = self.rng.randrange(12) if self.rng.random() < 0.15 else None
                for _ in range(self.rng.randrange(20)):
                    self._operate(wal)
                    self.operations += 1
                if self.rng.random() < 0.3:
                    wal.close()
                    self.model.acknowledge(self._everything(), self.model.first_seq)
            except (Crash, pmwal.PersistError):
                pass
            self.cache.crash_in = self.cache.fail_in = None
            if not wal.closed:
                kill(wal)
            self._crash()
        self.reopen().close()

    def _crash(self) -> None:
        self.crashes += 1
        if self.rng.random() < 0.6:
            self.cache.power_cut()
        elif self.rng.random() < 0.3:
            self.cache.evict()

    def reopen(self) -> Wal:
        """Open, with crashes on the way, and check what is there."""
        while True:
            self.cache.crash_in = self.rng.randrange(14) if self.rng.random() < 0.4 else None
            self.cache.fail_in = self.rng.randrange(4) if self.rng.random() < 0.05 else None
            evictions = self.rng.random() < 0.2
            self.cache.before_step = (lambda _: self.cache.evict()) if evictions else None
            try:
                wal = open_log(self.path, "r+", seam=self.cache, **self.options)
            except (Crash, pmwal.PersistError):
                self._crash()
                continue
            finally:
                self.cache.crash_in = self.cache.fail_in = self.cache.before_step = None
            assert isinstance(wal, Wal)
            self.wal = wal
            self.model.settle(contents(wal), wal.first_seq, wal.next_seq)
            return wal

    def _everything(self) -> Numbered:
        return self.model.acked + [item for group in self.model.pending for item in group]

    def _operate(self, wal: Wal) -> None:
        rng = self.rng
        twice = ["extend", "abort", "truncate"]
        match rng.choice(["append"] * 8 + 2 * twice + ["batch", "commit", "rollback"]):
            case "append":
                self.append(self._payload(), durable=rng.random() < 0.3)
            case "extend":
                self.extend(self._payloads(4))
            case "batch":
                self.batch(self._payloads(3))
            case "abort":
                self.abort(self._payloads(3), stores=rng.randrange(1, 8))
            case "commit":
                self.commit()
            case "truncate":
                self.truncate(rng.randint(wal.first_seq, wal.next_seq))
            case "rollback":
                self.rollback(rng.randint(wal.first_seq - 1, wal.next_seq - 1))
        self.check()

    def _payload(self) -> bytes:
        self.issued += 1
        size = self.rng.choice([0, 1, 16, 40, 100, 500, 1000, 1900, 1900])
        text = b"%d." % self.issued
        return (text * (size // len(text) + 1))[: max(size, len(text))]

    def _payloads(self, most: int) -> list[bytes]:
        return [self._payload() for _ in range(self.rng.randint(1, most))]

    # -- operations on the open log: each tells the model what may happen before it does it

    @property
    def open_wal(self) -> Wal:
        """The log, which is open."""
        assert self.wal is not None
        return self.wal

    def check(self) -> None:
        """The open log shows what the model says."""
        wal, model = self.open_wal, self.model
        assert self._everything() == contents(wal)
        assert (model.first_seq, model.next_seq, len(wal)) == (wal.first_seq, wal.next_seq, len(self._everything()))
        assert wal.committed_seq >= (model.acked[-1][0] if model.acked else 0)

    def _store(self, payloads: list[bytes], call: Callable[[], object], *, durable: bool) -> None:
        """Tell the model of records that are about to be stored, do it, and tell it how that ended."""
        model, first = self.model, self.model.next_seq
        group = [(first + place, data) for place, data in enumerate(payloads)]
        before = model.tail_may_reach
        if self.options["on_full"] == "overwrite":
            model.tail_may_reach = first
        model.pending.append(group)
        try:
            call()
        except (pmwal.WalFull, pmwal.RecordTooLarge):
            model.pending.pop()
            durable = False
        model.tail_may_reach = before
        self._follow_tail()
        if durable:
            self._acknowledge_all()

    def _acknowledge_all(self) -> None:
        first = self.model.first_seq
        self.model.acknowledge([item for item in self._everything() if item[0] >= first], first)

    def _follow_tail(self) -> None:
        """An overwrite has freed records: what it passed was committed first."""
        wal, model = self.open_wal, self.model
        if wal.first_seq > model.first_seq:
            first = model.first_seq = model.tail_may_reach = wal.first_seq
            committed = wal.committed_seq
            everything = [item for item in self._everything() if item[0] >= first]
            model.acked = [item for item in everything if item[0] <= committed]
            model.pending = [group for group in model.pending if group and group[-1][0] > committed]

    def append(self, data: bytes, *, durable: bool) -> None:
        """One record."""
        self._store([data], lambda: self.open_wal.append(data, commit=durable), durable=durable)

    def extend(self, datas: list[bytes]) -> None:
        """Some records, all or none."""
        self._store(datas, lambda: self.open_wal.extend(datas), durable=True)

    def batch(self, datas: list[bytes]) -> None:
        """The same by a context."""

        def call() -> None:
            with self.open_wal.batch() as batch:
                for data in datas:
                    batch.append(data)

        self._store(datas, call, durable=True)

    def abort(self, datas: list[bytes], *, stores: int) -> None:
        """An interrupt at a store of an extend: unless it was through, none of it may ever come back."""
        left = stores

        def interrupt(step: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        wal, model, before = self.open_wal, self.model, self.model.next_seq
        self.cache.before_step = interrupt
        if self.options["on_full"] == "overwrite":
            model.tail_may_reach = before
        model.pending.append([(before + place, data) for place, data in enumerate(datas)])
        try:
            wal.extend(datas)
        except (KeyboardInterrupt, pmwal.WalFull, pmwal.RecordTooLarge):
            self.cache.before_step = None
            if wal.next_seq == before:
                # Until the next call that makes anything durable, a crash may still find the whole group.
                wal.commit()
                model.pending.pop()
        finally:
            self.cache.before_step = None
        model.tail_may_reach = model.first_seq
        self._follow_tail()
        wal.commit()
        self._acknowledge_all()

    def commit(self) -> None:
        """Everything."""
        self.open_wal.commit()
        self._acknowledge_all()

    def truncate(self, before: int) -> None:
        """Free the front."""
        self.model.tail_may_reach = before
        self.open_wal.truncate(before=before)
        if before > self.model.first_seq:  # it committed first
            self.model.acknowledge([item for item in self._everything() if item[0] >= before], before)

    def rollback(self, after: int) -> None:
        """Discard the end."""
        if after == self.open_wal.next_seq - 1:
            self.open_wal.rollback(after=after)
            return
        self.model.cut_after = after
        self.open_wal.rollback(after=after)
        self.model.acknowledge([item for item in self._everything() if item[0] <= after], self.model.first_seq)
