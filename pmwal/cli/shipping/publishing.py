"""Where figures are published: over HTTP for Prometheus to scrape, or in a file for the node exporter's textfile collector.

Invariants
----------
- A client that is slow, silent or says what is no request holds up nobody else, and not the shipping.
- The file has all figures of one moment: it is replaced, never written in place while somebody may read it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from pmwal.cli.atomic_file import check_place, replacing
from pmwal.cli.exposition import Figures
from pmwal.cli.serving.listening import Address, listen, resolve
from pmwal.cli.shipping.options import File, Target
from pmwal.cli.terminal import say

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 5.0  # seconds until a request must be there and its answer taken
_REQUEST_MAX = 8192
_CLIENTS = 16  # requests at a time
_PAUSE = 5.0  # seconds between two writes of the file


@contextlib.asynccontextmanager
async def publishing(figures: Figures, target: Target) -> AsyncIterator[str]:
    """The figures are there while the block runs; its value says where."""
    if isinstance(target, File):
        async with _in_file(figures, target.path):
            yield target.path
    else:
        async with _over_http(figures, resolve(target.host, target.port)) as url:
            yield url


@contextlib.asynccontextmanager
async def _in_file(figures: Figures, path: str) -> AsyncIterator[None]:
    check_place(path)
    await asyncio.to_thread(_write, path, figures.text())
    task = asyncio.create_task(_rewrite(figures, path))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await _try_to_write(figures, path)


async def _rewrite(figures: Figures, path: str) -> None:
    """Write the file again from time to time. A disk that is full meanwhile is no reason not to ship."""
    said = None
    while True:
        await asyncio.sleep(_PAUSE)
        said = await _try_to_write(figures, path, said)


async def _try_to_write(figures: Figures, path: str, said: str | None = None) -> str | None:
    """The problem, if there is one, which is reported unless it was said."""
    try:
        await asyncio.shield(asyncio.to_thread(_write, path, figures.text()))
    except OSError as error:
        if error.strerror != said:
            say(f"{path}: {error.strerror}; until it can be written, its figures are old")
        return error.strerror
    return None


def _write(path: str, text: bytes) -> None:
    with replacing(path) as file:
        file.write(text)


@contextlib.asynccontextmanager
async def _over_http(figures: Figures, address: Address) -> AsyncIterator[str]:
    clients: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_answer(head, figures) if len(clients) <= _CLIENTS else _response(HTTPStatus.SERVICE_UNAVAILABLE))
                    await writer.drain()
        finally:
            clients.discard(task)
            writer.close()

    server = await asyncio.start_server(answer, sock=listen(address), limit=_REQUEST_MAX)
    try:
        yield f"http://{address.shown}:{server.sockets[0].getsockname()[1]}/metrics"
    finally:
        server.close()
        for task in clients:
            task.cancel()


def _answer(head: bytes, figures: Figures) -> bytes:
    """The response to a request."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _response(HTTPStatus.BAD_REQUEST)
    if words[0] not in (b"GET", b"HEAD"):
        return _response(HTTPStatus.METHOD_NOT_ALLOWED, extra="Allow: GET, HEAD\r\n")
    if words[1].split(b"?")[0] != b"/metrics":
        return _response(HTTPStatus.NOT_FOUND)
    return _response(HTTPStatus.OK, figures.text(), _CONTENT_TYPE, only_head=words[0] == b"HEAD")


def _response(
    status: HTTPStatus, body: bytes = b"", kind: str = "text/plain; charset=utf-8", extra: str = "", *, only_head: bool = False
) -> bytes:
    body = body or f"{status.phrase}. The figures are at /metrics.\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if only_head else body)
