"""The messages that a log is in a stream: subjects, headers, and what they say. Pure.

Invariants
----------
- All messages of a log are on one subject, which only this log uses. Each names the one before it on the subject, and the server
  stores it right after that one or not at all. So the subject has every record once, in order. Of an atomic batch the first message
  does that, and the others are stored right after it, with it or not at all.
- A message has records, or a part of one record, or is a marker: of records that were gone before they were shipped, or of a
  rollback.
- What a message has is known by its headers alone, and its body is checked by a checksum.
- docs/shipping-format.md has every header. ``VERSION`` changes when a reader of an older one would misread a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from pmwal.native.checksum import crc32c

VERSION = "1"

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_STREAM = "Nats-Expected-Stream"

_TOKEN = r"[A-Za-z0-9_-]+"
_PREFIX = re.compile(rf"{_TOKEN}(\.{_TOKEN})*")
_UUID = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,19}")
_SIGNED = re.compile(r"0|-?[1-9][0-9]{0,18}")

HEADERS_MAX = 2048
"""Bytes that the headers of a message take at most."""

_NAME_MAX = 512  # bytes of a host's name and of a log's name, each


def check_prefix(prefix: str) -> str:
    """A prefix of subjects; ``ValueError`` if it cannot be."""
    if not _PREFIX.fullmatch(prefix) or prefix.startswith("_INBOX"):
        raise ValueError(
            f"prefix must be words of letters, digits, '-' and '_', with dots in between, like 'pmwal', not {prefix!r}"
        )
    return prefix


def check_stream(stream: str) -> str:
    """The name of a stream; ``ValueError`` if it cannot be."""
    if not stream or any(letter in ".*>/\\" or not letter.isprintable() or letter.isspace() for letter in stream):
        raise ValueError(f"stream must be the name of a stream, without dots, wildcards and spaces, not {stream!r}")
    return stream


def as_uuid(text: str) -> str:
    """The uuid of a log as ``Reader.uuid`` has it; dashes and capitals are accepted. ``ValueError`` if it is none."""
    plain = str(text).replace("-", "").lower()
    if not _UUID.fullmatch(plain):
        raise ValueError(f"log must be the uuid of a log, 32 hexadecimal digits as pmwal info shows it, not {text!r}")
    return plain


def subject_of(prefix: str, uuid: str) -> str:
    """The subject of a log. It does not change when the log is renamed, or its host is."""
    return f"{prefix}.{uuid}"


class Stamp(NamedTuple):
    """What a record has beside its number and its payload."""

    kind: int
    time_ns: int


class Entry(NamedTuple):
    """What a message says. Records ``first`` to ``last``; none if ``last`` is before ``first``.

    - ``prev``: the stream's number of the message before it on the subject, 0 if there was none; None in an atomic batch, for the
      message that the stream has right before it.
    - ``stamp``: of a message whose body is the payload of one record.
    - ``cursor``: of record ``last``; empty if it was not known.
    - ``offset``, ``size``: where in the body of one record this part begins, and the size of the whole body; 0 for whole records.
    - ``gap``: the records are not in the stream. ``rollback``: the records after ``last`` that came before are void.
    """

    first: int
    last: int
    prev: int | None
    cursor: str = ""
    crc: int = 0
    offset: int = 0
    size: int = 0
    gap: bool = False
    rollback: bool = False
    stamp: Stamp | None = None

    def before(self, number: int) -> int:
        """The stream's number of the message before this one on the subject, of which the number is given."""
        return number - 1 if self.prev is None else self.prev

    @property
    def has_records(self) -> bool:
        """Whether its body is one of records, or a part of it."""
        return not self.gap and not self.rollback


class Source(NamedTuple):
    """From where a log is shipped: names for people."""

    host: str
    name: str


def headers_for(entry: Entry, source: Source, stream: str) -> dict[str, str]:
    """The headers of a message. ``entry.prev`` is also what the server is to expect."""
    headers = {
        EXPECTED_STREAM: stream,
        "Pmwal-Version": VERSION,
        "Pmwal-Host": _printable(source.host),
        "Pmwal-Name": _printable(source.name),
        "Pmwal-First": str(entry.first),
        "Pmwal-Last": str(entry.last),
        "Pmwal-Crc": f"{entry.crc:08x}",
    }
    if entry.prev is not None:
        headers |= {EXPECTED_SEQUENCE: str(entry.prev), "Pmwal-Prev": str(entry.prev)}
    if entry.cursor:
        headers["Pmwal-Cursor"] = entry.cursor
    if entry.stamp is not None:
        headers |= {"Pmwal-Kind": str(entry.stamp.kind), "Pmwal-Time": str(entry.stamp.time_ns)}
    if entry.size:
        headers |= {"Pmwal-Offset": str(entry.offset), "Pmwal-Size": str(entry.size)}
    if entry.gap:
        headers["Pmwal-Gap"] = f"{entry.first}-{entry.last}"
    if entry.rollback:
        headers["Pmwal-Rollback"] = str(entry.last)
    return headers


@lru_cache(maxsize=64)
def _printable(text: str) -> str:
    """As a header can have it, of bounded length."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)
    return plain[:_NAME_MAX]


def entry_of(headers: Mapping[str, str] | None) -> Entry:
    """What a message with these headers says. ``ValueError`` if it is not one of a log, or of a newer version."""
    found = headers or {}
    version = found.get("Pmwal-Version")
    if version is None:
        raise ValueError("the message has no Pmwal-Version header, so it is not one that pmwal has shipped")
    if version != VERSION:
        raise ValueError(
            f"the message has the form of version {version}, and this pmwal knows version {VERSION}: use a newer pmwal"
        )
    entry = Entry(
        first=_number(found, "Pmwal-First"),
        last=_number(found, "Pmwal-Last"),
        prev=_number(found, "Pmwal-Prev") if "Pmwal-Prev" in found or "Pmwal-Kind" not in found else None,
        cursor=found.get("Pmwal-Cursor", ""),
        crc=int(found.get("Pmwal-Crc", "0"), 16),
        offset=_number(found, "Pmwal-Offset", "0"),
        size=_number(found, "Pmwal-Size", "0"),
        gap="Pmwal-Gap" in found,
        rollback="Pmwal-Rollback" in found,
        stamp=_stamp(found) if "Pmwal-Kind" in found else None,
    )
    single = entry.stamp is not None and entry.first != entry.last
    if entry.first < 1 or single or (entry.first != entry.last + 1 if entry.rollback else entry.last < entry.first):
        raise ValueError(f"the message cannot have the records {entry.first} to {entry.last}")
    return entry


def _stamp(headers: Mapping[str, str]) -> Stamp:
    text = headers.get("Pmwal-Time", "")
    if not _SIGNED.fullmatch(text):
        raise ValueError(f"the header Pmwal-Time of the message is {text!r}, which is no time")
    return Stamp(_number(headers, "Pmwal-Kind"), int(text))


def _number(headers: Mapping[str, str], name: str, default: str = "") -> int:
    text = headers.get(name, default)
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"the header {name} of the message is {text!r}, which is no number")
    return int(text)


def check_body(entry: Entry, body: bytes) -> None:
    """``ValueError`` if the body is not the one that was shipped."""
    if crc32c(body) != entry.crc:
        raise ValueError(
            f"the body of the message with records {entry.first} to {entry.last} has another checksum than its Pmwal-Crc header"
        )
