"""``pmwal ship --metrics``: the figures for Prometheus, over HTTP and in a file."""

from __future__ import annotations

import argparse
import http.client
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from callers import until
from commands import Cli, make_log
from nats_servers import free_ports
from pmwal.cli.shipping.figures import COUNTERS, GAUGES, ShippedLogs
from pmwal.cli.shipping.options import File, Port, target_option
from pmwal.ship import Progress
from processes import PATIENCE
from shipped_streams import Stream
from support import open_small

Started = Callable[..., subprocess.Popen[bytes]]


def values(text: str, path: object) -> dict[str, float]:
    """The figures of a log, without ``pmwal_ship_``."""
    found = re.findall(r'^pmwal_ship_(\w+)\{log="(.*)"\} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, log, value in found if log == str(path)}


@pytest.fixture
def figures(started: Started, shm_dir: Path, stream: Stream) -> tuple[Path, str, int]:
    """A log that is shipped, and where its figures are."""
    log = make_log(shm_dir / "a.wal")
    process = started("ship", log, *stream.to("--json", "--metrics", "0"))
    assert process.stderr is not None
    assert process.stdout is not None
    where = re.fullmatch(r"pmwal: figures for Prometheus are at http://(.*):(\d+)/metrics\n", process.stderr.readline().decode())
    assert where is not None
    assert process.stdout.readline()  # it is shipped
    return log, where[1], int(where[2])


def ask(host: str, port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    """A request; the status and the body."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_figures_have_every_field_of_the_progress() -> None:
    """A new one cannot be forgotten, and each is what the field says."""
    progress = Progress(*range(1, len(Progress._fields) + 1))
    fields = {field for field, _ in (*GAUGES.values(), *COUNTERS.values())}
    assert fields == set(Progress._fields) - {"next_seq"}
    text = ShippedLogs(lambda: {"a.wal": progress}, lambda: {"a.wal": "no answer", "b.wal": ValueError()}).text().decode()
    found = values(text, "a.wal")
    assert {name: found[name] for name in GAUGES} == {name: getattr(progress, field) for name, (field, _) in GAUGES.items()}
    assert {name: found[f"{name}_total"] for name in COUNTERS} == {
        name: getattr(progress, field) for name, (field, _) in COUNTERS.items()
    }
    assert (found["stopped"], values(text, "b.wal")) == (1, {"stopped": 1})


def test_path_that_is_not_utf8_becomes_a_label() -> None:
    """Prometheus takes UTF-8 only."""
    text = ShippedLogs(lambda: {"a\udcff.wal": Progress(1, 0)}, dict).text().decode()
    assert r'{log="a\\xff.wal"}' in text


def test_figures_are_served_on_the_loopback_address(figures: tuple[Path, str, int]) -> None:
    """They follow what is shipped."""
    log, host, port = figures
    assert host == "127.0.0.1"
    status, text = ask(host, port)
    assert status == 200
    found = values(text, log)
    assert (found["acknowledged_seq"], found["records_total"], found["frames_total"], found["lag_records"]) == (10, 10, 1, 0)
    with open_small(log) as wal:
        wal.append(b"next")
    until(lambda: values(ask(host, port, "/metrics?x=1")[1], log)["acknowledged_seq"] == 11)


def test_other_requests_are_refused(figures: tuple[Path, str, int]) -> None:
    """Another path, another method, and what is no request; then it still answers."""
    _, host, port = figures
    assert ask(host, port, "/")[0] == 404
    assert ask(host, port, method="POST")[0] == 405
    assert ask(host, port, method="HEAD") == (200, "")
    for said, answered in ((b"hello\r\n\r\n", b"HTTP/1.1 400 "), (b"x" * 20_000, b"")):
        with socket.create_connection((host, port), PATIENCE) as client:
            client.sendall(said)
            assert client.recv(4096).startswith(answered)
    assert ask(host, port)[0] == 200


def test_silent_client_holds_nobody_up(figures: tuple[Path, str, int]) -> None:
    """Others are answered meanwhile, and it is let go of."""
    _, host, port = figures
    with socket.create_connection((host, port), PATIENCE) as silent:
        assert ask(host, port)[0] == 200
        assert silent.recv(1) == b""


def test_figures_are_in_a_file_for_the_textfile_collector(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """It has the last state when the command has ended, and nothing else is left beside it."""
    log, file = make_log(shm_dir / "a.wal"), shm_dir / "figures" / "ship.prom"
    file.parent.mkdir()
    assert cli("ship", log, *stream.to("--once", "--metrics", file)).status == 0
    assert values(file.read_text(), log)["acknowledged_seq"] == 10
    assert list(file.parent.iterdir()) == [file]


def test_place_for_figures_that_cannot_be_used_is_an_error_at_the_start(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """A directory that is not there, and a port that is taken; nothing is shipped."""
    log = make_log(shm_dir / "a.wal")
    ran = cli("ship", log, *stream.to("--once", "--metrics", shm_dir / "none" / "ship.prom"))
    assert (ran.status, ran.err) == (3, f"pmwal: {shm_dir}/none/ship.prom: No such file or directory\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = cli("ship", log, *stream.to("--once", "--metrics", taken.getsockname()[1]))
    assert (ran.status, "Address already in use" in ran.err) == (3, True)
    assert stream.numbers() == []


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("9470", Port("127.0.0.1", 9470)),
        ("10.0.0.7:9470", Port("10.0.0.7", 9470)),
        ("[::1]:0", Port("::1", 0)),
        ("broker:65535", Port("broker", 65535)),
        ("/var/lib/ship.prom", File("/var/lib/ship.prom")),
        ("9470.prom", File("9470.prom")),
    ],
)
def test_places_for_figures_are_told_apart(text: str, target: File | Port) -> None:
    """A file by its suffix, else a port, of the loopback address unless another is given."""
    assert target_option(text) == target


@pytest.mark.parametrize("text", ["", "ship.txt", "::1:80", "host", "host:", ":80", "65536", "1.2.3.4:x", "/a:80"])
def test_place_for_figures_that_is_none_is_refused(text: str) -> None:
    """With what it could be."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"neither ADDRESS:PORT.* nor a file \*\.prom"):
        target_option(text)


def test_log_that_is_not_shipped_shows_in_the_figures(started: Started, shm_dir: Path) -> None:
    """The server is not there: a gauge to alert on."""
    (port,) = free_ports(1)
    log = make_log(shm_dir / "a.wal")
    process = started("ship", log, "--to", f"nats://127.0.0.1:{port}", "--stream", "LOGS", "--metrics", "0")
    assert process.stderr is not None
    where = re.search(r"http://(.*):(\d+)/metrics", process.stderr.readline().decode())
    assert where is not None
    assert process.stderr.readline().endswith(b"; trying again\n")
    assert values(ask(where[1], int(where[2]))[1], log)["stopped"] == 1
