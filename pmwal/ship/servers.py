"""The addresses of NATS servers, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

SCHEMES = ("nats", "tls")
"""What the address of a NATS server begins with; without any it is the first of these."""

FORM = "write nats://HOST[:PORT], or tls://HOST[:PORT] for TLS"
"""How to spell one."""


def servers_of(to: str | Sequence[str]) -> list[str]:
    """The servers that a shipper is given, as a list or with commas in between, each with its scheme.

    >>> servers_of("broker, tls://broker2:4333")
    ['nats://broker', 'tls://broker2:4333']
    """
    given = to.split(",") if isinstance(to, str) else list(to)
    if not given:
        raise ValueError(f"there is no server; {FORM}")
    return [_checked(server.strip()) for server in given]


def _checked(server: str) -> str:
    scheme, separator, rest = server.rpartition("://")
    scheme = scheme.lower() if separator else SCHEMES[0]
    url = f"{scheme}://{rest}"
    try:
        parts = urlsplit(url)
        is_good = scheme in SCHEMES and bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # the port, or an address in brackets
        is_good = False
    if not is_good:
        raise ValueError(f"{shown(server)!r} is no NATS server; {FORM}")
    return url


def shown(server: str) -> str:
    """An address for messages, without the user and the password that it may have.

    >>> shown("nats://me:secret@broker")
    'nats://broker'
    """
    return re.sub(r"(^|//)[^/]*@", r"\1", server)
