"""``pmwal ship`` and ``pmwal restore``: what they print, how they end, and what they refuse."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmwal
from commands import Cli, make_foreign, make_log
from nats_servers import free_ports, nats_server
from pmwal.ship import relay
from processes import PATIENCE, limit_time
from shipped_streams import Stream, make_stream, records_of, uuid_of
from support import open_small

Started = Callable[..., subprocess.Popen[bytes]]


def objects(process: subprocess.Popen[bytes]) -> Iterator[Any]:
    """What a process prints, an object for each line, as it comes."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def wait_until_acknowledged(process: subprocess.Popen[bytes], seq: int) -> None:
    """Read until the process says that this record is acknowledged."""
    for each in objects(process):
        if each["acknowledged"] >= seq:
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """Ask it to end; its status, and its messages."""
    process.send_signal(how)
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors.decode()


# -- there and back


def test_log_comes_back_as_it_was_shipped(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """Numbers, kinds, times and payloads, in a log with another uuid that goes on after the last number."""
    log, again = make_log(shm_dir / "a.wal"), shm_dir / "again.wal"
    shipped = cli("ship", log, *stream.to("--once"))
    assert (shipped.status, shipped.err) == (0, "")
    assert shipped.text == f"{log}: acknowledged up to record 10; 10 records, {14 * 10 + 61} B in 1 message\n"
    restored = cli("restore", again, *stream.from_(uuid_of(log)))
    assert (restored.status, restored.err) == (0, "")
    assert restored.text == f"restored {again} from stream LOGS: 10 records, 1 to 10, in a ring of 4 KiB\n"
    assert records_of(again) == records_of(log)
    assert uuid_of(again) != uuid_of(log)
    with pmwal.open(again) as wal:
        assert wal.append(b"next") == 11


def test_second_run_ships_what_is_new_only(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """It continues where the stream ends."""
    log = make_log(shm_dir / "a.wal")
    for said in ("10 records, 201 B in 1 message", "nothing new"):
        assert cli("ship", log, *stream.to("--once")).text == f"{log}: acknowledged up to record 10; {said}\n"
    with open_small(log) as wal:
        wal.append(b"next")
    assert cli("ship", log, *stream.to("--once")).text == f"{log}: acknowledged up to record 11; 1 record, 18 B in 1 message\n"
    assert stream.numbers() == [(1, 10), (11, 11)]


def test_log_without_records_has_nothing_to_ship(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """That is no failure."""
    open_small(shm_dir / "a.wal").close()
    ran = cli("ship", shm_dir / "a.wal", *stream.to("--once"))
    assert (ran.status, ran.text, ran.err) == (0, f"{shm_dir}/a.wal: nothing to ship\n", "")


def test_several_logs_ship_in_one_process(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """A directory and a file: an object for each log, and a subject."""
    (shm_dir / "set").mkdir()
    logs = [shm_dir / "set" / "00.wal", shm_dir / "set" / "01.wal", shm_dir / "a.wal"]
    for number, log in enumerate(logs, 1):
        pmwal.open(log, size="64KiB").close()
        with pmwal.open(log) as wal:
            wal.extend([b"x"] * number)
    ran = cli("ship", shm_dir / "set", logs[2], *stream.to("--once", "--json"))
    found = {each["log"]: each for each in map(json.loads, ran.lines)}
    assert (ran.status, ran.err) == (0, "")
    assert {log: (each["acknowledged"], each["records"], each["frames"], each["gaps"]) for log, each in found.items()} == {
        str(log): (number, number, 1, 0) for number, log in enumerate(logs, 1)
    }
    for number, log in enumerate(logs, 1):
        assert cli("restore", f"{log}.again", *stream.from_(uuid_of(log), "--json")).json["last_seq"] == number


def test_form_of_messages_is_an_option(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """A message for each record, which a restore takes as well; a stream that takes no batches is named, with what to do."""
    log, again = make_log(shm_dir / "a.wal"), shm_dir / "again.wal"
    shipped = cli("ship", log, *stream.to("--once", "--form", "atomic"))
    assert shipped.text == f"{log}: acknowledged up to record 10; 10 records, {14 * 10 + 61} B in 10 messages\n"
    assert stream.numbers() == [(seq, seq) for seq in range(1, 11)]
    assert cli("restore", again, *stream.from_(uuid_of(log))).status == 0
    assert records_of(again) == records_of(log)
    make_stream(stream.server, "SINGLE", subjects=[f"single{stream.prefix}.*"], allow_atomic=False)
    options = ("--to", stream.server.url, "--stream", "SINGLE", "--prefix", f"single{stream.prefix}", "--form", "atomic")
    checked, refused = cli("ship", log, *options, "--check"), cli("ship", log, *options, "--once")
    assert (checked.status, refused.status) == (1, 1)
    for said in (checked.text, refused.err):
        assert "set it to true (nats stream edit SINGLE --allow-batch), or use --form frame" in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda how: how.name)
def test_ends_with_status_0_when_it_is_told_to(
    cli: Cli, started: Started, shm_dir: Path, stream: Stream, how: signal.Signals
) -> None:
    """What was acknowledged is noted beside the log by then."""
    log = make_log(shm_dir / "a.wal")
    process = started("ship", log, *stream.to("--json"))
    wait_until_acknowledged(process, 10)
    with open_small(log) as wal:
        wal.append(b"next")
    wait_until_acknowledged(process, 11)
    assert end(process, how) == (0, "")
    (consumer,) = cli("consumers", log, "--json").json["consumers"]
    assert (consumer["name"], consumer["seq"], consumer["lag"]["records"], consumer["held"]) == ("nats", 11, 0, False)


def test_directory_is_watched_for_new_logs(started: Started, shm_dir: Path, stream: Stream) -> None:
    """It may have no log yet."""
    (shm_dir / "set").mkdir()
    process = started("ship", shm_dir / "set", *stream.to("--json"))
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    assert said == f"pmwal: {shm_dir}/set: no log (*.wal) is in this directory yet; waiting for one\n"
    make_log(shm_dir / "new.wal").rename(shm_dir / "set" / "new.wal")
    wait_until_acknowledged(process, 10)
    assert end(process) == (0, "")


def test_kills_leave_each_record_once_and_in_order(cli: Cli, started: Started, shm_dir: Path, stream: Stream) -> None:
    """The shipper is killed while records are appended; the next one continues where the stream ends."""
    log, again = shm_dir / "a.wal", shm_dir / "again.wal"
    with pmwal.open(log, size="1MiB") as wal:
        for number in range(1, 6):
            process = started("ship", log, *stream.to("--json", "--frame", "1KiB", "--linger", "1ms"))
            wal.extend([b"%d" % number] * 50)
            wait_until_acknowledged(process, 50 * number - 25)
            process.kill()
            process.wait(PATIENCE)
    assert cli("ship", log, *stream.to("--once")).status == 0
    ranges = stream.numbers()
    assert [seq for first, last in ranges for seq in range(first, last + 1)] == list(range(1, 251))
    assert cli("restore", again, *stream.from_(uuid_of(log))).status == 0
    assert records_of(again) == records_of(log)


# -- what is wrong with a log


def test_records_that_were_gone_are_said_and_marked(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """The status is 1; the stream has a marker, and the rest in order; a restore begins after the gap and says so."""
    log, again = shm_dir / "a.wal", shm_dir / "again.wal"
    with pmwal.open(log, size="4KiB", on_full="overwrite") as wal:
        wal.append(b"first")
        assert cli("ship", log, *stream.to("--once")).status == 0
        wal.extend([b"x" * 100] * 20)
        for _ in range(20):
            wal.append(b"y" * 100)
        first = wal.first_seq
    ran = cli("ship", log, *stream.to("--once"))
    assert (ran.status, ran.err) == (
        1,
        f"pmwal: {log}: the records 2 to {first - 1} were gone before they were shipped; the stream was told\n",
    )
    assert stream.numbers() == [(1, 1), (2, first - 1), (first, 41)]
    restored = cli("restore", again, *stream.from_(uuid_of(log)))
    assert restored.status == 0
    assert restored.err == f"pmwal: {again}: 1 older record left out, from before a gap or for which --size has no room\n"
    assert records_of(again) == records_of(log)


def test_log_that_was_rolled_back_is_not_shipped_unless_it_is_marked(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """stop: status 1 and what to do; mark: the stream is told, and a restore has the log as it is."""
    log, again = make_log(shm_dir / "a.wal"), shm_dir / "again.wal"
    assert cli("ship", log, *stream.to("--once")).status == 0
    with open_small(log) as wal:
        wal.rollback(after=6)
        wal.append(b"other")
    stopped = cli("ship", log, *stream.to("--once"))
    assert stopped.status == 1
    assert "--on-rollback mark" in stopped.err
    assert stopped.err.count("\n") == 1
    marked = cli("ship", log, *stream.to("--once", "--on-rollback", "mark"))
    assert (marked.status, marked.err.count("\n")) == (0, 1)
    assert cli("restore", again, *stream.from_(uuid_of(log))).status == 0
    assert records_of(again) == records_of(log)


def test_log_that_cannot_be_shipped_holds_no_other_up(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """Of several, the others are shipped; what is wrong is said once, and is the status."""
    for name in ("a", "b"):
        with pmwal.open(shm_dir / f"{name}.wal", size="64KiB") as wal:
            wal.extend([b"x"] * 10)
    assert cli("ship", shm_dir, *stream.to("--once")).status == 0
    with pmwal.open(shm_dir / "a.wal") as wal:
        wal.rollback(after=6)
    with pmwal.open(shm_dir / "b.wal") as wal:
        wal.append(b"next")
    ran = cli("ship", shm_dir, *stream.to("--once"))
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert f"{shm_dir}/b.wal: acknowledged up to record 11; 1 record, 18 B in 1 message" in ran.lines


def test_file_that_is_no_log_holds_no_other_up(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """Alone it is an error."""
    foreign = make_foreign(shm_dir / "foreign.wal")
    log = make_log(shm_dir / "a.wal")
    ran = cli("ship", shm_dir, *stream.to("--once"))
    assert (ran.status, ran.text.partition(";")[0]) == (3, f"{log}: acknowledged up to record 10")
    alone = cli("ship", foreign, *stream.to("--once"))
    assert (alone.status, alone.out) == (3, b"")
    assert alone.err.startswith(f"pmwal: {foreign}: not a pmwal log")


def test_second_shipper_of_a_log_is_refused(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """The consumer has a holder; with another name it may, and ships nothing twice."""
    log = make_log(shm_dir / "a.wal")
    with pmwal.open(log, "r") as reader, reader.consumer("nats"):
        ran = cli("ship", log, *stream.to("--once"))
        assert (ran.status, ran.out) == (1, b"")
        assert "'nats'" in ran.err
        assert cli("ship", log, *stream.to("--once", "--consumer", "other")).status == 0
    assert cli("ship", log, *stream.to("--once")).text == f"{log}: acknowledged up to record 10; nothing new\n"


# -- what is wrong with the server


def test_missing_stream_is_named_with_what_to_do(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """pmwal makes none."""
    log = make_log(shm_dir / "a.wal")
    ran = cli("ship", log, "--to", stream.server.url, "--stream", "NONE", "--once")
    assert (ran.status, ran.out) == (1, b"")
    assert "there is no stream 'NONE'" in ran.err
    assert "nats stream add NONE" in ran.err


def test_password_in_an_address_is_in_no_message(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """The address is; a journal may be read by others."""
    log, url = make_log(shm_dir / "a.wal"), stream.server.url.replace("//", "//me:secret@")
    for options in ("--check",), ("--once",):
        ran = cli("ship", log, "--to", url, "--stream", "NONE", *options)
        assert ran.status == 1
        assert stream.server.url in ran.text + ran.err
        assert "secret" not in ran.text + ran.err


def test_log_that_nothing_was_shipped_of_says_what_is_behind(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream takes no message: it is full."""
    monkeypatch.setattr(relay, "_PATIENCE", 0.5)
    with nats_server(shm_dir / "nats") as server:
        make_stream(server, max_bytes=100, discard="new")
        log = make_log(shm_dir / "a.wal")
        ran = cli("ship", log, "--to", server.url, "--stream", "LOGS", "--once")
    assert (ran.status, ran.text) == (1, f"{log}: nothing acknowledged; 10 behind\n")
    assert "given up" in ran.err


def test_server_that_comes_later_gets_all(started: Started, shm_dir: Path) -> None:
    """That it does not answer is said once, and when it does."""
    log = make_log(shm_dir / "a.wal")
    with nats_server(shm_dir / "nats") as server:
        make_stream(server)
        server.stop()
        process = started("ship", log, "--to", server.url, "--stream", "LOGS", "--json")
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        assert first.startswith(f"pmwal: {log}: ")
        assert first.endswith("; trying again\n")
        server.start()
        wait_until_acknowledged(process, 10)
        assert end(process) in [(0, f"pmwal: {log}: shipped again\n"), (0, "")]


def test_once_gives_up_on_a_server_that_does_not_answer(cli: Cli, shm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a job of cron ends."""
    monkeypatch.setattr(relay, "_PATIENCE", 0.1)
    (port,) = free_ports(1)
    ran = cli("ship", make_log(shm_dir / "a.wal"), "--to", f"nats://127.0.0.1:{port}", "--stream", "LOGS", "--once")
    assert (ran.status, ran.out) == (1, b"")
    assert "given up" in ran.err


def test_check_says_what_is_wrong_with_a_stream(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """Nothing: 0; what loses records: a warning; what breaks the chain: 1; nothing is shipped."""
    log, server = make_log(shm_dir / "a.wal"), stream.server
    ran = cli("ship", log, *stream.to("--check"))
    assert (ran.status, ran.text, ran.err) == (0, "stream LOGS: nothing is wrong\n", "")
    make_stream(server, f"mem-{shm_dir.name}", subjects=[f"mem.{shm_dir.name}.*"], storage="memory")
    ran = cli("ship", log, "--to", server.url, "--stream", f"mem-{shm_dir.name}", "--prefix", f"mem.{shm_dir.name}", "--check")
    assert ran.status == 0
    assert ran.text.startswith(f"stream mem-{shm_dir.name}: warning: it is in memory")
    make_stream(server, f"few-{shm_dir.name}", subjects=[f"few.{shm_dir.name}.*"], max_msgs_per_subject=5)
    few = ("--to", server.url, "--stream", f"few-{shm_dir.name}", "--prefix", f"few.{shm_dir.name}")
    ran = cli("ship", log, *few, "--check")
    assert (ran.status, "max_msgs_per_subject" in ran.text) == (1, True)
    (problem,) = cli("ship", log, *few, "--check", "--json").json["problems"]
    assert (problem["setting"], problem["refused"]) == ("max_msgs_per_subject", True)
    refused = cli("ship", log, *few, "--once")
    assert (refused.status, "max_msgs_per_subject" in refused.err) == (1, True)
    assert stream.numbers() == []


def test_check_of_a_server_or_stream_that_is_not_there_fails(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """The status is 1, and the log is not looked at."""
    ran = cli("ship", shm_dir / "none.wal", "--to", stream.server.url, "--stream", "NONE", "--check")
    assert (ran.status, "there is no stream" in ran.text) == (1, True)
    (port,) = free_ports(1)
    ran = cli("ship", shm_dir / "none.wal", "--to", f"nats://127.0.0.1:{port}", "--stream", "LOGS", "--check")
    assert (ran.status, f"{port}" in ran.text) == (1, True)


# -- input that is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: LOG, --to"),
        (("a.wal", "--to", "nats://x"), "the following arguments are required: --stream"),
        (("a.wal", "--to", "nats://", "--stream", "S"), "'nats://' is no NATS server; write nats://HOST[:PORT]"),
        (("a.wal", "--to", "nats://x:99999", "--stream", "S"), "'nats://x:99999' is no NATS server; write nats://HOST[:PORT]"),
        (("a.wal", "--to", "nats://x,foo://me:secret@y", "--stream", "S"), "'foo://y' is no NATS server; write nats://HOST[:PORT]"),
        (("a.wal", "--to", "nats://x", "--stream", "a.b"), "argument --stream: stream must be the name of a stream"),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--prefix", "a*"), "argument --prefix: prefix must be words"),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--consumer", "a/b"), "argument --consumer: "),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--frame", "big"), "argument --frame: "),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--hold", "-1"), "argument --hold: "),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--on-rollback", "marc"), "did you mean 'mark'?"),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--metrics", "/tmp/x"), "argument --metrics: '/tmp/x' is neither "),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--metrics", "99999"), "argument --metrics: '99999' is neither "),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--tls-cert", "c.pem"), "--tls-cert and --tls-key go together"),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--user", "me:secret"), "argument --user: give the name alone"),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--user", "me"), "--user needs the password in the environment"),
        (("a.wal", "--to", "nats://x", "--stream", "S", "--nkey", "n", "--creds", "c"), "not allowed with argument --nkey"),
    ],
    ids=str,
)
def test_wrong_usage_is_refused_before_anything_is_done(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    """The status is 64."""
    monkeypatch.delenv("NATS_PASSWORD", raising=False)
    ran = cli("ship", *arguments, "--check")
    assert (ran.status, ran.out) == (64, b"")
    assert said in ran.err


def test_files_for_the_connection_are_named_when_they_do_not_serve(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """Credentials that are not there, and a certificate that is none."""
    log, missing = make_log(shm_dir / "a.wal"), shm_dir / "none"
    for option in ("--creds", "--nkey", "--tls-ca"):
        ran = cli("ship", log, *stream.to("--once", option, missing))
        assert (ran.status, ran.err) == (3, f"pmwal: {missing}: No such file or directory\n")
    (shm_dir / "bad.pem").write_text("no certificate\n")
    ran = cli("ship", log, *stream.to("--once", "--tls-ca", shm_dir / "bad.pem"))
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.startswith(f"pmwal: {shm_dir}/bad.pem: not a certificate")


def test_missing_log_is_reported(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """As by the other commands: the status is 3."""
    ran = cli("ship", shm_dir / "none.wal", *stream.to("--once"))
    assert (ran.status, ran.out, ran.err) == (3, b"", f"pmwal: {shm_dir}/none.wal: No such file or directory\n")


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        ("nats", (), "shipping requires nats-py, which is not installed: pip install 'pmwal[nats]'"),
        (
            "prometheus_client",
            ("--metrics", "0"),
            "requires prometheus_client, which is not installed: pip install 'pmwal[metrics]'",
        ),
    ],
)
def test_missing_extra_is_named(shm_dir: Path, module: str, options: tuple[str, ...], said: str) -> None:
    """With the command that installs it."""
    (shm_dir / "without").mkdir()
    (shm_dir / "without" / f"{module}.py").write_text(f"raise ImportError(name={module!r})\n")
    arguments = ["ship", make_log(shm_dir / "a.wal"), "--to", "nats://127.0.0.1:1", "--stream", "LOGS", "--once", *options]
    environment = os.environ | {"PYTHONPATH": str(shm_dir / "without")}
    command = [sys.executable, "-m", "pmwal", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert said in ran.stderr


# -- restore


def test_restore_refuses_what_it_cannot_do(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """A path that is taken, a uuid that the stream does not have, and one that is none; nothing is left."""
    log, again = make_log(shm_dir / "a.wal"), shm_dir / "again.wal"
    assert cli("ship", log, *stream.to("--once")).status == 0
    ran = cli("restore", log, *stream.from_(uuid_of(log)))
    assert (ran.status, ran.out) == (3, b"")
    assert str(log) in ran.err
    unknown = cli("restore", again, *stream.from_("0" * 32))
    assert (unknown.status, "check the uuid and the prefix" in unknown.err) == (1, True)
    wrong = cli("restore", again, *stream.from_("app.wal"))
    assert (wrong.status, "32 hexadecimal digits" in wrong.err) == (64, True)
    assert sorted(os.listdir(shm_dir)) == ["a.wal", "a.wal.consumers"]


def test_restore_into_a_smaller_ring_keeps_the_newest(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """What is left out is said."""
    log, again = shm_dir / "a.wal", shm_dir / "again.wal"
    with pmwal.open(log, size="64KiB") as wal:
        for _ in range(100):
            wal.append(b"x" * 200)
    assert cli("ship", log, *stream.to("--once", "--frame", "2KiB")).status == 0
    ran = cli("restore", again, *stream.from_(uuid_of(log), "--size", "8KiB"))
    assert (ran.status, "left out" in ran.err) == (0, True)
    kept = records_of(again)
    assert 0 < len(kept) < 100
    assert kept == records_of(log)[-len(kept) :]


# -- on a terminal


def test_terminal_shows_progress_on_one_line(shm_dir: Path, stream: Stream) -> None:
    """It is written over, and gone when the command ends; the summary is what stays."""
    log = make_log(shm_dir / "a.wal")
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "pmwal", "ship", str(log), *stream.to()]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=limit_time)  # noqa: PLW1509
    os.close(terminal)
    shown = b""
    try:
        while b"10 records, 201 B shipped; 0 behind" not in shown:
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


def test_positions_of_a_copied_directory_are_refused_or_fit(cli: Cli, shm_dir: Path, stream: Stream) -> None:
    """A copy made with cp, of which the original went on, is refused as a rollback is."""
    log, copy = make_log(shm_dir / "a.wal"), shm_dir / "copy.wal"
    shutil.copy(log, copy)
    with open_small(log) as wal:
        wal.append(b"in the original")
    with open_small(copy) as wal:
        wal.append(b"in the copy")
    assert cli("ship", log, *stream.to("--once")).status == 0
    ran = cli("ship", copy, *stream.to("--once"))
    assert (ran.status, "a copy needs a uuid of its own: pmwal copy" in ran.err) == (1, True)


def test_restore_to_a_path_that_is_taken_names_it_once(path: Path, cli: Cli) -> None:
    """The library's error has the path, too."""
    path.touch()
    ran = cli("restore", path, "--from", "nats://127.0.0.1:1", "--stream", "LOGS", "--log", 32 * "0")
    assert ran.err == f"pmwal: {path}: there is something already; restore to another path\n"
