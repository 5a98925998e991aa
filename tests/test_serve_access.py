"""``pmwal serve``: who may ask, how many at once, and what a slow client costs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

import pmwal
from commands import Cli
from pmwal.cli.serving.guard import SECURITY_HEADERS, host_name
from pmwal.cli.serving.listening import TOKEN_MIN, listen_unix
from processes import PATIENCE
from serving import Served, serving

DATA = ("/entries", "/stats", "/metrics", "/other")
TOKEN = "a-token-of-a-file-0123456789"


@pytest.fixture
def log(shm_dir: Path) -> Path:
    """A log of some lines."""
    with pmwal.open(shm_dir / "app.wal", size="256KiB") as wal:
        wal.extend([b"line %d" % number for number in range(10)])
    return shm_dir / "app.wal"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one log."""
    log = tmp_path_factory.mktemp("served") / "app.wal"
    with pmwal.open(log, size="64KiB") as wal:
        wal.append(b"secret line")
    with serving(log) as running:
        yield running


# -- the token


@pytest.mark.parametrize("path", DATA)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic {token}", "{token}", "Bearer {token}x", "Bearer {shorter}"]
)
def test_nothing_of_a_log_is_sent_without_the_token(served: Served, path: str, given: str | None) -> None:
    """401 for every path but the page's, also those that are not there, and no word of the log."""
    headers = {} if given is None else {"Authorization": given.format(token=served.token, shorter=served.token[:-1])}
    answer = served.get(path, token=False, headers=headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert b"secret" not in answer.body


def test_token_in_the_query_is_none(served: Served) -> None:
    """It would be in the logs of proxies, and in the history."""
    assert served.get(f"/stats?token={served.token}", token=False).status == 401


def test_page_needs_no_token_and_contains_nothing(served: Served) -> None:
    """Its files are the same for everybody: the token is after the # of the URL, which stays in the browser."""
    for path in ("/", "/page.js", "/figures.js", "/page.css"):
        answer = served.get(path, token=False)
        assert answer.status == 200
        assert served.token.encode() not in answer.body
        assert b"secret line" not in answer.body


def test_each_start_has_a_new_token_that_nobody_can_guess(log: Path) -> None:
    """256 bits."""
    with serving(log) as one, serving(log) as other:
        assert one.token != other.token
        assert min(len(one.token), len(other.token)) >= 43


def test_token_is_printed_once_and_never_said_again(log: Path) -> None:
    """Neither with requests of any kind, nor when they fail, nor at the end."""
    with serving(log) as served:
        for path in (*DATA, f"/{served.token}", f"/entries?grep={served.token}"):
            served.get(path)
            served.get(path, token=False)
        with socket.create_connection((served.host, served.port)) as raw:
            raw.sendall(f"GARBAGE {served.token}\r\n\r\n".encode())
            raw.recv(1000)
        process = served.process
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
        assert served.token.encode() not in out + err


def test_token_can_come_from_a_file(log: Path, tmp_path: Path) -> None:
    """The same at each start, so that programs can be configured with it."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    with serving(log, "--token-file", file) as served:
        assert served.token == TOKEN
        assert served.get("/stats").status == 200


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (TOKEN, 0o644, "chmod o-r"),
        ("x" * (TOKEN_MIN - 1), 0o600, "characters" if False else "16 to 512"),
        ("", 0o600, "16 to 512"),
        ("two words " * 3, 0o600, "16 to 512"),
        ("ü" * 20, 0o600, "16 to 512"),
        ("x" * 2000, 0o600, "16 to 512"),
    ],
)
def test_unfit_token_file_is_refused(cli: Cli, log: Path, tmp_path: Path, text: str, mode: int, said: str) -> None:
    """One that others can read, or what is no token; the message does not repeat it."""
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(mode)
    ran = cli("serve", log, "--token-file", file)
    assert (ran.status, ran.out) == (1, b"")
    assert said in ran.err
    assert not text or text not in ran.err


# -- where it listens


def test_it_listens_on_the_loopback_address_only(served: Served) -> None:
    """By default no other machine reaches it."""
    listening = [each.laddr for each in psutil.Process(served.process.pid).net_connections() if each.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", served.port)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_addresses_need_tls_or_the_word_for_it(cli: Cli, log: Path, host: str) -> None:
    """A usage error names both."""
    ran = cli("serve", log, "--host", host)
    assert ran.status == 64
    assert "--tls-cert" in ran.err
    assert "--insecure" in ran.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-cert", "x"], "go together"),
        (["--unix", "x", "--port", "80"], "no port"),
        (["--unix", "x", "--host", "localhost"], "not allowed with"),
        (["--port", "65536"], "0 to 65535"),
        (["--clients", "0"], "from 1"),
        (["--idle", "long"], "long"),
    ],
)
def test_wrong_options_are_usage_errors(cli: Cli, log: Path, options: list[str], said: str) -> None:
    """Before anything is opened."""
    ran = cli("serve", log, *options)
    assert (ran.status, said in ran.err) == (64, True)


def test_logs_that_are_not_there_or_none_are_errors(cli: Cli, shm_dir: Path) -> None:
    """As with other commands: status 3."""
    assert cli("serve", shm_dir / "absent.wal").status == 3
    (shm_dir / "foreign.wal").write_bytes(b"hello\n" * 1000)
    assert cli("serve", shm_dir / "foreign.wal").status == 3


def test_port_that_is_taken_is_an_error(cli: Cli, log: Path, served: Served) -> None:
    """It names the address."""
    ran = cli("serve", log, "--port", served.port)
    assert (ran.status, f"127.0.0.1:{served.port}" in ran.err) == (3, True)


def test_missing_packages_are_named(log: Path) -> None:
    """The command says what to install; all others work without."""
    script = "import sys; sys.modules['starlette'] = None; from pmwal.cli import main; sys.exit(main(sys.argv[1:]))"
    ran = subprocess.run(
        [sys.executable, "-c", script, "serve", log], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 1
    assert "requires starlette, which is not installed: pip install 'pmwal[web]'" in ran.stderr


def test_without_pyarrow_it_serves_the_logs_and_says_so(shm_dir: Path, tmp_path: Path) -> None:
    """At its start, once: archives beside them are left out, and not shown as nothing at all."""
    with pmwal.open(shm_dir / "app.wal", size="64KiB") as wal:
        wal.append(b"hello")
    (shm_dir / f"app-{'a' * 32}-{1:020}-{9:020}.parquet").touch()
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    with serving(shm_dir, PYTHONPATH=str(tmp_path)) as served:
        for _ in range(2):
            assert [entry["message"] for entry in served.get("/entries").entries] == ["hello"]
        _, said = served.end()
    assert (
        said.count(
            "left out, only the logs are read: archives require pyarrow, which is not installed: pip install 'pmwal[archive]'"
        )
        == 1
    )


def test_it_ends_when_nobody_asks(log: Path) -> None:
    """With ``--idle``; a client that follows keeps it."""
    with serving(log, "--idle", "1s") as served:
        with served.events("/entries") as events:
            next(events)
            time.sleep(1.5)
            assert served.process.poll() is None
        assert served.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_ends_with_a_signal(log: Path, number: int, status: int) -> None:
    """Silently."""
    with serving(log) as served:
        assert served.end(number) == (status, "")


def test_tls_serves_other_addresses(log: Path, tmp_path: Path) -> None:
    """With a certificate the URL is https, and plain HTTP is not answered."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", key, "-out", cert],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl: apt-get install openssl")
    with serving(log, "--tls-cert", cert, "--tls-key", key) as served:
        assert served.scheme == "https"
        assert len(served.get("/entries").entries) == 10
        with socket.create_connection((served.host, served.port)) as raw:
            raw.sendall(b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
            raw.settimeout(PATIENCE)
            assert b"HTTP/1.1 200" not in raw.recv(1000)


def test_certificate_that_is_none_is_an_error(cli: Cli, log: Path, tmp_path: Path) -> None:
    """Before the URL is printed."""
    (tmp_path / "cert.pem").write_text("nothing")
    ran = cli("serve", log, "--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "cert.pem")
    assert (ran.status != 0, ran.out) == (True, b"")


# -- Unix sockets


def test_unix_socket_is_for_this_user_only(log: Path, tmp_path: Path) -> None:
    """Mode 0600 from the beginning; it needs no token and no port, and is removed at the end."""
    path = tmp_path / "serve.sock"
    with serving(log, "--unix", path, unix=path) as served:
        status = path.stat()
        assert (stat.S_ISSOCK(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o600)
        assert len(served.get("/entries").entries) == 10
        assert served.get("/stats", headers={"Host": "evil.example"}).status == 421
        assert psutil.Process(served.process.pid).net_connections("inet") == []
        assert served.end() == (0, "")
    assert not path.exists()


def test_unix_socket_may_need_a_token_as_well(log: Path, tmp_path: Path) -> None:
    """With ``--token-file``."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    path = tmp_path / "serve.sock"
    with serving(log, "--unix", path, "--token-file", tmp_path / "token", unix=path) as served:
        assert served.get("/stats").status == 401
        assert served.get("/stats", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_unix_socket_is_never_open_to_others(tmp_path: Path, umask: int) -> None:
    """It is made with its mode, whatever the umask is, which is as before then."""
    before = os.umask(umask)
    try:
        with listen_unix(str(tmp_path / "a.sock")):
            assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
            assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_abandoned_socket_is_replaced_and_nothing_else(cli: Cli, log: Path, tmp_path: Path) -> None:
    """A socket on which somebody listens, and any other file, stay."""
    path = tmp_path / "serve.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        ran = cli("serve", log, "--unix", path)
        assert (ran.status, "it exists" in ran.err) == (3, True)
    with serving(log, "--unix", path, unix=path) as served:
        assert served.get("/stats").status == 200
        served.process.kill()
        served.process.wait(PATIENCE)
    assert path.exists()
    with serving(log, "--unix", path, unix=path) as served:
        assert served.get("/stats").status == 200
    path.unlink(missing_ok=True)
    path.write_text("precious")
    assert cli("serve", log, "--unix", path).status == 3
    assert path.read_text() == "precious"


# -- browsers


@pytest.mark.parametrize("path", ["/", "/page.js", *DATA])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]", "0"])
def test_other_names_are_refused(served: Served, path: str, host: str) -> None:
    """A name that an attacker lets lead to this address (DNS rebinding) gets nothing, whatever it asks."""
    answer = served.get(path, headers={"Host": host})
    assert answer.status in (400, 421)
    assert b"secret" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9000", "[::1]:80", "localhost."])
def test_names_of_the_loopback_are_answered(served: Served, host: str) -> None:
    """With any port, as through a tunnel of ssh."""
    assert served.get("/stats", headers={"Host": host}).status == 200


def test_further_names_can_be_allowed(log: Path) -> None:
    """With ``--allow-host``."""
    with serving(log, "--allow-host", "Logs.example") as served:
        assert served.get("/stats", headers={"Host": "logs.example:8443"}).status == 200


@pytest.mark.parametrize("path", DATA)
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "null", "", "http://localhost:{port}"]
)
def test_pages_of_other_origins_are_refused(served: Served, path: str, origin: str) -> None:
    """Another port of this machine is another origin, too."""
    assert served.get(path, headers={"Origin": origin.format(port=served.port)}).status == 403


def test_own_page_is_answered(served: Served) -> None:
    """With the origin and the site that a browser says."""
    own = {"Origin": f"http://127.0.0.1:{served.port}", "Sec-Fetch-Site": "same-origin"}
    assert served.get("/stats", headers=own).status == 200
    assert served.get("/stats", headers=own | {"Sec-Fetch-Site": "cross-site"}).status == 403
    assert served.get("/stats", headers=own | {"Sec-Fetch-Site": "same-site"}).status == 403


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/entries", "/stats", "/metrics", "/other"])
@pytest.mark.parametrize("token", [True, False])
def test_every_answer_has_the_headers_that_confine_it(served: Served, path: str, token: bool) -> None:
    """Refusals, too."""
    answer = served.get(path, token=token)
    assert {name: answer.headers.get(name.lower()) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


def test_policy_lets_a_page_load_its_own_files_only() -> None:
    """No inline script, no eval, nothing from elsewhere, no frame, no form."""
    policy = dict(part.strip().split(" ", 1) for part in SECURITY_HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["page.html", "page.css", "page.js", "figures.js"])
def test_page_has_no_way_to_make_elements_of_text(name: str) -> None:
    """No inline script or style, no markup from strings, nothing from elsewhere; and no file is too long to read."""
    text = files("pmwal.cli.serving").joinpath(name).read_text()
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|DOMParser|srcdoc|https?:|//[a-z]|@import|url\("
    )
    assert re.findall(ways, text) == []
    assert re.findall(r"<script(?! src=)|<style|\son\w+=|\sstyle=", text) == []
    assert len(text.splitlines()) <= 600


@pytest.mark.parametrize(
    ("host", "name"), [("a", "a"), ("A.b.:80", "a.b"), ("[::1]", "::1"), ("[::1", "::1"), (":80", ""), ("", "")]
)
def test_names_of_hosts(host: str, name: str) -> None:
    """Without the port, in small letters."""
    assert host_name(host) == name


# -- load


def test_clients_beyond_the_cap_are_told_to_come_again(log: Path) -> None:
    """503 with Retry-After; a place is free again as soon as a client has gone."""
    with serving(log, "--clients", "2") as served:
        with served.events("/entries") as one, served.events("/entries") as other:
            next(one), next(other)
            answer = served.get("/entries?limit=1")
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert served.get("/stats").status == 200
            assert served.get("/entries", token=False).status == 401
        deadline = time.monotonic() + PATIENCE
        while served.get("/entries?limit=1").status != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize(("parameters", "kind"), [("?rate=100", "dropped"), ("", "missed")])
def test_slow_client_costs_bounded_memory_and_learns_what_it_lost(shm_dir: Path, parameters: str, kind: str) -> None:
    """It reads nothing while far more is logged than the server keeps for it, and than the log has; then it learns the number."""
    count, piece = 60_000, 500
    with pmwal.open(shm_dir / "app.wal", size="16MiB", on_full="overwrite") as wal, serving(shm_dir / "app.wal") as served:
        process = psutil.Process(served.process.pid)
        with served.events(f"/entries{parameters}") as events:
            wal.append(b"first")
            assert next(events).data["message"] == "first"
            before = process.memory_full_info().uss
            for _ in range(count // piece):
                wal.extend([b"x" * 700] * piece)
                time.sleep(0.005)
            grown = process.memory_full_info().uss - before
            lost = {"dropped": 0, "missed": 0}
            got = 0
            while got + sum(lost.values()) < count:
                event = next(events)
                if event.name == "drop":
                    lost = {name: number + event.data[name] for name, number in lost.items()}
                else:
                    got += 1
        assert grown < 32 << 20
        assert got + sum(lost.values()) == count
        assert lost[kind] > 0


def test_reader_of_history_gets_all_of_it(shm_dir: Path) -> None:
    """What is there is never dropped: the walk waits for a client that is slow."""
    with pmwal.open(shm_dir / "app.wal", size="16MiB") as wal, serving(shm_dir / "app.wal") as served:
        wal.extend([b"x" * 500] * 20_000)
        with served.stream("/entries") as response:
            time.sleep(0.5)
            assert [json.loads(line)["seq"] for line in response] == list(range(1, 20_001))


def test_rate_limits_what_is_sent(shm_dir: Path) -> None:
    """A page asks for so many entries a second; of more it learns the number."""
    with pmwal.open(shm_dir / "app.wal", size="4MiB") as wal, serving(shm_dir / "app.wal") as served:
        wal.extend([b"x"] * 5000)
        with served.events("/entries?rate=100") as events:  # none of them is overwritten: all that is lost was dropped
            got = lost = 0
            while got + lost < 5000:
                event = next(events)
                got, lost = (got, lost + event.data["dropped"]) if event.name == "drop" else (got + 1, lost)
        assert 100 <= got < 5000


def test_an_idle_client_costs_the_writer_nothing(shm_dir: Path) -> None:
    """Streams and figures change no byte of the log, also not of its live page, and the server sleeps."""
    with pmwal.open(shm_dir / "app.wal", size="64KiB") as wal, serving(shm_dir) as served:
        wal.extend([b"x"] * 5)
        with served.events("/entries") as events:
            for _ in range(5):
                next(events)
            process = psutil.Process(served.process.pid)
            before, used = (shm_dir / "app.wal").read_bytes(), sum(process.cpu_times()[:2])
            begun = time.monotonic()
            while time.monotonic() - begun < 3:
                served.get("/stats?after=0")
                time.sleep(0.5)
            spent = sum(process.cpu_times()[:2]) - used
            assert (shm_dir / "app.wal").read_bytes() == before
            assert spent < 1.5
        assert stat.S_IMODE((shm_dir / "app.wal").stat().st_mode) == 0o600


def test_clients_that_go_leave_nothing(log: Path) -> None:
    """Threads and descriptors are as many as before."""
    with serving(log) as served:
        for _ in range(3):
            with served.events("/entries") as events:
                next(events)
        process = psutil.Process(served.process.pid)
        deadline = time.monotonic() + PATIENCE
        while sum("walk" in name for name in thread_names(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        before = process.num_fds()
        for _ in range(20):
            with served.events("/entries") as events:
                next(events)
        while sum("walk" in name for name in thread_names(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.num_fds() <= before + 4


def thread_names(pid: int) -> list[str]:
    """The number of threads, as the names that the system knows; Python names them from 3.14 on."""
    return [str(task) for task in os.listdir(f"/proc/{pid}/task")][16:]


def test_many_clients_at_once_get_all(shm_dir: Path) -> None:
    """Each stream is independent of the others."""
    with pmwal.open(shm_dir / "app.wal", size="1MiB") as wal, serving(shm_dir) as served:
        got: dict[int, list[str]] = {}

        def follow(number: int) -> None:
            with served.events("/entries?limit=200") as events:
                got[number] = [event.data["message"] for event in events]

        threads = [threading.Thread(target=follow, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for number in range(200):
            wal.append(b"%d" % number)
        for thread in threads:
            thread.join(PATIENCE)
        assert got == {number: [str(each) for each in range(200)] for number in range(8)}
