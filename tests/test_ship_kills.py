"""Shippers, servers and writers that are killed, again and again: every record once, in order, and right."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from nats_servers import Client, NatsServer, nats_cluster, nats_server
from processes import PATIENCE
from shipping import PERFECT, grow, run, ship, verdict

PROGRAM = Path(__file__).with_name("shipping_programs.py")


class Program:
    """A process that is started again whenever it was killed."""

    def __init__(self, errors: Path, *arguments: object) -> None:
        self._errors = errors
        self._arguments = [os.fspath(PROGRAM), *map(str, arguments)]
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self) -> None:
        """Start it."""
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen([sys.executable, *self._arguments], stdout=errors, stderr=errors)

    def kill(self) -> None:
        """Kill it, if it has not ended, and start it again."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self.kills += 1
            self.start()

    @property
    def ended(self) -> bool:
        """Whether it has done what it had to do."""
        assert self._process is not None
        return self._process.poll() is not None

    def finish(self) -> None:
        """Wait until it has."""
        assert self._process is not None
        assert self._process.wait(PATIENCE) == 0, self._errors.read_text()

    def end(self) -> None:
        """Kill it, and leave it. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def programs(tmp_path: Path, count: int, servers: Sequence[NatsServer]) -> Iterator[tuple[Program, Program]]:
    """A writer and a shipper of one log."""
    log = tmp_path / "a.wal"
    writer = Program(tmp_path / "writer.err", "write", log, count)
    shipper = Program(tmp_path / "shipper.err", "ship", log, count, *(server.url for server in servers))
    writer.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not log.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        shipper.start()
        yield writer, shipper
    finally:
        writer.end()
        shipper.end()


async def kill_all(
    tmp_path: Path, servers: Sequence[NatsServer], client: Client, count: int, *, shippers: int, kills: int, seed: int
) -> None:
    """Kill the shipper, a server, and now and then the writer, that often, while ``count`` records are shipped."""
    randomly = random.Random(seed)
    with programs(tmp_path, count, servers) as (writer, shipper):
        left = ["shipper"] * shippers + ["server"] * kills + ["writer"] * (shippers // 3)
        randomly.shuffle(left)
        for victim in left:
            await asyncio.sleep(randomly.uniform(0.05, 0.4))
            if victim == "shipper":
                shipper.kill()
            elif victim == "writer":
                writer.kill()
            else:
                server = randomly.choice(servers)
                server.kill()
                await asyncio.sleep(randomly.uniform(0, 0.3))
                await asyncio.to_thread(server.start)
        await asyncio.to_thread(writer.finish)
        await asyncio.to_thread(shipper.finish)
        assert await verdict(client, count) == PERFECT, f"seed {seed}"


@pytest.mark.parametrize(
    ("count", "shippers", "kills"),
    [(4000, 3, 2), pytest.param(60000, 30, 10, marks=pytest.mark.rigs)],
)
def test_kills_of_shipper_server_and_writer_lose_and_repeat_nothing(count: int, shippers: int, kills: int, tmp_path: Path) -> None:
    """The log is truncated behind the shipper, meanwhile."""
    seed = random.randrange(1 << 32)

    async def main() -> None:
        with nats_server(tmp_path / "server") as server:
            async with Client(server) as client:
                await client.create()
                await kill_all(tmp_path, [server], client, count, shippers=shippers, kills=kills, seed=seed)

    run(main)


@pytest.mark.rigs
def test_kills_in_a_cluster_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Three replicas, of which a random one is killed, while the leader steps down again and again."""
    seed = random.randrange(1 << 32)

    async def main() -> None:
        with nats_cluster(tmp_path / "cluster") as servers:
            async with Client(*servers) as client:
                await client.create(num_replicas=3)
                stepping = asyncio.create_task(step_down(client))
                try:
                    await kill_all(tmp_path, servers, client, 20000, shippers=6, kills=6, seed=seed)
                finally:
                    stepping.cancel()

    run(main)


async def step_down(client: Client) -> None:
    """Let the leader of the stream step down, for ever."""
    while True:
        await asyncio.sleep(1)
        await client.ask("STREAM.LEADER.STEPDOWN.LOGS")


@pytest.mark.rigs
def test_four_shippers_in_a_cluster_ship_each_record_once(tmp_path: Path) -> None:
    """They all have the same log, under other names of the consumer."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 3000)
        with nats_cluster(tmp_path / "cluster") as servers:
            async with Client(*servers) as client:
                await client.create(num_replicas=3)
                stepping = asyncio.create_task(step_down(client))
                try:
                    await asyncio.gather(*[ship(path, *servers, consumer=f"consumer{at}") for at in range(4)])
                finally:
                    stepping.cancel()
                assert await verdict(client, 3000) == PERFECT

    run(main)
