"""What a shipper is asked for, checked."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypedDict, get_args

from pmwal.format.payload import as_seconds, parse_size
from pmwal.format.position import check_name
from pmwal.opening.spelling import one_of
from pmwal.ship.chain import check_prefix, check_stream
from pmwal.ship.forms import Form
from pmwal.ship.link import Link, Options
from pmwal.ship.relay import RollbackPolicy, Rules, SizePolicy
from pmwal.ship.servers import servers_of

_FRAME_MIN, _FRAME_MAX = 1024, 64 << 20


class Keywords(TypedDict, total=False):
    """The options that shippers take by keyword."""

    prefix: str
    form: Form
    frame: int | str
    linger: float
    consumer: str
    hold: float
    on_rollback: RollbackPolicy
    too_large: SizePolicy
    tls: ssl.SSLContext | None
    creds: str | None
    nkey: str | None
    user: str | None
    notify: Callable[[str], None] | None


@dataclass(frozen=True)
class Settings:
    """The options of a shipper, checked. A bad value is a ``ValueError``, a value of the wrong type a ``TypeError``."""

    to: str | Sequence[str]
    stream: str
    _: KW_ONLY
    prefix: str = "pmwal"
    form: Form = "frame"
    frame: int | str = "256KiB"
    linger: float = 0.01
    consumer: str = "nats"
    hold: float = 180.0
    on_rollback: RollbackPolicy = "stop"
    too_large: SizePolicy = "split"
    tls: ssl.SSLContext | None = None
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    notify: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        servers_of(self.to)
        check_stream(self.stream)
        check_prefix(self.prefix)
        check_name(self.consumer)
        one_of("form", self.form, get_args(Form))
        one_of("on_rollback", self.on_rollback, get_args(RollbackPolicy))
        one_of("too_large", self.too_large, get_args(SizePolicy))
        size = parse_size(self.frame)
        if not _FRAME_MIN <= size <= _FRAME_MAX:
            raise ValueError(f"frame must be from {_FRAME_MIN} to {_FRAME_MAX} bytes, not {self.frame!r}")
        if as_seconds("linger", self.linger) is None or as_seconds("hold", self.hold) is None:
            raise ValueError("linger and hold are numbers of seconds, which must not be None or infinity")

    @property
    def rules(self) -> Rules:
        """For the relays of logs."""
        size = parse_size(self.frame)
        return Rules(self.stream, self.prefix, self.form, size, self.linger, self.hold, self.on_rollback, self.too_large)

    def link(self) -> Link:
        """A connection, which is not made yet. ``ImportError`` without nats-py."""
        return Link(self.to, self.stream, Options(self.tls, self.creds, self.nkey, self.user))
