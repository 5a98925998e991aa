"""Where records are sent: the URL of a collector, and what the variables of OpenTelemetry add to it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_SCHEMES = ("otlp+http", "otlp+https")
FORM = "otlp+http://HOST[:PORT][/PATH]"
"""How to spell the URL of a collector."""

_PORT = 4318  # of OTLP over HTTP, with TLS as without
_PATH = "/v1/logs"


class Endpoint(NamedTuple):
    """A collector: ``target`` is the path and the query of a request."""

    tls: bool
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{_SCHEMES[self.tls]}://{host}:{self.port}{self.target.partition('?')[0]}"  # a query may have a secret


def is_otlp(url: str) -> bool:
    """Whether a URL is one for ``OtlpShipper``.

    >>> from pmwal.ship.otlp import is_otlp
    >>> is_otlp("otlp+http://127.0.0.1:4318"), is_otlp("nats://127.0.0.1")
    (True, False)
    """
    return url.partition("://")[0].lower() in _SCHEMES


def endpoint_of(url: str) -> Endpoint:
    """The collector that a URL names. ``/v1/logs`` is added to its path, as to OTEL_EXPORTER_OTLP_ENDPOINT, unless it ends so.

    >>> str(endpoint_of("otlp+https://collector.example/otlp"))
    'otlp+https://collector.example:4318/otlp/v1/logs'
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not is_otlp(url) or not parts.hostname or port == 0 or parts.fragment or not url.isprintable() or " " in url:
        raise ValueError(f"to={url!r} is no collector; write {FORM}, or otlp+https://... for TLS")
    if parts.username is not None:
        raise ValueError("to= has a user or a password, which others could read in a list of processes; use headers=")
    path = parts.path.rstrip("/")
    target = path if path.endswith(_PATH) else path + _PATH
    return Endpoint(
        parts.scheme == "otlp+https", parts.hostname, port or _PORT, target + (f"?{parts.query}" if parts.query else "")
    )


def headers_of_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The headers that the variables for all signals, and for logs, add to each request.

    >>> headers_of_environment({"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,x-tenant=7"})
    {'api-key': 'a b', 'x-tenant': '7'}
    """
    return _pairs(environment, "OTEL_EXPORTER_OTLP_HEADERS") | _pairs(environment, "OTEL_EXPORTER_OTLP_LOGS_HEADERS")


def resource_of_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the variables say of the resource.

    >>> resource_of_environment({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,region=eu", "OTEL_SERVICE_NAME": "shop"})
    {'service.name': 'shop', 'region': 'eu'}
    """
    found = _pairs(environment, "OTEL_RESOURCE_ATTRIBUTES")
    name = environment.get("OTEL_SERVICE_NAME", "")
    return found | {"service.name": name} if name else found


def _pairs(environment: Mapping[str, str], variable: str) -> dict[str, str]:
    """Names and values as in a W3C baggage header. What has no name or no "=" is left out, as the specification of OpenTelemetry
    has it, with a warning, which does not show it: it may be a key."""
    found = {}
    for number, part in enumerate(environment.get(variable, "").split(","), 1):
        name, equals, value = part.partition("=")
        if equals and name.strip():
            found[unquote(name.strip())] = unquote(value.strip())
        elif part.strip():
            message = f"{variable}: its part {number} is left out; write NAME=VALUE,NAME=VALUE, with %2C for a comma in a value"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
    return found
