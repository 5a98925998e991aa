"""Runs a shipper until it is told to end, and reports what it does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pmwal.cli.exit_status import FAILED, OK
from pmwal.cli.hints import for_command_line
from pmwal.cli.places import one_log
from pmwal.cli.reading.sets import status_of
from pmwal.cli.shipping.collecting import ToCollector, is_for_collector
from pmwal.cli.shipping.options import Port, Target, connection, given
from pmwal.cli.shipping.reports import Reports, lost
from pmwal.cli.streams import refuse_closed_output
from pmwal.cli.terminal import print_json
from pmwal.errors import PmwalError, ShipError
from pmwal.ship import Progress, SetShipper, Shipper, check
from pmwal.ship.otlp import OtlpProgress

_PAUSE = 1.0  # seconds between two looks at how far it is


class _Shipping(Protocol):
    """One log, or several."""

    async def run(self, once: bool = False) -> None: ...

    @property
    def progress(self) -> Mapping[str, Progress] | Mapping[str, OtlpProgress]: ...

    @property
    def problems(self) -> Mapping[str, Exception | str]: ...


class _OneLog:
    """A shipper of one log, which is woken by its writer; looked at as one of several."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._path = path
        self._shipper = Shipper(path, **options)

    async def run(self, once: bool = False) -> None:
        """Ship it."""
        await self._shipper.run(once)

    @property
    def progress(self) -> Mapping[str, Progress]:
        """How far it is, by its path."""
        return {self._path: self._shipper.progress}

    @property
    def problems(self) -> Mapping[str, Exception | str]:
        """Why it is not shipped at the moment, by its path."""
        problem = self._shipper.problem
        return {self._path: problem} if problem else {}


def ship(args: argparse.Namespace, places: Sequence[str]) -> int:
    """Ship the logs of these places as the arguments say; the exit status."""
    reports = Reports(json=args.json)
    args.path = one_log(places)  # of which errors are
    shipping = ToCollector(args, places) if is_for_collector(args.url) else _to_nats(args, places, reports)
    try:
        asyncio.run(_ship(shipping, args, reports))
    except (PmwalError, OSError, ValueError) as error:
        if not any(error is problem for problem in shipping.problems.values()):
            raise
    failed = [status_of(problem) for problem in shipping.problems.values() if isinstance(problem, Exception)]
    return max(OK, *failed, FAILED if any(lost(each) for each in shipping.progress.values()) else OK)


def _to_nats(args: argparse.Namespace, places: Sequence[str], reports: Reports) -> _Shipping:
    options = connection(args)._asdict() | {"to": args.url, "stream": args.stream, "notify": reports.tell}
    options |= given(args, "prefix", "form", "frame", "linger", "consumer", "hold", "on_rollback", "too_large")
    return SetShipper(places, **options) if args.path is None else _OneLog(args.path, options)


async def _ship(shipping: _Shipping, args: argparse.Namespace, reports: Reports) -> None:
    async with contextlib.AsyncExitStack() as stack:
        ended = stack.enter_context(_ended_by_signals())
        if args.metrics is not None:
            await stack.enter_async_context(_published(shipping, args.metrics, reports))
        task = asyncio.create_task(shipping.run(args.once))
        end = asyncio.create_task(ended.wait())
        try:
            while not task.done() and not end.done():
                await asyncio.wait([task, end], timeout=_PAUSE, return_when=asyncio.FIRST_COMPLETED)
                reports.show(shipping.progress)
                reports.complain(shipping.problems)
                if not args.once:
                    refuse_closed_output()
        finally:
            for each in (task, end):
                each.cancel()
            await asyncio.wait([task, end])
        reports.finish(shipping.progress)
        if not task.cancelled():
            task.result()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM, SIGHUP and SIGINT set; a second one ends the command at once."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    own = threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]

    def end() -> None:
        ended.set()
        restore()

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    if not own:
        yield ended
        return
    for number in numbers:
        loop.add_signal_handler(number, end)
    try:
        yield ended
    finally:
        restore()


@contextlib.asynccontextmanager
async def _published(shipping: _Shipping, target: Target, reports: Reports) -> AsyncIterator[None]:
    try:
        from pmwal.cli.shipping.figures import ShippedLogs  # noqa: PLC0415 - needs an extra
        from pmwal.cli.shipping.publishing import publishing  # noqa: PLC0415
    except ImportError:
        raise ValueError("--metrics requires prometheus_client, which is not installed: pip install 'pmwal[metrics]'") from None
    otlp = isinstance(shipping, ToCollector)
    figures = ShippedLogs(lambda: shipping.progress, lambda: shipping.problems, otlp=otlp)
    async with publishing(figures, target) as where:
        if isinstance(target, Port):
            reports.tell(f"figures for Prometheus are at {where}")
        yield


def check_stream(args: argparse.Namespace) -> int:
    """Print what is wrong with the stream; the exit status."""
    found = asyncio.run(check(to=args.url, stream=args.stream, options=connection(args), **given(args, "prefix", "form")))
    if args.json:
        print_json({"stream": args.stream, "problems": [problem._asdict() for problem in found]})
    else:
        for problem in found:
            text = for_command_line(ShipError(), problem.text)
            print(f"stream {args.stream}: {'' if problem.refused else 'warning: '}{text}")
        if not found:
            print(f"stream {args.stream}: nothing is wrong")
    return FAILED if any(problem.refused for problem in found) else OK
