"""What tests of shipping share: logs whose payloads are known by their numbers, and a judge of what a stream has of them.

The judge is no part of pmwal: it decodes messages by docs/shipping-format.md, and so checks the shipper and the folding, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import pytest

import pmwal
from nats_servers import Client, NatsServer
from pmwal.ship import Shipper
from pmwal.ship.forms import Form
from pmwal.ship.link import Stored
from processes import PATIENCE

T = TypeVar("T")

FAST: dict[str, Any] = {"frame": 2048, "linger": 0.0}
"""Few records make many messages."""


SHIPPER_PUBLISHES = ("pmwal.>", "$JS.API.STREAM.MSG.GET.LOGS", "$JS.API.STREAM.INFO.LOGS")
"""The subjects on which a shipper is documented to publish."""

PERMISSIONS = f"""
authorization {{
  users: [
    {{ user: admin, password: secret }},
    {{ user: shipper, password: "s:p", permissions: {{
        publish: {json.dumps(SHIPPER_PUBLISHES)}, subscribe: ["_INBOX.>"] }} }}
  ]
}}
"""
"""A user for everything, and one with what a shipper is documented to need."""


@pytest.fixture(params=get_args(Form))
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form; ``ship`` and ``shipper`` ship in it."""
    monkeypatch.setitem(FAST, "form", request.param)
    return str(request.param)


both_forms = pytest.mark.usefixtures("form")


class Ended(Exception):
    """The shipper ends here, as if it were killed."""


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run a test's coroutine, for a limited time."""

    async def bounded() -> T:
        return await asyncio.wait_for(main(), PATIENCE)

    return asyncio.run(bounded())


def payload(seq: int, tag: bytes = b"") -> bytes:
    """The payload of the record of this number."""
    return tag + b"%09d-" % seq + hashlib.sha256(tag + b"%d" % seq).hexdigest().encode()


def grow(path: Path, count: int, *, tag: bytes = b"", size: str = "1MiB", **options: Any) -> None:
    """Append records with known payloads, and kinds."""
    with pmwal.open(path, size=size, commit="manual", **options) as wal:
        for _ in range(count):
            wal.append(payload(wal.next_seq, tag), kind=wal.next_seq % 7)
        wal.commit()


def contents(path: Path) -> list[pmwal.Record]:
    """The records of a log."""
    with pmwal.open(path, "r") as reader:
        return list(reader.read())


def position_of(path: Path, name: str = "nats") -> int:
    """The position of a consumer that nobody holds."""
    with pmwal.open(path, "r") as reader, reader.consumer(name) as consumer:
        return consumer.position


def shipper(path: Path, *servers: NatsServer, **options: Any) -> Shipper:
    """A shipper of this log, with many messages."""
    return Shipper(path, to=[server.url for server in servers], stream="LOGS", **FAST | options)


async def ship(path: Path, *servers: NatsServer, **options: Any) -> None:
    """Ship what the log has."""
    await shipper(path, *servers, **options).run(once=True)


@contextlib.asynccontextmanager
async def shipped(path: Path, server: NatsServer, count: int, **options: Any) -> AsyncIterator[Client]:
    """A client of a server whose stream ``LOGS`` has the first ``count`` records of this log, which is made with these options."""
    async with Client(server) as client:
        await client.create()
        grow(path, count, **options)
        await ship(path, server)
        yield client


class Delivered(NamedTuple):
    """A record as the judge found it."""

    seq: int
    kind: int
    time_ns: int
    data: bytes


class Mark(NamedTuple):
    """A marker: "gap" with the records that are missing, or "rollback" with the last one that counts."""

    what: str
    first: int
    last: int


_ITEM = struct.Struct("<IHq")


def decoded(messages: Sequence[Stored]) -> list[Delivered | Mark]:
    """What the messages of one log say, one after another."""
    found: list[Delivered | Mark] = []
    parts = bytearray()
    for message in messages:
        headers, body = message.headers, message.data
        if "Pmwal-Gap" in headers:
            first, last = headers["Pmwal-Gap"].split("-")
            found.append(Mark("gap", int(first), int(last)))
            parts.clear()
            continue
        if "Pmwal-Rollback" in headers:
            found.append(Mark("rollback", 0, int(headers["Pmwal-Rollback"])))
            parts.clear()
            continue
        if "Pmwal-Offset" in headers:
            if headers["Pmwal-Offset"] == "0":
                parts.clear()
            assert len(parts) == int(headers["Pmwal-Offset"]), "a part is missing, or came twice"
            parts += body
            if len(parts) < int(headers["Pmwal-Size"]):
                continue
            body = bytes(parts)
            parts.clear()
        seq = int(headers["Pmwal-First"])
        if "Pmwal-Kind" in headers:
            parts.clear()
            assert headers["Pmwal-Last"] == headers["Pmwal-First"]
            found.append(Delivered(seq, int(headers["Pmwal-Kind"]), int(headers["Pmwal-Time"]), body))
            continue
        at = 0
        while at < len(body):
            length, kind, time_ns = _ITEM.unpack_from(body, at)
            at += _ITEM.size + length
            found.append(Delivered(seq, kind, time_ns, body[at - length : at]))
            seq += 1
        assert seq == int(headers["Pmwal-Last"]) + 1
    return found


def records_in(messages: Sequence[Stored]) -> list[Delivered]:
    """The records of these messages, those of markers aside."""
    return [each for each in decoded(messages) if isinstance(each, Delivered)]


def folded(messages: Sequence[Stored]) -> list[Delivered]:
    """The records that count."""
    found: list[Delivered] = []
    for each in decoded(messages):
        if isinstance(each, Delivered):
            found.append(each)
        elif each.what == "rollback":
            found = [record for record in found if record.seq <= each.last]
    return found


def before(message: Stored) -> int:
    """The number of the message that this one says to be before it."""
    prev = message.headers.get("Pmwal-Prev")
    return message.seq - 1 if prev is None else int(prev)


class Verdict(NamedTuple):
    """What is wrong with records that were to come once each, in order."""

    lost: int
    duplicate: int
    disorder: int
    wrong: int


PERFECT = Verdict(0, 0, 0, 0)


async def verdict(client: Client, last: int) -> Verdict:
    """Judge what the stream has of the one log in it."""
    return judge(records_in(await client.messages()), last)


async def ship_over_kills(path: Path, server: NatsServer) -> None:
    """Ship 1500 records while the server is killed again and again, and judge what the stream has."""
    async with Client(server) as client:
        await client.create()
        grow(path, 10)
        async with shipper(path, server) as shipping:
            for last in range(500, 1501, 500):
                grow(path, 490 if last == 500 else 500)
                await shipping.acked(last - 400)
                server.kill()
                server.start()
                await shipping.acked(last)
        assert await verdict(client, 1500) == PERFECT


def judge(records: Sequence[Delivered], last: int, first: int = 1, tag: bytes = b"") -> Verdict:
    """Compare with the log in which all payloads were known by their numbers."""
    seqs = [record.seq for record in records]
    counts = Counter(seqs)
    return Verdict(
        lost=sum(seq not in counts for seq in range(first, last + 1)),
        duplicate=sum(count - 1 for count in counts.values()),
        disorder=sum(later <= earlier for earlier, later in pairwise(seqs)),
        wrong=sum((record.kind, record.data) != (record.seq % 7, payload(record.seq, tag)) for record in records),
    )
