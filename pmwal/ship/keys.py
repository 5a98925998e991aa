"""Files with the keys of a NATS user, checked before a client reads them: of what is wrong with one, nats-py says nothing that
helps, and one that has a seed and no JWT it reads for ever."""

from __future__ import annotations

import re
from typing import Any

from pmwal.errors import ShipError
from pmwal.ship.modules import needed

_SECTIONS = tuple(re.compile(rb"BEGIN " + name + rb"[^\n]*\n([^\n]+)\n") for name in (rb"NATS USER JWT", rb"USER NKEY SEED"))


def check_keys(creds: str | None, nkey: str | None) -> None:
    """``ShipError`` for a credentials file, or a file with a seed, that has something else; ``OSError`` if it cannot be read."""
    if creds is not None:
        content = _content(creds)
        jwt, seed = (section.search(content) for section in _SECTIONS)
        if jwt is None or seed is None or not _is_seed(seed[1]):
            raise ShipError(
                f"{creds}: no credentials of a NATS user are in this file; give one with a JWT and the seed of an nkey, as "
                "nsc generate creds writes it"
            )
    if nkey is not None and not _is_seed(_content(nkey)):
        raise ShipError(f"{nkey}: no seed of an nkey is in this file; give one with a single line, which begins with SU")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _is_seed(text: bytes) -> bool:
    nkeys: Any = needed("nkeys")
    try:
        nkeys.from_seed(bytearray(text.strip()))
    except (nkeys.NkeysError, ValueError):
        return False
    return True
