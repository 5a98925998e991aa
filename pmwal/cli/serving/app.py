"""The application: what is at which path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pmwal.cli.serving.guard import Guard, error_response
from pmwal.cli.serving.live import EVERY, Watch
from pmwal.cli.serving.metrics import ServedLogs
from pmwal.cli.serving.names import Names
from pmwal.cli.serving.queries import parse_query
from pmwal.cli.serving.stream import Gone, Stream, Unreadable
from pmwal.cli.serving.walks import Pool

PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/figures.js": ("figures.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
"""Path -> file of this package and its type. They are the same for everybody, so they need no token."""


class _Answer(StreamingResponse):
    """A stream that ends with its client."""

    def __init__(self, stream: Stream, media_type: str, end: Callable[[Stream], None]) -> None:
        super().__init__(stream.chunks(), media_type=media_type)
        self._stream = stream
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end(self._stream)


@dataclass(frozen=True)
class Access:
    """Who may ask. ``token``: None if anybody may who reaches the socket; ``hosts``: the names that the server answers to."""

    token: str | None
    hosts: frozenset[str]
    clients: int


class Service:
    """The logs at these places, for any number of requests."""

    def __init__(self, places: list[str], access: Access) -> None:
        """Raises ``FileNotFoundError`` for a place that is not there."""
        self._names = Names(places)
        self._pool = Pool(places)
        logs = self._pool.take()
        self.found, self.problems = len(logs.logs), dict(logs.problems)
        self._pool.give_back(logs)
        self._watch = Watch(self._pool, self._names)
        self._served = ServedLogs(self._watch)
        self._streams: set[Stream] = set()
        self._page = {path: (files(__package__).joinpath(name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}
        routes = [Route(path, self._static) for path in PAGE]
        routes += [Route("/entries", self._entries), Route("/stats", self._stats), Route("/metrics", self._metrics)]
        inner = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
        self._guard = Guard(inner, token=access.token, hosts=access.hosts, public=PAGE, clients=access.clients)

    @property
    def app(self) -> ASGIApp:
        """The application for a server."""
        return self._guard

    @property
    def answered(self) -> int:
        """How many requests there were."""
        return self._guard.answered

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._guard.busy

    def stop(self) -> None:
        """End all streams."""
        for stream in list(self._streams):
            stream.stop()

    def close(self) -> None:
        """Close the logs."""
        self._pool.close()

    async def sampling(self) -> None:
        """Take a sample each second, while somebody asks for them."""
        while True:
            await asyncio.sleep(EVERY)
            if self._watch.wanted:
                await asyncio.to_thread(self._watch.sample)
            else:
                self._pool.close()  # a set that nobody uses would keep files that were removed

    async def _static(self, request: Request) -> Response:
        content, media_type = self._page[request.url.path]
        return Response(content, media_type=media_type)

    async def _entries(self, request: Request) -> Response:
        try:
            query = parse_query(request.query_params.multi_items(), request.headers)
        except ValueError as error:
            return error_response(400, str(error))
        media_type = "text/event-stream" if query.events else "application/x-ndjson"
        if request.method == "HEAD":
            return Response(media_type=media_type)
        stream = Stream(self._pool, self._names, query, self._count_drops)
        self._streams.add(stream)
        refusal: Response | None = None
        try:
            await stream.begin()
        except Gone as error:
            refusal = error_response(410, str(error))
        except Unreadable as error:
            refusal = error_response(500, str(error))
        except asyncio.CancelledError:
            self._end(stream)
            raise
        if refusal is not None:
            self._end(stream)
            return refusal
        return _Answer(stream, media_type, self._end)

    def _end(self, stream: Stream) -> None:
        stream.stop()
        self._streams.discard(stream)

    async def _stats(self, request: Request) -> Response:
        given = request.query_params.get("after")
        if given is not None and not (given.isascii() and given.isdigit() and len(given) < 18):
            return error_response(400, "after is the tick of an earlier answer")
        stats = await asyncio.to_thread(self._watch.stats, None if given is None else int(given))
        return JSONResponse(stats | {"clients": self._guard.busy["/entries"], "dropped": self._served.dropped})

    async def _metrics(self, request: Request) -> Response:
        self._served.clients = self._guard.busy["/entries"]
        return Response(await asyncio.to_thread(self._served.text), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _count_drops(self, count: int) -> None:
        self._served.dropped += count


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail)
