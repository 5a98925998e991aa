"""Requests to a collector: OTLP over HTTP with protobuf and gzip, and what its answers mean.

Invariants
----------
- Only a status of 2xx is success, and only if the answer comes to its end as far as that is known. Whatever else ends an attempt,
  the records are to be sent again, or an error is raised; so nothing is acknowledged that a collector may not have.
- The statuses that are tried again are those of the specification of OTLP: 429, 502, 503 and 504. So is everything that ends a
  connection, but for a certificate that is not trusted, which no repetition will mend.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import random
import socket
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple

from pmwal.errors import ShipError
from pmwal.ship.otlp.endpoint import Endpoint
from pmwal.ship.otlp.modules import messages

RETRIED = frozenset((429, 502, 503, 504))
PAUSE_MIN, PAUSE_MAX = 0.5, 30.0
"""Seconds before the first repetition, twice as many before each of the next ones, at most the latter; all less up to a half."""

RETRY_AFTER_MAX = 3600.0
"""Seconds that a server may ask to wait."""

_ANSWER_MAX = 1 << 20  # bytes
_SHOWN = 300  # characters of a server's error
_GZIP_LEVEL = 3  # twice as fast as 6, for a tenth more bytes


class Answer(NamedTuple):
    """What a collector said of records that it has taken: how many of them it rejects for good, and why."""

    rejected: int
    message: str


class TransientError(Exception):
    """The records may be sent again. ``after``: in how many seconds, if the server has said so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _LostError(TransientError):
    """The connection has ended before an answer began."""


def pause_before(attempt: int, after: float | None) -> float:
    """Seconds to wait before a repetition, the first of which is 1.

    >>> 0.25 <= pause_before(1, None) <= 0.5, 15 <= pause_before(1000, None) <= 30, pause_before(1, 7.0) >= 7.0
    (True, True, True)
    """
    longest = min(PAUSE_MIN * 2.0 ** min(attempt - 1, 32), PAUSE_MAX)
    pause = longest * random.uniform(0.5, 1.0)  # so that many shippers do not come back at the same time
    return pause if after is None else max(pause, min(after, RETRY_AFTER_MAX))


class Exporter:
    """Sends requests, one at a time, over a connection that is kept."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], timeout: float, tls: ssl.SSLContext | None) -> None:
        self._endpoint = endpoint
        self._headers = dict(headers) | {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
            "User-Agent": "pmwal",
        }
        self._timeout = timeout
        self._tls = (tls or ssl.create_default_context()) if endpoint.tls else None
        self._connection: HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._interrupted = False

    def send(self, body: bytes) -> Answer:
        """Send a request. Raises ``TransientError``, or ``ShipError`` if the server does not take it."""
        packed = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        if self._connection is not None:
            with contextlib.suppress(_LostError):  # a server ends a connection that was idle
                return self._sent(self._connection, packed)
        host, port = self._endpoint.host, self._endpoint.port
        if self._tls is None:
            connection = HTTPConnection(host, port, timeout=self._timeout)
        else:
            connection = HTTPSConnection(host, port, timeout=self._timeout, context=self._tls)
        return self._sent(connection, packed)

    def _sent(self, connection: HTTPConnection, packed: bytes) -> Answer:
        self._connection = None
        kept = False
        try:
            if connection.sock is None:
                connection.connect()
            self._socket = connection.sock
            if self._interrupted:  # after which no answer would be waited for
                raise TransientError(f"{self._endpoint}: interrupted")
            with contextlib.suppress(ConnectionError):  # it may have answered before it has read all
                connection.request("POST", self._endpoint.target, packed, self._headers)
            response = connection.getresponse()
            body = _body_of(response)
            kept = response.isclosed() and not response.will_close
            answer = self._judged(response, body)
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message
            raise ShipError(f"{self._endpoint}: its certificate is not trusted: {reason}; give its CA in tls=") from None
        except ConnectionError as error:
            raise _LostError(f"{self._endpoint}: {error.strerror or error}") from None
        except TimeoutError:
            raise TransientError(f"{self._endpoint}: no answer within {self._timeout:g} s") from None
        except BadStatusLine:  # what it has said instead may be of any length, and another one each time
            raise TransientError(f"{self._endpoint}: its answer is not one of HTTP; check the port") from None
        except (OSError, HTTPException) as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise TransientError(f"{self._endpoint}: {text}") from None
        finally:
            self._socket = None
            if kept:
                self._connection = connection
            else:
                connection.close()
        return answer

    def _judged(self, response: HTTPResponse, body: bytes) -> Answer:
        if 200 <= response.status < 300:
            return _answer_of(response, body)
        said = _error_of(response, body)
        text = f"{response.status} {response.reason}".strip() + (f": {said}" if said else "")
        if response.status in RETRIED:
            raise TransientError(f"{self._endpoint}: {text}", retry_after(response.headers.get("Retry-After"), time.time()))
        raise ShipError(
            f"{self._endpoint}: the server refuses the records: {text}; none of this request was acknowledged. "
            "Check to=, headers= and the server's log, and start again"
        )

    def interrupt(self) -> None:
        """From another thread: end the request that is under way, and any later one."""
        self._interrupted = True
        connected = self._socket
        if connected is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # below TLS, which the other thread is using

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds that a ``Retry-After`` header names, as a number or as a date.

    >>> retry_after("120", 0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 50.0), retry_after("soon", 0.0)
    (120.0, 10.0, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _body_of(response: HTTPResponse) -> bytes:
    """The whole body. Of one that is too long the beginning, after which the connection is not used again."""
    if response.length is None or response.length > _ANSWER_MAX:
        return response.read(_ANSWER_MAX)
    return response.read()  # IncompleteRead if it is cut off


def _answer_of(response: HTTPResponse, body: bytes) -> Answer:
    """The partial success, which no answer need have."""
    if _media_type(response) == "application/json":
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            partial = json.loads(body).get("partialSuccess") or {}
            return Answer(int(partial.get("rejectedLogRecords") or 0), str(partial.get("errorMessage") or ""))
    else:
        with contextlib.suppress(Exception):  # DecodeError, of a package that is imported when it is needed
            partial = messages().service.ExportLogsServiceResponse.FromString(body).partial_success
            return Answer(partial.rejected_log_records, partial.error_message)
    return Answer(0, "")


def _error_of(response: HTTPResponse, body: bytes) -> str:
    """What a server says of its error: a ``google.rpc.Status``, or text."""
    text = ""
    if _media_type(response) == "application/x-protobuf":
        with contextlib.suppress(Exception):  # as above. A Status has its message where this one has its
            text = messages().service.ExportLogsPartialSuccess.FromString(body).error_message
    elif _media_type(response) == "application/json":
        with contextlib.suppress(ValueError, AttributeError):
            text = str(json.loads(body).get("message") or "")
    elif _media_type(response) == "text/plain":
        text = body.decode(errors="replace")
    return " ".join("".join(char if char.isprintable() else " " for char in text[:_SHOWN]).split())


def _media_type(response: HTTPResponse) -> str:
    return response.headers.get_content_type()
