"""Consumers and their writer through power cuts and kills: nothing that is not consumed is freed, and no position is lost."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

import pmwal
from pmwal.format.position import newest_position
from pmwal.opening import open_log
from pmwal.storage.positions import Look
from pmwal.testing import Recorder, Step
from pmwal.testing.power_cut import PowerCutModel
from processes import PATIENCE, child
from support import open_small, payloads

# -- power cuts


class Moment(NamedTuple):
    """What the medium may hold at one moment: images of the log, and of the position; and what was acknowledged durably by then."""

    logs: list[bytes]
    positions: list[bytes]
    durable: int
    last: int


class Shared:
    """The steps of a writer and of a consumer, in the order in which they were taken, and what each leaves on the medium."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.file = Path(f"{path}.consumers/nats")
        self.log = PowerCutModel(kind, path.read_bytes())
        self.versions = [self.file.read_bytes()]
        self.durable = self.last = 0
        self.moments: list[Moment] = []
        self.writer, self.consumer = Recorder(), Recorder()
        self.writer.after, self.consumer.after = self._by_writer, self._by_consumer

    def _by_writer(self, step: Step) -> None:
        if step.name == "sync position":
            self.versions = self.versions[-1:]
        elif self.log.settles(step):
            self._look()
            self.log.take(step)
        else:
            self.log.take(step)
        self._look()

    def _by_consumer(self, step: Step) -> None:
        if step.name == "sync position":
            self.versions = self.versions[-1:]
        elif step.name == "write":
            data = bytearray(self.file.read_bytes())
            data[step.offset : step.offset + step.length] = step.data
            self.versions.append(bytes(data))
        self._look()

    def _look(self) -> None:
        oldest, newest = bytearray(self.log.held), bytearray(self.log.held)
        mixed = bytearray(self.log.held)
        for place, (unit, versions) in enumerate(self.log.open.items()):
            at = unit * self.log.size
            oldest[at : at + self.log.size] = versions[0].data
            newest[at : at + self.log.size] = versions[-1].data
            mixed[at : at + self.log.size] = versions[-1 if place % 2 else 0].data
        self.moments.append(Moment(sorted({bytes(oldest), bytes(newest), bytes(mixed)}), self.versions[:], self.durable, self.last))


def history(shared: Shared, options: dict[str, Any]) -> None:
    """A writer and a consumer take turns: acknowledgements of both kinds, truncates, a full log, and a rollback."""
    wal = open_small(shared.path, seam=shared.writer, on_full="consumed", timeout=0, **options)
    reader = open_log(shared.path, "r", seam=shared.consumer)
    assert isinstance(reader, pmwal.Reader)
    consumer = reader.consumer("nats")

    def ack(seq: int, *, durable: bool = False) -> None:
        shared.last = seq
        consumer.ack(seq, durable=durable)
        shared.durable = seq if durable else shared.durable

    wal.extend([b"%d" % seq for seq in range(1, 7)])
    wal.commit()
    ack(2)
    wal.truncate(consumed=True)
    ack(3)
    ack(4, durable=True)
    ack(5)
    wal.truncate(consumed=True)
    wal.extend([bytes(2000)] * 5)
    wal.commit()
    ack(8)
    wal.extend([bytes(2000)] * 4)  # it does not fit, unless what is consumed is freed
    wal.rollback(after=12)
    wal.commit()
    ack(10)
    wal.truncate(consumed=True)
    for handle in (consumer, reader, wal):
        handle.close()


def problems(shared: Shared, scratch: Path) -> list[str]:
    """What is wrong with what power cuts leave: a position before the tail, before a durable one, or past the last one."""
    found: list[str] = []
    tails: dict[bytes, tuple[int, int]] = {}
    for number, moment in enumerate(shared.moments):
        for log in moment.logs:
            if log not in tails:
                scratch.write_bytes(log)
                with open_small(scratch) as wal:
                    tails[log] = wal.first_seq, wal.next_seq
            first_seq, _ = tails[log]
            for raw in moment.positions:
                stored = newest_position(raw)
                seq = -1 if stored is None else stored.position.seq
                if not moment.durable <= seq <= moment.last or seq < first_seq - 1:
                    found.append(f"{number}: position {seq}, tail {first_seq}, durable {moment.durable}, last {moment.last}")
    return found


def crashed(shm_dir: Path, kind: str, options: dict[str, Any], spoil: Callable[[Shared], None] | None = None) -> list[str]:
    path = shm_dir / "app.wal"
    open_small(path, size=16384, **options).close()
    with pmwal.open(path, "r") as reader:
        reader.consumer("nats").close()
    shared = Shared(path, kind)
    if spoil is not None:
        spoil(shared)
    history(shared, options)
    assert len(shared.moments) > 50
    return problems(shared, shm_dir / "image.wal")


@pytest.mark.both_engines
@pytest.mark.parametrize("ordering", ["strict", "pipelined"])
def test_power_cut_keeps_what_is_not_consumed(shm_dir: Path, ordering: str) -> None:
    """Whatever of both files has reached the disk: the tail has passed no record whose acknowledgement could be lost."""
    assert crashed(shm_dir, "page", {"medium": "file", "ordering": ordering}) == []


def test_power_cut_on_cache_lines_keeps_what_is_not_consumed(shm_dir: Path) -> None:
    """The same on persistent memory."""
    assert crashed(shm_dir, "pmem", {"medium": "emulated-dax"}) == []


@pytest.mark.both_engines
def test_position_that_is_not_synced_before_the_tail_moves_is_noticed(shm_dir: Path) -> None:
    """Negative control: without that sync a power cut can put a position before the tail."""

    def spoil(shared: Shared) -> None:
        shared.writer.sync_data = lambda fd: None  # type: ignore[method-assign]

    assert any("position 0, tail 3" in each for each in crashed(shm_dir, "page", {"medium": "file"}, spoil))


def test_durable_acknowledgement_that_is_not_synced_is_noticed(shm_dir: Path) -> None:
    """Negative control: the position could go back behind it."""

    def spoil(shared: Shared) -> None:
        shared.consumer.sync_data = lambda fd: None  # type: ignore[method-assign]

    assert any("durable 4" in each for each in crashed(shm_dir, "page", {"medium": "file"}, spoil))


# -- kills


class Words:
    """Numbers that a process leaves behind, whenever it is killed: in memory that it shares."""

    NAMES = ("begun", "tried", "done", "durable", "wrong", "opened")

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8 * len(self.NAMES))

    def say(self, name: str, number: int) -> None:
        at = 8 * self.NAMES.index(name)
        self._shared[at : at + 8] = number.to_bytes(8, "little")

    def heard(self, name: str) -> int:
        at = 8 * self.NAMES.index(name)
        return int.from_bytes(self._shared[at : at + 8], "little")

    def wait(self, name: str, past: int) -> None:
        """Until it has said a number past this one."""
        deadline = time.monotonic() + PATIENCE
        while self.heard(name) <= past:
            assert time.monotonic() < deadline, f"{name} is {self.heard(name)}, not past {past}"
            time.sleep(0.001)


def consume(pipe: Connection, path: Path, seed: int, words: Words) -> None:
    """Acknowledge each record, some durably."""
    del pipe
    chooser = Random(seed)
    with pmwal.open(path, "r") as reader, reader.consumer("nats") as consumer:
        expected = consumer.position
        words.say("begun", expected + 1)
        for record in consumer.follow():
            expected += 1
            if (record.seq, record.data) != (expected, b"%d" % expected):
                words.say("wrong", record.seq)
            durable = chooser.random() < 0.05
            words.say("tried", record.seq)
            consumer.ack(record.seq, durable=durable)
            words.say("durable" if durable else "done", record.seq)


def write(pipe: Connection, path: Path, words: Words) -> None:
    """Append for ever, and free only what is consumed."""
    del pipe
    with pmwal.open(path, on_full="consumed", consumers=["nats"]) as wal:
        words.say("opened", wal.next_seq)
        while True:
            seq = wal.append(b"%d" % wal.next_seq)
            if seq % 50 == 0:
                wal.truncate(consumed=True)


def stored(path: Path) -> int:
    with Look(f"{path}.consumers", "nats") as look:
        assert look.position is not None
        return look.position.seq


@pytest.mark.slow
@pytest.mark.both_engines
def test_thirty_kills_of_consumer_and_writer_lose_nothing(shm_dir: Path) -> None:
    """In turn: no position goes back, none is ahead of what was acknowledged, and each record is delivered in order."""
    path, chooser, reached = shm_dir / "app.wal", Random(16), 0
    open_small(path).close()
    with contextlib.ExitStack() as writers:
        writers.enter_context(child(write, path, Words()))
        for turn in range(30):
            words = Words()
            with child(consume, path, turn, words):
                words.wait("done", reached)
                time.sleep(chooser.uniform(0, 0.01))
                if turn % 2:
                    writers.close()  # which kills it
                    opened = Words()
                    writers.enter_context(child(write, path, opened))
                    opened.wait("opened", 0)
                    time.sleep(chooser.uniform(0, 0.01))
            assert words.heard("wrong") == 0
            assert words.heard("begun") == reached + 1
            done = max(words.heard("done"), words.heard("durable"))
            reached = stored(path)
            assert done <= reached <= words.heard("tried")
    with open_small(path) as wal:
        assert wal.first_seq <= reached + 1
        assert payloads(wal) == [b"%d" % seq for seq in range(wal.first_seq, wal.next_seq)]
