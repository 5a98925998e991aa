"""``pmwal ship`` to an OpenTelemetry collector: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

import pmwal
from collectors import Answer, Hang, collector, firsts, position, refusing_port, rejecting
from commands import Cli, make_foreign, make_log
from pmwal.ship.otlp import shipper
from processes import PATIENCE, limit_time
from servers import wait_for
from support import open_small

Started = Callable[..., subprocess.Popen[bytes]]
CERTIFICATE = Path(__file__).parent / "data" / "collector.pem"


@pytest.fixture(autouse=True)
def _no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests says nothing."""
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def wait_until_shipped(process: subprocess.Popen[bytes], records: int) -> dict[str, object]:
    """Read until the process says that it has shipped so many records; what it said."""
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        each: dict[str, object] = json.loads(line)
        if each["records"] == records:
            return each
    raise AssertionError(process.stderr.read())


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Ask it to end; its status, and its messages."""
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors.decode()


def test_log_is_shipped_and_later_what_is_new(cli: Cli, shm_dir: Path) -> None:
    """Piped: a line for the log at the end, in the words of NATS."""
    log = make_log(shm_dir / "a.wal")
    with collector() as got:
        for said in ("10 records, 61 B in 1 request", "nothing new"):
            ran = cli("ship", log, "--to", got.url, "--once")
            assert (ran.status, ran.text, ran.err) == (0, f"{log}: acknowledged up to record 10; {said}\n", "")
        with open_small(log) as wal:
            wal.append(b"next")
        ran = cli("ship", log, "--to", f"{got.url}/v1/logs", "--once", "--json")
        assert (ran.status, ran.err) == (0, "")
        assert got.seqs == list(range(1, 12))
    assert (
        json.loads(ran.lines[-1]).items()
        >= {"log": str(log), "acknowledged": 11, "records": 1, "requests": 1, "lag_records": 0}.items()
    )
    assert set(got.paths) == {"/v1/logs"}
    assert position(log) == 11


def test_log_without_records_has_nothing_to_ship(cli: Cli, shm_dir: Path) -> None:
    """That is no failure, and no request."""
    open_small(shm_dir / "a.wal").close()
    with collector() as got:
        ran = cli("ship", shm_dir / "a.wal", "--to", got.url, "--once")
    assert (ran.status, ran.text, ran.err, got.seen) == (0, f"{shm_dir}/a.wal: nothing to ship\n", "", [])


def test_several_logs_are_shipped_as_one(cli: Cli, shm_dir: Path) -> None:
    """A directory and a file: one progress, which has no number."""
    (shm_dir / "set").mkdir()
    logs = [shm_dir / "set" / "00.wal", shm_dir / "set" / "01.wal", shm_dir / "a.wal"]
    for log in logs:
        with pmwal.open(log, size="64KiB") as wal:
            wal.extend([b"x"] * 10)
    with collector() as got:
        ran = cli("ship", shm_dir / "set", logs[2], "--to", got.url, "--once")
        again = cli("ship", shm_dir / "set", logs[2], "--to", got.url, "--once", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.text == f"{shm_dir}/set {logs[2]}: 30 records, 30 B in 1 request\n"
    said = json.loads(again.lines[-1])
    assert (said["acknowledged"], said["records"]) == (0, 0)
    assert sorted(got.seqs) == sorted(3 * list(range(1, 11)))
    assert [position(log) for log in logs] == [10, 10, 10]


def test_consumer_has_another_name_if_it_is_given_one(cli: Cli, shm_dir: Path) -> None:
    """It begins at the oldest record, as the one named otlp does, which has a holder."""
    log = make_log(shm_dir / "a.wal")
    with collector() as got, pmwal.open(log, "r") as reader, reader.consumer("otlp"):
        refused = cli("ship", log, "--to", got.url, "--once")
        assert (refused.status, refused.out, "'otlp'" in refused.err) == (1, b"", True)
        assert cli("ship", log, "--to", got.url, "--once", "--consumer", "other").status == 0
    assert got.seqs == list(range(1, 11))


# -- headers and TLS


def test_headers_come_from_the_environment_and_the_command_line(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the command line are in addition, or in place of one of the same name however it is written."""
    log = make_log(shm_dir / "a.wal")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20secret,x-tenant=1")
    with collector() as got:
        assert cli("ship", log, "--to", got.url, "--once", "--header", "X-Tenant=7", "--header", "x-other=a=b").status == 0
    sent = {(name.lower(), value) for name, value in got.headers[0].items()}
    assert sent >= {("api-key", "a secret"), ("x-tenant", "7"), ("x-other", "a=b")}
    assert ("x-tenant", "1") not in sent


def test_records_are_shipped_by_tls(cli: Cli, shm_dir: Path) -> None:
    """With the authority that is named; without it the message says how to name it."""
    log = make_log(shm_dir / "a.wal")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    with collector(tls=server) as got:
        ran = cli("ship", log, "--to", got.url, "--once")
        assert (ran.status, "is not trusted" in ran.err, "; give its CA with --tls-ca\n" in ran.err) == (1, True, True)
        assert got.seen == []
        half = cli("ship", log, "--to", got.url, "--once", "--tls-cert", CERTIFICATE)
        assert (half.status, "--tls-cert and --tls-key go together" in half.err) == (64, True)
        options = ("--tls-ca", CERTIFICATE, "--tls-cert", CERTIFICATE, "--tls-key", CERTIFICATE)
        assert cli("ship", log, "--to", got.url, "--once", *options).status == 0
    assert got.seqs == list(range(1, 11))


def test_certificate_of_the_client_is_shown(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a collector that takes records from those only who have one of its authority."""
    monkeypatch.setattr(shipper, "_PATIENCE", 0.1)
    log = make_log(shm_dir / "a.wal")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    server.load_verify_locations(CERTIFICATE)
    server.verify_mode = ssl.CERT_REQUIRED
    with collector(tls=server) as got:
        without = cli("ship", log, "--to", got.url, "--once", "--tls-ca", CERTIFICATE)
        assert (without.status, "given up" in without.err, got.seen) == (1, True, [])
        options = ("--tls-ca", CERTIFICATE, "--tls-cert", CERTIFICATE, "--tls-key", CERTIFICATE)
        assert cli("ship", log, "--to", got.url, "--once", *options).status == 0
    assert got.seqs == list(range(1, 11))


# -- until it is told to end


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda how: how.name)
def test_ends_with_status_0_when_it_is_told_to(started: Started, shm_dir: Path, how: signal.Signals) -> None:
    """Records that are appended meanwhile are shipped; what the collector has is noted beside the log."""
    log = make_log(shm_dir / "a.wal")
    with collector() as got:
        process = started("ship", log, "--to", got.url, "--json")
        wait_until_shipped(process, 10)
        with open_small(log) as wal:
            wal.append(b"next")
        assert wait_until_shipped(process, 11)["acknowledged"] == 11
        process.send_signal(how)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert position(log) == 11


def test_ends_while_the_collector_is_silent(started: Started, shm_dir: Path) -> None:
    """The request without an answer is not acknowledged, and the next run sends it."""
    log = make_log(shm_dir / "a.wal")
    with collector(Hang()) as got:
        process = started("ship", log, "--to", got.url)
        assert got.arrived.wait(PATIENCE)
        assert end(process)[0] == 0
        assert position(log) == 0
        assert subprocess.run([sys.executable, "-m", "pmwal", "ship", log, "--to", got.url, "--once"], check=False).returncode == 0
        assert got.seqs == list(range(1, 11))


def test_kills_lose_nothing(cli: Cli, started: Started, shm_dir: Path) -> None:
    """The command is killed while records are appended; the next one continues after what was acknowledged."""
    log = shm_dir / "a.wal"
    with pmwal.open(log, size="1MiB") as wal, collector() as got:
        for number in range(1, 4):
            process = started("ship", log, "--to", got.url)
            wal.extend([b"%d" % number] * 50)
            wait_for(lambda least=50 * number - 25: got.seqs[-1:] >= [least], process)
            process.kill()
            process.wait()
        assert cli("ship", log, "--to", got.url, "--once").status == 0
        assert firsts(got.seqs) == list(range(1, 151))
    assert position(log) == 150


def test_directory_is_watched_for_new_logs(started: Started, shm_dir: Path) -> None:
    """It may have no log yet."""
    (shm_dir / "set").mkdir()
    with collector() as got:
        process = started("ship", shm_dir / "set", "--to", got.url, "--json")
        make_log(shm_dir / "new.wal").rename(shm_dir / "set" / "new.wal")
        assert wait_until_shipped(process, 10)["log"] == str(shm_dir / "set")
        with open_small(shm_dir / "set" / "new.wal") as wal:
            wal.append(b"next")
        wait_until_shipped(process, 11)
        assert end(process)[0] == 0


def test_terminal_shows_progress_on_one_line(shm_dir: Path) -> None:
    """It is written over, and gone when the command ends; the summary is what stays."""
    log = make_log(shm_dir / "a.wal")
    master, terminal = pty.openpty()
    with collector() as got:
        command = [sys.executable, "-m", "pmwal", "ship", str(log), "--to", got.url]
        process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=limit_time)  # noqa: PLW1509
        os.close(terminal)
        shown = b""
        try:
            while b"\r10 records, 61 B shipped; 0 behind" not in shown:
                shown += os.read(master, 1 << 16)
            process.terminate()
            while b"acknowledged up to record 10" not in shown:
                shown += os.read(master, 1 << 16)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)
    assert shown.rpartition(b"\r\x1b[K")[2].startswith(str(log).encode())
    assert b"\n" not in shown.rpartition(b"\r\x1b[K")[0]


def test_figures_for_prometheus_have_the_names_of_nats_where_they_are_the_same(started: Started, shm_dir: Path) -> None:
    """Requests and rejected records are named so, and there are no messages and rollbacks."""
    log = make_log(shm_dir / "a.wal")
    with collector(rejecting(3, "too old")) as got:
        process = started("ship", log, "--to", got.url, "--json", "--metrics", "0")
        assert process.stderr is not None
        url = process.stderr.readline().decode().split()[-1]
        wait_until_shipped(process, 10)
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        assert end(process)[0] == 1
    figures = {line.split("{")[0].removeprefix("pmwal_ship_"): float(line.split()[-1]) for line in lines if line[0] != "#"}
    assert figures.keys() == {
        *("acknowledged_seq", "lag_records", "lag_seconds", "stopped"),
        *(f"{name}_total" for name in ("records", "bytes", "requests", "retries", "gaps", "rejected")),
    }
    assert (figures["acknowledged_seq"], figures["bytes_total"], figures["rejected_total"]) == (10, 61, 3)


# -- what is wrong


def test_records_that_were_gone_are_said(cli: Cli, shm_dir: Path) -> None:
    """The status is 1."""
    log = shm_dir / "a.wal"
    with pmwal.open(log, size="4KiB", on_full="overwrite") as wal, collector() as got:
        wal.append(b"first")
        assert cli("ship", log, "--to", got.url, "--once").status == 0
        for _ in range(40):
            wal.append(b"y" * 100)
        gone = wal.first_seq - 2
        ran = cli("ship", log, "--to", got.url, "--once")
        assert got.seqs == [1, *range(wal.first_seq, 42)]
    assert (ran.status, ran.err) == (1, f"pmwal: {log}: overwritten before they were shipped: {gone} records\n")
    assert ran.text.startswith(f"{log}: acknowledged up to record 41; ")


def test_records_that_the_collector_rejects_are_said(cli: Cli, shm_dir: Path) -> None:
    """They are acknowledged, and the status is 1."""
    log = make_log(shm_dir / "a.wal")
    with collector(rejecting(3, "too old")) as got:
        ran = cli("ship", log, "--to", got.url, "--once")
    assert (ran.status, ran.err) == (1, f"pmwal: {log}: the collector rejected 3 records: too old\n")
    assert position(log) == 10


def test_refusal_ends_the_command(cli: Cli, shm_dir: Path) -> None:
    """The message has the options to check; nothing is acknowledged."""
    log = make_log(shm_dir / "a.wal")
    with collector(Answer(403)) as got:
        ran = cli("ship", log, "--to", got.url, "--once")
    assert (ran.status, ran.text) == (1, f"{log}: nothing acknowledged; 10 behind\n")
    assert "403 Forbidden" in ran.err
    assert "Check --to, --header and the server's log" in ran.err
    assert position(log) == 0


def test_once_gives_up_on_a_collector_that_does_not_answer(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a job of cron ends."""
    monkeypatch.setattr(shipper, "_PATIENCE", 0.0)
    bound, port = refusing_port()
    with bound:
        ran = cli("ship", make_log(shm_dir / "a.wal"), "--to", f"otlp+http://127.0.0.1:{port}", "--once")
    assert (ran.status, "given up" in ran.err) == (1, True)


def test_failure_that_passes_is_said_once_and_so_is_its_end(started: Started, shm_dir: Path) -> None:
    """The request is sent again until it is taken."""
    log = make_log(shm_dir / "a.wal")
    later = {"Retry-After": "2"}  # longer than between two looks
    with collector(Answer(503, later), Answer(503, later)) as got:
        process = started("ship", log, "--to", got.url, "--json")
        wait_until_shipped(process, 10)
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        assert (first.startswith(f"pmwal: {log}: {got.url}"), first.endswith("503 Service Unavailable; trying again\n")) == (
            True,
            True,
        )
        assert end(process) in [(0, f"pmwal: {log}: shipped again\n"), (0, "")]


def test_log_that_cannot_be_read_has_the_status_of_the_other_commands(cli: Cli, shm_dir: Path) -> None:
    """No log, and a file that is none."""
    missing, foreign = shm_dir / "none.wal", make_foreign(shm_dir / "foreign.wal")
    with collector() as got:
        ran = cli("ship", missing, "--to", got.url, "--once")
        assert (ran.status, ran.out, ran.err) == (3, b"", f"pmwal: {missing}: No such file or directory\n")
        ran = cli("ship", foreign, "--to", got.url, "--once")
        assert (ran.status, ran.out, ran.err.startswith(f"pmwal: {foreign}: not a pmwal log")) == (3, b"", True)


def test_file_that_is_no_log_holds_no_other_up(cli: Cli, shm_dir: Path) -> None:
    """It is said, and is the status."""
    make_foreign(shm_dir / "foreign.wal")
    log = make_log(shm_dir / "a.wal")
    with collector() as got:
        ran = cli("ship", shm_dir, "--to", got.url, "--once")
    assert (ran.status, ran.text) == (3, f"{shm_dir}: 10 records, 61 B in 1 request\n")
    assert ran.err.startswith(f"pmwal: warning: {shm_dir}/foreign.wal: not a pmwal log")
    assert position(log) == 10


def _wrong(*options: str, to: str = "otlp+http://h") -> tuple[str, ...]:
    return "a.wal", "--to", to, *options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(
            (_wrong(*words.split()), f"{words.split()[0]} is for NATS, and --to names an OpenTelemetry collector; leave it out")
            for words in (
                *(
                    "--stream S",
                    "--prefix p",
                    "--form atomic",
                    "--frame 1KiB",
                    "--linger 10ms",
                    "--hold 180s",
                    "--on-rollback stop",
                ),
                *("--too-large split", "--creds f", "--nkey f", "--user me", "--check"),
            )
        ),
        (_wrong("--tls-ca", "f"), "--tls-ca needs TLS; write --to otlp+https://..."),
        (_wrong("--header", "secret"), "argument --header: write NAME=VALUE"),
        (_wrong("--header", "a b=secret"), "argument --header: write NAME=VALUE"),
        (_wrong("--header", "key=secret\nx: y"), "argument --header: the value of key has characters"),
        (_wrong("--header", "Content-Type=secret"), "argument --header: Content-Type is set by pmwal"),
        (_wrong(to="otlp://h"), "--to 'otlp://h' is no collector; write otlp+http://HOST"),
        (_wrong(to="http://h:4318"), "--to 'http://h:4318' is no collector; write otlp+http://HOST"),
        (_wrong("--stream", "S", to="http://h:4222"), "--stream is for NATS: write --to nats://HOST[:PORT]; for an OpenTelemetry"),
        (_wrong("--stream", "S", to="https://h:4318"), "collector otlp+http://HOST[:PORT][/PATH], without it"),
        (_wrong("--stream", "S", to="ntas://h"), "TLS; for an OpenTelemetry collector write otlp+http://HOST[:PORT][/PATH]"),
        (_wrong(to="otlp+http://me:secret@h"), "use OTEL_EXPORTER_OTLP_HEADERS in the environment"),
        (_wrong("--consumer", "a/b"), "argument --consumer: "),
        (_wrong("--metrics", "99999"), "argument --metrics: "),
        (_wrong("--stream", "S", "--header", "a=secret", to="nats://h"), "--header is for an OpenTelemetry collector"),
    ],
    ids=str,
)
def test_wrong_usage_is_refused_before_anything_is_done(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    """The status is 64, and no secret is shown."""
    ran = cli("ship", *arguments, "--once")
    assert (ran.status, ran.out) == (64, b"")
    assert said in ran.err
    assert "secret" not in ran.err


def test_missing_extra_is_named(shm_dir: Path) -> None:
    """With the command that installs it."""
    (shm_dir / "opentelemetry").mkdir()
    (shm_dir / "opentelemetry" / "__init__.py").write_text("raise ImportError(name='opentelemetry')\n")
    command = [sys.executable, "-m", "pmwal", "ship", make_log(shm_dir / "a.wal"), "--to", "otlp+http://127.0.0.1:1", "--once"]
    environment = os.environ | {"PYTHONPATH": str(shm_dir)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "pip install 'pmwal[otlp]'" in ran.stderr
