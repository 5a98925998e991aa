"""A shipper that is killed, and a collector that fails at random, while a writer frees what was acknowledged: nothing is lost."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import pmwal
from collectors import Answer, Collector, Drop, Reply, Watch, collector, firsts, position
from processes import PATIENCE
from servers import wait_for

RECORDS = 1500
SHIP = """
import asyncio, sys
from pmwal.ship.otlp import OtlpShipper
asyncio.run(OtlpShipper(sys.argv[1], to=sys.argv[2], batch=20).run())
"""
EARLY = SHIP.replace(
    "asyncio.run(OtlpShipper",
    """
class Early(OtlpShipper):
    def _until_taken(self, run, source, body):
        source.ack()
        return super()._until_taken(run, source, body)
asyncio.run(Early""",
)
"""A mistake: it acknowledges before it sends."""


def failing(random: Random) -> Iterator[Reply]:
    """Mostly success; else no answer, one that is cut off after the records were taken, or one that asks to come back."""
    while True:
        chance = random.random()
        if chance < 0.9:
            yield Answer()
        else:
            yield random.choice([Drop(), Drop(unread=True), Answer(cut=10), Answer(503, {"Retry-After": "0"}), Answer(429)])


@contextlib.contextmanager
def shipping(path: Path, to: Collector, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ships until it is killed, at the latest when the block ends."""
    process = subprocess.Popen([sys.executable, "-P", "-c", script, str(path), to.url])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def write(path: Path, count: int) -> None:
    """Append so many records to a ring that has room for a part of them, and wait for the consumer."""
    with pmwal.open(path, size="32KiB", on_full="consumed", consumers=["otlp"], timeout=PATIENCE) as wal:
        for number in range(1, count + 1):
            wal.append(b"%d" % number + b"." * 40)


def ship_with_kills(path: Path, random: Random, to: Collector, script: str, kills: int) -> None:
    """Write and ship all records, with a new shipper after each kill."""
    writer = threading.Thread(target=write, args=(path, RECORDS))
    writer.start()
    try:
        wait_for(path.exists)
        for left in reversed(range(kills + 1)):
            stop = len(to.seen) + random.randint(1, 10) if left else RECORDS
            with shipping(path, to, script) as process:
                wait_for(lambda stop=stop: len(to.seen) >= stop or is_shipped(path), process)
    finally:
        writer.join(PATIENCE)


def is_shipped(path: Path) -> bool:
    """Whether all records are acknowledged."""
    return Path(f"{path}.consumers/otlp").exists() and position(path) == RECORDS


@pytest.mark.parametrize("seed", range(2))
def test_killed_shipper_and_failing_collector_lose_nothing(path: Path, seed: int) -> None:
    """All records arrive, in their order but for repetitions, and none was acknowledged, let alone freed, before it had."""
    random, watch = Random(seed), Watch(path)
    with collector(more=failing(Random(seed)), look=watch) as got:
        ship_with_kills(path, random, got, SHIP, kills=5)
    assert firsts(got.seqs) == list(range(1, RECORDS + 1))
    assert [record.body for record in got.records] == [f"{record.seq}{'.' * 40}" for record in got.records]
    for request in got.seen:
        assert [record.seq for record in request] == list(range(request[0].seq, request[0].seq + len(request)))
    assert watch.early == []


def test_early_acknowledgement_loses_records_and_is_noticed(path: Path) -> None:
    """Negative control of the test above."""
    random, watch = Random(0), Watch(path)
    with collector(more=failing(Random(0)), look=watch) as got:
        ship_with_kills(path, random, got, EARLY, kills=5)
    assert watch.early != []
