"""``pmwal serve``: logs over HTTP, for reading, and a page that shows them as they grow.

Invariants
----------
- What anybody may do with a log is read it: no request stores, removes or locks anything.
- The token is printed once, in the URL, and nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from pmwal.cli.exit_status import OK
from pmwal.cli.options import duration_option
from pmwal.cli.parser import Commands, Parser, add_command, number_option

_CLIENTS = 16

_EPILOG = """\
It prints a URL to open in a browser. The page shows new entries as they come,
with filters, rates, fill and commit latencies. For programs:
  /entries   JSON lines, or server-sent events (Accept: text/event-stream)
             parameters: since, until, level, logger, field, grep, cursor,
             limit, follow; or Range: entries=CURSOR[[:SKIP]:COUNT]
  /stats     what the writers do, as JSON
  /metrics   the same for Prometheus
Give the token as Authorization: Bearer TOKEN.

On this machine every user reaches a port, so a token is always needed: a new
one at each start, or that of --token-file. A Unix socket has mode 0600 and
needs none. An address that others reach needs --tls-cert and --tls-key, or
--insecure, and --allow-host for each name under which a browser reaches it.

Only the logs named are served, under the names of their files without .wal; new
ones of a directory as they appear. Needs starlette, uvicorn, google-re2 and
prometheus_client: pip install 'pmwal[web]'

Examples:
  pmwal serve app.wal
  pmwal serve /var/log/shop --port 8470 --token-file ~/.shop-token
  pmwal serve logs --unix /tmp/me/logs.sock
  curl --unix-socket /tmp/me/logs.sock 'http://localhost/entries?level=err'
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "serve",
        run,
        "show logs in a browser, and to programs over HTTP",
        "Show logs in a browser, and to programs over HTTP, for reading only.",
        _EPILOG,
    )
    parser.add_argument("paths", nargs="+", metavar="LOG", help="a log file, a directory of logs, or a pattern for them")
    _add_address(parser)
    parser.add_argument("--token-file", metavar="FILE", help="take the token from this file, which others must not be able to read")
    parser.add_argument("--tls-cert", metavar="FILE", help="speak HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="the certificate's key (PEM)")
    parser.add_argument("--insecure", action="store_true", help="speak HTTP to other machines: who listens in reads all")
    parser.add_argument(
        "--clients", type=number_option(1, 1000), default=_CLIENTS, metavar="N", help="requests at a time (default: 16)"
    )
    parser.add_argument("--idle", type=duration_option, metavar="TIME", help="end after this time without a request, as 10min")


def _add_address(parser: Parser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    where.add_argument("--unix", metavar="PATH", help="listen on a Unix socket instead, which only this user reaches")
    parser.add_argument("--port", type=number_option(0, 65535), default=0, help="the port to listen on (default: any free one)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name in the header Host, too",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    _check(args)
    for module in ("starlette", "uvicorn", "re2", "prometheus_client"):
        _need(module)
    with contextlib.ExitStack() as stack:
        return _serve(args, stack)


def _check(args: argparse.Namespace) -> None:
    if (args.tls_cert is None) != (args.tls_key is None):
        args.parser.error("--tls-cert and --tls-key go together")
    if args.unix is not None and (args.tls_cert is not None or args.port):
        args.parser.error("--unix needs no port and no TLS")


def _need(module: str) -> None:
    try:
        import_module(module)
    except ImportError:
        name = {"re2": "google-re2"}.get(module, module)
        raise ValueError(f"serve requires {name}, which is not installed: pip install 'pmwal[web]'") from None


def _serve(args: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    from pmwal.cli.serving.app import Access, Service  # noqa: PLC0415 - needs the extra
    from pmwal.cli.serving.listening import new_token, read_token  # noqa: PLC0415
    from pmwal.cli.serving.running import Tls, prepared  # noqa: PLC0415

    warnings.simplefilter("default", RuntimeWarning)  # once: each request would tell of a log that cannot be read
    token = None if args.token_file is None else read_token(args.token_file)
    place = _unix(args) if args.unix is not None else _port(args)
    if token is None and place.needs_token:
        token = new_token()
    access = Access(token, place.hosts, args.clients)
    service = Service(args.paths, access)
    stack.callback(service.close)
    if not service.found and service.problems:
        raise next(iter(service.problems.values()))
    listener = stack.enter_context(place.listen())
    tls = None if args.tls_cert is None else Tls(args.tls_cert, args.tls_key)
    serve = prepared(service, access, tls)
    if serve(listener, args.idle, lambda: print(place.url(listener, token), flush=True)):
        raise KeyboardInterrupt
    return OK


class _Place(NamedTuple):
    """Where to listen: what to open, the names in the header ``Host``, and what to print."""

    listen: Callable[[], contextlib.AbstractContextManager[socket.socket]]
    hosts: frozenset[str]
    url: Callable[[socket.socket, str | None], str]
    needs_token: bool


def _unix(args: argparse.Namespace) -> _Place:
    from pmwal.cli.serving.listening import listen_unix  # noqa: PLC0415

    def url(listener: socket.socket, token: str | None) -> str:
        return f"http://localhost/ on the socket {args.unix}"

    hosts = frozenset({"localhost", *map(str.lower, args.allow_host)})
    return _Place(lambda: listen_unix(args.unix), hosts, url, needs_token=False)


def _port(args: argparse.Namespace) -> _Place:
    from pmwal.cli.serving.listening import listen, resolve  # noqa: PLC0415

    address = resolve(args.host, args.port)
    names = {"localhost", "127.0.0.1", "::1"} if address.loopback else {socket.gethostname(), socket.getfqdn()}
    hosts = frozenset(map(str.lower, {args.host, address.host, *names, *args.allow_host}))
    if not address.loopback and args.tls_cert is None and not args.insecure:
        args.parser.error(f"others reach {address.host}: give --tls-cert and --tls-key, or --insecure to be read on the way")

    def url(listener: socket.socket, token: str | None) -> str:
        scheme = "http" if args.tls_cert is None else "https"
        shown = socket.gethostname() if address.anywhere else address.shown
        # After #, which browsers keep to themselves: so it is in no request, no Referer and no log of a proxy.
        return f"{scheme}://{shown}:{listener.getsockname()[1]}/#token={token}"

    return _Place(lambda: contextlib.closing(listen(address)), hosts, url, needs_token=True)
