"""Archives as JSON lines, compressed with zstd: a group of records is a frame, and the summary is in a skippable frame at the end.

So ``zstdcat`` and other readers of zstd get the lines alone. Each is an object with ``seq``, ``kind`` and ``time_ns``, and with the
payload: ``data`` is text, or an object that is the payload as it is; ``data_base64`` is what is no text.
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from pmwal.logs.archives.modules import needed
from pmwal.logs.archives.summary import Group, Rows, Summary, decode_summary
from pmwal.records import Record

_SKIPPABLE = struct.Struct("<II")  # a magic number, and how many bytes follow
_MAGIC = 0x184D2A5C
_END = struct.Struct("<I4s")  # the length of the summary, and a mark
_MARK = b"pmwA"
_SUMMARY_MAX = 1 << 30
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class LinesWriter:
    """Writes one file. ``line`` makes the line of a record, as ``pmwal export`` does."""

    def __init__(self, stream: BinaryIO, line: Callable[[Record], bytes]) -> None:
        self._codec = needed("pyarrow").Codec("zstd")
        self._stream = stream
        self._line = line

    def add(self, records: list[Record], group: Group) -> Group:
        """Write a group."""
        lines = b"".join(map(self._line, records))
        frame = self._codec.compress(lines, asbytes=True)
        placed = group._replace(offset=self._stream.tell(), size=len(frame), raw=len(lines))
        self._stream.write(frame)
        return placed

    def finish(self, summary: Summary) -> None:
        """Write the end of the file."""
        text = summary.encode()
        self._stream.write(_SKIPPABLE.pack(_MAGIC, len(text) + _END.size) + text + _END.pack(len(text), _MARK))

    def abandon(self) -> None:
        """Write no more."""


class LinesFile:
    """Reads one file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._decompress = needed("pyarrow").decompress
        self._stream = stream

    @property
    def summary(self) -> Summary:
        """``ValueError`` if it is damaged."""
        size = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(max(0, size - _END.size))
        end = self._stream.read(_END.size)
        length, mark = _END.unpack(end) if len(end) == _END.size else (0, b"")
        if mark != _MARK or not 0 < length <= min(size - _END.size, _SUMMARY_MAX):
            raise ValueError("its end is missing, or pmwal archive did not write it")
        self._stream.seek(size - _END.size - length)
        return decode_summary(self._stream.read(length))

    def check(self, groups: Sequence[Group]) -> None:
        """``ValueError`` if anything is between the frames of these groups and the summary: other programs would read it."""
        size, at = self._stream.seek(0, os.SEEK_END), 0
        for group in groups:
            if group.offset != at:
                raise ValueError("its frames do not follow each other")
            at += group.size
        self._stream.seek(at)
        if self._stream.read(_SKIPPABLE.size) != _SKIPPABLE.pack(_MAGIC, size - at - _SKIPPABLE.size):
            raise ValueError("its last frame is not the summary")

    def rows(self, index: int, group: Group) -> Rows:
        """The records of a group."""
        del index
        self._stream.seek(group.offset)
        lines = self._decompress(self._stream.read(group.size), group.raw, codec="zstd", asbytes=True).splitlines()
        found = [_record_in(line) for line in lines]
        seqs, kinds, times, data = zip(*found, strict=True) if found else ((), (), (), ())
        return Rows(seqs, kinds, times, data)


def _record_in(line: bytes) -> tuple[int, int, int, bytes]:
    value = json.loads(line)
    return value["seq"], value["kind"], value["time_ns"], payload_of(value, line)


def payload_of(value: dict[str, Any], line: bytes) -> bytes:
    """The payload in an object that was read from this line. ``ValueError`` if it has none."""
    if ("data" in value) == ("data_base64" in value):
        raise ValueError('either "data" or "data_base64" is required')
    text = value.get("data", value.get("data_base64"))
    if isinstance(text, dict) and "data" in value:
        return payload_in(line)
    if not isinstance(text, str):
        raise ValueError("the payload is not a string or an object")
    return text.encode() if "data" in value else base64.b64decode(text, validate=True)


def payload_in(line: bytes) -> bytes:
    """The text of the member ``data`` of a line that ``json.loads`` accepts: a payload that was put there as it is.

    >>> payload_in(b'{"seq": 1, "data": {"price": 1.50}}')
    b'{"price": 1.50}'
    """
    text = line.decode(json.detect_encoding(line), "surrogatepass")
    found, at = "", text.index("{")
    while text[at] != "}":
        name, at = _value_at(text, at + 1)
        begin = text.index(":", at) + 1
        _, end = _value_at(text, begin)
        if name == "data":  # of several the last one counts, as for json.loads
            found = text[begin:end].strip()
        at = _after_space(text, end)
    return found.encode(errors="surrogatepass")


def _value_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value there, after white space, and where it ends."""
    return _DECODER.raw_decode(text, _after_space(text, at))


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "it matches everywhere"
    return found.end()
