"""Random histories of a log under crashes, checked by the simulator's model of what a log may hold.

Each operation tells the model what a crash may leave before it begins. After each crash the log must open and hold that, with one
of the verdicts to which a crash may lead. Most payloads imitate structures of the log.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pmwal
from pagecache import PageCache
from pmwal.format.layout import HEADER
from pmwal.opening import open_log
from pmwal.testing._simulator.model import Found, Items, Model, brief
from pmwal.testing._simulator.oracles import CRASH_ROWS, Examiner
from pmwal.testing.lookalikes import place_in, tagged
from pmwal.writing.wal import Wal
from support import BarrierRecorder, Crash, contents, kill


def found_in(wal: Wal) -> Found:
    """What a handle shows; its numbers follow one another."""
    found = Found(wal.first_seq, tuple(contents(wal)))
    assert [seq for seq, _ in found.items] == list(range(wal.first_seq, wal.next_seq)), "numbers do not follow one another"
    return found


class History:
    """One random history: operations, kills, power cuts, failed msyncs, reopens.

    ``on_crash`` is called after each crash, before the log is opened again: ``path`` and ``expected`` say what is there. It must
    leave the file as it was.
    """

    lookalike_share = 0.6
    """The probability with which a payload imitates structures of the log."""

    def __init__(
        self,
        path: Path,
        seed: int,
        *,
        ordering: str,
        on_full: str,
        medium: str = "file",
        on_crash: Callable[[History], None] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.path = path
        self.options: dict[str, Any] = {
            "ordering": ordering,
            "on_full": on_full,
            "medium": medium,
            "timeout": 0,
        }
        self.wal: Wal | None = None
        self.issued = 0
        self.crashes = self.operations = 0
        self.cases = Counter[str]()
        """The verdicts of the opens, by label."""
        self._on_crash = on_crash
        size, align = self.rng.choice([4096, 16384, 16384, 65536]), self.rng.choice([8, 8, 64])
        seam = BarrierRecorder(uuid=seed.to_bytes(16, "little"))
        open_log(path, "x", size=size, align=align, seam=seam, **self.options).close()
        self.cache = PageCache(path, self.rng)
        self.model = Model()
        self.expected = self.model.expectation()
        """What a crash now may leave."""

    def run(self, rounds: int) -> None:
        """Open, work, crash, again and again."""
        try:
            self._rounds(rounds)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Kill the handle if it is open, however the history ended: a dropped one would warn in some later test."""
        if self.wal is not None:
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
                    self.close()
            except (Crash, pmwal.PersistError):
                pass
            self.cache.crash_in = self.cache.fail_in = None
            kill(wal)
            self._crash()
        self.reopen().close()

    def _crash(self) -> None:
        self.crashes += 1
        if self.rng.random() < 0.6:
            self.cache.power_cut()
        elif self.rng.random() < 0.3:
            self.cache.evict()
        if self._on_crash is not None:
            self._on_crash(self)

    def reopen(self) -> Wal:
        """Open, with crashes on the way, and check what is there."""
        while True:
            self.cache.crash_in = self.rng.randrange(14) if self.rng.random() < 0.4 else None
            self.cache.fail_in = self.rng.randrange(4) if self.rng.random() < 0.05 else None
            self.cache.before_store = self.cache.evict if self.rng.random() < 0.2 else None
            try:
                wal = open_log(self.path, "r+", seam=self.cache, **self.options)
            except (Crash, pmwal.PersistError):
                self._crash()
                continue
            except pmwal.CorruptWal as error:
                case = Examiner().examine(self.path.read_bytes()).case
                raise AssertionError(f"a crash led to {case}: {error.reason}; expected {self.expected}") from error
            finally:
                self.cache.crash_in = self.cache.fail_in = self.cache.before_store = None
            assert isinstance(wal, Wal)
            self.wal = wal
            assert wal.recovery.case in CRASH_ROWS, f"a crash led to {wal.recovery.case}: {wal.recovery.reason}"
            self.cases[wal.recovery.case] += 1
            found = found_in(wal)
            assert self.expected.allows(found), f"holds {brief(found.items)} from {found.first_seq}; expected {self.expected}"
            self.model.settle(found)
            self.expect()
            return wal

    def close(self) -> None:
        """A clean end: everything is durable."""
        self.open_wal.close()
        self.model.settle(Found(self.model.first_seq, self.model.stored))
        self.expect()

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
        size = self.rng.choice([0, 1, 16, 40, 100, 500, 1000, 1900, 1900])
        if self.rng.random() < self.lookalike_share:
            return self.lookalike(self.rng.randrange(100, self.open_wal.capacity // 2 - HEADER) if size > 1000 else size)
        self.issued += 1
        text = b"%d." % self.issued
        return (text * (size // len(text) + 1))[: max(size, len(text))]

    def lookalike(self, size: int) -> bytes:
        """A payload of this history that imitates structures of the open log."""
        self.issued += 1
        return tagged(self.rng, place_in(self.open_wal), size, b"%d." % self.issued)

    def _payloads(self, most: int) -> list[bytes]:
        return [self._payload() for _ in range(self.rng.randint(1, most))]

    # -- operations on the open log: each says what a crash may leave before it begins

    @property
    def open_wal(self) -> Wal:
        """The log, which is open."""
        assert self.wal is not None
        return self.wal

    def expect(self, **changes: Any) -> None:
        """From now on a crash may leave this."""
        self.expected = self.model.expectation(**changes)

    def check(self) -> None:
        """The open log shows what the model says."""
        wal, model = self.open_wal, self.model
        assert model.stored == found_in(wal).items
        assert (model.first_seq, model.next_seq, len(wal)) == (wal.first_seq, wal.next_seq, len(model.stored))

    def _done(self, *, durable: bool) -> None:
        """A call has returned: what the handle calls durable is acknowledged; everything must be where that was promised."""
        wal, model = self.open_wal, self.model
        if durable:
            assert wal.committed_seq == wal.next_seq - 1
        assert wal.committed_seq >= (model.acknowledged[-1][0] if model.acknowledged else 0)
        model.advance(wal.first_seq, wal.committed_seq)
        self.expect()

    def _group(self, payloads: list[bytes]) -> Items:
        return tuple(enumerate(payloads, self.model.next_seq))

    def _expect_store(self, group: Items) -> None:
        """A call stores this group, and where it overwrites frees as much as it needs, in any number of steps."""
        overwrites = self.options["on_full"] == "overwrite"
        self.expect(adding=group, first_max=self.model.next_seq if overwrites else None, jumps=False)

    def _store(self, payloads: list[bytes], call: Callable[[], object], *, durable: bool) -> None:
        group = self._group(payloads)
        self._expect_store(group)
        try:
            call()
        except (pmwal.WalFull, pmwal.RecordTooLarge):
            durable = False
        else:
            self.model.pending.append(group)
        self._done(durable=durable)

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
        """An interrupt at a store of an extend: unless all of it was stored, none of it may ever come back after a commit."""
        left = stores

        def interrupt() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        wal, model, group = self.open_wal, self.model, self._group(datas)
        before = wal.next_seq
        self._expect_store(group)  # and until the next call that makes anything durable
        self.cache.before_store = interrupt
        try:
            wal.extend(datas)
        except (KeyboardInterrupt, pmwal.WalFull, pmwal.RecordTooLarge):
            self.cache.before_store = None
            wal.commit()
        finally:
            self.cache.before_store = None
        if wal.next_seq > before:
            model.pending.append(group)
            wal.commit()
        self._done(durable=True)

    def commit(self) -> None:
        """Everything."""
        self.open_wal.commit()
        self._done(durable=True)

    def truncate(self, before: int) -> None:
        """Free the front."""
        moves = before > self.model.first_seq
        self.expect(first_max=before)
        self.open_wal.truncate(before=before)
        self._done(durable=moves)  # it commits first

    def rollback(self, after: int) -> None:
        """Discard the end."""
        discards = after < self.open_wal.next_seq - 1
        self.expect(cut_after=after)
        self.open_wal.rollback(after=after)
        if discards:
            self.model.discard(after)
        self._done(durable=discards)
