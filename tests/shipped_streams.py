"""Logs and streams for tests of ``pmwal ship``: a server, a subject of its own for each test, and the arguments that name them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pmwal
from nats_servers import Client, NatsServer, nats_server


class Stream(NamedTuple):
    """A stream ``LOGS``, and the prefix of subjects that this test alone uses."""

    server: NatsServer
    prefix: str

    def to(self, *options: object) -> list[str]:
        """Arguments of ``ship``."""
        return ["--to", self.server.url, *self._named, *map(str, options)]

    def from_(self, uuid: str, *options: object) -> list[str]:
        """Arguments of ``restore``."""
        return ["--from", self.server.url, *self._named, "--log", uuid, *map(str, options)]

    @property
    def _named(self) -> list[str]:
        return ["--stream", "LOGS", "--prefix", self.prefix]

    def numbers(self) -> list[tuple[int, int]]:
        """The first and the last record of each message on these subjects, in order."""

        async def ask() -> list[tuple[int, int]]:
            async with Client(self.server) as client:
                found = [message for message in await client.messages() if message.subject.startswith(f"{self.prefix}.")]
            return [(int(message.headers["Pmwal-First"]), int(message.headers["Pmwal-Last"])) for message in found]

        return asyncio.run(ask())


def make_stream(server: NatsServer, name: str = "LOGS", *, login: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """Create a stream; with ``login`` as the connection needs it."""

    async def create() -> None:
        async with Client(server, **login or {}) as client:
            await client.create(name, **settings)

    asyncio.run(create())


_running = contextlib.ExitStack()


@cache
def running_server() -> NatsServer:
    """A server with a stream ``LOGS``, which runs from its first use on as long as this process's tests."""
    directory = _running.enter_context(tempfile.TemporaryDirectory(prefix="pmwal-test-"))
    server = _running.enter_context(nats_server(Path(directory)))
    make_stream(server)
    return server


def running_stream() -> Stream:
    """The stream of that server, with subjects that no other test uses."""
    return Stream(running_server(), f"pmwal.{uuid.uuid4().hex}")


@pytest.fixture(scope="session", autouse=True)
def servers_end() -> Iterator[None]:
    """The server ends with the tests."""
    with _running:
        yield


@pytest.fixture
def stream() -> Stream:
    """A stream with subjects that no other test uses."""
    return running_stream()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server of the test's own, without a stream."""
    with nats_server(tmp_path / "server") as found:
        yield found


def records_of(path: Path) -> list[tuple[int, int, int, bytes]]:
    """Number, kind, time and payload of each record."""
    with pmwal.open(path, "r") as reader:
        return [(record.seq, record.kind, record.time_ns, record.data) for record in reader]


def uuid_of(path: Path) -> str:
    """The identity of a log."""
    with pmwal.open(path, "r") as reader:
        return reader.uuid
