"""NATS servers in operator mode: an operator, an account with JetStream, and credentials files of its users."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

_UNLIMITED = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1)
_JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)

_CREDENTIALS = """\
-----BEGIN NATS USER JWT-----
{token}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


class Key:
    """A pair of keys. ``kind``: "OPERATOR", "ACCOUNT" or "USER"."""

    def __init__(self, kind: str) -> None:
        import nkeys  # noqa: PLC0415

        self.seed: bytes = nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{kind}"))
        self._pair = nkeys.from_seed(self.seed)
        self.public: str = self._pair.public_key.decode()

    def token(self, subject: Key, what: dict[str, Any]) -> str:
        """A token in which this key says something of another one, as the server takes it."""
        claims = {"iss": self.public, "sub": subject.public, "name": subject.public, "iat": int(time.time())}
        said = ".".join(map(_encoded, ({"typ": "JWT", "alg": "ed25519-nkey"}, claims | {"nats": what | {"version": 2}})))
        return f"{said}.{_text(self._pair.sign(said.encode()))}"


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _encoded(what: dict[str, Any]) -> str:
    return _text(json.dumps(what).encode())


class Account:
    """An account of an operator of its own."""

    def __init__(self) -> None:
        self._operator, self._key, self._system = Key("OPERATOR"), Key("ACCOUNT"), Key("ACCOUNT")

    @property
    def configuration(self) -> str:
        """For a server that knows the operator and this account."""
        operator = self._operator.token(self._operator, {"type": "operator"})
        limits = _UNLIMITED | {"wildcards": True}
        accounts = ((self._key, limits | _JETSTREAM), (self._system, limits))
        tokens = [f"{key.public}: {self._operator.token(key, {'type': 'account', 'limits': each})}" for key, each in accounts]
        return (
            f"operator: {operator}\nsystem_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {{ {', '.join(tokens)} }}"
        )

    def credentials(self, path: Path, **permissions: list[str]) -> Path:
        """Write the credentials of a new user. ``pub`` and ``sub``: subjects that it may use; all without."""
        user = Key("USER")
        allowed = {name: {"allow": subjects} for name, subjects in permissions.items()}
        limits = {"subs": -1, "data": -1, "payload": -1}
        token = self._key.token(user, {"type": "user", "pub": {}, "sub": {}} | limits | allowed)
        path.write_text(_CREDENTIALS.format(token=token, seed=user.seed.decode()))
        return path
