"""The client of nats-py for servers that have to use TLS.

Invariants
----------
- A server that does not use TLS gets nothing: no password, no token, no record; at the first connection and at each later one, of
  all servers that are given or discovered. nats-py alone continues in plain text if the server does not ask for TLS, and whoever is
  in between can take that out of what the server says.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error


class SecureTransport(TcpTransport):
    """A connection on which nothing is sent before TLS is in use. ``refused`` is called with why a server got nothing."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._refused = refused
        self._secure = False
        self._server = ""

    def __bool__(self) -> bool:
        """The client makes no other one in its place."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect, and wait for what the server says."""
        self._secure, self._server = False, f"{uri.hostname}:{uri.port}"
        await super().connect(uri, buffer_size, connect_timeout)

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Use TLS from here on."""
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._secure = True

    def write(self, payload: bytes) -> None:
        """Send this, or refuse to."""
        self._need_tls()
        super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: list[bytes]) -> None:
        """Send all of this, or refuse to."""
        self._need_tls()
        super().writelines(payload)  # type: ignore[no-untyped-call]

    def _need_tls(self) -> None:
        if self._secure:
            return
        self.close()  # type: ignore[no-untyped-call]
        why = (
            f"the server {self._server} does not use TLS, so nothing was sent to it; configure TLS there, or, if others may read "
            "what is sent, give nats:// addresses only, without tls="
        )
        self._refused(why)
        raise Error(why)


class SecureClient(Client):
    """A client that sends nothing in plain text."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        super().__init__()
        assert self._transport is None  # which is where the client looks for it
        self._transport = SecureTransport(refused)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Use TLS with a server that leaves that to its clients (``allow_non_tls``), too."""
        if info.get("tls_available"):
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)
