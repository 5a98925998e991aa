"""Consumers and their writer through power cuts and kills: nothing that is not consumed is freed, and no position is lost."""

from __future__ import annotations

import contextlib
import mmap
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import pytest

import pmwal
from pmwal.storage.positions import Look
from pmwal.testing._simulator.consuming import explore_consumed
from pmwal.testing._simulator.explore import History
from pmwal.testing._simulator.session import Setting
from processes import PATIENCE, child
from support import open_small, payloads

# -- power cuts


@pytest.mark.parametrize("engine_name", ["native", "python"])
@pytest.mark.parametrize(
    "setting",
    [Setting("page", "strict"), Setting("page", "pipelined"), Setting("pmem", "strict", align=64), Setting("pmem", "pipelined")],
    ids=lambda setting: "-".join(setting[:2]),
)
def test_power_cut_keeps_what_is_not_consumed(
    shm_dir: Path, monkeypatch: pytest.MonkeyPatch, setting: Setting, engine_name: str
) -> None:
    """Whatever of both files has reached the medium; the simulator's controls are the mistakes that this must notice."""
    monkeypatch.setenv("PMWAL_ENGINE", engine_name)
    assert explore_consumed(shm_dir, History(setting, (), 1)) > 200


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
