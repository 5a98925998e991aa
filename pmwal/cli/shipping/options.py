"""Options of ``ship`` and ``restore``: the destination, how to connect, and where figures go."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pmwal.cli.parser import Parser

if TYPE_CHECKING:
    import ssl

    from pmwal.ship import Options

PASSWORD = "NATS_PASSWORD"
"""The variable with the password, which the program nats uses, too."""

FILE_SUFFIX = ".prom"
"""How the names of files end that the textfile collector reads."""

_DEFAULT_HOST = "127.0.0.1"
_OWN_HEADERS = ("content-type", "content-encoding", "content-length", "transfer-encoding", "host", "user-agent")


def add_stream(parser: Parser, url: str, meaning: str, *, required: bool = True) -> None:
    """The options that name the stream. ``url``: the option for the servers; ``required``: there is always a stream."""
    parser.add_argument(url, required=True, dest="url", metavar="URL", help=meaning)
    parser.add_argument("--stream", type=_stream, required=required, metavar="S", help="the name of the stream")
    parser.add_argument("--prefix", type=_prefix, metavar="P", help="first part of the subjects (default: pmwal)")


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; for the others the library has defaults."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _stream(text: str) -> str:
    from pmwal.ship.chain import check_stream  # noqa: PLC0415 - help needs none of it

    return _checked(check_stream, text)


def _prefix(text: str) -> str:
    from pmwal.ship.chain import check_prefix  # noqa: PLC0415 - help needs none of it

    return _checked(check_prefix, text)


def _checked(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_servers(args: argparse.Namespace, or_else: str = "") -> None:
    """Wrong usage for a URL that is not one of NATS servers. ``or_else``: what else it may be meant as."""
    from pmwal.ship.servers import servers_of  # noqa: PLC0415 - help needs none of it

    try:
        servers_of(args.url)
    except ValueError as error:
        args.parser.error(f"{error}{or_else}")


def add_connection(parser: Parser) -> None:
    """How to connect, and as whom."""
    parser.add_argument("--tls-ca", metavar="FILE", help="trust the authorities in this file (PEM), not those of the system")
    parser.add_argument("--tls-cert", metavar="FILE", help="the certificate to show to the server (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="the certificate's key (PEM)")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--creds", metavar="FILE", help="the credentials file of a user, a JWT with its seed")
    who.add_argument("--nkey", metavar="FILE", help="the file with the seed of an nkey")
    who.add_argument("--user", type=_user, metavar="NAME", help=f"the user, whose password is in the environment as {PASSWORD}")


def _user(text: str) -> str:
    if not text or ":" in text:
        raise argparse.ArgumentTypeError(f"give the name alone, and the password in the environment, as {PASSWORD}")
    return text


def header_option(text: str) -> tuple[str, str]:
    """A header of each request, NAME=VALUE, for argparse. Its errors do not show the value."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) is None:
        raise argparse.ArgumentTypeError("write NAME=VALUE, such as x-tenant=7")
    if not (value.isascii() and value.isprintable()):
        raise argparse.ArgumentTypeError(f"the value of {name} has characters that headers must not have; use printable ASCII")
    if name.lower() in _OWN_HEADERS:
        raise argparse.ArgumentTypeError(f"{name} is set by pmwal; leave it out")
    return name, value


def connection(args: argparse.Namespace) -> Options:
    """What these arguments say of the connection to NATS; ``OSError`` if a file cannot be read."""
    from pmwal.ship import Options  # noqa: PLC0415 - help needs none of it

    if args.user is not None and PASSWORD not in os.environ:
        args.parser.error(f"--user needs the password in the environment: {PASSWORD}")
    _check_readable(args.creds, args.nkey)
    user = None if args.user is None else f"{args.user}:{os.environ[PASSWORD]}"
    return Options(tls=tls_context(args), creds=args.creds, nkey=args.nkey, user=user)


def _check_readable(*paths: str | None) -> None:
    for path in paths:
        if path is not None:
            with open(path, "rb"):  # those who read it would not name it in their error
                pass


def tls_context(args: argparse.Namespace) -> ssl.SSLContext | None:
    """The certificates to use, if any are named; ``OSError`` if a file cannot be read."""
    if (args.tls_cert is None) != (args.tls_key is None):
        args.parser.error("--tls-cert and --tls-key go together")
    _check_readable(args.tls_ca, args.tls_cert, args.tls_key)
    if args.tls_ca is None and args.tls_cert is None:
        return None
    import ssl  # noqa: PLC0415 - it is slow to load

    try:
        context = ssl.create_default_context(cafile=args.tls_ca)
        if args.tls_cert is not None:
            context.load_cert_chain(args.tls_cert, args.tls_key)
    except ssl.SSLError as error:
        names = ", ".join(name for name in (args.tls_ca, args.tls_cert, args.tls_key) if name is not None)
        raise ValueError(f"{names}: not a certificate, or not its key, in PEM: {error.reason or error}") from None
    return context


class File(NamedTuple):
    """A file that is replaced from time to time."""

    path: str


class Port(NamedTuple):
    """A port to listen on, by default of the loopback address."""

    host: str
    port: int


Target: TypeAlias = File | Port


def target_option(text: str) -> Target:
    """Where figures go, for argparse: ``[ADDRESS:]PORT``, or the name of a file that ends with ``.prom``."""
    if text.endswith(FILE_SUFFIX):
        return File(text)
    match = re.fullmatch(r"(?:(?P<host>\[[^]]+\]|[^:\[\]/]+):)?(?P<port>\d{1,5})", text)
    if match is None or int(match["port"]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is neither ADDRESS:PORT, such as 127.0.0.1:9470, nor a file *{FILE_SUFFIX}")
    return Port((match["host"] or _DEFAULT_HOST).strip("[]"), int(match["port"]))
