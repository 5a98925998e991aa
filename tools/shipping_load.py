"""Ship logs that grow at a steady rate to one NATS server, as that many machines would; say what that costs each side.

    .venv/bin/python tools/shipping_load.py [--load LOGS RATE LINGER]... [--seconds N] [--path DIR]

A load is a number of logs, the records that each gets in a second, evenly, and the seconds that a shipper lingers. Each log has
a shipper with a connection of its own, all of them in this process; one other process appends records of 128 bytes. Logs and the
server's store are in DIR. The table is that of docs/guide-shipping.md. A shipper that loses records is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import platform
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pmwal
from benchmark import child, jetstream
from pmwal.ship import Progress, Shipper
from pmwal.testing.bench.workloads import PAYLOAD

STREAM = "LOGS"
LOADS = ((1, 10, 0.01), (100, 10, 0.01), (1, 1000, 0.01), (100, 100, 1.0))
_TICK = 0.002  # seconds between two looks of the writer at what is due
_SIZE = "1MiB"
_CALM = 3.0  # seconds before those that count


class Load(NamedTuple):
    """That many logs, each of which gets ``rate`` records in a second; ``linger`` in seconds."""

    logs: int
    rate: int
    linger: float


class Cost(NamedTuple):
    """Of one second: ``messages``, ``records``, bytes ``stored``, processor seconds; and the ``memory`` of the server in bytes."""

    messages: float
    records: float
    stored: float
    shippers: float
    server: float
    memory: int


def loaded(logs: float, rate: float, linger: float) -> Load:
    """The load of these numbers."""
    return Load(int(logs), int(rate), linger)


def write(directory: Path, load: Load) -> None:
    """Append at the rate of the load, until standard input ends."""
    with contextlib.ExitStack() as stack:
        logs = [
            stack.enter_context(pmwal.open(directory / f"{at}.wal", "x", size=_SIZE, on_full="overwrite"))
            for at in range(load.logs)
        ]
        for wal in logs:
            wal.append(PAYLOAD)
        print("ready", flush=True)
        waiting = select.poll()
        waiting.register(sys.stdin, select.POLLIN | select.POLLHUP)
        begun, done = time.monotonic(), 0
        while not waiting.poll(1000 * _TICK):
            due = int((time.monotonic() - begun) * load.rate * load.logs)
            for number in range(done, due):
                logs[number % load.logs].append(PAYLOAD)
            done = due


async def measure(url: str, server: Any, directory: Path, load: Load, seconds: float) -> Cost:
    """The cost of a load; ``server`` is the server's process."""
    client = await import_module("nats").connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name=STREAM, subjects=["pmwal.*"])
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        shippers = [
            await stack.enter_async_context(
                Shipper(directory / f"{at}.wal", to=url, stream=STREAM, linger=load.linger, notify=_refuse)
            )
            for at in range(load.logs)
        ]
        await asyncio.gather(*[shipper.acked(1) for shipper in shippers])
        await asyncio.sleep(_CALM)
        before = await _look(jetstream, server, shippers)
        await asyncio.sleep(seconds)
        after = await _look(jetstream, server, shippers)
    time_taken, *counts = (end - begin for begin, end in zip(before, after, strict=True))
    messages, records, stored, shipping, serving = (count / time_taken for count in counts)
    return Cost(messages, records, stored, shipping, serving, int(server.memory_info().rss))


async def _look(jetstream: Any, server: Any, shippers: Sequence[Shipper]) -> tuple[float, ...]:
    """The time, and what is counted, in the order of ``Cost``."""
    progress: list[Progress] = [shipper.progress for shipper in shippers]
    state = (await jetstream.stream_info(STREAM)).state
    times = server.cpu_times()
    frames, records = sum(each.frames for each in progress), sum(each.records for each in progress)
    return time.monotonic(), frames, records, state.bytes, time.process_time(), times.user + times.system


def _refuse(problem: str) -> None:
    raise RuntimeError(problem)


def run(load: Load, seconds: float, path: Path | None) -> Cost:
    """Measure a load with a server and a writer of its own."""
    psutil = import_module("psutil")
    with tempfile.TemporaryDirectory(dir=path) as inner:
        directory = Path(inner)
        command = [sys.executable, "-P", __file__, "--write", str(directory), *map(str, load)]
        with jetstream.server(directory) as url:
            (server,) = (each for each in psutil.Process().children() if str(directory / "server.conf") in each.cmdline())
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child.environment()) as writer:
                assert writer.stdout is not None
                assert writer.stdin is not None
                try:
                    if writer.stdout.readline() != b"ready\n":
                        raise RuntimeError("the writer has ended")
                    return asyncio.run(measure(url, server, directory, load, seconds))
                finally:
                    writer.stdin.close()


def row(load: Load, cost: Cost) -> str:
    """A row of the table."""
    cells = [
        f"{load.logs}",
        f"{load.rate}",
        f"{load.linger:g} s",
        f"{cost.records:,.0f}",
        f"{cost.messages:,.0f}",
        f"{cost.stored / 1e3:,.1f} kB",
        f"{100 * cost.shippers:.1f} %",
        f"{100 * cost.server:.1f} %",
        f"{1e6 * cost.server / cost.messages:.0f} µs" if cost.messages else "",
        f"{cost.memory / (1 << 20):.0f} MiB",
    ]
    return f"| {' | '.join(cells)} |"


HEADINGS = (
    "logs",
    "records/s of each",
    "`--linger`",
    "records/s",
    "messages/s",
    "stored/s",
    "all shippers, of a core",
    "server, of a core",
    "server, a message",
    "server's memory",
)


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    if arguments[:1] == ["--write"]:
        directory, *numbers = arguments[1:]
        write(Path(directory), loaded(*map(float, numbers)))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--load", nargs=3, type=float, action="append", metavar=("LOGS", "RATE", "LINGER"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--path", type=Path, metavar="DIR")
    args = parser.parse_args(arguments)
    missing = jetstream.missing()
    if missing is not None:
        print(missing, file=sys.stderr)
        return 1
    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for each in args.load or LOADS:
        load = loaded(*each)
        print(row(load, run(load, args.seconds, args.path)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
