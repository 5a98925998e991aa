"""Shippers in a process of their own, in turns with bare nats-py: processor time of a record, latency, and idle cost.

The server is another process. All bare messages name the one before them on the subject, as a shipper's do, and each is
acknowledged before the next one is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pmwal
from benchmark import child
from pmwal.format.frame import ENTRY
from pmwal.ship import SetShipper, Shipper
from pmwal.ship.chain import EXPECTED_SEQUENCE, EXPECTED_STREAM
from pmwal.testing.bench.workloads import PAYLOAD

RECORDS = 1024  # of a frame
SLOTS = 64  # of the set
_BODY = RECORDS * (ENTRY.size + len(PAYLOAD))
_STREAM = "LOGS"
_PAUSE = 0.015  # seconds before each message whose latency is measured: longer than a shipper lingers
_CALM = 3  # pieces of idle time before the first one that counts: a set looks at an idle log ever more rarely
_SMALL = "64KiB"
_PATIENCE = 60  # seconds for an answer
_TIMEOUT = 1800  # of the whole process


class Amount(NamedTuple):
    """How much is measured: ``frames``, ``messages`` of one record and ``latencies`` in a round, ``idle`` seconds in a piece."""

    rounds: int
    ring: int
    frames: int
    messages: int
    latencies: int
    idle: float


class Shipped(NamedTuple):
    """What the child has found.

    - Nanoseconds of processor time for a record, of each round: ``shipper``, ``bodies`` (bare, of a frame's size), ``single``
      (bare, a message for each record).
    - Nanoseconds until a record is acknowledged, of each one: ``acked``, ``bare``.
    - ``idle``: shares of a core of each piece of time, by situation.
    """

    shipper: list[float]
    bodies: list[float]
    single: list[float]
    acked: list[int]
    bare: list[int]
    idle: dict[str, list[float]]


def measure(url: str, directory: Path, amount: Amount) -> Shipped:
    """All figures, from a child."""
    command = child.command("shippers", url, str(directory), json.dumps(amount))
    found = subprocess.run(command, env=child.environment(), capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if found.returncode:
        raise RuntimeError(f"the process of the shippers ended with {found.returncode}: {found.stderr[-2000:]}")
    return Shipped(*json.loads(found.stdout))


class _Bare:
    """One subject to which nats-py publishes."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._subject = f"pmwal.{name}"
        self._last = 0

    async def publish(self, body: bytes) -> None:
        """Return once the stream has it."""
        headers = {EXPECTED_SEQUENCE: str(self._last), EXPECTED_STREAM: _STREAM}
        reply = await self._client.request(self._subject, body, timeout=_PATIENCE, headers=headers)
        self._last = int(json.loads(reply.data)["seq"])

    async def processor_ns(self, body: bytes, count: int) -> int:
        """Processor time of so many messages, after one that is not counted."""
        await self.publish(body)
        begun = time.process_time_ns()
        for _ in range(count):
            await self.publish(body)
        return time.process_time_ns() - begun


async def _shipper_ns(url: str, path: Path, amount: Amount) -> float:
    """Processor time for a record of a log that is there already; the first frame is not counted."""
    with pmwal.open(path, "x", size=amount.ring, commit="manual") as wal:
        for _ in range(amount.frames + 1):
            wal.extend([PAYLOAD] * RECORDS)
        wal.commit()
    async with Shipper(path, to=url, stream=_STREAM, frame=_BODY) as shipper:
        await shipper.acked(RECORDS)
        begun, sent = time.process_time_ns(), shipper.progress.records
        await shipper.acked(RECORDS * (amount.frames + 1))
        took, counts = time.process_time_ns() - begun, shipper.progress
    path.unlink()
    if counts.frames != amount.frames + 1 or counts.retries:
        raise RuntimeError(f"{amount.frames + 1} frames were shipped in {counts.frames} messages, with {counts.retries} retries")
    return took / (counts.records - sent)


async def _latencies(url: str, client: Any, path: Path, amount: Amount) -> tuple[list[int], list[int]]:
    """Nanoseconds from the call of append until the stream has the record, and of a bare message, in turns."""
    acked: list[int] = []
    bare: list[int] = []
    direct = _Bare(client, "latency")
    with pmwal.open(path, "x", size=amount.ring) as wal:
        async with Shipper(path, to=url, stream=_STREAM) as shipper:

            async def appended() -> None:
                await shipper.acked(wal.append(PAYLOAD))

            await appended()
            for _ in range(amount.rounds * amount.latencies):
                acked.append(await _took(appended))
                bare.append(await _took(lambda: direct.publish(PAYLOAD)))
    path.unlink()
    return acked, bare


async def _took(action: Callable[[], Awaitable[None]]) -> int:
    await asyncio.sleep(_PAUSE)
    begun = time.perf_counter_ns()
    await action()
    return time.perf_counter_ns() - begun


@contextlib.asynccontextmanager
async def _one(url: str, path: Path, *, closed: bool) -> AsyncIterator[None]:
    """A shipper that has shipped all of a log, which a writer has open or not."""
    with pmwal.open(path, "x", size=_SMALL) as wal:
        wal.append(PAYLOAD)
        async with Shipper(path, to=url, stream=_STREAM) as shipper:
            await shipper.acked(1)
            if closed:
                wal.close()
            yield


@contextlib.asynccontextmanager
async def _set(url: str, directory: Path) -> AsyncIterator[None]:
    """A shipper that has shipped all of a set, whose logs writers have open."""
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        for slot in range(SLOTS):
            wal = stack.enter_context(pmwal.open(directory / f"{slot}.wal", "x", size=_SMALL))
            wal.append(PAYLOAD)
        async with SetShipper(directory, to=url, stream=_STREAM) as shipper:
            while sum(each.acknowledged for each in shipper.progress.values()) < SLOTS:
                if shipper.problems:
                    raise RuntimeError(f"logs of the set are not shipped: {shipper.problems}")
                await asyncio.sleep(0.1)
            yield


async def _idle(shipping: contextlib.AbstractAsyncContextManager[None], amount: Amount) -> list[float]:
    """Shares of a core, of pieces of time in which nothing is shipped, once nothing was shipped for a while."""
    shares = []
    async with shipping:
        await asyncio.sleep(_CALM * amount.idle)
        for _ in range(amount.rounds):
            processor, begun = time.process_time_ns(), time.perf_counter_ns()
            await asyncio.sleep(amount.idle)
            shares.append((time.process_time_ns() - processor) / (time.perf_counter_ns() - begun))
    return shares


async def _run(url: str, directory: Path, amount: Amount) -> Shipped:
    client = await import_module("nats").connect(url, max_reconnect_attempts=1, reconnect_time_wait=0.1)
    try:
        await client.jetstream().add_stream(name=_STREAM, subjects=["pmwal.>"])
        shipper, bodies, single = [], [], []
        for turn in range(amount.rounds + 1):
            ours = await _shipper_ns(url, directory / f"{turn}.wal", amount)
            floor = await _Bare(client, f"bodies-{turn}").processor_ns(bytes(_BODY), amount.frames)
            one = await _Bare(client, f"single-{turn}").processor_ns(PAYLOAD, amount.messages)
            if turn:
                shipper.append(ours)
                bodies.append(floor / (amount.frames * RECORDS))
                single.append(one / amount.messages)
        acked, bare = await _latencies(url, client, directory / "latency.wal", amount)
    finally:
        await client.close()
    idle = {
        "one log, a writer open": await _idle(_one(url, directory / "open.wal", closed=False), amount),
        "one log, no writer": await _idle(_one(url, directory / "closed.wal", closed=True), amount),
        f"a set of {SLOTS} logs": await _idle(_set(url, directory / "set"), amount),
    }
    return Shipped(shipper, bodies, single, acked, bare, idle)


def main(arguments: Sequence[str]) -> None:
    """The child: all figures, as JSON."""
    url, directory, amount = arguments
    print(json.dumps(asyncio.run(_run(url, Path(directory), Amount(*json.loads(amount))))))


if __name__ == "__main__":
    main(sys.argv[1:])
