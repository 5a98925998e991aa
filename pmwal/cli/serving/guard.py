"""Who may ask what: the token, Host and Origin, how many at once, and the headers of every answer.

Invariants
----------
- Without the token only the page itself is sent, which is the same for everybody and contains nothing of a log. No answer and no
  message contains the token.
- A browser is served under the names that the server was started for, and only its own page: a name that an attacker lets lead to
  this address, and pages of other origins, are refused before the token is looked at.
- At most ``clients`` requests of a kind are answered at a time, so threads, descriptors and memory are limited.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Sent with every answer."""

_RETRY = "5"  # seconds


def error_response(status: int, text: str, **headers: str) -> Response:
    """An error as JSON."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": text}, status, named)


class Guard:
    """Lets requests pass to the application, or refuses them."""

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Collection[str], public: Collection[str], clients: int) -> None:
        """``token``: None where the socket's permissions say who may ask. ``public``: paths that need none."""
        self._app = app
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(hosts)
        self._public = frozenset(public)
        self._clients = clients
        self.busy: Counter[str] = Counter()
        self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        self.answered += 1
        path = scope["path"]
        refusal = self._refusal(path, Headers(scope=scope))
        if refusal is None and path not in self._public and self.busy[path] >= self._clients:
            refusal = error_response(503, "too many clients at once; try again", Retry_After=_RETRY)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        self.busy[path] += 1
        try:
            await self._app(scope, receive, guarded)
        finally:
            self.busy[path] -= 1
            if not self.busy[path]:
                del self.busy[path]

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or host_name(hosts[0]) not in self._hosts:
            return error_response(421, "this server does not answer to that name; see --allow-host of pmwal serve")
        if origins and (len(origins) > 1 or origins[0].partition("://")[2].lower() != hosts[0].lower()):
            return error_response(403, "pages of other origins are not answered")
        if path in self._public:
            return None
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return error_response(403, "pages of other origins are not answered")
        if not self._has_token(headers):
            return error_response(401, "give the token: Authorization: Bearer TOKEN", WWW_Authenticate="Bearer")
        return None

    def _has_token(self, headers: Headers) -> bool:
        if self._token is None:
            return True
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._token)


def host_name(host: str) -> str:
    """The name in a header ``Host``, without the port.

    >>> host_name("LocalHost:80"), host_name("[::1]:80")
    ('localhost', '::1')
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")
