"""Servers without TLS, where TLS is asked for: they get nothing, at the first connection and at later ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import pmwal
from certificates import certificate
from commands import Cli
from nats_servers import Client, nats_server
from pmwal.ship import Options, Shipper, check, restore
from pmwal.ship.link import Link
from shipping import FAST, PERFECT, grow, run, ship, verdict

REFUSED = "does not use TLS, so nothing was sent to it"


class PlainServer:
    """A server that says what it is, without TLS, and keeps what it gets."""

    def __init__(self, port: int = 0, *, silent: bool = False) -> None:
        self.port = port
        self._silent = silent  # it does not say what it is, so the client waits for that
        self.got = b""
        self.connections = self.ended = 0

    @contextlib.asynccontextmanager
    async def running(self, **info: Any) -> AsyncIterator[PlainServer]:
        """It listens while the block runs."""
        said = {"server_id": "x", "version": "2.14.0", "max_payload": 1 << 20, "headers": True, "auth_required": True} | info

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            if not self._silent:
                writer.write(b"INFO " + json.dumps(said).encode() + b"\r\n")
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    self.got += data
                    if b"PING" in data:
                        writer.write(b"PONG\r\n")
            self.ended += 1
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("tls", Options(user="me:secret")), ("nats", Options(tls=ssl.create_default_context(), user="me:secret"))],
    ids=["tls://", "tls="],
)
@pytest.mark.parametrize("do", ["ship", "check", "restore"])
def test_server_without_tls_gets_nothing(tmp_path: Path, scheme: str, options: Options, do: str) -> None:
    """It is an error that says what to do, and is not tried again; an address or a context asks for TLS."""
    grow(tmp_path / "a.wal", 10)

    async def main() -> None:
        async with PlainServer().running() as server:
            to = f"{scheme}://127.0.0.1:{server.port}"
            asked = {
                "ship": lambda: Shipper(tmp_path / "a.wal", to=to, stream="LOGS", **options._asdict()).run(),
                "check": lambda: check(to=to, stream="LOGS", options=options),
                "restore": lambda: restore(tmp_path / "b.wal", from_=to, stream="LOGS", log="0" * 32, options=options),
            }
            with pytest.raises(pmwal.ShipError, match=f"127.0.0.1:{server.port} {REFUSED}; configure TLS there"):
                await asked[do]()
            assert (server.got, server.connections) == (b"", 1)

    run(main)


def test_password_is_sent_in_plain_text_only_without_tls_asked_for() -> None:
    """What the server of these tests sees if nobody asks for TLS: so it would see it."""

    async def main() -> None:
        async with PlainServer().running() as server:
            link = Link(f"nats://127.0.0.1:{server.port}", "LOGS", Options(user="me:secret"), timeout=0.5)
            with contextlib.suppress(Exception):
                await link.state()
            await link.close()
            assert b'"pass": "secret"' in server.got

    run(main)


@pytest.mark.parametrize("order", [lambda good, plain: [good, plain], lambda good, plain: [plain, good]], ids=["last", "first"])
def test_one_address_with_tls_is_for_all(tmp_path: Path, order: Callable[[str, str], list[str]]) -> None:
    """Of several addresses the one without TLS is a server that has to use it, too, wherever it is in the list."""
    grow(tmp_path / "a.wal", 10)

    async def main() -> None:
        async with PlainServer().running() as server:
            to = order("tls://127.0.0.1:1", f"nats://127.0.0.1:{server.port}")
            with pytest.raises(pmwal.ShipError, match=REFUSED):
                await Shipper(tmp_path / "a.wal", to=to, stream="LOGS", user="me:secret").run()
            assert server.got == b""

    run(main)


def test_server_without_tls_gets_nothing_when_the_connection_is_made_anew(tmp_path: Path) -> None:
    """Neither the password nor what is on its way: the shipper ends with the error, and what was buffered is not sent."""
    certified, key = certificate(tmp_path)
    more = f'tls {{ cert_file: "{certified}", key_file: "{key}" }}\nauthorization {{ user: me, password: secret }}'
    context = ssl.create_default_context(cafile=str(certified))
    path = tmp_path / "a.wal"
    grow(path, 100)

    async def main() -> None:
        with nats_server(tmp_path / "server", more=more) as server:
            async with Client(server, tls=context, user="me", password="secret") as client:
                await client.create()
                await ship(path, server, tls=context, user="me:secret")
                assert await verdict(client, 100) == PERFECT
            with pytest.raises(pmwal.ShipError, match=REFUSED):  # noqa: PT012 - the exit of the shipper may raise it, too
                async with Shipper(path, to=server.url, stream="LOGS", tls=context, user="me:secret", **FAST) as shipping:
                    await shipping.acked(100)
                    server.stop()
                    async with PlainServer(server.port).running() as plain:
                        grow(path, 100)
                        with pytest.raises(pmwal.ShipError, match=REFUSED):
                            await shipping.acked(200)
                        assert plain.connections
                        assert plain.got == b""

    run(main)


def test_what_is_buffered_is_not_sent_to_a_server_without_tls(tmp_path: Path) -> None:
    """The client keeps messages while it is not connected, and sends them when it is closed."""
    certified, key = certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certified))

    async def main() -> None:
        with nats_server(tmp_path / "server", more=f'tls {{ cert_file: "{certified}", key_file: "{key}" }}') as server:
            async with Client(server, tls=context) as client:
                await client.create()
            link = Link(server.url, "LOGS", Options(tls=context))
            await link.state()
            client = link._client
            server.stop()
            while client.is_connected:
                await asyncio.sleep(0.01)
            await client.publish("pmwal.x", b"secret")
            async with PlainServer(server.port, silent=True).running() as plain:
                while not plain.connections:
                    await asyncio.sleep(0.01)
                await link.close()
                while plain.connections > plain.ended:
                    await asyncio.sleep(0.01)
                assert plain.got == b""

    run(main)


def test_tls_is_used_with_a_server_that_leaves_it_to_its_clients(tmp_path: Path) -> None:
    """``allow_non_tls``: such a server does not ask for TLS, and takes it."""
    certified, key = certificate(tmp_path)
    more = f'tls {{ cert_file: "{certified}", key_file: "{key}" }}\nallow_non_tls: true'
    path = tmp_path / "a.wal"
    grow(path, 100)

    async def main() -> None:
        with nats_server(tmp_path / "server", more=more) as server:
            async with Client(server) as client:
                await client.create()
                await ship(path, server, tls=ssl.create_default_context(cafile=str(certified)))
                assert await verdict(client, 100) == PERFECT

    run(main)


def test_command_says_that_the_server_does_not_use_tls(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with --check: such a server is not one with which nothing is wrong."""
    monkeypatch.setenv("NATS_PASSWORD", "secret")
    log = tmp_path / "a.wal"
    grow(log, 10)
    with nats_server(tmp_path / "server") as server:
        to = ("--to", server.url.replace("nats:", "tls:"), "--stream", "LOGS", "--user", "me")
        for ran in (cli("ship", log, *to, "--once"), cli("ship", log, *to, "--check")):
            assert (ran.status, ran.out) == (1, b"")
            assert REFUSED in ran.err
            assert "give nats:// addresses only, without --tls-ca and --tls-cert" in ran.err


@pytest.mark.parametrize("address", ["", "nats://", "nats://x:99999", "http://x", "nats://x y", "wss://x"])
def test_address_that_cannot_be_one_is_refused_at_once(tmp_path: Path, address: str) -> None:
    """A server that is only down may come back; this one cannot."""
    with pytest.raises(ValueError, match="is no NATS server"):
        Shipper(tmp_path / "a.wal", to=f"nats://good,{address}", stream="LOGS")


WRONG = {
    "nkey": ["", "bad", "SUAHELLO"],
    "creds": [
        "",
        "hello",
        "-----BEGIN USER NKEY SEED-----\nSUHELLO\n------END USER NKEY SEED------\n",
        "-----BEGIN NATS USER JWT-----\nabc\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\nSUHELLO\n",
    ],
}


@pytest.mark.parametrize(("option", "content"), [(option, content) for option, contents in WRONG.items() for content in contents])
def test_file_that_has_no_key_is_named(tmp_path: Path, option: str, content: str) -> None:
    """For good, before anything is sent: credentials without a JWT are read by the client for ever, in the event loop's thread."""
    path, file, said = (
        tmp_path / "a.wal",
        tmp_path / "file",
        {"nkey": "seed of an nkey is", "creds": "credentials of a NATS user are"},
    )
    grow(path, 10)
    file.write_text(content)

    async def main() -> None:
        with pytest.raises(pmwal.ShipError, match=f"file: no {said[option]} in this file; give one"):
            await Shipper(path, to="nats://127.0.0.1:4", stream="LOGS", **{option: str(file)}, **FAST).run(once=True)

    run(main)
