"""The socket that a server listens on, and the token that its clients give.

Invariants
----------
- A Unix socket is never open to others: it is made with mode 0600, not made and then closed to them.
- A file in the way is removed only if it is a socket on which nobody listens.
- An address that other machines reach needs TLS, or the word that it does not (``--insecure``).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOKEN_MIN = 16
"""Characters of a token in a file."""

_TOKEN = re.compile(rf"[A-Za-z0-9._~+/-]{{{TOKEN_MIN},512}}=*")
_BACKLOG = 64


class Address(NamedTuple):
    """Where to listen: an address of a family of the internet."""

    family: socket.AddressFamily
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback

    @property
    def anywhere(self) -> bool:
        """Whether these are all addresses of this machine."""
        return ipaddress.ip_address(self.host.partition("%")[0]).is_unspecified

    @property
    def shown(self) -> str:
        """The host in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host


def resolve(host: str, port: int) -> Address:
    """The address to bind for a host's name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return Address(socket.AddressFamily(family), str(address[0]), port)


def listen(address: Address) -> socket.socket:
    """A socket that listens there."""
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror, f"{address.shown}:{address.port}") from None
    return made


@contextlib.contextmanager
def listen_unix(path: str) -> Iterator[socket.socket]:
    """A socket that listens at a path, for this user only; it is removed at the end."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(made):
        _bind(made, path)
        made.listen(_BACKLOG)
        own = _identity(path)
        try:
            yield made
        finally:
            with contextlib.suppress(OSError):
                if _identity(path) == own:  # not another server's, that took its place
                    os.unlink(path)


def _bind(made: socket.socket, path: str) -> None:
    before = os.umask(0o177)  # the process has one thread yet
    try:
        try:
            made.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, error.strerror, path) from None
            if not _is_abandoned(path):
                raise FileExistsError(errno.EEXIST, "it exists; choose another path, or remove it first", path) from None
            os.unlink(path)
            made.bind(path)
    finally:
        os.umask(before)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _is_abandoned(path: str) -> bool:
    """Whether this is a socket on which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(32)


def read_token(path: str) -> str:
    """The token in a file, the same at each start; ``ValueError`` if it cannot be one, or others can read it."""
    with Path(path).open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(1024).decode("ascii", "replace").strip()
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        raise ValueError(f"{path}: every user can read this token; chmod o-r {path}")
    if not _TOKEN.fullmatch(text):
        raise ValueError(
            f"{path}: a token has {TOKEN_MIN} to 512 letters, digits and ._~+/- on one line; "
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return text
