"""``pmwal ship`` to an OpenTelemetry collector: what suits one of its options, and its shipper looked at as that of one log."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from pmwal.cli.hints import for_command_line
from pmwal.cli.shipping.options import check_servers, tls_context
from pmwal.ship.otlp import OtlpProgress, OtlpShipper
from pmwal.ship.otlp.endpoint import FORM, endpoint_of, headers_of_environment, is_otlp

_FOR_NATS = ("stream", "prefix", "form", "frame", "linger", "hold", "on_rollback", "too_large", "creds", "nkey", "user", "check")
_SCHEMES = re.compile(r"otlp.*|https?", re.IGNORECASE)
_TLS = ("tls_ca", "tls_cert", "tls_key")


def is_for_collector(url: str) -> bool:
    """Whether a URL is meant as one of a collector, even if it is not spelled as one."""
    return "://" in url and _SCHEMES.fullmatch(url.partition("://")[0]) is not None


def check_options(args: argparse.Namespace) -> None:
    """Wrong usage for what is not for a destination like that of ``--to``, and for what it needs and is not there."""
    if not is_for_collector(args.url):
        if args.header:
            args.parser.error("--header is for an OpenTelemetry collector, and --to names a NATS server; leave it out")
        if args.stream is None:
            args.parser.error("the following arguments are required: --stream")
        check_servers(args, or_else=f"; for an OpenTelemetry collector write {FORM}")
        return
    if is_otlp(args.url):
        _refuse(args, _FOR_NATS, "is for NATS, and --to names an OpenTelemetry collector; leave it out")
    else:  # it may be meant as either
        _refuse(args, _FOR_NATS, f"is for NATS: write --to nats://HOST[:PORT]; for an OpenTelemetry collector {FORM}, without it")
    try:
        endpoint_of(args.url)
    except ValueError as error:
        args.parser.error(for_command_line(error, str(error)))
    if urlsplit(args.url).scheme == "otlp+http":
        _refuse(args, _TLS, "needs TLS; write --to otlp+https://...")


def _refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False:
            args.parser.error(f"--{name.replace('_', '-')} {why}")


class ToCollector:
    """An ``OtlpShipper`` of a log or of a set, which has one progress: it is that of a log with the names of the places."""

    def __init__(self, args: argparse.Namespace, places: Sequence[str]) -> None:
        self._name = " ".join(places)
        self._shipper = OtlpShipper(
            places if args.path is None else args.path,
            to=args.url,
            headers=_headers(args.header),
            tls=tls_context(args),
            **({} if args.consumer is None else {"consumer": args.consumer}),
        )
        self._done = False

    async def run(self, once: bool = False) -> None:
        """Ship it."""
        await self._shipper.run(once)
        self._done = True

    @property
    def progress(self) -> Mapping[str, OtlpProgress]:
        """How far it is, once that is known."""
        progress = self._shipper.progress
        return {self._name: progress} if self._done or progress != OtlpProgress() else {}

    @property
    def problems(self) -> Mapping[str, Exception | str]:
        """Why the newest request is repeated, and why logs of a set are left out."""
        problem = self._shipper.problem
        return {**self._shipper.unreadable, **({self._name: problem} if problem else {})}


def _headers(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Those of the environment, with those of the command line in addition, or in place of ones with the same name."""
    names = {name.lower() for name, _ in given}
    return {name: value for name, value in headers_of_environment().items() if name.lower() not in names} | dict(given)
