"""A running ``pmwal serve``, and a client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from processes import PATIENCE


class Answer(NamedTuple):
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def entries(self) -> list[Any]:
        """The objects of an answer in JSON lines."""
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.entries]


class Event(NamedTuple):
    """A server-sent event."""

    name: str
    id: str
    data: Any


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class Served:
    """The server's process, what it printed first, and requests to it."""

    def __init__(self, process: subprocess.Popen[bytes], line: str, unix: Path | None = None) -> None:
        self.process = process
        self.line = line
        self.unix = unix
        match = re.fullmatch(r"(https?)://(\[?[^/]*?\]?):(\d+)/#token=(\S+)", line)
        self.scheme, self.host, self.port, self.token = ("", "", 0, "")
        if match:
            self.scheme, self.host, self.port, self.token = match[1], match[2].strip("[]"), int(match[3]), match[4]

    def connection(self) -> http.client.HTTPConnection:
        """A new connection."""
        if self.unix is not None:
            return _UnixConnection(self.unix)
        if self.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return http.client.HTTPSConnection(self.host, self.port, timeout=PATIENCE, context=context)
        return http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        return ({"Authorization": f"Bearer {self.token}"} if self.token else {}) | headers

    def get(self, path: str, *, method: str = "GET", token: bool = True, headers: dict[str, str] | None = None) -> Answer:
        """The whole answer to a request."""
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, headers=self._headers(headers or {}) if token else headers or {})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())

    @contextlib.contextmanager
    def stream(self, path: str, headers: dict[str, str] | None = None) -> Iterator[http.client.HTTPResponse]:
        """An answer as it comes."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path, headers=self._headers(headers or {}))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield response

    @contextlib.contextmanager
    def events(self, path: str, headers: dict[str, str] | None = None) -> Iterator[Iterator[Event]]:
        """Server-sent events as they come."""
        with self.stream(path, {"Accept": "text/event-stream"} | (headers or {})) as response:
            yield events_of(response)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End the process; its status and what it said on standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err.decode()


def events_of(lines: Any) -> Iterator[Event]:
    """The events in a stream of lines, without comments."""
    name, number, data = "message", "", []
    for raw in lines:
        line = raw.decode().rstrip("\n")
        field, _, value = line.partition(": ")
        if not line and data:
            yield Event(name, number, json.loads("\n".join(data)))
            name, number, data = "message", "", []
        elif field == "event":
            name = value
        elif field == "id":
            number = value
        elif field == "data":
            data.append(value)


@contextlib.contextmanager
def serving(*arguments: object, unix: Path | None = None, **variables: str) -> Iterator[Served]:
    """``pmwal serve`` with these arguments, in a process of its own that is ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pmwal", "serve", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | variables,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode().rstrip("\n")
        if not line:
            raise AssertionError(process.communicate(timeout=PATIENCE)[1].decode())
        yield Served(process, line, unix)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)
