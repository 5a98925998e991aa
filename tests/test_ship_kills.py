"""Shippers, servers and writers that are killed, again and again: every record once, in order, and right."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from nats_servers import Client, NatsServer, nats_cluster, nats_server
from pmwal.ship.link import Stored
from processes import PATIENCE
from shipped_streams import uuid_of
from shipping import FAST, PERFECT, both_forms, grow, judge, records_in, run, ship, verdict

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


class Logs:
    """Logs in a directory, with a writer and a shipper each."""

    def __init__(self, directory: Path, logs: int, count: int, form: str, servers: Sequence[NatsServer]) -> None:
        urls = [server.url for server in servers]
        self.paths = [directory / f"{at}.wal" for at in range(logs)]
        self.writers = [Program(path.with_suffix(".writer"), "write", path, count) for path in self.paths]
        self.shippers = [Program(path.with_suffix(".shipper"), "ship", path, count, form, *urls) for path in self.paths]

    async def __aenter__(self) -> Logs:
        for writer in self.writers:
            writer.start()
        deadline = time.monotonic() + PATIENCE
        while not all(path.exists() for path in self.paths):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        for shipper in self.shippers:
            shipper.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        for program in (*self.writers, *self.shippers):
            program.end()

    async def finish(self) -> None:
        """Let the writers append the last records, and wait until all have ended."""
        for path in self.paths:
            path.with_name(f"{path.name}.go").touch()
        for program in (*self.writers, *self.shippers):
            await asyncio.to_thread(program.finish)


class Plan(NamedTuple):
    """How many logs there are, of how many records, and what is killed how often while they are shipped.

    ``leader`` is the server that leads the stream at that time; with ``step down`` it goes on, and another one leads.
    """

    logs: int
    count: int
    kills: Mapping[str, int]


async def kill_all(tmp_path: Path, servers: Sequence[NatsServer], client: Client, plan: Plan, form: str) -> None:
    """Kill shippers, writers and servers at random moments; every record is there once, in order and right."""
    seed = random.randrange(1 << 32)
    randomly = random.Random(seed)
    victims = [name for name, times in plan.kills.items() for _ in range(times)]
    randomly.shuffle(victims)
    begun = time.monotonic()
    async with Logs(tmp_path, plan.logs, plan.count, form, servers) as logs:
        for victim in victims:
            await asyncio.sleep(randomly.uniform(0.05, 0.4))
            if victim in ("shipper", "writer"):
                randomly.choice(logs.shippers if victim == "shipper" else logs.writers).kill()
            elif victim == "step down":
                await client.ask("STREAM.LEADER.STEPDOWN.LOGS")
            else:
                server = await leader(client, servers) if victim == "leader" else randomly.choice(servers)
                server.kill()
                await asyncio.sleep(randomly.uniform(0, 0.3))
                await asyncio.to_thread(server.start)
        await logs.finish()
        assert sum(shipper.kills for shipper in logs.shippers) == plan.kills["shipper"]
        by_log: dict[str, list[Stored]] = {f"pmwal.{uuid_of(path)}": [] for path in logs.paths}
        for message in await client.messages():
            by_log[message.subject].append(message)
    verdicts = [judge(records_in(messages), plan.count) for messages in by_log.values()]
    print(f"{form}: {plan}: {verdicts}, {sum(map(len, by_log.values()))} messages, {time.monotonic() - begun:.0f} s")
    assert verdicts == [PERFECT] * plan.logs, f"seed {seed}"


async def leader(client: Client, servers: Sequence[NatsServer]) -> NatsServer:
    """The server that leads the stream; patiently, for there may be none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = (await client.ask("STREAM.INFO.LOGS")).get("cluster", {}).get("leader")
        for at, server in enumerate(servers):
            if found == f"n{at}":
                return server
        await asyncio.sleep(0.05)
    raise TimeoutError("the stream has no leader")


@both_forms
@pytest.mark.parametrize(
    "plan",
    [
        Plan(1, 4000, {"shipper": 3, "server": 2, "writer": 1}),
        pytest.param(Plan(2, 100_000, {"shipper": 30, "server": 10, "writer": 10}), marks=pytest.mark.nightly),
    ],
    ids=["few", "many"],
)
def test_kills_of_shipper_server_and_writer_lose_and_repeat_nothing(plan: Plan, form: str, tmp_path: Path) -> None:
    """The logs are truncated once they are shipped, meanwhile."""

    async def main() -> None:
        with nats_server(tmp_path / "server") as server:
            async with Client(server) as client:
                await client.create()
                await kill_all(tmp_path, [server], client, plan, form)

    run(main)


@both_forms
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(1, 20_000, {"shipper": 3, "server": 2, "leader": 2, "step down": 3}), marks=pytest.mark.rigs),
        pytest.param(
            Plan(2, 50_000, {"shipper": 10, "server": 5, "leader": 5, "step down": 5, "writer": 5}), marks=pytest.mark.nightly
        ),
    ],
    ids=["few", "many"],
)
def test_kills_in_a_cluster_lose_and_repeat_nothing(plan: Plan, form: str, tmp_path: Path) -> None:
    """Three replicas; any of them is killed, or the leader, or another one is made to lead."""

    async def main() -> None:
        with nats_cluster(tmp_path / "cluster") as servers:
            async with Client(*servers) as client:
                await client.create(num_replicas=3)
                await kill_all(tmp_path, servers, client, plan, form)

    run(main)


async def step_down(client: Client) -> None:
    """Let the leader of the stream step down, for ever."""
    while True:
        await asyncio.sleep(1)
        await client.ask("STREAM.LEADER.STEPDOWN.LOGS")


@both_forms
@pytest.mark.parametrize(
    ("shippers", "replicas", "count"),
    [
        pytest.param(4, 3, 3000, marks=pytest.mark.rigs),
        pytest.param(2, 1, 50_000, marks=pytest.mark.nightly),
        pytest.param(4, 3, 50_000, marks=pytest.mark.nightly),
    ],
)
def test_several_shippers_of_one_log_ship_each_record_once(shippers: int, replicas: int, count: int, tmp_path: Path) -> None:
    """They have other names of the consumer; of three replicas, another one is made to lead again and again."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, count, size="16MiB")
        with nats_cluster(tmp_path / "cluster") as servers:
            async with Client(*servers) as client:
                await client.create(num_replicas=replicas)
                stepping = asyncio.create_task(step_down(client) if replicas > 1 else asyncio.sleep(0))
                begun = time.monotonic()
                try:
                    await asyncio.gather(*[ship(path, *servers, consumer=f"consumer{at}") for at in range(shippers)])
                finally:
                    stepping.cancel()
                found = await verdict(client, count)
                print(f"{FAST['form']}: {shippers} shippers, R{replicas}, {count}: {found}, {time.monotonic() - begun:.0f} s")
                assert found == PERFECT

    run(main)
