"""Runs the application until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from pmwal.cli.serving.app import Access, Service

_KEEP_ALIVE = 15  # seconds
_END = 5  # seconds in which answers may end
_SPARE = 64  # connections that are not being answered


@dataclass(frozen=True)
class Tls:
    """Files with the certificate and its key, in PEM."""

    certificate: str
    key: str


class _Server(uvicorn.Server):
    """The server, without handlers for signals: the command has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def prepared(
    service: Service, access: Access, tls: Tls | None
) -> Callable[[socket.socket, float | None, Callable[[], None]], bool]:
    """A function that serves on a listening socket until SIGTERM or SIGINT, or until a number of seconds have passed without a
    request, and returns whether it was SIGINT. It calls its last argument once it can be ended so. A certificate that is none is an
    error now.
    """
    config = uvicorn.Config(
        service.app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=3 * access.clients + _SPARE,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_END,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    config.load()
    return lambda listener, idle, ready: asyncio.run(_serve(service, _Server(config), listener, idle, ready))


async def _serve(
    service: Service, server: uvicorn.Server, listener: socket.socket, idle: float | None, ready: Callable[[], None]
) -> bool:
    interrupted = False

    def end(signal_number: int) -> None:
        nonlocal interrupted
        interrupted = interrupted or signal_number == signal.SIGINT
        server.should_exit = True
        service.stop()

    loop = asyncio.get_running_loop()
    with _handlers(loop, end):
        ready()
        tasks = [asyncio.create_task(service.sampling())]
        if idle is not None:
            tasks.append(asyncio.create_task(_end_when_idle(service, idle, lambda: end(0))))
        try:
            await server.serve([listener])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return interrupted


@contextlib.contextmanager
def _handlers(loop: asyncio.AbstractEventLoop, end: Callable[[int], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _end_when_idle(service: Service, seconds: float, end: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    since, answered = loop.time(), service.answered
    while loop.time() - since < seconds:
        await asyncio.sleep(min(0.1, max(0.0, since + seconds - loop.time())))
        if not service.idle or service.answered != answered:
            since, answered = loop.time(), service.answered
    end()
