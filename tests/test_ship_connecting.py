"""Connecting to servers: TLS, credentials, several addresses, and servers that are not there."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest

import pmwal
from certificates import certificate
from commands import Cli
from nats_accounts import Account
from nats_servers import Client, NatsServer, free_ports, nats_server
from pmwal.ship import Options, Shipper, restore
from pmwal.ship.link import Link, Unavailable, parse_headers
from processes import PATIENCE
from shipped_streams import make_stream, uuid_of
from shipping import FAST, PERFECT, SHIPPER_PUBLISHES, contents, grow, run, ship, shipper, verdict


def test_tls_is_used_and_checked(tmp_path: Path) -> None:
    """With the authority's certificate it ships and restores; without, the server is not believed."""
    certified, key = certificate(tmp_path)
    more = f'tls {{ cert_file: "{certified}", key_file: "{key}" }}'
    context = ssl.create_default_context(cafile=str(certified))

    async def main() -> None:
        path, again = tmp_path / "a.wal", tmp_path / "b.wal"
        grow(path, 100)
        with nats_server(tmp_path / "server", more=more) as server:
            async with Client(server, tls=context) as client:
                await client.create()
                await ship(path, server, tls=context)
                assert await verdict(client, 100) == PERFECT
                await restore(again, from_=server.url, stream="LOGS", log=uuid_of(path), options=Options(tls=context))
                assert contents(again) == contents(path)
                async with shipper(path, server) as shipping:
                    while "certificate" not in shipping.problem.lower():
                        await asyncio.sleep(0.05)

    run(main)


def test_certificate_of_the_client_is_shown(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a server that takes connections from those only who have one of its authority."""
    monkeypatch.setattr("pmwal.ship.relay._PATIENCE", 0.0)
    certified, key = certificate(tmp_path)
    more = f'tls {{ cert_file: "{certified}", key_file: "{key}", ca_file: "{certified}", verify: true }}'
    context = ssl.create_default_context(cafile=str(certified))
    context.load_cert_chain(certified, key)
    log, shown = tmp_path / "a.wal", ("--tls-cert", certified, "--tls-key", key)
    grow(log, 100)
    with nats_server(tmp_path / "server", more=more) as server:
        make_stream(server, login={"tls": context})
        to = ("--to", server.url, "--stream", "LOGS", "--once", "--tls-ca", certified)
        without = cli("ship", log, *to)
        assert (without.status, "given up" in without.err) == (1, True)
        ran = cli("ship", log, *to, *shown)
        assert (ran.status, ran.text.partition(";")[0]) == (0, f"{log}: acknowledged up to record 100")


def test_nkey_is_used(tmp_path: Path) -> None:
    """The server knows the public key, and the shipper has a file with the seed."""
    nkeys = pytest.importorskip("nkeys")
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_bytes(seed)
    public = nkeys.from_seed(seed).public_key.decode()

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 100)
        more = f"authorization {{ users: [ {{ nkey: {public} }}, {{ user: admin, password: secret }} ] }}"
        with nats_server(tmp_path / "server", more=more) as server:
            async with Client(server, user="admin", password="secret") as client:
                await client.create()
                await ship(path, server, nkey=str(tmp_path / "seed"))
                assert await verdict(client, 100) == PERFECT
                with pytest.raises(pmwal.ShipError, match="check the user, the credentials or the nkey"):
                    await ship(path, server)

    run(main)


def test_credentials_of_an_account_are_used(cli: Cli, tmp_path: Path) -> None:
    """A server in operator mode takes the user's token, with the documented permissions; one of another account is refused."""
    pytest.importorskip("nkeys")
    account, log, again = Account(), tmp_path / "a.wal", tmp_path / "b.wal"
    admin = account.credentials(tmp_path / "admin.creds")
    may = account.credentials(tmp_path / "ship.creds", pub=list(SHIPPER_PUBLISHES), sub=["_INBOX.>"])
    foreign = Account().credentials(tmp_path / "foreign.creds")
    grow(log, 100)
    with nats_server(tmp_path / "server", more=account.configuration) as server:
        make_stream(server, login={"user_credentials": os.fspath(admin)})
        to = ("--to", server.url, "--stream", "LOGS", "--once")
        for creds in (("--creds", foreign), ()):
            refused = cli("ship", log, *to, *creds)
            assert (refused.status, "check the user, the credentials or the nkey" in refused.err) == (1, True)
        ran = cli("ship", log, *to, "--creds", may)
        assert (ran.status, ran.text.partition(";")[0]) == (0, f"{log}: acknowledged up to record 100")
        from_ = ("--from", server.url, "--stream", "LOGS", "--log", uuid_of(log))
        assert cli("restore", again, *from_, "--creds", admin).status == 0
    assert contents(again) == contents(log)


def test_server_that_is_there_is_found_among_others(tmp_path: Path) -> None:
    """Nobody listens on the first address."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 100)
        with nats_server(tmp_path / "server") as server:
            async with Client(server) as client:
                await client.create()
                to = f"nats://127.0.0.1:{free_ports(1)[0]},{server.url}"
                await Shipper(path, to=to, stream="LOGS", **FAST).run(once=True)
                assert await verdict(client, 100) == PERFECT

    run(main)


def test_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    """The shipper says why it waits. What runs once gives up in the end."""

    async def main() -> None:
        path = tmp_path / "a.wal"
        grow(path, 100)
        with nats_server(tmp_path / "server") as server:
            async with Client(server) as client:
                await client.create()
            server.stop()
            async with shipper(path, server) as shipping:
                while not shipping.problem:
                    await asyncio.sleep(0.05)
                server.start()
                await shipping.acked(100)

    run(main)


def test_shipper_that_runs_once_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is started by the clock must not pile up."""
    monkeypatch.setattr("pmwal.ship.relay._PATIENCE", 0.0)
    monkeypatch.setattr("pmwal.ship.link._CONNECT_SECONDS", 0.1)
    grow(tmp_path / "a.wal", 1)
    address = f"nats://127.0.0.1:{free_ports(1)[0]}"
    connect = Link.__init__

    def hasty(self: Link, *arguments: object) -> None:
        connect(self, *arguments, timeout=0.2)  # type: ignore[arg-type]

    monkeypatch.setattr(Link, "__init__", hasty)
    with pytest.raises(pmwal.ShipError, match="given up after"):
        run(lambda: Shipper(tmp_path / "a.wal", to=address, stream="LOGS").run(once=True))


def test_server_that_hangs_is_not_waited_for_without_end(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request ends, and is known to have had no answer; the next one is answered."""

    async def main() -> None:
        link = Link([server.url], "LOGS", Options(), timeout=PATIENCE)
        async with Client(server) as client:
            await client.create()
        assert (await link.state()).last_seq == 0
        server.pause()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(link, "_timeout", 0.2)
                with pytest.raises(Unavailable):
                    await link.state()
        finally:
            server.resume()
        assert (await link.state()).last_seq == 0
        await link.close()

    run(main)


def test_request_is_cancelled_though_its_answer_comes_at_that_moment() -> None:
    """A shipper that is told to end, ends; wait_for of Python 3.11, which nats-py uses, returns such an answer."""

    async def answer() -> str:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            return "it came"
        return "late"

    async def main() -> None:
        asking = asyncio.create_task(Link(["nats://127.0.0.1:1"], "LOGS", Options())._answered("a.b", answer()))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(main)


def test_headers_are_read_as_they_are_on_the_wire() -> None:
    """With and without spaces, and with colons in a value."""
    raw = b"NATS/1.0\r\nPmwal-Name:/var/log/a:b.wal\r\nPmwal-First: 7\r\n\r\n"
    assert parse_headers(raw) == {"Pmwal-Name": "/var/log/a:b.wal", "Pmwal-First": "7"}
    assert parse_headers(b"") == {}
