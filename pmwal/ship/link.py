"""A connection to NATS servers, and what a shipper asks of a stream.

Invariants
----------
- Everything that a server may refuse or not answer ends as ``Unavailable``, ``WrongLast`` or ``ShipError``. After ``Unavailable``
  it is not known whether a message was stored, so the stream is asked for its last one.
- The last message is asked of the stream's leader, never of a mirror or a follower (no direct get): these may be behind.
- A batch is stored as a whole or not at all: only its last message is answered, and what a failure leaves of one is abandoned.
- With TLS asked for, by one address or by a context, nothing is sent to any server without it (``secure``).
- It publishes on subjects of logs, and asks ``STREAM.INFO`` and ``STREAM.MSG.GET`` of one stream: it needs no other permissions.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Coroutine, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from pmwal.errors import ShipError
from pmwal.ship.chain import HEADERS_MAX
from pmwal.ship.keys import check_keys
from pmwal.ship.modules import needed
from pmwal.ship.servers import servers_of, shown

_NO_MESSAGE, _NO_STREAM, _WRONG_LAST, _INCOMPLETE = 10037, 10059, (10071, 10164), 10176
_RECONNECT_PAUSE, _CONNECT_SECONDS = 0.1, 2.0
_FETCH, _BODIES, _BODIES_SIZE = 500, 16, 4 << 20  # messages that are fetched at once; with bodies, if these are large; their bytes
_BATCHES = 16  # in flight at a time: a stream takes 50, of all shippers
_FIRST_LINE = "NATS/1.0"


class Unavailable(Exception):
    """The server did not answer, or refused for now."""


class NoStream(Unavailable):
    """There is no stream of this name."""


class WrongLast(Exception):
    """The last message on the subject is another one than the server was to expect; nothing was stored."""


class Stored(NamedTuple):
    """A message of a stream."""

    seq: int
    subject: str
    headers: dict[str, str]
    data: bytes


class StreamState(NamedTuple):
    """What a server says of a stream: its settings, when it was created, and the number of its last message."""

    config: dict[str, Any]
    created_us: int
    first_seq: int
    last_seq: int


class Options(NamedTuple):
    """How to connect. ``tls``: a context, so that all servers have to use TLS; None for that of the system, where TLS is used.

    ``creds`` and ``nkey``: paths of a credentials file, and of a file with the seed of an nkey. ``user``: ``"NAME:PASSWORD"``.
    """

    tls: ssl.SSLContext | None = None
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None

    def arguments(self) -> dict[str, Any]:
        """For ``nats.connect``."""
        found: dict[str, Any] = {"tls": self.tls, "user_credentials": self.creds, "nkeys_seed": self.nkey}
        if self.user is not None:
            found["user"], _, found["password"] = self.user.partition(":")
        return {name: value for name, value in found.items() if value is not None}


class Link:
    """One connection for any number of logs that are shipped to one stream."""

    def __init__(self, to: str | Sequence[str], stream: str, options: Options, timeout: float = 5.0) -> None:
        self._nats = needed("nats")
        self._errors = needed("nats.errors")
        self.servers = servers_of(to)
        self.stream = stream
        self._options = options
        if options.creds is not None or options.nkey is not None:
            needed("nkeys")
        self._timeout = timeout
        self._client: Any = None
        self._refused: asyncio.Future[str] | None = None  # by a server, so that there is no use in trying again
        self._in_plain_text = ""  # why a server that does not use TLS got nothing
        self._connecting = asyncio.Lock()
        self._batches = asyncio.Semaphore(_BATCHES)
        self._asking: dict[asyncio.Task[Any], str] = {}  # tasks that wait for an answer, and their subjects
        self._unanswered: set[asyncio.Task[Any]] = set()  # those that were woken because none will come
        self.turns = 0
        """How often it has connected anew: the server may have another state by then."""
        self.problem = ""
        """What the client has said last of servers that it does not reach."""

    async def _connected(self) -> Any:
        client = self._client
        if client is not None and not client.is_closed and not self._in_plain_text:
            return client
        async with self._connecting:
            if self._in_plain_text:
                await self.close()
                why, self._in_plain_text = self._in_plain_text, ""
                raise ShipError(why)
            if self._client is None or self._client.is_closed:
                self._client = await self._connect()
            return self._client

    def _new_client(self) -> Any:
        if self._options.tls is None and not any(server.startswith("tls://") for server in self.servers):
            return self._nats.NATS()
        from pmwal.ship.secure import SecureClient  # noqa: PLC0415 - it needs nats-py

        return SecureClient(self._note_plain_text)

    async def _connect(self) -> Any:
        check_keys(self._options.creds, self._options.nkey)
        self._refused, self._in_plain_text = asyncio.get_running_loop().create_future(), ""
        client = self._new_client()
        connecting = asyncio.ensure_future(
            client.connect(
                self.servers,
                name="pmwal ship",
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_PAUSE,
                connect_timeout=_CONNECT_SECONDS,
                error_cb=self._note_error,
                disconnected_cb=self._note_loss,
                reconnected_cb=self._note_turn,
                **self._options.arguments(),
            )
        )
        try:
            patience = max(self._timeout, _CONNECT_SECONDS * (len(self.servers) + 1))  # so that each of them has its turn
            await asyncio.wait({connecting, self._refused}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._in_plain_text = ""
                raise ShipError(self._refused.result())
            if not connecting.done():
                raise Unavailable(self.problem or f"no answer from {self._where}")
            connecting.result()
        except (OSError, self._errors.Error) as error:
            raise Unavailable(self.problem or f"{self._where}: {error}") from error
        finally:
            connecting.cancel()
        self.turns += 1
        return client

    @property
    def _where(self) -> str:
        """The servers for messages, without the passwords that their addresses may have."""
        return ", ".join(map(shown, self.servers))

    async def _note_error(self, error: Exception) -> None:
        self.problem = str(error) or type(error).__name__
        if "authorization" in self.problem.lower() and self._refused is not None and not self._refused.done():
            self._refused.set_result(f"{self._where}: {self.problem}; check the user, the credentials or the nkey")
        if "permissions violation" in self.problem.lower():  # with the subject, in small letters
            self._wake([task for task, subject in self._asking.items() if f'"{subject.lower()}"' in self.problem.lower()])

    def _note_plain_text(self, why: str) -> None:
        self._in_plain_text = why
        if self._refused is not None and not self._refused.done():
            self._refused.set_result(why)
        self._wake(list(self._asking))

    async def _note_loss(self) -> None:
        self._wake(list(self._asking))

    def _wake(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Let these not wait any longer."""
        for task in tasks:
            if task not in self._unanswered:
                self._unanswered.add(task)
                task.cancel()

    async def _note_turn(self) -> None:
        self.turns += 1
        self.problem = ""

    # -- what is asked

    @property
    def size_max(self) -> int:
        """Bytes that a message may have, headers included, as the server that is connected says."""
        return 1 << 20 if self._client is None else int(self._client.max_payload)

    @property
    def version(self) -> tuple[int, int]:
        """Of the server that is connected."""
        version = self._client.connected_server_version
        return int(version.major), int(version.minor)

    async def state(self) -> StreamState:
        """The stream as it is. ``NoStream`` if there is none."""
        answer = await self._ask("STREAM.INFO", b"")
        state = answer["state"]
        return StreamState(answer["config"], _microseconds(answer["created"]), int(state["first_seq"]), int(state["last_seq"]))

    async def last(self, subject: str) -> Stored | None:
        """The last message on a subject."""
        return await self._get({"last_by_subj": subject})

    async def get(self, seq: int) -> Stored | None:
        """The message of this number."""
        return await self._get({"seq": seq})

    async def _get(self, request: dict[str, Any]) -> Stored | None:
        answer = await self._ask("STREAM.MSG.GET", json.dumps(request).encode())
        return stored(answer["message"]) if answer else None

    async def _ask(self, what: str, request: bytes) -> dict[str, Any]:
        """The answer of the server; empty if there is no such message."""
        reply = await self._request(f"$JS.API.{what}.{self.stream}", request, None)
        error = reply.get("error")
        if error is None:
            return reply
        if error.get("err_code") == _NO_MESSAGE:
            return {}
        if error.get("err_code") == _NO_STREAM:
            raise NoStream(f"there is no stream {self.stream!r} on {self._where}")
        raise Unavailable(f"stream {self.stream!r}: {error.get('description')}")

    async def read(self, subject: str, start: int, *, headers_only: bool) -> AsyncIterator[Stored]:
        """The messages on a subject from this number of the stream on, up to the last one that there is now."""
        await self.state()  # says if there is none
        api, client = needed("nats.js.api"), await self._connected()
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=max(start, 1),
            ack_policy=api.AckPolicy.NONE,
            headers_only=headers_only or None,
            inactive_threshold=60.0,
        )
        jetstream = client.jetstream(timeout=self._timeout)
        try:
            subscription = await jetstream.pull_subscribe(subject, stream=self.stream, config=config)
            pending, count = (await subscription.consumer_info()).num_pending, 0
            size = _FETCH if headers_only else _BODIES
            while pending:
                fetched = await subscription.fetch(min(pending, size), timeout=self._timeout)
                if not headers_only:
                    longest = max(len(each.data) for each in fetched) + HEADERS_MAX
                    size = min(max(_BODIES_SIZE // longest, _BODIES), _FETCH)
                for each in fetched:
                    pending, count = each.metadata.num_pending, count + 1
                    if each.metadata.sequence.consumer != count:
                        raise Unavailable("messages were lost on the way")
                    yield Stored(each.metadata.sequence.stream, each.subject, dict(each.headers or {}), each.data)
            await subscription.unsubscribe()
        except (TimeoutError, OSError, self._errors.Error) as error:
            raise Unavailable(str(error) or f"no answer from {self._where}") from error

    async def publish_batch(self, subject: str, messages: Sequence[tuple[bytes, dict[str, str]]]) -> int:
        """Store several messages, all of them or none; the number of the last one in the stream."""
        batch = {"Nats-Batch-Id": uuid4().hex}
        *others, (body, headers) = messages
        async with self._batches:
            client = await self._connected()
            try:
                for at, (each, its) in enumerate(others, 1):
                    await client.publish(subject, each, headers=its | batch | {"Nats-Batch-Sequence": str(at)})
                    _heed_cancellation()
            except (TimeoutError, OSError, self._errors.Error) as error:
                raise Unavailable(self.problem or str(error) or f"no connection to {self._where}") from error
            return await self.publish(
                subject, body, headers | batch | {"Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"}
            )

    async def publish(self, subject: str, body: bytes, headers: dict[str, str]) -> int:
        """Store a message; its number in the stream."""
        reply = await self._request(subject, body, headers)
        error = reply.get("error")
        if error is None:
            return int(reply["seq"])
        if error.get("err_code") in _WRONG_LAST:
            raise WrongLast(error.get("description"))
        if error.get("err_code") == _INCOMPLETE:
            raise Unavailable(
                f"stream {self.stream!r}: the server has dropped a batch before its end: it takes 50 of a stream at a time, or has "
                "another leader now"
            )
        raise Unavailable(f"stream {self.stream!r}: {error.get('description')}")

    async def _request(self, subject: str, body: bytes, headers: dict[str, str] | None) -> dict[str, Any]:
        client = await self._connected()
        try:
            reply = await self._answered(subject, client.request(subject, body, timeout=self._timeout, headers=headers))
        except self._errors.NoRespondersError as error:
            raise Unavailable(f"no stream on {self._where} answers on {subject}") from error
        except (TimeoutError, OSError, self._errors.Error) as error:
            raise Unavailable(self.problem or str(error) or f"no answer from {self._where}") from error
        try:
            found = json.loads(reply.data)
        except ValueError as error:
            raise Unavailable(f"the answer on {subject} is not one of JetStream") from error
        self.problem = ""
        return dict(found)

    async def _answered(self, subject: str, request: Coroutine[Any, Any, Any]) -> Any:
        """The answer to a request; ``ConnectionError`` as soon as it is known that none will come."""
        task, answer = asyncio.current_task(), None
        assert task is not None
        cancelled = task.cancelling()
        self._asking[task] = subject
        try:
            with contextlib.suppress(asyncio.CancelledError):
                answer = await request
        finally:
            del self._asking[task]
            if task in self._unanswered:
                self._unanswered.remove(task)
                task.uncancel()
        if task.cancelling() > cancelled:  # by somebody else; wait_for of Python 3.11 drops that if the answer comes just then
            raise asyncio.CancelledError
        if answer is None:
            raise ConnectionError(f"the connection to {self._where} was lost")
        return answer

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            with contextlib.suppress(OSError, TimeoutError, self._errors.Error):
                await client.close()


def _heed_cancellation() -> None:
    """Be cancelled where nats-py has swallowed that, as it does while it waits for a server that takes no more."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def stored(message: dict[str, Any]) -> Stored:
    """A message as the server answers it."""
    headers = parse_headers(base64.b64decode(message.get("hdrs", "")))
    return Stored(int(message["seq"]), message["subject"], headers, base64.b64decode(message.get("data", "")))


def parse_headers(raw: bytes) -> dict[str, str]:
    """The headers of a message, as they are on the wire."""
    lines = raw.decode(errors="replace").split("\r\n")
    if not lines[0].startswith(_FIRST_LINE):
        return {}
    pairs = [line.partition(":") for line in lines[1:] if line]
    return {name: value.strip() for name, _, value in pairs}


def _microseconds(text: str) -> int:
    """Microseconds since 1970 of a time as Go writes it, with up to nine digits of a second."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    zone = ""
    for sign in "+-":
        if sign in rest:
            rest, _, zone = rest.partition(sign)
            zone = sign + zone
    moment = datetime.fromisoformat(f"{whole}.{rest[:6]:0<6}{zone or '+00:00'}")
    return round(moment.timestamp() * 1e6)


def room_in(link: Link, state: StreamState) -> int:
    """Bytes of a body that the stream takes."""
    limit = int(state.config.get("max_msg_size", -1))
    return (link.size_max if limit <= 0 else min(link.size_max, limit)) - HEADERS_MAX
