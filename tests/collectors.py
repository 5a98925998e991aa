"""A collector for tests: a server of OTLP over HTTP that decodes what it gets with opentelemetry-proto, and fails as it is told."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from pmwal.storage.positions import Look, directory_of
from processes import PATIENCE


class Received(NamedTuple):
    """A log record as it came: its message, and the resource and scope that it was in."""

    record: Any
    resource: dict[str, Any]
    scope: str

    @property
    def attributes(self) -> dict[str, Any]:
        """By name, with values as in JSON."""
        return plain(self.record.attributes)

    @property
    def seq(self) -> int:
        """The number in its log."""
        return next(each.value.int_value for each in self.record.attributes if each.key == "pmwal.seq")

    @property
    def body(self) -> str:
        """Its text."""
        text: str = self.record.body.string_value
        return text


def plain(pairs: Any) -> dict[str, Any]:
    """Attributes as a dict; a value is the object that protobuf has for it in JSON, such as ``{"intValue": "7"}``."""
    found = [(pair.key, MessageToDict(pair.value)) for pair in pairs]
    assert len(found) == len(dict(found)), "a name occurs twice"
    return dict(found)


def decoded(body: bytes) -> list[Received]:
    """The records of a request, in order."""
    return [
        Received(record, plain(of_log.resource.attributes), of_scope.scope.name)
        for of_log in ExportLogsServiceRequest.FromString(body).resource_logs
        for of_scope in of_log.scope_logs
        for record in of_scope.log_records
    ]


class Answer(NamedTuple):
    """What the collector answers. ``cut``: it ends the connection after this many bytes of the answer; ``unread``: before it has
    read the request.
    """

    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    body: bytes = b""
    cut: int | None = None
    unread: bool = False


class Drop(NamedTuple):
    """It ends the connection without an answer; ``unread``: before it has read the request."""

    unread: bool = False


class Hang(NamedTuple):
    """It does not answer before the test ends."""


def rejecting(count: int, message: str) -> Answer:
    """Success, but for some of the records."""
    partial = ExportLogsPartialSuccess(rejected_log_records=count, error_message=message)
    return Answer(body=ExportLogsServiceResponse(partial_success=partial).SerializeToString())


Reply = Answer | Drop | Hang


class Collector:
    """The server. ``replies`` gives what is said to each request in turn, success after the last one."""

    def __init__(self, replies: Iterator[Reply], look: Callable[[list[Received]], None], tls: ssl.SSLContext | None) -> None:
        self.taken: list[list[Received]] = []  # the requests that were answered with success
        self.seen: list[list[Received]] = []  # and all that were read
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections = 0
        self.over = threading.Event()
        self.arrived = threading.Event()
        self.replies, self.look = replies, look
        self.guard = threading.Lock()
        handler = type("Handler", (_Handler,), {"collector": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.scheme = "otlp+http"
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
            self.scheme = "otlp+https"

    @property
    def url(self) -> str:
        """For ``to=``."""
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}"

    @property
    def records(self) -> list[Received]:
        """All that it has, in order."""
        return [record for request in self.taken for record in request]

    @property
    def seqs(self) -> list[int]:
        """Their numbers."""
        return [record.seq for record in self.records]


class _Handler(http.server.BaseHTTPRequestHandler):
    collector: Collector
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.collector.connections += 1

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the shipper was killed
            super().handle()

    def do_POST(self) -> None:
        collector = self.collector
        with collector.guard:
            reply = next(collector.replies, Answer())
        if isinstance(reply, Answer | Drop) and reply.unread:
            if isinstance(reply, Answer):
                self.answer(reply)
            self.close_connection = True
            return
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the shipper was killed
            self.close_connection = True
            return
        records = decoded(gzip.decompress(body))
        with collector.guard:
            collector.look(records)
            collector.seen.append(records)
            collector.headers.append(dict(self.headers))
            collector.paths.append(self.path)
            if isinstance(reply, Answer) and 200 <= reply.status < 300:
                collector.taken.append(records)
        collector.arrived.set()
        if isinstance(reply, Hang):
            collector.over.wait(PATIENCE)
        if isinstance(reply, Answer):
            self.answer(reply)
        else:
            self.close_connection = True

    def answer(self, reply: Answer) -> None:
        headers = {"Content-Type": "application/x-protobuf", "Content-Length": str(len(reply.body))} | reply.headers
        lines = [f"HTTP/1.1 {reply.status} {http.server.BaseHTTPRequestHandler.responses.get(reply.status, ('?', ''))[0]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        whole = "\r\n".join([*lines, "", ""]).encode() + reply.body
        with contextlib.suppress(OSError):  # the shipper was killed
            self.wfile.write(whole if reply.cut is None else whole[: reply.cut])
        self.close_connection = self.close_connection or reply.cut is not None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _nothing(records: list[Received]) -> None:
    pass


@contextlib.contextmanager
def collector(
    *replies: Reply,
    more: Iterator[Reply] = iter(()),  # noqa: B008 - an empty one stays so
    look: Callable[[list[Received]], None] = _nothing,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Collector]:
    """A collector on a free port: it gives these replies, then ``more``. ``look`` sees each request before it is answered."""
    running = Collector(itertools.chain(replies, more), look, tls)
    running.server.daemon_threads = True
    thread = threading.Thread(target=running.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.over.set()
        running.server.shutdown()
        running.server.server_close()
        thread.join()


def refusing_port() -> tuple[socket.socket, int]:
    """A port that refuses connections, as long as the socket is open."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound, int(bound.getsockname()[1])


# -- what was acknowledged


def position(path: Path) -> int:
    """The last number that the consumer has acknowledged."""
    with Look(directory_of(str(path)), "otlp") as look:
        assert look.position is not None
        return look.position.seq


class Watch:
    """Notes each record that was acknowledged before the collector had answered the first request with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.early: list[int] = []

    def __call__(self, records: list[Received]) -> None:
        acknowledged = position(self.path)
        self.early += [record.seq for record in records if record.seq <= acknowledged]


def firsts(seqs: list[int]) -> list[int]:
    """The numbers without repetitions, each where it came first."""
    return list(dict.fromkeys(seqs))
